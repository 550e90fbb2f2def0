"""Event and sample scores of seizure detection after SzCORE.

J. Dan et al., "SzCORE: A Seizure Community Open-source Research Evaluation framework for the validation of EEG-based
automated seizure detection algorithms", Epilepsia, 2024 (arXiv 2402.13005).

`timescoring`, the authors' library (MIT), counts. Its merging expects sorted events, none inside another, so events are
united first; everything else is its doing. `count_events` counts the same in many recordings at once, for curves over
thresholds, where the library's masks of every tenth of a second would take minutes; tests prove that both agree.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.common.curves import ratio
from domains.common.errors import ConfigError, MissingExtraError
from domains.common.intervals import Floats
from domains.ieeg.timeline import Coverage, Intervals, clipped, extended, intervals, merged, split

EVENT_RATE = 10  # Hz, of the library's event scoring
DAY = 86_400.0  # s


@dataclass(frozen=True)
class Scoring:
    """Parameters of event scoring; the values are those of SzCORE.

    Args:
        tolerance_start: s that a detection may lie before a seizure and still find it.
        tolerance_end: s that it may lie behind.
        min_overlap: share of the seizure with its tolerances that must be detected; 0: any overlap.
        max_event_duration: s; longer events are cut into pieces of this length, so that a long false alarm counts as
            many.
        min_duration_between_events: s; events that are less apart are one.

    Raises:
        ConfigError: a value that makes no sense.
    """

    tolerance_start: float = 30.0
    tolerance_end: float = 60.0
    min_overlap: float = 0.0
    max_event_duration: float = 300.0
    min_duration_between_events: float = 90.0

    def __post_init__(self) -> None:
        for name in ("tolerance_start", "tolerance_end", "min_duration_between_events"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"scoring {name} is {getattr(self, name)}; give 0 or more seconds")
        if not self.max_event_duration > 0:
            raise ConfigError(f"scoring max_event_duration is {self.max_event_duration}; give more than 0 seconds")
        if not 0 <= self.min_overlap <= 1:
            raise ConfigError(f"scoring min_overlap is {self.min_overlap}; give a share from 0 to 1")


@dataclass(frozen=True)
class Counts:
    """What scores are made of; counts of recordings add up to those of a subject.

    Args:
        reference: true events (or samples).
        tp: those that were detected.
        fp: detections that are false.
        seconds: what was scored.
    """

    reference: int = 0
    tp: int = 0
    fp: int = 0
    seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.reference + other.reference, self.tp + other.tp, self.fp + other.fp, self.seconds + other.seconds
        )

    @property
    def sensitivity(self) -> float:
        """Share of the true events that were detected; NaN without any."""
        return ratio(self.tp, self.reference)

    @property
    def precision(self) -> float:
        """Share of the detections that are true; NaN without any."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def f1(self) -> float:
        """Harmonic mean of both; NaN where nothing happened and nothing was detected."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + (self.reference - self.tp))

    @property
    def false_alarms_per_24h(self) -> float:
        """False detections per 24 hours of recording; NaN of none."""
        return self.fp / (self.seconds / 3600 / 24) if self.seconds else float("nan")


def united(events: Any, duration: float) -> Floats:
    """Sort events of one recording, cut them to it, and unite those that overlap.

    Args:
        events: pairs (onset, offset) in seconds, in any order.
        duration: s, of the recording.

    Returns:
        (n, 2) float64.

    Raises:
        ConfigError: events that are no pairs of numbers, or end before they begin; a duration that is none.
    """
    table = np.asarray(events, dtype=np.float64)
    table = table.reshape(0, 2) if not table.size else table
    if table.ndim != 2 or table.shape[1] != 2:
        raise ConfigError(f"events have the shape {table.shape}; give pairs of onset and offset in seconds")
    wrong = np.flatnonzero(~(np.isfinite(table).all(axis=1) & (table[:, 0] <= table[:, 1])))
    if len(wrong):
        onset, offset = table[wrong[0]]
        raise ConfigError(f"event {wrong[0]} goes from {onset} to {offset} s; an event must not end before it begins")
    if not 0 < duration < math.inf:
        raise ConfigError(f"the recording has a duration of {duration} s; give more than 0")
    return merged(clipped(intervals(table), np.array([duration]))).pairs(0)


def score_events(reference: Any, detections: Any, duration: float, scoring: Scoring | None = None) -> Counts:
    """Count the events of one recording, with `timescoring`.

    Args:
        reference: true events, pairs (onset, offset) in seconds in any order.
        detections: likewise.
        duration: s, of the recording.
        scoring: parameters; by default those of SzCORE.

    Raises:
        ConfigError: see `united`.
        MissingExtraError: timescoring is not installed.
    """
    scorer, annotation = _library()
    rules = scoring or Scoring()
    ticks = round(duration * EVENT_RATE)
    true, found = (
        annotation(united(events, duration).tolist(), EVENT_RATE, ticks) for events in (reference, detections)
    )
    parameters = scorer.EventScoring.Parameters(
        toleranceStart=rules.tolerance_start,
        toleranceEnd=rules.tolerance_end,
        minOverlap=rules.min_overlap,
        maxEventDuration=rules.max_event_duration,
        minDurationBetweenEvents=rules.min_duration_between_events,
    )
    return _counts(scorer.EventScoring, EVENT_RATE, true, found, parameters)


def score_samples(reference: Any, detections: Any, duration: float, rate: int = 1) -> Counts:
    """Count the samples of one recording that are and are called seizure, with `timescoring`.

    Args:
        reference: true events, pairs (onset, offset) in seconds in any order.
        detections: likewise.
        duration: s, of the recording.
        rate: samples per second.

    Raises:
        ConfigError: see `united`.
        MissingExtraError: timescoring is not installed.
    """
    scorer, annotation = _library()
    ticks = round(duration * rate)
    true, found = (annotation(united(events, duration).tolist(), rate, ticks) for events in (reference, detections))
    return _counts(scorer.SampleScoring, rate, true, found, rate)


def _counts(scorer: Any, rate: int, *arguments: Any) -> Counts:
    # recordings shorter than a tick, and events without length and tolerance, divide by 0
    with np.errstate(divide="ignore", invalid="ignore"):
        try:
            found = scorer(*arguments)
        except ZeroDivisionError:
            return Counts()
    return Counts(int(found.refTrue), int(found.tp), int(found.fp), found.numSamples / rate)


def _library() -> tuple[Any, Any]:
    """The module `timescoring.scoring` and the class `Annotation`; the library has no types."""
    try:
        scorer = importlib.import_module("timescoring.scoring")
        return scorer, importlib.import_module("timescoring.annotations").Annotation
    except ImportError:
        raise MissingExtraError("timescoring", "ieeg") from None


@dataclass(frozen=True)
class EventCounts:
    """Counts of many recordings.

    Args:
        reference: true events of each, merged and cut.
        tp: those that were detected.
        fp: false detections.

    Shape:
        all (R,) int64.
    """

    reference: NDArray[np.int64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]


def scored_pieces(events: Intervals, durations: Floats, scoring: Scoring) -> Intervals:
    """What is counted as one event: cut to the recording, merged when near, cut when long."""
    near = merged(clipped(events, durations), scoring.min_duration_between_events)
    return split(near, scoring.max_event_duration)


def count_events(reference: Intervals, detections: Intervals, durations: Floats, scoring: Scoring) -> EventCounts:
    """`score_events` of many recordings at once.

    Args:
        reference: true events, in any order.
        detections: likewise.
        durations: s, of each recording.
        scoring: parameters.

    Shape:
        durations (R,).
    """
    pieces = scored_pieces(reference, durations, scoring)
    called = scored_pieces(detections, durations, scoring)
    wide = extended(pieces, scoring.tolerance_start, scoring.tolerance_end, durations)
    hit = detected(wide, Coverage(called, durations, EVENT_RATE), scoring)
    false = Coverage(wide[hit], durations, EVENT_RATE).inside(called) == 0
    count = len(durations)
    return EventCounts(
        np.bincount(pieces.recording, minlength=count),
        np.bincount(pieces.recording[hit], minlength=count),
        np.bincount(called.recording[false], minlength=count),
    )


def detected(wide: Intervals, found: Coverage, scoring: Scoring) -> NDArray[np.bool_]:
    """Which seizures, already extended by the tolerances, are covered enough."""
    length = wide.stop - wide.start
    covered = found.inside(wide) / EVENT_RATE
    share = np.divide(covered, length, out=np.zeros(len(wide)), where=length > 0)
    return share > scoring.min_overlap + 1e-6
