"""What a test of seizure detection found in each recording: the counts that all metrics, tables and pictures share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.errors import PreparedDataError
from domains.common.intervals import Estimate, Floats
from domains.ieeg.detections import Decisions, events_of, labelled_events, positive_windows, smoothed, window_labels
from domains.ieeg.scoring import EVENT_RATE, Scoring, detected, score_events, score_samples
from domains.ieeg.timeline import Coverage, Intervals, Ints, clipped, extended, first_overlap, merged
from domains.ieeg.window_table import WindowTable, window_table


@dataclass(frozen=True)
class Settings:
    """How predictions are judged.

    Args:
        threshold: of the probability of a seizure. None: the column `predicted` holds the final decisions of windows,
            and its runs are the detections.
        decisions: from probabilities to detections; not used without a threshold.
        scoring: parameters of event scoring.
    """

    threshold: float | None = None
    decisions: Decisions = field(default_factory=Decisions)
    scoring: Scoring = field(default_factory=Scoring)


@dataclass(frozen=True)
class Evidence:
    """Everything counted, by recording.

    Args:
        table: windows of the annotated recordings.
        labels: of the windows.
        positive: windows whose own probability reaches the threshold, without smoothing.
        scores: smoothed probability of each window, which the threshold of detections is for.
        settings: how it was counted.
        exact: seizures have the times of their annotations, not those of labelled windows.
        reference: true seizures, united.
        detections: detected ones.
        confidence: highest probability of each detection.
        counts: columns `recording`, `subject`, `seconds` (judged), `reference`, `tp`, `fp`, `sample_reference`,
            `sample_tp`, `sample_fp`; one row per recording.
        seizures: columns `recording`, `subject`, `onset`, `offset`, `detected`, `latency` (s; null if missed),
            `probability` (highest of its windows; null where none touches it); one row per true seizure.
        subjects: names, sorted.
        owner: number of the subject of each recording.
        left_out: names of recordings in which nobody looked for seizures.

    Shape:
        labels, positive, scores (N,); confidence as many as detections; owner (R,).
    """

    table: WindowTable
    labels: Ints
    positive: NDArray[np.bool_]
    scores: Floats
    settings: Settings
    exact: bool
    reference: Intervals
    detections: Intervals
    confidence: Floats
    counts: pl.DataFrame
    seizures: pl.DataFrame
    subjects: list[str]
    owner: Ints
    left_out: list[str]

    @property
    def window_owner(self) -> Ints:
        """Number of the subject of each window (N,)."""
        return self.owner[self.table.recording]

    def by_subject(self, column: str) -> Floats:
        """Sum of a column of `counts` (S,)."""
        return np.bincount(self.owner, self.counts[column].to_numpy(), len(self.subjects)).astype(np.float64)


class DetectionMetrics(dict[str, Estimate]):
    """Name -> metric, and the evidence behind, which tables and pictures show.

    Args:
        estimates: the metrics.
        evidence: what they were computed from.
    """

    def __init__(self, estimates: dict[str, Estimate], evidence: Evidence) -> None:
        super().__init__(estimates)
        self.evidence = evidence


def evidence_of(predictions: pl.DataFrame, metrics: Any) -> Evidence:
    """The evidence that metrics carry; of other mappings that of the column `predicted`."""
    return metrics.evidence if isinstance(metrics, DetectionMetrics) else gather(predictions)


def gather(predictions: pl.DataFrame, settings: Settings | None = None, events: pl.DataFrame | None = None) -> Evidence:
    """Count what was found in each annotated recording.

    Args:
        predictions: see `evaluate_detection`.
        settings: how to count.
        events: see `evaluate_detection`.

    Raises:
        PreparedDataError: see `evaluate_detection`.
    """
    rules = settings or Settings()
    known, left_out = annotated_windows(predictions)
    table = window_table(known, labelled=events is None)
    reference = labelled_events(table) if events is None else true_events(table, events)
    labels = table.label if table.label is not None else window_labels(table, reference)
    if rules.threshold is None:
        if table.predicted is None:
            raise PreparedDataError("predictions lack the column predicted; give the threshold that decides")
        positive = final = table.predicted == 1
        scores = table.probability
    else:
        scores = smoothed(table, rules.decisions)
        positive = table.probability >= rules.threshold
        final = positive_windows(table, rules.threshold, rules.decisions, scores)
    detections, confidence = events_of(table, final)
    subjects = sorted(set(table.subjects))
    place = {name: i for i, name in enumerate(subjects)}
    return Evidence(
        table=table,
        labels=labels,
        positive=positive,
        scores=scores,
        settings=rules,
        exact=events is not None,
        reference=reference,
        detections=detections,
        confidence=confidence,
        counts=_counts(table, reference, detections, rules.scoring),
        seizures=_seizures(table, reference, detections, rules.scoring),
        subjects=subjects,
        owner=np.array([place[name] for name in table.subjects], dtype=np.int64),
        left_out=left_out,
    )


def annotated_windows(predictions: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Windows of recordings in which somebody looked for seizures, and the names of the other recordings."""
    if "annotated" not in predictions.columns or "recording" not in predictions.columns or predictions.is_empty():
        return predictions, []
    known = pl.col("annotated").cast(pl.Boolean).fill_null(False)
    outside = predictions.filter(~known)["recording"].cast(pl.String).unique().sort().to_list()
    inside = predictions.filter(known) if outside else predictions
    if inside.is_empty():
        raise PreparedDataError(
            f"none of the {len(outside)} recordings is annotated, so nothing can be measured; prepare the data with"
            " their annotations, or use predict"
        )
    return inside, outside


def true_events(table: WindowTable, events: pl.DataFrame) -> Intervals:
    """Annotated seizures of the recordings of a table, united.

    Args:
        table: windows.
        events: columns `recording`, `onset`, `offset` (s), in any order; where a column `kind` tells, seizures only.

    Raises:
        PreparedDataError: columns are missing, or an event ends before it begins.
    """
    missing = [name for name in ("recording", "onset", "offset") if name not in events.columns]
    if missing:
        raise PreparedDataError(f"the events lack the columns {', '.join(missing)}; give those of the prepared data")
    if "kind" in events.columns:
        events = events.filter(pl.col("kind") == "seizure")
    place = {name: i for i, name in enumerate(table.names)}
    chosen = events.filter(pl.col("recording").cast(pl.String).is_in(table.names))
    onset, offset = (chosen[name].cast(pl.Float64).to_numpy() for name in ("onset", "offset"))
    names = chosen["recording"].cast(pl.String).to_list()
    wrong = np.flatnonzero(~(np.isfinite(onset) & np.isfinite(offset) & (onset <= offset)))
    if len(wrong):
        i = int(wrong[0])
        raise PreparedDataError(
            f"a seizure of recording {names[i]} goes from {onset[i]} to {offset[i]} s; correct its annotation"
        )
    recording = np.array([place[name] for name in names], dtype=np.int64)
    return merged(clipped(Intervals(recording, onset, offset), table.durations))


def _counts(table: WindowTable, reference: Intervals, detections: Intervals, scoring: Scoring) -> pl.DataFrame:
    durations = table.durations
    rows = []
    for i, duration in enumerate(durations):
        true, found = reference.pairs(i), detections.pairs(i)
        events = score_events(true, found, float(duration), scoring)
        samples = score_samples(true, found, float(duration))
        rows.append(
            {
                "reference": events.reference,
                "tp": events.tp,
                "fp": events.fp,
                "sample_reference": samples.reference,
                "sample_tp": samples.tp,
                "sample_fp": samples.fp,
            }
        )
    names = {"recording": table.names, "subject": table.subjects, "seconds": table.judged}
    return pl.concat([pl.DataFrame(names), pl.DataFrame(rows)], how="horizontal")


def _seizures(table: WindowTable, reference: Intervals, detections: Intervals, scoring: Scoring) -> pl.DataFrame:
    """One row per annotated seizure.

    The rule of the scoring finds it, without its merging and cutting of the seizures. The latency is that of the first
    detection during the seizure, else within the tolerances, but not earlier than the tolerance before the seizure.
    """
    durations = table.durations
    inside = clipped(detections, durations)
    alone, called = merged(inside), merged(inside, scoring.min_duration_between_events)
    wide = extended(reference, scoring.tolerance_start, scoring.tolerance_end, durations)
    hit = detected(wide, Coverage(called, durations, EVENT_RATE), scoring)
    starts = np.stack([first_overlap(alone, reference), first_overlap(alone, wide), first_overlap(called, wide)])
    start = np.where(np.isfinite(starts[0]), starts[0], np.where(np.isfinite(starts[1]), starts[1], starts[2]))
    latency = np.where(hit, np.maximum(start, wide.start) - reference.start, np.nan)
    highest: list[float | None] = []
    for i, recording in enumerate(reference.recording):
        low, high = np.searchsorted(table.recording, [recording, recording + 1])
        begin = low + np.searchsorted(table.end[low:high], reference.start[i], side="right")
        finish = max(low + np.searchsorted(table.onset[low:high], reference.stop[i], side="left"), begin)
        highest.append(float(table.probability[begin:finish].max()) if finish > begin else None)
    return pl.DataFrame(
        {
            "recording": [table.names[i] for i in reference.recording],
            "subject": [table.subjects[i] for i in reference.recording],
            "onset": reference.start,
            "offset": reference.stop,
            "detected": hit,
            "latency": pl.Series(latency, nan_to_null=True),
            "probability": pl.Series(highest, dtype=pl.Float64),
        },
        schema_overrides={"recording": pl.String, "subject": pl.String, "detected": pl.Boolean},
    )
