"""Best items of a user without comparing all of them: a graph of neighbours over the item vectors."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from domains.common.errors import MissingExtraError
from domains.seqrec.ranking import Ranking

Search = Literal["exact", "faiss"]
NEIGHBOURS = 32  # links of an item in the graph
VISITED = 256  # candidates kept open while searching; at least twice what is asked for


class ApproximateSearch:
    """Items by their inner product with a user's vector (HNSW: Malkov and Yashunin, 2018, arXiv 1603.09320, by faiss).

    Scores are exact, the list may lack an item. The graph depends on the order in which threads insert items; with one
    thread (`OMP_NUM_THREADS=1`) it is the same in every run.

    Args:
        table: item vectors.

    Shape:
        table (V, D) float32.

    Raises:
        MissingExtraError: faiss is not installed.
    """

    def __init__(self, table: Tensor) -> None:
        try:
            import faiss
        except ImportError:
            raise MissingExtraError("faiss", "faiss") from None
        self.n_items, dim = table.shape
        self.index: Any = faiss.IndexHNSWFlat(dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        self.index.add(np.ascontiguousarray(table.detach().float().cpu().numpy()))

    def top(self, users: Tensor, seen: Tensor, count: int) -> Ranking:
        """Find the `count` best items of each user that are not among the seen ones.

        More are asked for than wanted, by the number of seen items, and the seen ones dropped.

        Shape:
            users (B, D), seen (B, S) int64 padded by V -> items and scores (B, min(count, V)), see `Ranking`.
        """
        count = min(count, self.n_items)
        asked = min(count + seen.shape[1], self.n_items)
        self.index.hnsw.efSearch = max(VISITED, 2 * asked)
        scores, items = self.index.search(np.ascontiguousarray(users.float().cpu().numpy()), asked)
        found = torch.from_numpy(items).to(seen.device)
        best = torch.from_numpy(scores).to(seen.device)
        missing = (found < 0) | _among(found, seen)
        best = best.masked_fill(missing, -math.inf)
        best, order = best.sort(dim=1, descending=True, stable=True)
        found = found.gather(1, order).masked_fill(best == -math.inf, self.n_items)
        return Ranking(None, found[:, :count].contiguous(), best[:, :count].contiguous())


def _among(items: Tensor, seen: Tensor) -> Tensor:
    """Where an item is one of its row's seen ones: (B, K), (B, S) -> (B, K) bool."""
    if not seen.shape[1]:
        return torch.zeros_like(items, dtype=torch.bool)
    ordered = seen.sort(dim=1).values
    place = torch.searchsorted(ordered, items).clamp(max=seen.shape[1] - 1)
    return ordered.gather(1, place) == items
