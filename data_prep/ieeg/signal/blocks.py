"""Blocks of a raw recording with their margins: mirrored at its ends, holes in it filled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.ieeg.records import F32, SignalReader

SHORT_GAP = 1.0  # s; longer runs of missing values are filled for the filters alone, and become silence behind them


class Gap(NamedTuple):
    """Missing values of a channel that nothing is put in the place of.

    Args:
        row: of the channel.
        begin: first missing sample of the recording, or of what was looked at of it.
        end: behind the last one.
    """

    row: int
    begin: int
    end: int


class Block(NamedTuple):
    """A stretch of a recording, ready to be filtered.

    Args:
        signal: without missing values.
        gaps: what is invented in it.

    Shape:
        signal (C, n) float32.
    """

    signal: F32
    gaps: list[Gap]


def read_block(reader: SignalReader, start: int, stop: int, samples: int, rate: float, reach: int = 0) -> Block:
    """Samples of a recording that may lie before its beginning or behind its end, where it is mirrored at a point.

    Missing values are filled, see `fill_gaps`. Where a gap crosses an end of the block, the samples around are looked
    at, too: what a filter makes of the samples beside a gap does not depend on the blocks.

    Args:
        reader: the recording.
        start: first sample; may be negative.
        stop: behind the last one; may exceed `samples`.
        samples: of the recording.
        rate: Hz.
        reach: samples to either side that a filter of the block takes into account.

    Shape:
        -> signal (C, stop - start) float32.
    """
    before, behind = max(-start, 0), max(stop - samples, 0)
    first = max(min(start, samples - 1 - behind), 0)
    last = min(max(stop, before + 1), samples)
    signal, gaps = _read_filled(reader, first, last, samples, rate, reach)
    if not before and not behind:
        return Block(signal[:, start - first : stop - first], gaps)
    inner = signal[:, max(start, 0) - first : min(stop, samples) - first]
    left = _mirrored(signal, max(start, 0) - first, before, forward=True)
    right = _mirrored(signal, min(stop, samples) - first - 1, behind, forward=False)
    return Block(np.concatenate([left, inner, right], axis=1), gaps)


def _mirrored(signal: F32, edge: int, count: int, *, forward: bool) -> F32:
    """`count` samples beyond a column, mirrored at its value: 2 x[edge] - x[edge +- i]; then its last one repeated."""
    steps = np.arange(count, 0, -1) if forward else np.arange(1, count + 1)
    index = np.clip(edge + steps if forward else edge - steps, 0, signal.shape[1] - 1)
    return 2 * signal[:, edge : edge + 1] - signal[:, index]


def _read_filled(reader: SignalReader, first: int, last: int, samples: int, rate: float, reach: int) -> Block:
    """Samples `first` to `last` (excluded), filled; around them is looked where a gap crosses an end."""
    signal = reader.read(first, last)
    longest = longest_line(rate, reach)
    left, right = first, last
    if first and not np.isfinite(signal[:, 0]).all():
        left = max(first - longest - 1, 0)
        signal = np.concatenate([reader.read(left, first), signal], axis=1)
    if last < samples and not np.isfinite(signal[:, -1]).all():
        right = min(last + longest + 1, samples)
        signal = np.concatenate([signal, reader.read(last, right)], axis=1)
    filled, gaps = fill_gaps(signal, rate, reach)
    gaps = [Gap(row, left + begin, left + end) for row, begin, end in gaps]
    return Block(filled[:, first - left : filled.shape[1] - (right - last)], gaps)


def longest_line(rate: float, reach: int) -> int:
    """Samples of the longest gap whose ends a filter takes into account together, or that is short."""
    return max(2 * reach, int(SHORT_GAP * rate))


def fill_gaps(signal: F32, rate: float, reach: int = 0) -> Block:
    """Put numbers in the place of what is none, so that filters meet no step, and nothing missing.

    A gap is filled with the straight line between its ends, one at an end of the signal with the value beside it. Of a
    gap that is longer than a filter reaches from both of its ends, each half has the value at its end: the other one
    may not be known, and changes nothing outside of the gap.

    Args:
        signal: of some channels.
        rate: Hz.
        reach: samples to either side that a filter takes into account.

    Shape:
        (C, n) -> signal (C, n), the same array where nothing is missing; gaps longer than 1 s, counted from its start.
    """
    # a sum is not a number when one of its terms is none, and costs far less than a mask
    rows = np.flatnonzero(~np.isfinite(signal.sum(axis=1, dtype=np.float64)))
    if not len(rows):
        return Block(signal, [])
    signal = signal.copy()
    gaps = []
    for row in rows.tolist():
        missing = ~np.isfinite(signal[row])
        _fill(signal[row], missing, longest_line(rate, reach))
        edges = np.flatnonzero(np.diff(np.r_[0, missing.astype(np.int8), 0])).tolist()
        gaps += [
            Gap(row, begin, end)
            for begin, end in zip(edges[::2], edges[1::2], strict=True)
            if end - begin > SHORT_GAP * rate
        ]
    return Block(signal, gaps)


def _fill(values: F32, missing: npt.NDArray[np.bool_], longest: int) -> None:
    """Fill a channel in place."""
    if missing.all():
        values[:] = 0
        return
    there = np.flatnonzero(~missing)
    values[missing] = np.interp(np.flatnonzero(missing), there, values[there])
    for at in np.flatnonzero(np.diff(there) - 1 > longest).tolist():
        begin, end = int(there[at]) + 1, int(there[at + 1])
        middle = (begin + end) // 2
        values[begin:middle], values[middle:end] = values[begin - 1], values[end]


def silence_gaps(made: F32, gaps: list[Gap], rows: list[list[int]], first: int, up: int, down: int) -> None:
    """Set to zero, in place, what was filtered from invented values.

    Args:
        made: filtered and resampled signal.
        gaps: of the raw one.
        rows: of `made` that each raw channel is part of.
        first: sample of the recording at which it begins; a multiple of `down`.
        up: resampling ratio, numerator.
        down: likewise, denominator.

    Shape:
        made (C, n) float32.
    """
    for gap in gaps:
        begin, end = (max(-(-(place - first) * up // down), 0) for place in (gap.begin, gap.end))
        made[rows[gap.row], begin:end] = 0
