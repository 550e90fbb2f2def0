"""Predictions of windows, checked, and put in the order of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.errors import PreparedDataError
from domains.common.intervals import Floats
from domains.ieeg.timeline import Intervals, Ints

NEEDED = ("recording", "subject", "onset", "duration", "probability_1")
JOINT = 0.01  # of a window: so far from its predecessor's end it still follows immediately


@dataclass(frozen=True)
class WindowTable:
    """Decided windows by recording (in the order of their names) and time.

    Args:
        names: of the R recordings.
        subjects: of each recording.
        recording: number of each row's recording.
        onset: beginning of the decided segment, s.
        end: its end, s.
        probability: of a seizure.
        label: 1 where the segment touches a seizure; None where nobody told.
        predicted: decision stored with the predictions; None where there is none.
        stretch: number of the uninterrupted run of windows that a row belongs to, rising.
        order: row of the given table that stands here.

    Shape:
        names, subjects (R,); all others (N,).
    """

    names: list[str]
    subjects: list[str]
    recording: Ints
    onset: Floats
    end: Floats
    probability: Floats
    label: Ints | None
    predicted: Ints | None
    stretch: Ints
    order: Ints

    @property
    def durations(self) -> Floats:
        """End of the last window of each recording, s (R,)."""
        last = np.zeros(len(self.names))
        np.maximum.at(last, self.recording[self._ends()], self.end[self._ends()])
        return last

    @property
    def judged(self) -> Floats:
        """Seconds of each recording that some window decided on (R,)."""
        first = np.flatnonzero(np.r_[True, self.stretch[1:] != self.stretch[:-1]])
        length = self.end[self._ends()] - self.onset[first]
        return np.bincount(self.recording[first], length, len(self.names)).astype(np.float64)

    def _ends(self) -> Ints:
        """Last row of each stretch."""
        return np.flatnonzero(np.r_[self.stretch[1:] != self.stretch[:-1], True]).astype(np.int64)

    def runs(self, positive: NDArray[np.bool_]) -> Intervals:
        """Runs of positive windows, each from the onset of its first to the end of its last.

        Shape:
            positive (N,), in the order of this table.
        """
        first, last = self.run_bounds(positive)
        return Intervals(self.recording[first], self.onset[first], self.end[last])

    def run_bounds(self, positive: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """First and last row of each run of positive windows."""
        if not positive.any():
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        fresh = self.stretch[1:] != self.stretch[:-1]
        begins = positive & np.r_[True, fresh | ~positive[:-1]]
        ends = positive & np.r_[fresh | ~positive[1:], True]
        return np.flatnonzero(begins).astype(np.int64), np.flatnonzero(ends).astype(np.int64)


def window_table(predictions: pl.DataFrame, *, labelled: bool = False) -> WindowTable:
    """Check predictions and sort them.

    Args:
        predictions: one row per window, in any order: columns `recording`, `subject`, `onset` and `duration` of the
            decided segment in seconds, `probability_1`; optional `label`, `predicted`.
        labelled: demand labels.

    Raises:
        PreparedDataError: no rows, missing columns, probabilities or times that are not numbers, labels other than 0
            and 1, a window that is there twice, a recording of two subjects.
    """
    needed = [*NEEDED, "label"] if labelled else list(NEEDED)
    missing = [name for name in needed if name not in predictions.columns]
    if missing:
        hint = "; were they made without labels?" if missing == ["label"] else ""
        raise PreparedDataError(f"predictions lack the columns {', '.join(missing)}{hint}")
    if predictions.is_empty():
        raise PreparedDataError("no predictions to evaluate: the split has no windows")
    names, codes = _coded(predictions["recording"])
    onset = predictions["onset"].cast(pl.Float64).to_numpy()
    order = np.lexsort((onset, codes)).astype(np.int64)
    recording, onset = codes[order], onset[order]
    duration = predictions["duration"].cast(pl.Float64).to_numpy()[order]
    probability = predictions["probability_1"].cast(pl.Float64).to_numpy()[order]
    broken = ~((probability >= 0) & (probability <= 1))
    why = "the probability is not a number from 0 to 1; the training diverged, or the signal holds no numbers"
    _refuse(broken, names, recording, onset, why)
    bad_time = ~(np.isfinite(onset) & (onset >= 0) & np.isfinite(duration) & (duration > 0))
    _refuse(bad_time, names, recording, onset, "the onset must be 0 or more seconds, the duration more than 0")
    same = recording[1:] == recording[:-1]
    twice = np.r_[False, same & (onset[1:] == onset[:-1])]
    _refuse(twice, names, recording, onset, "they are there twice; give the predictions of one run")
    end = onset + duration
    joined = same & (onset[1:] <= end[:-1] + JOINT * duration[:-1])
    stretch = np.cumsum(np.r_[False, ~joined]).astype(np.int64)
    label = _zero_or_one(predictions, "label", order) if "label" in predictions.columns else None
    predicted = _zero_or_one(predictions, "predicted", order) if "predicted" in predictions.columns else None
    subjects = _subjects(predictions, names)
    return WindowTable(names, subjects, recording, onset, end, probability, label, predicted, stretch, order)


def _coded(column: pl.Series) -> tuple[list[str], Ints]:
    text = column.cast(pl.String)
    if text.null_count():
        raise PreparedDataError(f"{text.null_count()} predictions name no recording; give each the recording it is of")
    names = text.unique().sort()
    return names.to_list(), text.cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()


def _refuse(wrong: NDArray[np.bool_], names: list[str], recording: Ints, onset: Floats, what: str) -> None:
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise PreparedDataError(
            f"{int(wrong.sum())} of {len(wrong)} windows cannot be used, first that of recording"
            f" {names[recording[first]]} at {onset[first]:g} s: {what}"
        )


def _zero_or_one(predictions: pl.DataFrame, column: str, order: Ints) -> Ints:
    values: NDArray[Any] = predictions[column].to_numpy()
    wrong = np.flatnonzero(~np.isin(values, (0, 1)))
    if len(wrong):
        raise PreparedDataError(
            f"{column} of {len(wrong)} windows is neither 0 nor 1, first {values[wrong[0]]} in row {wrong[0]};"
            " a window is seizure (1) or not (0)"
        )
    return values[order].astype(np.int64)


def _subjects(predictions: pl.DataFrame, names: list[str]) -> list[str]:
    pairs = predictions.select(pl.col("recording").cast(pl.String), pl.col("subject").cast(pl.String)).unique()
    if pairs["subject"].null_count():
        name = pairs.filter(pl.col("subject").is_null())["recording"].sort()[0]
        raise PreparedDataError(f"recording {name} has no subject; subjects are the unit of all intervals: give it one")
    if len(pairs) > len(names):
        name = pairs.filter(pl.col("recording").is_duplicated())["recording"].sort()[0]
        raise PreparedDataError(f"recording {name} belongs to several subjects; names of recordings must be unique")
    owner = dict(pairs.iter_rows())
    return [owner[name] for name in names]
