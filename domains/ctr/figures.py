"""Pictures of a click model's test: ROC, calibration, scores by class, AUC by user."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes
from domains.common.intervals import Estimate, Floats
from domains.ctr.evaluation import calibration_table


def figures(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: columns `label` and `probability`.
        metrics: as `evaluate_clicks` returns them.
    """
    labels = predictions["label"].to_numpy().astype(np.float64)
    probabilities = predictions["probability"].to_numpy().astype(np.float64)
    return [
        _roc(labels, probabilities, metrics["auc"]),
        _calibration(labels, probabilities, metrics["ece"]),
        _scores(labels, probabilities),
    ]


def _roc(labels: Floats, scores: Floats, auc: Estimate) -> Picture:
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.diff(scores[order]) != 0, True]  # equal scores are one point
    hits, misses = np.cumsum(labels[order])[last], np.cumsum(1 - labels[order])[last]
    step = max(1, len(hits) // 2000)
    hits, misses = np.r_[0, hits[::step], hits[-1]], np.r_[0, misses[::step], misses[-1]]
    figure, panel = axes(4.8, 4.4)
    panel.plot(misses / max(misses[-1], 1), hits / max(hits[-1], 1), color=BLUE)
    panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    panel.set_xlabel("share of non-clicks ranked above the threshold")
    panel.set_ylabel("share of clicks")
    caption = f"Area {auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}]; the diagonal is chance."
    return Picture("Receiver operating characteristic", caption, figure)


def _calibration(labels: Floats, probabilities: Floats, error: Estimate) -> Picture:
    table = calibration_table(labels, probabilities)
    rates, rows = table["observed"].to_numpy(), table["rows"].to_numpy()
    # Wilson (1927) keeps the bar inside [0, 1]
    centre = (rates + 1.92 / rows) / (1 + 3.84 / rows)
    half = 1.96 / (1 + 3.84 / rows) * np.sqrt(rates * (1 - rates) / rows + 0.96 / rows**2)
    bounds = np.clip(np.stack([rates - (centre - half), centre + half - rates]), 0, None)
    figure, panel = axes(4.8, 4.4)
    top = float(max(table["predicted"].max() or 0, rates.max(initial=0))) * 1.08 or 1.0
    panel.plot([0, top], [0, top], color=GREY, linewidth=0.8)
    panel.errorbar(table["predicted"].to_numpy(), rates, yerr=bounds, fmt="o-", color=BLUE, markersize=4, linewidth=1)
    panel.set_xlabel("mean predicted probability")
    panel.set_ylabel("observed click rate")
    caption = (
        f"Bins of equal size with 95 % Wilson bars; on the grey line predictions are right on average."
        f" Expected calibration error {error.value:.4f}."
    )
    return Picture("Calibration", caption, figure)


def _scores(labels: Floats, probabilities: Floats) -> Picture:
    figure, panel = axes(6.0, 3.4)
    edges = np.linspace(0, max(float(probabilities.max(initial=0.0)), 1e-6), 41)
    for value, name, colour in ((0, "no click", GREY), (1, "click", ORANGE)):
        chosen = probabilities[labels == value]
        if len(chosen):
            panel.hist(
                chosen,
                bins=edges.tolist(),
                weights=np.full(len(chosen), 1 / len(chosen)),
                alpha=0.65,
                color=colour,
                label=name,
            )
    panel.set_xlabel("predicted probability")
    panel.set_ylabel("share of the class")
    panel.legend(frameon=False)
    return Picture("Predicted probabilities by class", "Well separated histograms rank well.", figure)
