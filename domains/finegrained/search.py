"""Nearest pictures of a gallery by their features: exact in blocks, or by faiss."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from domains.common.errors import ConfigError, MissingExtraError
from domains.finegrained.reid_distances import Features, pair_distances, squared_distances
from domains.finegrained.reid_metrics import JUNK, Identified

Search = Literal["auto", "exact", "faiss"]
BLOCK = 2**22  # elements of a block of distances


class Nearest(NamedTuple):
    """The nearest pictures of each query, nearest first.

    Attributes:
        places: numbers in the gallery (Q, k) int64; -1 behind the last one.
        distance: Euclidean distances (Q, k) float32; infinite there.
    """

    places: Tensor
    distance: Tensor


def nearest(query: Tensor, gallery: Tensor, count: int, search: Search = "auto") -> Nearest:
    """Find the nearest pictures; their distances are computed again in float64, and equal ones are ordered by number.

    Args:
        query: features.
        gallery: likewise.
        count: how many of each query, at most the size of the gallery.
        search: `exact` in blocks, `faiss` (its exact flat index, with all its threads), or whichever is there.

    Shape:
        query (Q, D), gallery (G, D) float32 -> (Q, count).

    Raises:
        MissingExtraError: faiss is asked for and not installed.
        ConfigError: there is no such search.
    """
    if search not in ("auto", "exact", "faiss"):
        raise ConfigError(f"search is {search!r}; choose auto, exact or faiss")
    count = min(count, len(gallery))
    library = None if search == "exact" else _faiss(needed=search == "faiss")
    if not count or not len(query):
        nothing = torch.empty(len(query), count, dtype=torch.int64)
        return Nearest(nothing, nothing.float())
    own, others = Features(query, "euclidean", "query"), Features(gallery, "euclidean", "gallery")
    if library is not None:
        index = library.IndexFlatL2(gallery.shape[1])
        index.add(np.ascontiguousarray(gallery.float().cpu().numpy()))
        found = torch.from_numpy(index.search(np.ascontiguousarray(query.float().cpu().numpy()), count)[1])
    else:
        rows = max(BLOCK // len(gallery), 1)
        blocks = (squared_distances(own, others, slice(first, first + rows)) for first in range(0, len(query), rows))
        found = torch.cat([block.topk(count, dim=1, largest=False).indices for block in blocks]).cpu()
    found = found.sort(dim=1).values.to(query.device)
    asked = torch.arange(len(query), device=query.device)[:, None].expand_as(found)
    squared = pair_distances(own, others, asked.flatten(), found.flatten()).view(found.shape)
    squared, order = squared.sort(dim=1, stable=True)
    return Nearest(found.gather(1, order).cpu(), squared.sqrt().float().cpu())


def nearest_counted(
    query: tuple[Tensor, Identified],
    gallery: tuple[Tensor, Identified],
    count: int,
    *,
    ignore_camera: bool,
    search: Search = "auto",
) -> Nearest:
    """The nearest pictures that count: neither junk nor pictures of the query's identity by its own camera.

    Distractors count, as in Market-1501.

    Args:
        query: features (Q, D), and who they are.
        gallery: likewise (G, D).
        count: how many of each query.
        ignore_camera: pictures by the query's own camera count, too.
        search: see `nearest`.
    """
    kept = (gallery[1].identities != JUNK).nonzero().squeeze(1)
    who = Identified(gallery[1].identities[kept], gallery[1].cameras[kept])
    # at most so many of a query's nearest can fall away
    spare = 0 if ignore_camera else _most_alike(query[1], who)
    found = nearest(query[0], gallery[0][kept.to(gallery[0].device)], count + spare, search)
    mine = query[1]
    same = who.identities[found.places] == mine.identities[:, None]
    dropped = same & (who.cameras[found.places] == mine.cameras[:, None]) & (not ignore_camera)
    order = dropped.long().sort(dim=1, stable=True).indices[:, :count]
    gone = dropped.gather(1, order)
    index = kept[found.places.gather(1, order)].masked_fill(gone, -1)
    return Nearest(index, found.distance.gather(1, order).masked_fill(gone, torch.inf))


def _most_alike(query: Identified, gallery: Identified) -> int:
    """Most pictures of the gallery of a query's identity by its camera; distractors and others are of no query."""
    kept = torch.isin(gallery.identities, query.identities)
    asked, given = (
        torch.stack([who.identities[some], who.cameras[some]], 1)
        for who, some in ((query, slice(None)), (gallery, kept))
    )
    _, place = torch.unique(torch.cat([asked, given]), dim=0, return_inverse=True)
    counts = torch.bincount(place[len(asked) :], minlength=int(place.max()) + 1 if len(place) else 0)
    return int(counts[place[: len(asked)]].max()) if len(asked) else 0


def _faiss(*, needed: bool) -> Any:
    try:
        import faiss
    except ImportError:
        if needed:
            raise MissingExtraError("faiss", "faiss") from None
        return None
    return faiss
