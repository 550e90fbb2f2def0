"""From probabilities of windows to seizures with an onset and an end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.errors import ConfigError
from domains.common.intervals import Floats
from domains.ieeg.timeline import Intervals, grouped, merged
from domains.ieeg.window_table import WindowTable, window_table

SLACK = 1e-6  # s


@dataclass(frozen=True)
class Decisions:
    """How probabilities of windows become detections: smoothing, threshold, gaps, short ones, in this order.

    The defaults need two neighbouring windows of 5 s, the 10 s that a seizure lasts at least by the terminology of the
    American Clinical Neurophysiology Society (Hirsch et al., 2021), and leave the joining of what lies close together
    to the scoring.

    Args:
        smoothing: number of windows of the moving median or mean; 1: none. Odd where it is centred.
        method: `median`, which removes what lasts less than half of them, or `mean`.
        causal: smooth over the past alone, as a device must that raises alarms; else centred.
        min_gap: s; detections that are less apart become one, where all between was judged.
        min_duration: s; shorter detections are dropped.

    Raises:
        ConfigError: a value that makes no sense.
    """

    smoothing: int = 3
    method: Literal["median", "mean"] = "median"
    causal: bool = False
    min_gap: float = 0.0
    min_duration: float = 10.0

    def __post_init__(self) -> None:
        if self.smoothing < 1 or (not self.causal and self.smoothing % 2 == 0):
            raise ConfigError(f"smoothing is {self.smoothing} windows; give 1 (none) or an odd number")
        if self.method not in ("median", "mean"):
            raise ConfigError(f"the method of smoothing is {self.method!r}; give median or mean")
        for name in ("min_gap", "min_duration"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more seconds")


def smoothed(table: WindowTable, decisions: Decisions) -> Floats:
    """Moving median or mean of the probabilities, never across an interruption; (N,).

    At both ends of a stretch fewer windows are taken.
    """
    if decisions.smoothing == 1:
        return table.probability
    values, width = pl.col("value"), decisions.smoothing
    if decisions.method == "median":
        moving = values.rolling_median(width, min_samples=1, center=not decisions.causal)
    else:
        moving = values.rolling_mean(width, min_samples=1, center=not decisions.causal)
    frame = pl.DataFrame({"value": table.probability, "stretch": table.stretch})
    # a running sum may leave the unit interval by a rounding error
    return frame.select(moving.over("stretch").clip(0, 1)).to_series().to_numpy()


def positive_windows(
    table: WindowTable, threshold: float, decisions: Decisions, scores: Floats | None = None
) -> NDArray[np.bool_]:
    """Which windows are part of a detection.

    Args:
        table: predictions.
        threshold: a window is positive where its smoothed probability reaches it.
        decisions: options.
        scores: `smoothed(table, decisions)`, where it is known.

    Shape:
        scores, and what is returned, (N,) in the order of the table.
    """
    positive = (smoothed(table, decisions) if scores is None else scores) >= threshold
    if decisions.min_gap > 0 and positive.any():
        first, last = table.run_bounds(positive)
        close = (table.stretch[first[1:]] == table.stretch[last[:-1]]) & (
            table.onset[first[1:]] - table.end[last[:-1]] < decisions.min_gap - SLACK
        )
        positive = positive.copy()
        _fill(positive, last[:-1][close] + 1, first[1:][close] - 1, True)
    if decisions.min_duration > 0 and positive.any():
        first, last = table.run_bounds(positive)
        short = table.end[last] - table.onset[first] < decisions.min_duration - SLACK
        positive = positive.copy()
        _fill(positive, first[short], last[short], False)
    return positive


def _fill(mask: NDArray[np.bool_], first: NDArray[np.int64], last: NDArray[np.int64], value: bool) -> None:
    """Set disjoint runs of rows, both bounds included."""
    change = np.zeros(len(mask) + 1, dtype=np.int8)
    change[first] += 1
    change[last + 1] -= 1
    mask[np.cumsum(change[:-1], dtype=np.int8) > 0] = value


def decide_windows(
    predictions: pl.DataFrame, threshold: float, decisions: Decisions | None = None
) -> NDArray[np.int64]:
    """1 for windows that are part of a detection, else 0.

    Args:
        predictions: see `window_table`.
        threshold: of the smoothed probability.
        decisions: options.

    Shape:
        (N,), in the order of the predictions.

    Raises:
        PreparedDataError: see `window_table`.
    """
    table = window_table(predictions)
    result = np.zeros(len(predictions), dtype=np.int64)
    result[table.order] = positive_windows(table, threshold, decisions or Decisions())
    return result


def detected_events(predictions: pl.DataFrame, threshold: float, decisions: Decisions | None = None) -> pl.DataFrame:
    """The seizures that are detected.

    Args:
        predictions: see `window_table`.
        threshold: of the smoothed probability.
        decisions: options.

    Returns:
        Columns `recording`, `subject`, `onset`, `offset` (s), `confidence` (highest probability of its windows); by
        recording and onset.

    Raises:
        PreparedDataError: see `window_table`.
    """
    table = window_table(predictions)
    positive = positive_windows(table, threshold, decisions or Decisions())
    return event_frame(table, *events_of(table, positive))


def events_of(table: WindowTable, positive: NDArray[np.bool_]) -> tuple[Intervals, Floats]:
    """Runs of positive windows, united where windows overlap, and the highest probability of each."""
    first, last = table.run_bounds(positive)
    if not len(first):
        return table.runs(positive), np.zeros(0)
    bounds = np.stack([first, last + 1], axis=1).ravel()
    highest = np.maximum.reduceat(np.r_[table.probability, 0.0], bounds)[::2]
    runs = table.runs(positive)
    order, begins = grouped(runs)
    return merged(runs), np.maximum.reduceat(highest[order], begins)


def labelled_events(table: WindowTable) -> Intervals:
    """Seizures as far as labels of windows tell them: their ends lie on the grid of the windows."""
    if table.label is None:
        return table.runs(np.zeros(len(table.onset), dtype=bool))
    return merged(table.runs(table.label == 1))


def window_labels(table: WindowTable, events: Intervals) -> NDArray[np.int64]:
    """1 where a window touches an event, ends included; the inverse of `labelled_events`.

    Args:
        table: windows.
        events: numbered as the recordings of the table.

    Shape:
        (N,).
    """
    labels = np.zeros(len(table.onset), dtype=np.int64)
    for recording, start, stop in zip(events.recording, events.start, events.stop, strict=True):
        low, high = np.searchsorted(table.recording, [recording, recording + 1])
        begin = low + np.searchsorted(table.end[low:high], start, side="left")
        finish = low + np.searchsorted(table.onset[low:high], stop, side="right")
        labels[begin:finish] = 1
    return labels


def event_frame(table: WindowTable, events: Intervals, confidence: Floats) -> pl.DataFrame:
    """Events with the names of their recordings and subjects."""
    return pl.DataFrame(
        {
            "recording": [table.names[i] for i in events.recording],
            "subject": [table.subjects[i] for i in events.recording],
            "onset": events.start,
            "offset": events.stop,
            "confidence": confidence,
        },
        schema={
            "recording": pl.String,
            "subject": pl.String,
            "onset": pl.Float64,
            "offset": pl.Float64,
            "confidence": pl.Float64,
        },
    )
