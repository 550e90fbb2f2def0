"""Arithmetic of time intervals in many recordings at once.

Times are seconds from the beginning of a recording. Nothing that scoring needs loops over events or recordings, so that
hundreds of thresholds can be scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domains.common.intervals import Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Intervals:
    """Half-open intervals [start, stop) of numbered recordings.

    Args:
        recording: number of the recording of each.
        start: s.
        stop: s.

    Shape:
        all (n,); int64, float64, float64.
    """

    recording: Ints
    start: Floats
    stop: Floats

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, kept: NDArray[np.bool_] | Ints) -> Intervals:
        return Intervals(self.recording[kept], self.start[kept], self.stop[kept])

    def pairs(self, recording: int) -> Floats:
        """Those of one recording, (m, 2)."""
        kept = self.recording == recording
        return np.stack([self.start[kept], self.stop[kept]], axis=1)


def intervals(pairs: Floats, recording: int = 0) -> Intervals:
    """Intervals of one recording from (n, 2) starts and stops."""
    table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return Intervals(np.full(len(table), recording, dtype=np.int64), table[:, 0], table[:, 1])


def clipped(events: Intervals, durations: Floats) -> Intervals:
    """Cut intervals to their recordings; those that lie outside are dropped.

    An interval without length (an onset whose end is unknown) stays where it lies inside.

    Args:
        events: in any order.
        durations: s, of each recording.
    """
    ends = durations[events.recording]
    start, stop = events.start.clip(min=0.0), np.minimum(events.stop, ends)
    inside = (stop > start) | ((events.stop == events.start) & (events.start >= 0) & (events.start <= ends))
    return Intervals(events.recording, start, stop)[inside]


def grouped(events: Intervals, gap: float = 0.0) -> tuple[Ints, Ints]:
    """Find which intervals belong together: those that overlap, or lie less than `gap` seconds apart.

    Intervals may be unsorted and nested; those that only touch stay apart where `gap` is 0.

    Returns:
        Order (n,) by recording and start, and where in it each group begins (m,).
    """
    order = np.lexsort((-events.stop, events.start, events.recording)).astype(np.int64)
    if not len(order):
        return order, order
    recording, start = events.recording[order], events.start[order]
    # the farthest stop so far inside the recording: ranks in the place of seconds, so that no bit is lost
    values, ranks = np.unique(events.stop[order], return_inverse=True)
    reach = values[np.maximum.accumulate(recording * len(values) + ranks) % len(values)]
    apart = (recording[1:] != recording[:-1]) | (start[1:] - reach[:-1] >= gap)
    return order, np.flatnonzero(np.r_[True, apart]).astype(np.int64)


def merged(events: Intervals, gap: float = 0.0) -> Intervals:
    """Unite intervals that overlap or lie less than `gap` seconds apart; sorted by recording and start."""
    order, first = grouped(events, gap)
    if not len(order):
        return events
    stop = np.maximum.reduceat(events.stop[order], first)
    return Intervals(events.recording[order[first]], events.start[order[first]], stop)


def split(events: Intervals, longest: float) -> Intervals:
    """Cut intervals that are longer than `longest` seconds into pieces of that length and a rest; sorted."""
    rest, parts = events, []
    while len(rest):
        long = rest.stop - rest.start > longest
        stop = np.where(long, rest.start + longest, rest.stop)
        parts.append(Intervals(rest.recording, rest.start, stop))
        rest = Intervals(rest.recording, stop, rest.stop)[long]
    if not parts:
        return events
    pieces = Intervals(
        np.concatenate([part.recording for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.stop for part in parts]),
    )
    return pieces[np.lexsort((pieces.stop, pieces.start, pieces.recording)).astype(np.int64)]


def extended(events: Intervals, before: float, after: float, durations: Floats) -> Intervals:
    """Lengthen each interval on both sides, inside its recording."""
    start = np.maximum(0.0, events.start - before)
    return Intervals(events.recording, start, np.minimum(durations[events.recording], events.stop + after))


def first_overlap(events: Intervals, questions: Intervals) -> Floats:
    """Start of the first event that overlaps each question; NaN where none does.

    Args:
        events: sorted, none overlaps another (`merged`).
        questions: in any order.
    """
    starts = np.full(len(questions), np.nan)
    for i, recording in enumerate(questions.recording):
        low, high = np.searchsorted(events.recording, [recording, recording + 1])
        first = low + np.searchsorted(events.stop[low:high], questions.start[i], side="right")
        if first < high and events.start[first] < questions.stop[i]:
            starts[i] = events.start[first]
    return starts


class Coverage:
    """How many ticks of a clock lie inside a set of intervals, for any number of questions.

    All recordings lie one behind the other on one axis of ticks.

    Args:
        events: the set, in any order.
        durations: s, of each recording.
        rate: ticks per second.
    """

    def __init__(self, events: Intervals, durations: Floats, rate: int) -> None:
        self._rate = rate
        self._ticks = np.rint(durations * rate).astype(np.int64)
        self._base = np.cumsum(self._ticks) - self._ticks
        start, stop = self._on_axis(events)
        recording = np.zeros(len(start), dtype=np.int64)
        united = merged(Intervals(recording, start.astype(np.float64), stop.astype(np.float64)))
        self._start, stop = united.start.astype(np.int64), united.stop.astype(np.int64)
        self._length = stop - self._start
        self._before = np.cumsum(self._length) - self._length

    def _on_axis(self, events: Intervals) -> tuple[Ints, Ints]:
        base, last = self._base[events.recording], self._ticks[events.recording]
        start = np.rint(events.start * self._rate).astype(np.int64).clip(0, last)
        stop = np.rint(events.stop * self._rate).astype(np.int64).clip(0, last)
        return base + start, base + np.maximum(start, stop)

    def inside(self, events: Intervals) -> Ints:
        """Number of covered ticks in each of other intervals, (n,)."""
        start, stop = self._on_axis(events)
        return self._until(stop) - self._until(start)

    def _until(self, ticks: Ints) -> Ints:
        if not len(self._start):
            return np.zeros(len(ticks), dtype=np.int64)
        last = np.searchsorted(self._start, ticks, side="right") - 1
        place = last.clip(0)
        found = self._before[place] + np.minimum(ticks - self._start[place], self._length[place])
        return np.where(last >= 0, found, 0)
