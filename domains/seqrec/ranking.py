"""Full ranking of a catalogue: the place of the wanted item, and the best items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ties = Literal["mean", "optimistic"]
SCORES = 1 << 20  # scores that exist at a time: 4 MB, which stay in the cache


@dataclass(frozen=True)
class Ranking:
    """What is known of a user after ranking all items.

    Shape:
        rank (B,) float64, items that score higher than the wanted one plus, under `mean` ties, half of those that score
        the same; infinite where the wanted item is left out itself or its score is NaN; items (B, K) int64 and scores
        (B, K) float32, best first, padded by V and -inf where fewer than K items are left.
    """

    rank: Tensor | None
    items: Tensor
    scores: Tensor


@torch.no_grad()
def rank_items(
    users: Tensor,
    table: Tensor,
    seen: Tensor,
    target: Tensor | None = None,
    *,
    top: int = 0,
    ties: Ties = "mean",
) -> Ranking:
    """Compare users with all items.

    Args:
        users: user vectors.
        table: item vectors.
        seen: items that cannot be recommended; V where a user has fewer.
        target: wanted items.
        top: how many of the best items to return.
        ties: how items count that score as much as the wanted one.

    Shape:
        users (B, D), table (V, D), seen (B, S) int64, target (B,) int64.
    """
    n_items, top = len(table), min(top, len(table))
    size = max(64, SCORES // n_items)
    ranks = users.new_empty(len(users) if target is not None else 0, dtype=torch.float64)
    items = seen.new_empty(len(users), top)
    best = users.new_empty(len(users), top)
    buffer = users.new_empty(min(size, len(users)), n_items + 1)
    for start in range(0, len(users), size):
        rows = slice(start, min(start + size, len(users)))
        padded = buffer[: rows.stop - start]
        scores = padded[:, :n_items]
        torch.mm(users[rows], table.T, out=scores)
        if target is not None:
            wanted = scores.gather(1, target[rows, None])
        padded.scatter_(1, seen[rows], -math.inf)  # padding of `seen` falls into the column behind the items
        if target is not None:
            ranks[rows] = _rank(scores, wanted, target[rows, None], ties)
        if top:
            torch.topk(scores, top, out=(best[rows], items[rows]))
    items.masked_fill_(best == -math.inf, n_items)
    return Ranking(ranks if target is not None else None, items, best)


def _rank(scores: Tensor, wanted: Tensor, target: Tensor, ties: Ties) -> Tensor:
    rank = (scores > wanted).sum(1).double()
    if ties == "mean":
        rank += ((scores == wanted).sum(1) - 1).clamp_(min=0) / 2
    found = scores.gather(1, target)[:, 0] > -math.inf  # nor is NaN
    return rank.masked_fill_(~found, math.inf)
