"""Nearest pictures of a gallery by their features: exact in blocks, or by faiss."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from domains.common.errors import ConfigError, MissingExtraError
from domains.finegrained.reid_distances import Features, squared_distances
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
    """Find the nearest pictures.

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
    if library is not None:
        index = library.IndexFlatL2(gallery.shape[1])
        index.add(np.ascontiguousarray(gallery.float().cpu().numpy()))
        squared, found = index.search(np.ascontiguousarray(query.float().cpu().numpy()), count)
        return Nearest(torch.from_numpy(found), torch.from_numpy(squared).clamp(min=0).sqrt())
    own, others = Features(query, "euclidean", "query"), Features(gallery, "euclidean", "gallery")
    rows = max(BLOCK // max(len(gallery), 1), 1)
    parts = []
    for start in range(0, len(query), rows):
        block = squared_distances(own, others, slice(start, start + rows))
        parts.append(block.topk(count, dim=1, largest=False))
    distance = torch.cat([part.values for part in parts]).clamp(min=0).sqrt()
    return Nearest(torch.cat([part.indices for part in parts]).cpu(), distance.cpu())


def nearest_counted(
    query: tuple[Tensor, Identified],
    gallery: tuple[Tensor, Identified],
    count: int,
    *,
    ignore_camera: bool,
    search: Search = "auto",
) -> Nearest:
    """The nearest pictures that count: neither junk nor pictures of the query's identity by its own camera.

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
    spare = 0 if ignore_camera or not len(who) else _most_alike(who)
    found = nearest(query[0], gallery[0][kept.to(gallery[0].device)], count + spare, search)
    mine = query[1]
    same = who.identities[found.places] == mine.identities[:, None]
    dropped = same & (who.cameras[found.places] == mine.cameras[:, None]) & (not ignore_camera)
    order = dropped.long().sort(dim=1, stable=True).indices[:, :count]
    gone = dropped.gather(1, order)
    index = kept[found.places.gather(1, order)].masked_fill(gone, -1)
    return Nearest(index, found.distance.gather(1, order).masked_fill(gone, torch.inf))


def _most_alike(who: Identified) -> int:
    """Most pictures of one identity by one camera."""
    pairs = torch.stack([who.identities, who.cameras], 1)
    return int(torch.unique(pairs, dim=0, return_counts=True)[1].max())


def _faiss(*, needed: bool) -> Any:
    try:
        import faiss
    except ImportError:
        if needed:
            raise MissingExtraError("faiss", "faiss") from None
        return None
    return faiss
