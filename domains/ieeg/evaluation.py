"""How well seizures are detected: windows, events and samples, pooled and by subject, with intervals over subjects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl

from domains.common.curves import ratio
from domains.common.errors import ConfigError
from domains.common.intervals import Estimate, Floats, joint_bootstrap
from domains.ieeg.detections import Decisions
from domains.ieeg.evidence import DetectionMetrics, Evidence, Settings, gather
from domains.ieeg.scoring import DAY, Scoring
from domains.ieeg.subject_scores import EVENTS, LATENCY, MEANS, SAMPLES, event_scores, subject_scores, window_scores
from domains.ieeg.tables import report_tables
from domains.ieeg.timeline import Ints
from domains.ieeg.window_scores import POOLED, WindowScores

__all__ = ["evaluate_detection", "report_tables"]


def evaluate_detection(
    predictions: pl.DataFrame,
    *,
    threshold: float | None = None,
    events: pl.DataFrame | None = None,
    decisions: Decisions | None = None,
    scoring: Scoring | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> DetectionMetrics:
    """Metrics with intervals over subjects.

    - Events after SzCORE: `event_sensitivity`, `event_precision`, `event_f1`, `false_alarms_per_24h` (of time that was
      judged); `detection_latency`, the median over detected seizures of their detection's onset minus their own, s,
      though a device knows of a detection only when its first windows have ended.
    - Samples of 1 s: `sample_sensitivity`, `sample_precision`, `sample_f1`.
    - Windows: see `WindowScores`; decided by the threshold alone, so that they compare with published ones.
    - `subject_mean_...` of these: a subject's score is that of its summed counts, the mean is over the subjects where
      it is defined, as in SzCORE; and `subject_median_auroc`.

    Pooled windows and events are dominated by the subjects with the longest recordings. Recordings that nobody looked
    through (`annotated` false) are left out.

    Where all resamples of a share agree on 0 or 1, its interval is that of Clopper and Pearson (1934) with as many
    trials as there are subjects that have any; of no false alarm in any, that of a Poisson count of 0.

    Args:
        predictions: one row per window, in any order: columns `recording`, `subject`, `onset` and `duration` of the
            decided segment in seconds, `probability_1`, `label`; optional `annotated`, and `predicted`.
        threshold: chosen on validation data. None: `predicted` is final.
        events: annotated seizures (columns `recording`, `onset`, `offset`). None: those that the labels of windows
            tell, whose ends lie on the grid of the windows.
        decisions: smoothing and lengths of detections.
        scoring: parameters of event scoring; by default those of SzCORE.
        replicates: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        PreparedDataError: there is nothing that could be measured, or predictions are broken.
        ConfigError: the threshold is no number.
    """
    if threshold is not None and math.isnan(threshold):
        raise ConfigError("the threshold is not a number; give one, or none to take the decisions of the predictions")
    settings = Settings(threshold, decisions or Decisions(), scoring or Scoring())
    evidence = gather(predictions, settings, events)
    windows = window_scores(evidence)
    metrics, names = _all_metrics(evidence, windows)
    found = joint_bootstrap(names, metrics, len(evidence.subjects), replicates=replicates, seed=seed, recentre=("ece",))
    for name, value in windows.exact.items():  # resamples see scores in steps
        e = found[name]
        found[name] = replace(e, value=value, low=min(e.low, value), high=max(e.high, value))
    return DetectionMetrics(_at_the_edges(found, evidence), evidence)


def _all_metrics(evidence: Evidence, windows: WindowScores) -> tuple[Callable[[Floats], list[float]], list[str]]:
    """Function of how often each subject is drawn, and the names of its values."""
    events = np.stack([evidence.by_subject(name) for name in ("reference", "tp", "fp", "seconds")])
    samples = np.stack([evidence.by_subject(f"sample_{name}") for name in ("reference", "tp", "fp")])
    single = subject_scores(evidence, windows)
    values = np.stack([single[name] for name in MEANS])  # (M, S)
    defined = np.isfinite(values)
    filled = np.where(defined, values, 0.0)
    latency, latency_owner = _latencies(evidence)
    areas = single["auroc"]

    def together(weights: Floats) -> list[float]:
        sums, counted = filled @ weights, defined @ weights
        pooled = windows(weights)
        return [
            *event_scores(*(events @ weights)),
            *event_scores(*(samples @ weights)),
            _median(latency, weights[latency_owner]),
            *(pooled[name] for name in POOLED),
            *(ratio(a, b) for a, b in zip(sums, counted, strict=True)),
            _median(areas[np.isfinite(areas)], weights[np.isfinite(areas)]),
        ]

    means = [f"subject_mean_{name}" for name in MEANS]
    return together, [*EVENTS, *SAMPLES, LATENCY, *POOLED, *means, "subject_median_auroc"]


def _latencies(evidence: Evidence) -> tuple[Floats, Ints]:
    found = evidence.seizures.filter(pl.col("latency").is_not_null())
    place = {name: i for i, name in enumerate(evidence.subjects)}
    owner = np.array([place[name] for name in found["subject"]], dtype=np.int64)
    return found["latency"].to_numpy().astype(np.float64), owner


def _median(values: Floats, weights: Floats) -> float:
    chosen = np.repeat(values, weights.astype(np.int64))
    return float(np.median(chosen)) if len(chosen) else float("nan")


def _at_the_edges(found: dict[str, Estimate], evidence: Evidence) -> dict[str, Estimate]:
    """Intervals of shares that all resamples agree on, which would have no width."""
    called, true = evidence.by_subject("tp") + evidence.by_subject("fp"), evidence.by_subject("reference")
    windows = np.bincount(evidence.window_owner, evidence.labels, len(evidence.subjects))
    decided = np.bincount(evidence.window_owner, evidence.positive, len(evidence.subjects))
    trials = {
        **dict.fromkeys(("event_sensitivity", "event_f1", "sample_sensitivity", "sample_f1"), true > 0),
        **dict.fromkeys(("event_precision", "sample_precision"), called > 0),
        **dict.fromkeys(("sensitivity", "f1", "auroc", "average_precision", "balanced_accuracy"), windows > 0),
        "precision": decided > 0,
        "specificity": true >= 0,
    }
    for name, members in trials.items():
        e = found[name]
        if e.value in (0.0, 1.0) and e.low == e.high == e.value:
            gap = 1 - math.pow((1 - e.level) / 2, 1 / max(int(members.sum()), 1))
            found[name] = replace(e, low=1 - gap) if e.value else replace(e, high=gap)
    alarms = found["false_alarms_per_24h"]
    if alarms.value == alarms.low == alarms.high == 0:
        days = evidence.by_subject("seconds").sum() / DAY
        found["false_alarms_per_24h"] = replace(alarms, high=-math.log((1 - alarms.level) / 2) / days)
    return found
