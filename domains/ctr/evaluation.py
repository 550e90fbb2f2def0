"""Click metrics as functions of row weights, so that a bootstrap resample costs one pass and no sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.intervals import Estimate, Floats, WeightedMetric, group_bootstrap

CALIBRATION_BINS = 15
# from here on the bootstrap's error is far below the interval's width; 1,000 resamples would take minutes
LARGE = 300_000


def evaluate_clicks(predictions: pl.DataFrame, *, replicates: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """AUC, log loss, normalised entropy, ECE, calibration ratio, and GAUC where the log names users.

    Intervals resample users where there are any, else impressions. Above 300,000 rows at most 200 resamples are drawn.

    Args:
        predictions: columns `label`, `probability`, and `group` (the user) where known.
        replicates: bootstrap resamples.
        seed: of the bootstrap.
    """
    labels = predictions["label"].to_numpy().astype(np.float64)
    probabilities = predictions["probability"].to_numpy().astype(np.float64)
    groups = predictions["group"].to_numpy() if "group" in predictions.columns else None
    metrics = click_metrics(labels, probabilities, groups)
    if len(labels) > LARGE:
        replicates = min(replicates, 200)
    return group_bootstrap(metrics, len(labels), groups, replicates=replicates, seed=seed, recentre=("ece",))


def click_metrics(
    labels: Floats, probabilities: Floats, groups: NDArray[Any] | None = None
) -> dict[str, WeightedMetric]:
    """Name -> metric of row weights.

    `auc` ties as in scikit-learn; `log_loss` in nats with probabilities clipped to [1e-6, 1 - 1e-6] as in the official
    program; `normalised_entropy` log loss over the entropy of the base rate (He et al., 2014, ADKDD); `ece` expected
    calibration error over 15 bins of equal mass (Naeini et al., 2015); `calibration_ratio` clicks predicted per click
    seen; `gauc` the AUC within each user, averaged by impressions over users with clicks and non-clicks (Zhu et al.,
    2017, arXiv 1703.02091).
    """
    clipped = probabilities.clip(1e-6, 1 - 1e-6)
    losses = -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
    metrics: dict[str, WeightedMetric] = {
        "auc": weighted_auc(labels, probabilities),
        "log_loss": lambda weights: _mean(losses, weights),
        "normalised_entropy": _normalised_entropy(labels, losses),
        "ece": _calibration_error(labels, probabilities),
        "calibration_ratio": lambda weights: _ratio(weights @ probabilities, weights @ labels),
    }
    if groups is not None:
        metrics["gauc"] = grouped_auc(labels, probabilities, groups)
    return metrics


def weighted_auc(labels: Floats, scores: Floats) -> WeightedMetric:
    """Area under the ROC curve; equal scores count half. NaN where one class has no weight."""
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], labels[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else np.zeros(0, dtype=np.int64)

    def auc(weights: Floats) -> float:
        ordered = weights[order]
        positives = np.add.reduceat(ordered * positive, starts)
        negatives = np.add.reduceat(ordered * (1 - positive), starts)
        below = np.cumsum(negatives) - negatives / 2
        return _ratio(positives @ below, positives.sum() * negatives.sum())

    return auc


def grouped_auc(labels: Floats, scores: Floats, groups: NDArray[Any]) -> WeightedMetric:
    """AUC within each group, averaged by its rows over groups that have both classes; weights must agree in a group."""
    table = (
        pl.DataFrame({"group": groups, "label": labels, "score": scores})
        .with_row_index("first")
        .with_columns(rank=pl.col("score").rank("average").over("group"))
        .group_by("group", maintain_order=True)
        .agg(
            rows=pl.len().cast(pl.Float64),
            positives=pl.col("label").sum(),
            ranks=(pl.col("rank") * pl.col("label")).sum(),
            first=pl.col("first").first(),
        )
        .with_columns(negatives=pl.col("rows") - pl.col("positives"))
    )
    mixed = table.filter((pl.col("positives") > 0) & (pl.col("negatives") > 0))
    positives, negatives = mixed["positives"].to_numpy(), mixed["negatives"].to_numpy()
    # Mann-Whitney: the rank sum of the positives, less its smallest possible value
    areas = (mixed["ranks"].to_numpy() - positives * (positives + 1) / 2) / np.maximum(positives * negatives, 1)
    rows, samples = mixed["rows"].to_numpy(), mixed["first"].to_numpy()

    def gauc(weights: Floats) -> float:
        mass = rows * weights[samples]
        return _ratio(mass @ areas, mass.sum())

    return gauc


def calibration_table(labels: Floats, probabilities: Floats, bins: int = CALIBRATION_BINS) -> pl.DataFrame:
    """Mean probability and click rate in bins of equal mass: columns `predicted`, `observed`, `rows`."""
    index = _bins(probabilities, bins)
    counts = np.bincount(index, minlength=bins)
    kept = counts > 0
    return pl.DataFrame(
        {
            "predicted": np.bincount(index, probabilities, bins)[kept] / counts[kept],
            "observed": np.bincount(index, labels, bins)[kept] / counts[kept],
            "rows": counts[kept],
        }
    )


def _bins(probabilities: Floats, bins: int) -> NDArray[np.int64]:
    edges = np.quantile(probabilities, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, probabilities, side="right")


def _calibration_error(labels: Floats, probabilities: Floats) -> WeightedMetric:
    index = _bins(probabilities, CALIBRATION_BINS)
    gaps = labels - probabilities

    def error(weights: Floats) -> float:
        return _ratio(np.abs(np.bincount(index, weights * gaps)).sum(), weights.sum())

    return error


def _normalised_entropy(labels: Floats, losses: Floats) -> WeightedMetric:
    def entropy(weights: Floats) -> float:
        rate = _mean(labels, weights)
        if not 0 < rate < 1:
            return float("nan")
        return _mean(losses, weights) / -float(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))

    return entropy


def _mean(values: Floats, weights: Floats) -> float:
    return _ratio(np.dot(weights, values), weights.sum())


def _ratio(numerator: Any, denominator: Any) -> float:
    return float(numerator / denominator) if denominator else float("nan")
