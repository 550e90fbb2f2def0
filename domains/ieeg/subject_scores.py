"""Scores of each subject: those of its summed counts, not means over its recordings."""

from __future__ import annotations

import numpy as np

from domains.common.intervals import Floats
from domains.ieeg.evidence import Evidence
from domains.ieeg.scoring import DAY
from domains.ieeg.window_scores import BY_SUBJECT, WindowScores

EVENTS = ("event_sensitivity", "event_precision", "event_f1", "false_alarms_per_24h")
SAMPLES = ("sample_sensitivity", "sample_precision", "sample_f1")
LATENCY = "detection_latency"
# metrics whose mean over subjects is measured, too
MEANS = (*EVENTS, *SAMPLES, *BY_SUBJECT)


def window_scores(evidence: Evidence) -> WindowScores:
    """Scores of the windows of a test."""
    return WindowScores(
        evidence.labels,
        evidence.table.probability,
        evidence.positive,
        evidence.window_owner,
        len(evidence.subjects),
    )


def event_scores(reference: Floats, tp: Floats, fp: Floats, seconds: Floats | None = None) -> Floats:
    """Sensitivity, precision, F1, and of counts with a time also false alarms per 24 h; NaN where undefined.

    Shape:
        all (...) -> (3 or 4, ...).
    """
    pairs = [(tp, reference), (tp, tp + fp), (2 * tp, reference + tp + fp)]
    if seconds is not None:
        pairs.append((fp, seconds / DAY))
    return np.stack([np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) != 0) for a, b in pairs])


def subject_scores(evidence: Evidence, windows: WindowScores) -> dict[str, Floats]:
    """Each of `MEANS` of each subject, (S,)."""
    events = event_scores(*(evidence.by_subject(name) for name in ("reference", "tp", "fp", "seconds")))
    samples = event_scores(*(evidence.by_subject(f"sample_{name}") for name in ("reference", "tp", "fp")))
    named = dict(zip((*EVENTS, *SAMPLES), (*events, *samples), strict=True))
    return named | {name: windows.by_subject[name] for name in BY_SUBJECT}
