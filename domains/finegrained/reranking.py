"""Re-ranking with k-reciprocal neighbours: Z. Zhong, L. Zheng, D. Cao, S. Li (CVPR 2017), arXiv 1701.08398.

*Re-ranking Person Re-identification with k-reciprocal Encoding*. All sets of neighbours are sparse matrices, so that
the (Q + G)^2 distances of the authors' program never exist at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.common.errors import ConfigError, MissingExtraError
from domains.finegrained.reid_distances import Features, Metric, pair_distances, squared_distances
from domains.finegrained.reid_ranking import Block

SPARSE_ROWS = 2048  # rows of a product of sparse matrices at a time
SPARE = 16  # neighbours beyond k1 that are looked at, so that equal distances are ordered by number


@dataclass(frozen=True)
class Reranking:
    """Options of re-ranking; the defaults are the paper's for Market-1501.

    Attributes:
        k1: neighbours that must be mutual.
        k2: neighbours over which the encoding is averaged; 1: none.
        weight: part of the original distance in the final one, lambda of eq. 12.

    Raises:
        ConfigError: values that cannot work.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1 or not 1 <= self.k2 <= self.k1 or not 0.0 <= self.weight <= 1.0:
            raise ConfigError(f"k1={self.k1}, k2={self.k2}, weight={self.weight}: 1 <= k2 <= k1, 0 <= weight <= 1")


def rerank(query: Tensor, gallery: Tensor, metric: Metric = "euclidean", options: Reranking | None = None) -> Tensor:
    """Re-ranked distances (Q, G) at once, for small sets; `score_features` takes the option and works in blocks."""
    blocks = reranked_blocks(query, gallery, metric, options or Reranking(), 2**23)
    return torch.cat([block.distances for block in blocks])


def reranked_blocks(
    query: Tensor, gallery: Tensor, metric: Metric, options: Reranking, block_elements: int
) -> Iterator[Block]:
    """Blocks of `(1 - weight) d_jaccard + weight d` (eq. 12), d a query's squared distance divided by its largest.

    Args:
        query: features (Q, D).
        gallery: features (G, D).
        metric: of the original distances.
        options: of re-ranking.
        block_elements: of a block of distances.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    everyone = Features(torch.cat([query, gallery]), metric)
    rows = max(block_elements // len(everyone), 1)
    neighbours, largest = _neighbours(everyone, options.k1, rows)
    encoding = _encode(everyone, neighbours, largest, options)
    own, by_entry = encoding[: len(query)], encoding[len(query) :].tocsc()
    for start in range(0, len(query), rows):
        part = slice(start, min(start + rows, len(query)))
        original = squared_distances(everyone, everyone, part)[:, len(query) :].double().clamp_(min=0.0)
        jaccard = torch.from_numpy(_jaccard(own[part], by_entry)).to(original)
        original.mul_(options.weight / largest[part, None]).add_(jaccard, alpha=1.0 - options.weight)
        yield Block(start, original)


def _neighbours(everyone: Features, k1: int, rows: int) -> tuple[np.ndarray, Tensor]:
    """Numbers of each image and its k1 nearest, nearest first (n, k1 + 1), and the largest distance of each (n,)."""
    count = min(k1 + 1, len(everyone))
    taken = min(count + SPARE, len(everyone))
    found, largest = [], []
    for start in range(0, len(everyone), rows):
        block = squared_distances(everyone, everyone, slice(start, start + rows))
        own = torch.arange(len(block), device=block.device)
        block[own, own + start] = 0.0
        largest.append(block.amax(1).double().clamp(min=1e-12))
        near = block.topk(taken, dim=1, largest=False).indices.sort(1).values
        who = (own + start)[:, None].expand_as(near)
        exact = pair_distances(everyone, everyone, who.flatten(), near.flatten()).view(near.shape)
        order = exact.sort(dim=1, stable=True).indices[:, :count]
        found.append(near.gather(1, order).cpu())
    return torch.cat(found).numpy(), torch.cat(largest)


def _encode(everyone: Features, neighbours: np.ndarray, largest: Tensor, options: Reranking) -> Any:
    """Rows of weights over images, each adding up to 1 (eq. 7), averaged over k2 neighbours (eq. 11); sparse (n, n)."""
    sparse = _scipy()
    total = len(everyone)
    mutual = _mutual(neighbours)
    half = _mutual(neighbours[:, : round(options.k1 / 2) + 1])
    sizes = np.diff(half.indptr)
    parts = []
    for start in range(0, total, SPARSE_ROWS):
        own = mutual[start : start + SPARSE_ROWS]
        # of each mutual neighbour: how many of its own half as many mutual neighbours are ours, too (eq. 4)
        shared = own.multiply(own @ half.T).tocoo()
        chosen = 3 * shared.data > 2 * sizes[shared.col]
        added = sparse.csr_matrix(
            (np.ones(chosen.sum(), np.float32), (shared.row[chosen], shared.col[chosen])), shape=own.shape
        )
        parts.append(own + added @ half)
    expanded = sparse.vstack(parts).tocsr()
    expanded.sort_indices()
    row = np.repeat(np.arange(total), np.diff(expanded.indptr))
    first, second = (torch.from_numpy(x.astype(np.int64)).to(largest.device) for x in (row, expanded.indices))
    weights = torch.exp(-pair_distances(everyone, everyone, first, second) / largest[first]).cpu().numpy()
    sums = np.bincount(row, weights, minlength=total)
    encoding = sparse.csr_matrix((weights / sums[row], expanded.indices, expanded.indptr), shape=(total, total))
    if options.k2 == 1:
        return encoding
    nearest = neighbours[:, : options.k2]
    entries = np.full(nearest.size, 1.0 / nearest.shape[1])
    mean = sparse.csr_matrix(
        (entries, nearest.ravel(), np.arange(0, nearest.size + 1, nearest.shape[1])), shape=(total, total)
    )
    return mean @ encoding


def _mutual(neighbours: np.ndarray) -> Any:
    """Ones where two images are among each other's neighbours (eq. 3); sparse (n, n)."""
    total, count = neighbours.shape
    pointers = np.arange(0, total * count + 1, count)
    shape = (total, total)
    directed = _scipy().csr_matrix((np.ones(total * count, np.float32), neighbours.ravel(), pointers), shape=shape)
    return directed.multiply(directed.T).tocsr()


def _jaccard(own: Any, by_entry: Any) -> np.ndarray:
    """`1 - sum_j min / sum_j max` of the encodings of queries and gallery (eq. 10), float64 (c, G)."""
    result = np.ones((own.shape[0], by_entry.shape[0]))
    pointers, images, values = by_entry.indptr, by_entry.indices, by_entry.data
    for i in range(own.shape[0]):
        entries = slice(own.indptr[i], own.indptr[i + 1])
        columns, weights = own.indices[entries], own.data[entries]
        sizes = pointers[columns + 1] - pointers[columns]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        index = np.repeat(pointers[columns], sizes) + within
        smaller = np.minimum(values[index], np.repeat(weights, sizes))
        both = np.bincount(images[index], smaller, minlength=by_entry.shape[0])
        result[i] = 1.0 - both / (2.0 - both)  # rows add up to 1, so the larger ones add up to 2 - the smaller
    return result


def _scipy() -> Any:
    try:
        from scipy import sparse
    except ImportError:
        raise MissingExtraError("scipy", "finegrained") from None
    return sparse
