"""Sequences of different lengths in rows of one width: packed one behind the other, or padded."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]


def ragged_ranges(starts: Integers, lengths: Integers) -> Integers:
    """Join `start, start + 1, ...` of each range: (n,), (n,) -> (sum of lengths,)."""
    ends = np.cumsum(lengths)
    ranges: Integers = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
    return ranges


def pack(lengths: Integers, width: int) -> tuple[Integers, int]:
    """Place sequences in rows, longest first, each where it fits best.

    Returns:
        Flat position (row * width + column) of the first element of each sequence, and the number of rows.
    """
    starts = np.empty(len(lengths), dtype=np.int64)
    spaces: list[tuple[int, int]] = []  # (space left, row), ascending
    rows = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        place = bisect_left(spaces, (length, -1))
        if place < len(spaces):
            space, row = spaces.pop(place)
        else:
            space, row, rows = width, rows, rows + 1
        starts[i] = row * width + width - space
        insort(spaces, (space - length, row))
    return starts, rows


@dataclass(frozen=True)
class Layout:
    """Where the items of each sequence of a batch lie.

    Shape:
        items, slot, segment (R, W) int64: item or padding, place in a left-padded sequence of the longest length,
        number of the sequence; at (N,) int64 flat positions of all items, sequence by sequence.
    """

    items: Tensor
    slot: Tensor
    segment: Tensor
    at: Tensor


def lay_out(items: NDArray[Any], lengths: Integers, max_len: int, pad: int, *, packed: bool) -> Layout:
    """Arrange sequences in rows.

    Args:
        items: of all sequences, one behind the other.
        lengths: of each sequence, at most `max_len`.
        max_len: number of slots; the latest item of a sequence has the last one.
        pad: what stands where nothing is.
        packed: several sequences in a row, as many as fit; otherwise each in a row of its own, left padded.
    """
    width = int(lengths.max()) if len(lengths) else 1
    if packed:
        starts, rows = pack(lengths, width)
    else:
        starts, rows = np.arange(len(lengths)) * width + width - lengths, len(lengths)
    at = ragged_ranges(starts, lengths)
    grid = np.full((3, rows * width), 0, dtype=np.int64)
    grid[0] = pad
    grid[0, at] = items
    grid[1, at] = ragged_ranges(max_len - lengths, lengths)
    grid[2, at] = np.repeat(np.arange(len(lengths)), lengths)
    laid, slot, segment = torch.from_numpy(grid.reshape(3, rows, width)).unbind()
    return Layout(laid, slot, segment, torch.from_numpy(at))
