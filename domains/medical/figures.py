"""Pictures of a diagnostic test: curves, calibration, confusion, scores, and the sources they come from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from domains.common.classification import class_names, evaluate_classification
from domains.common.classification_figures import (
    confusion,
    precision_recall_curves,
    reliability,
    roc_curves,
    score_distribution,
)
from domains.common.figures import Picture, dots
from domains.common.intervals import Estimate
from domains.medical.evaluation import RESAMPLES, strata
from domains.medical.lung_figures import overlap_distribution
from domains.medical.patients import arrays, implied_thresholds, units

SHOWN = 20  # sources of a picture


def figures(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: see `evaluate_diagnosis`; or, of lung masks, what `MEDUSABodyModule` returns.
        metrics: as it returns them; they tell the names of the classes.
    """
    if "dice" in predictions.columns:
        return [overlap_distribution(predictions)]
    labels, probabilities = arrays(predictions)
    predicted = predictions["predicted"].to_numpy().astype(np.int64)
    classes = class_names(metrics, probabilities.shape[1])
    thresholds = set(implied_thresholds(predictions).values())
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    pictures = []
    if len(np.unique(labels)) > 1:
        pictures.append(roc_curves(labels, probabilities, predicted, classes, metrics))
        pictures.append(precision_recall_curves(labels, probabilities, classes, metrics))
    pictures += [
        reliability(labels, probabilities, classes, metrics),
        confusion(labels, predicted, classes),
        score_distribution(labels, probabilities, classes, threshold),
    ]
    for name in strata(predictions):
        picture = _by_stratum(predictions, name, metrics)
        pictures += [picture] if picture is not None else []
    return pictures


def _by_stratum(predictions: pl.DataFrame, name: str, metrics: Mapping[str, Estimate]) -> Picture | None:
    """AUROC of the parts that have rows of two classes, largest first; None where fewer than two have."""
    column = predictions[name].fill_null("").cast(pl.String)
    counts = column.value_counts(sort=True).sort(["count", name], descending=[True, False])
    found: list[tuple[str, Estimate]] = []
    for value, count in counts.iter_rows():
        part = predictions.filter(column == value)
        if part["label"].n_unique() > 1 and len(found) < SHOWN:
            labels, probabilities = arrays(part)
            area = evaluate_classification(labels, probabilities, units(part), replicates=RESAMPLES)["auroc"]
            found.append((f"{value or 'unknown'} ({count:,})", area))
    if len(found) < 2:
        return None
    within = metrics.get(f"within_{name}_auroc")
    overall = metrics["auroc"].value if "auroc" in metrics else None
    figure = dots(found, label="AUROC", overall=overall, chance=0.5)
    caption = (
        f"AUROC of the rows of each {name} (in brackets how many) with 95 % intervals over patients; dashed, of all."
    )
    if within is not None:
        caption += f" Pairs of one {name} only: {within.value:.3f} [{within.low:.3f}, {within.high:.3f}]."
    return Picture(f"AUROC by {name}", caption, figure)
