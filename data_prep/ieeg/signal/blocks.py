"""Blocks of a raw recording with their margins: mirrored at its ends, holes in it filled."""

from __future__ import annotations

import numpy as np

from data_prep.ieeg.records import F32, SignalReader

SHORT_GAP = 1.0  # s; longer runs of missing values become silence instead of a straight line


def read_block(reader: SignalReader, start: int, stop: int, samples: int, rate: float) -> F32:
    """Samples of a recording that may lie before its beginning or behind its end, where it is mirrored at a point.

    Missing values are interpolated (up to 1 s) or set to zero, so that filters do not spread them.

    Args:
        reader: the recording.
        start: first sample; may be negative.
        stop: behind the last one; may exceed `samples`.
        samples: of the recording.
        rate: Hz.

    Shape:
        -> (C, stop - start) float32.
    """
    before, behind = max(-start, 0), max(stop - samples, 0)
    first = max(min(start, samples - 1 - behind), 0)
    last = min(max(stop, before + 1), samples)
    signal = fill_gaps(reader.read(first, last), rate)
    if not before and not behind:
        return signal[:, start - first : stop - first]
    inner = signal[:, max(start, 0) - first : min(stop, samples) - first]
    left = _mirrored(signal, max(start, 0) - first, before, forward=True)
    right = _mirrored(signal, min(stop, samples) - first - 1, behind, forward=False)
    return np.concatenate([left, inner, right], axis=1)


def _mirrored(signal: F32, edge: int, count: int, *, forward: bool) -> F32:
    """`count` samples beyond a column, mirrored at its value: 2 x[edge] - x[edge +- i]; then its last one repeated."""
    steps = np.arange(count, 0, -1) if forward else np.arange(1, count + 1)
    index = np.clip(edge + steps if forward else edge - steps, 0, signal.shape[1] - 1)
    return 2 * signal[:, edge : edge + 1] - signal[:, index]


def fill_gaps(signal: F32, rate: float) -> F32:
    """Put numbers in the place of what is none.

    Shape:
        (C, n) -> (C, n), the same array where nothing is missing.
    """
    # a sum is not a number when one of its terms is none, and costs far less than a mask
    rows = np.flatnonzero(~np.isfinite(signal.sum(axis=1, dtype=np.float64)))
    if not len(rows):
        return signal
    signal = signal.copy()
    places = np.arange(signal.shape[1])
    for row in rows:
        missing = ~np.isfinite(signal[row])
        if missing.all():
            signal[row] = 0
            continue
        if not missing.any():
            continue
        signal[row, missing] = np.interp(places[missing], places[~missing], signal[row, ~missing])
        edges = np.flatnonzero(np.diff(np.r_[0, missing.astype(np.int8), 0]))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if end - begin > SHORT_GAP * rate:
                signal[row, begin:end] = 0
    return signal
