"""Replays the event and sample scores of timescoring 0.0.7."""

from __future__ import annotations

import math
from typing import Any

from domains.ieeg.scoring import Counts, Scoring, score_events, score_samples

EXPECTED = {"event", "sample_1hz"}


def replay_json(case: dict[str, Any]) -> dict[str, Any]:
    """Scores of each recording of a case; undefined ones are null.

    Args:
        case: `cases`, each with duration_s, reference, hypothesis and the parameters by the library's names.
    """
    return {"cases": [_scores(one) for one in case["cases"]]}


def _scores(one: dict[str, Any]) -> dict[str, Any]:
    given = one["params"]
    scoring = Scoring(
        tolerance_start=given["toleranceStart"],
        tolerance_end=given["toleranceEnd"],
        min_overlap=given["minOverlap"],
        max_event_duration=given["maxEventDuration"],
        min_duration_between_events=given["minDurationBetweenEvents"],
    )
    events = (one["reference"], one["hypothesis"], one["duration_s"])
    return {"event": _named(score_events(*events, scoring)), "sample_1hz": _named(score_samples(*events))}


def _named(counts: Counts) -> dict[str, float | None]:
    values = {
        "refTrue": float(counts.reference),
        "tp": float(counts.tp),
        "fp": float(counts.fp),
        "sensitivity": counts.sensitivity,
        "precision": counts.precision,
        "f1": counts.f1,
        "fpRate": counts.false_alarms_per_24h,
    }
    return {name: None if math.isnan(value) else value for name, value in values.items()}
