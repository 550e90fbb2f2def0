"""Which events of each user are trained on, and which are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.common.splits import assign_times

I64 = npt.NDArray[np.int64]
PREDICT = "predict"


@dataclass(frozen=True)
class SplitRule:
    """How sequences are divided.

    Args:
        kind: leave-one-out, time, or predict (everything is history).
        targets: of time: which events of a user in a period are predicted: last, first or all.
        ratios: of time: shares of events, where no thresholds are given.
        thresholds: of time: first second of valid and of test.
    """

    kind: str
    targets: str = "last"
    ratios: tuple[float, ...] = (0.8, 0.1, 0.1)
    thresholds: tuple[float, ...] = ()


class Rows(NamedTuple):
    """Rows of one split.

    Args:
        sequence: number of the sequence.
        train_end: its first so many events are training events.
        end: its first so many events are the input.

    Shape:
        each (R,) int64.
    """

    sequence: I64
    train_end: I64
    end: I64


def split_rows(rule: SplitRule, lengths: I64, seconds: I64 | None) -> tuple[dict[str, Rows], I64]:
    """Rows of each split, and how many events of each sequence are training events.

    leave-one-out: the last event is the test target, the one before the validation target; sequences of one or two
    events are for training only. time: events before the first threshold are trained on.

    Args:
        rule: the rule.
        lengths: events of each sequence, at least one.
        seconds: times of all events, sequence by sequence; only for time.

    Shape:
        lengths (S,) int64, seconds (sum of lengths,) int64 -> rows, (S,) int64.
    """
    everyone = np.arange(len(lengths), dtype=np.int64)
    if rule.kind == PREDICT:
        return {PREDICT: Rows(everyone, lengths, lengths)}, lengths
    if rule.kind == "leave-one-out":
        ends = np.where(lengths >= 3, lengths - 2, lengths)
        tested = everyone[lengths >= 3]
        held = {name: Rows(tested, ends[tested], lengths[tested] - back) for name, back in (("valid", 2), ("test", 1))}
    else:
        if seconds is None:
            raise ValueError("a split by time needs times")
        starts = np.cumsum(lengths) - lengths
        side = assign_times(seconds.astype(np.float64), rule.thresholds)
        counts = [np.add.reduceat(side == index, starts) if len(starts) else lengths for index in range(3)]
        ends = counts[0].astype(np.int64)
        bounds = np.stack([ends, ends + counts[1], lengths])
        held = {name: _targets(rule.targets, ends, *bounds[at : at + 2]) for at, name in enumerate(("valid", "test"))}
    learned = everyone[ends >= 2]
    return {"train": Rows(learned, ends[learned], ends[learned]), **held}, ends


def _targets(targets: str, ends: I64, first: I64, last: I64) -> Rows:
    """Targets among the events first..last of each sequence; the first event of all has no history."""
    first = np.maximum(first, 1)
    chosen = np.flatnonzero(first < last)
    if targets != "all":
        return Rows(chosen, ends[chosen], (first if targets == "first" else last - 1)[chosen])
    sizes = (last - first)[chosen]
    sequence = np.repeat(chosen, sizes)
    inside = np.arange(len(sequence)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return Rows(sequence, ends[sequence], first[sequence] + inside)


def repeated(users: Sequence[int] | I64, items: Sequence[int] | I64) -> npt.NDArray[np.bool_]:
    """Whether the user of each event has had its item before.

    Shape:
        users, items (N,) in chronological order of each user -> (N,) bool.
    """
    pairs = (np.asarray(users, np.int64) << 32) | np.asarray(items, np.int64)
    order = np.argsort(pairs, kind="stable")
    again = np.zeros(len(pairs), bool)
    again[order[1:]] = pairs[order[1:]] == pairs[order[:-1]]
    return again
