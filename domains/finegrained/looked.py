"""Which pictures of a test `explain` looks at: of many an even share, of retrieval with the matches of queries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.loader import mix_seed
from domains.finegrained.data import ROLES
from domains.finegrained.reid_metrics import JUNK
from domains.finegrained.reid_ranking import Matches

OTHERS = 0.25  # share of pictures of the gallery that no chosen query is to find
LARGEST = 8  # an identity gets at most one part in so many of the pictures, half of it queries


class Chosen(NamedTuple):
    """Rows of a split.

    Attributes:
        rows: ascending (n,) int64.
        among: what they were chosen among, for captions.
    """

    rows: NDArray[np.int64]
    among: str


def choose_rows(frame: pl.DataFrame, count: int, *, ignore_camera: bool = False) -> Chosen:
    """Choose pictures to look at, always the same of the same split.

    Of classes they lie evenly over the split. Of retrieval whole identities are drawn, among those of which a query has
    a true match: their queries with a match, the pictures of the gallery that show them, and for a quarter of all
    further ones of the gallery, evenly over it. Of an identity with very many pictures some are taken, so that several
    identities are looked at.

    Args:
        frame: index of the split, of retrieval with `role`, `label` and `camera`.
        count: of pictures; a split with no more of them is taken whole.
        ignore_camera: pictures by the query's own camera are matches, too.
    """
    total = len(frame)
    if "role" not in frame.columns:
        rows = _evenly(np.arange(total), count)
        return Chosen(rows, f"{len(rows):,} of {total:,} pictures of the test")
    roles = np.array([ROLES[role or ""] for role in frame["role"]])
    labels, cameras = (frame[name].to_numpy().astype(np.int64) for name in ("label", "camera"))
    given = np.flatnonzero((roles == ROLES["gallery"]) & (labels != JUNK))
    asked = np.flatnonzero(roles == ROLES["query"])
    who = [torch.from_numpy(values[some]) for some in (asked, given) for values in (labels, cameras)]
    valid = asked[(Matches.find(*who, ignore_camera=ignore_camera).counts > 0).numpy()]
    every = np.unique(labels[valid])
    rows = np.arange(total) if total <= count else _of_identities(valid, given, labels, cameras, count)
    shown = np.intersect1d(rows, valid)
    some, told = np.unique(labels[shown]), f"{len(np.intersect1d(rows, given)):,} of {len(given):,} of the gallery"
    queries = f"{len(shown):,} of {len(valid):,} queries with a true match"
    return Chosen(rows, f"{queries}, of {len(some):,} of {len(every):,} identities, and {told}")


def _of_identities(
    valid: NDArray[np.int64],
    given: NDArray[np.int64],
    labels: NDArray[np.int64],
    cameras: NDArray[np.int64],
    count: int,
) -> NDArray[np.int64]:
    """Rows of drawn identities and of further pictures of the gallery."""
    every = np.unique(labels[valid])
    if not len(every):
        return _evenly(np.arange(len(labels)), count)
    each = max(count // LARGEST // 2, 2)
    generator = torch.Generator().manual_seed(mix_seed(len(labels), len(every)))
    taken: list[NDArray[np.int64]] = []
    left = count - int(OTHERS * count)
    for label in every[_order(len(every), generator)]:
        queries = _evenly(valid[labels[valid] == label], each)
        gallery = given[labels[given] == label]
        # by camera: the first and the last stay, and with them pictures of two cameras where there are
        gallery = _evenly(gallery[np.argsort(cameras[gallery], kind="stable")], each)
        if taken and len(queries) + len(gallery) > left:
            break
        taken += [queries, gallery]
        left -= len(queries) + len(gallery)
    rows = np.concatenate(taken)
    others = np.setdiff1d(given[~np.isin(labels[given], labels[rows])], rows)
    return np.sort(np.concatenate([rows, _evenly(others, max(count - len(rows), 0))]))


def _order(count: int, generator: torch.Generator) -> NDArray[np.int64]:
    drawn: Tensor = torch.randperm(count, generator=generator)
    return drawn.numpy()


def _evenly(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most so many of some rows, evenly over them, the first and the last among them."""
    if len(rows) <= count:
        return rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(np.int64))]
