"""Pictures and tables of a test, whatever was tested: detections, a pretrained network, forecasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, dots
from domains.common.intervals import Estimate, group_bootstrap
from domains.ieeg import evaluation
from domains.ieeg import figures as detection_figures

SHOWN_SUBJECTS = 40
BINS = 120


def figures(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: of a test of any system of this domain.
        metrics: of the same.
    """
    if "probability_1" in predictions.columns:
        return detection_figures.figures(predictions, metrics)
    if "similarity" in predictions.columns:
        return _pretraining(predictions)
    return _forecasts(predictions)


def tables(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> dict[str, list[dict[str, Any]]]:
    """Make the report's tables: heading -> rows."""
    if "probability_1" in predictions.columns:
        return evaluation.report_tables(predictions, metrics)
    if "similarity" in predictions.columns:
        by_subject = predictions.group_by("subject").agg(
            pl.col("recording").n_unique().alias("recordings"),
            pl.len().alias("windows"),
            pl.col("loss", "accuracy", "similarity").mean().round(4),
        )
        return {"By subject": by_subject.sort("subject").to_dicts()}
    return {}


def _pretraining(predictions: pl.DataFrame) -> list[Picture]:
    found = []
    for (name,), part in sorted(predictions.partition_by("subject", as_dict=True).items())[:SHOWN_SUBJECTS]:
        values = part["accuracy"].to_numpy()
        metric = {"accuracy": lambda weights, values=values: float(weights @ values / weights.sum())}
        groups = part["recording"].to_numpy()
        estimate = group_bootstrap(metric, len(part), groups, replicates=200)["accuracy"]
        found.append((f"{name} ({len(part):,})", estimate))
    overall = float(predictions["accuracy"].mean())  # type: ignore[arg-type]
    figure = dots(found, label="share of next tokens found", overall=overall, chance=None)
    caption = (
        "How often the true token of the next segment is the most similar one, by subject (in brackets windows), with"
        " intervals over recordings where a subject has several; dashed, of all windows."
    )
    return [Picture("Next token by subject", caption, figure)]


def _forecasts(predictions: pl.DataFrame) -> list[Picture]:
    figure, panel = axes(8.0, 3.4)
    begin = predictions["begin"].to_numpy()
    edges = np.linspace(begin.min(), begin.max() + 1, BINS + 1)
    place = np.digitize(begin, edges) - 1
    rows = np.bincount(place, minlength=BINS)
    for column, label, colour in (("mse_last_value", "last value repeated", GREY), ("mse", "model", BLUE)):
        means = np.bincount(place, predictions[column].to_numpy(), BINS) / np.maximum(rows, 1)
        panel.plot(edges[:-1][rows > 0], means[rows > 0], color=colour, label=label, linewidth=1.4)
    panel.set_xlabel("step of the series at which the forecast begins")
    panel.set_ylabel("mean squared error")
    panel.legend(frameon=False)
    pictures = [Picture("Error over time", "Standardised units; mean of neighbouring windows.", figure)]
    names = [name for name in predictions.columns if name.startswith("mse_quarter_")]
    figure, panel = axes(5.0, 3.2)
    panel.bar(range(1, len(names) + 1), [float(predictions[name].mean()) for name in names], color=ORANGE)  # type: ignore[arg-type]
    panel.set_xticks(range(1, len(names) + 1), [f"{i} of {len(names)}" for i in range(1, len(names) + 1)])
    panel.set_xlabel("quarter of the horizon")
    panel.set_ylabel("mean squared error")
    return [*pictures, Picture("Error by distance", "The further ahead, the harder.", figure)]
