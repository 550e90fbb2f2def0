"""Pictures of a detection test: time lines, false alarms against sensitivity, subjects, curves of windows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from domains.common.classification_figures import precision_recall_curves, reliability, roc_curves, wilson
from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, plain
from domains.common.intervals import Estimate, Floats
from domains.ieeg.detections import Decisions
from domains.ieeg.evidence import Evidence, evidence_of
from domains.ieeg.recording_figures import close_up, onsets, overview, telling_recordings
from domains.ieeg.scoring import DAY
from domains.ieeg.subject_scores import subject_scores, window_scores
from domains.ieeg.threshold import EventSweep, spread_thresholds
from domains.ieeg.window_scores import WindowScores

THRESHOLDS = 40  # of the curve of events, before it is refined
SHOWN_SUBJECTS = 40
CLASSES = ("background", "seizure")


def figures(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: see `evaluate_detection`.
        metrics: as it returns them; they carry what was counted. Of others, the column `predicted` is counted again.
    """
    evidence = evidence_of(predictions, metrics)
    windows = window_scores(evidence)
    pictures = [overview(evidence)]
    if len(evidence.reference):
        pictures.append(event_operating_curve(evidence, metrics))
    if len(evidence.subjects) > 1:
        pictures.append(subjects(evidence, windows))
    pictures += [close_up(evidence, title, recording) for title, recording in telling_recordings(evidence)]
    around = onsets(evidence)
    pictures += [around] if around is not None else []
    return pictures + window_pictures(evidence, metrics)


def window_pictures(evidence: Evidence, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """ROC, precision-recall and calibration of single windows."""
    seizure = evidence.table.probability
    probabilities = np.stack([1 - seizure, seizure], axis=1)
    predicted = evidence.positive.astype(np.int64)
    pictures = []
    if len(np.unique(evidence.labels)) > 1:
        pictures.append(roc_curves(evidence.labels, probabilities, predicted, CLASSES, metrics))
        pictures.append(precision_recall_curves(evidence.labels, probabilities, CLASSES, metrics))
    pictures.append(reliability(evidence.labels, probabilities, CLASSES, metrics))
    return [Picture(f"Windows: {p.title[0].lower()}{p.title[1:]}", p.caption, p.figure) for p in pictures]


def event_operating_curve(evidence: Evidence, metrics: Mapping[str, Estimate]) -> Picture:
    """Draw the sensitivity for seizures over the false alarms per 24 h, one point per threshold."""
    settings = evidence.settings
    given = settings.threshold is not None
    decisions = settings.decisions if given else Decisions(smoothing=1, min_duration=0)
    sweep = EventSweep(evidence.table, evidence.reference, decisions, settings.scoring, evidence.scores)
    true, hits, alarms = _swept(sweep).T
    days = float(evidence.by_subject("seconds").sum()) / DAY
    figure, panel = axes(6.2, 4.4)
    panel.plot(alarms / days, hits / true, "-", color=BLUE, linewidth=1.2, marker=".", markersize=4, label="thresholds")
    point = [float(evidence.counts[name].sum()) for name in ("reference", "tp", "fp")]
    found, rate = point[1] / point[0], point[2] / days
    up, across = (_gaps(value, metrics.get(name)) for value, name in _named(found, rate))
    label = f"in use: sensitivity {found:.3f}, {rate:.2f} false alarms per 24 h"
    panel.errorbar(rate, found, xerr=across, yerr=up, fmt="o", color=ORANGE, markersize=6, elinewidth=1.2, label=label)
    panel.set_xscale("symlog", linthresh=max(1 / days, 0.1), linscale=0.5)
    panel.set_xlim(left=-0.02 * max(1 / days, 0.1))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_ylim(-0.02, 1.05)
    panel.set_xlabel("false alarms per 24 h")
    panel.set_ylabel("sensitivity (events)")
    panel.legend(frameon=False, loc="lower right", fontsize=9)
    caption = (
        "All recordings together, one point per threshold, from low ones (right) to high ones (left). Bars are the"
        " intervals at the threshold in use. The axis is logarithmic except near 0."
    )
    return Picture("Sensitivity and false alarms by threshold", caption, figure)


def _swept(sweep: EventSweep) -> Floats:
    """Counts at thresholds, falling; twice as many where the curve moves most."""
    thresholds = spread_thresholds(sweep, THRESHOLDS)
    counts = sweep.counts(thresholds)
    levels = np.unique(sweep.scores)
    for _ in range(2):
        steps = np.abs(np.diff(counts[:, 1])) / counts[0, 0] + np.abs(np.diff(np.log1p(counts[:, 2]))) / 4
        places = np.searchsorted(levels, thresholds)
        middle = (places[1:] + places[:-1]) // 2
        wide = np.flatnonzero((steps > 0) & (middle > places[:-1]))
        fresh = levels[middle[wide[np.argsort(-steps[wide], kind="stable")[: THRESHOLDS // 2]]]]
        order = np.argsort(np.r_[thresholds, fresh])
        counts = np.r_[counts, sweep.counts(fresh)][order]
        thresholds = np.r_[thresholds, fresh][order]
    return counts[::-1]


def _named(found: float, rate: float) -> tuple[tuple[float, str], tuple[float, str]]:
    return (found, "event_sensitivity"), (rate, "false_alarms_per_24h")


def _gaps(value: float, estimate: Estimate | None) -> Floats | None:
    if estimate is None or estimate.low != estimate.low:
        return None
    return np.array([[value - estimate.low], [estimate.high - value]]).clip(0)


def subjects(evidence: Evidence, windows: WindowScores) -> Picture:
    """Draw sensitivity, false alarms and AUROC of each subject, the highest event F1 on top."""
    scores = subject_scores(evidence, windows)
    ranked = np.argsort(-np.nan_to_num(scores["event_f1"], nan=-1.0), kind="stable")
    count = min(len(ranked), SHOWN_SUBJECTS)
    chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(np.int64))]
    figure = Figure(figsize=(9.0, 0.24 * len(chosen) + 1.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    places = np.arange(len(chosen))
    true, hits, false = (evidence.by_subject(name)[chosen] for name in ("reference", "tp", "fp"))
    days = evidence.by_subject("seconds")[chosen] / DAY
    known = true > 0
    shares = hits[known] / true[known]
    style = {"fmt": "o", "color": BLUE, "ecolor": GREY, "markersize": 4, "elinewidth": 1.0}
    panels[0].errorbar(shares, places[known], xerr=wilson(shares, true[known]), **style)
    panels[1].errorbar(false / days, places, xerr=poisson_gaps(false) / days, **style)
    panels[2].plot(scores["auroc"][chosen], places, "o", color=BLUE, markersize=4)
    panels[2].axvline(0.5, color=GREY, linewidth=0.8)
    for panel, name, label in zip(
        panels,
        ("event_sensitivity", "false_alarms_per_24h", "auroc"),
        ("sensitivity (events)", "false alarms per 24 h", "AUROC (windows)"),
        strict=True,
    ):
        values = scores[name][np.isfinite(scores[name])]
        if len(values):
            panel.axvline(values.mean(), color=BLUE, linewidth=0.8, linestyle="--")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel(label)
    panels[0].set_xlim(-0.03, 1.03)
    panels[0].set_yticks(places, [plain(evidence.subjects[i], 24) for i in chosen], fontsize=8)
    panels[0].set_ylim(len(chosen) - 0.5, -0.5)
    rest = f" {len(chosen)} of {len(ranked)}, evenly chosen." if len(chosen) < len(ranked) else ""
    caption = (
        "Best event F1 on top. Bars are 95 % intervals of the subject's own counts (Wilson; Poisson), dashed lines"
        f" means over subjects; windows of one subject depend on one another, so that their AUROC has no bar.{rest}"
    )
    return Picture("Subjects", caption, figure)


def poisson_gaps(counts: Floats) -> Floats:
    """Distances (2, n) to the bounds of the 95 % interval of Poisson counts (Byar's approximation of the exact one)."""
    z = 1.959964
    above, at_least = counts + 1, np.maximum(counts, 1)
    high = above * (1 - 1 / (9 * above) + z / (3 * np.sqrt(above))) ** 3
    low = at_least * (1 - 1 / (9 * at_least) - z / (3 * np.sqrt(at_least))) ** 3
    low, high = np.where(counts > 0, low, 0.0), np.where(counts > 0, high, -math.log(0.025))
    return np.stack([counts - low, high - counts]).clip(0)
