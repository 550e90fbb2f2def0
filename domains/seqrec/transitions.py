"""How often an item follows another: the sparse matrix that MQSA-TED distils (Zhu et al., 2024, eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from domains.seqrec.losses import Transitions
from domains.seqrec.packing import Integers, ragged_ranges


@dataclass(frozen=True)
class TransitionMatrix:
    """Counts C[i, j] of j following i, by rows.

    Shape:
        start (V + 1,) int64 where each row begins, tail (E,) int32 ascending in a row, count (E,) float32.
    """

    start: Integers
    tail: NDArray[np.int32]
    count: NDArray[np.float32]

    @property
    def n_items(self) -> int:
        """Size V of the catalogue."""
        return len(self.start) - 1

    def rows(self, items: NDArray[np.int64]) -> Transitions:
        """Rows of the distinct items of a batch, each with how often it stands there."""
        head, counts = np.unique(items, return_counts=True)
        first = self.start[head]
        lengths = self.start[head + 1] - first
        edges = ragged_ranges(first, lengths)
        return Transitions(
            torch.from_numpy(head),
            torch.from_numpy(counts.astype(np.float32)),
            torch.from_numpy(np.cumsum(lengths) - lengths),
            torch.from_numpy(self.tail[edges].astype(np.int64)),
            torch.from_numpy(self.count[edges]),
        )


def count_transitions(items: NDArray[np.int32], lengths: Integers, n_items: int, *, span: int = 1) -> TransitionMatrix:
    """Count pairs of items at distance 1..span in the same sequence.

    Args:
        items: of all sequences, one behind the other.
        lengths: of each sequence.
        n_items: size V of the catalogue.
        span: largest distance (the official `time_span`).

    Raises:
        ValueError: a span below 1.
    """
    if span < 1:
        raise ValueError(f"a transition spans at least one step, not {span}")
    owner = np.repeat(np.arange(len(lengths)), lengths)
    found = []
    for distance in range(1, span + 1):
        same = owner[distance:] == owner[:-distance]
        found.append(items[:-distance][same].astype(np.int64) * n_items + items[distance:][same])
    pair, count = np.unique(np.concatenate(found), return_counts=True)
    start = np.searchsorted(pair, np.arange(n_items + 1, dtype=np.int64) * n_items)
    return TransitionMatrix(start.astype(np.int64), (pair % n_items).astype(np.int32), count.astype(np.float32))
