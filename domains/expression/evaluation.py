"""How well expressions are recognised, before and after reliability balancing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.classification import LARGE, class_names, evaluate_classification
from domains.common.errors import PreparedDataError
from domains.common.figures import WARNINGS
from domains.common.intervals import Estimate, Floats, WeightedMetric, group_bootstrap
from domains.expression.doubts import doubts

COMPARED = ("accuracy", "macro_f1", "ece", "ece_15", "log_loss")  # measured of both distributions
SCALED = ("ece", "ece_15", "log_loss")  # what temperature scaling changes
WIDTHS = 15  # bins of `ece_15`
# columns of predictions -> what is measured of them
DECIDED = ("accuracy", "macro_f1")  # of what has decisions and no probabilities
DISTRIBUTIONS = {"primary": COMPARED, "corrected": COMPARED, "primary_calibrated": SCALED, "calibrated": SCALED}
TITLES = {
    "primary": "before balancing",
    "primary_calibrated": "before balancing, scaled",
    "corrected": "after balancing",
    "calibrated": "after balancing and scaling",
}
Cell = float | int | str


def evaluate_expressions(
    predictions: pl.DataFrame, classes: Sequence[str], *, replicates: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Metrics of `evaluate_classification`, and of the primary and the corrected distribution beside each other.

    `accuracy_primary` and so on are of the distribution before balancing, `accuracy_corrected` of that after it;
    `accuracy_gain` is their difference on the same resamples. `ece_primary_calibrated`, `ece_calibrated` and their
    `ece_15` and `log_loss` are of both after temperature scaling, which changes no decision. `ece_15` is the expected
    calibration error over 15 bins of equal width (Guo et al., 2017), `ece` that over bins of equal mass, whose number
    depends on that of the images. `accuracy_majority` and `macro_f1_majority` are of always deciding for the commonest
    class of these labels. `macro_f1_all_classes` is that of Aff-Wild2: a class that neither occurs nor is predicted
    counts 0. Intervals resample subjects, or images of unknown subjects.

    Args:
        predictions: columns `label`, `predicted`, `probability_0` and so on, `primary_0`, `corrected_0`,
            `primary_calibrated_0`, `calibrated_0` and so on, `subject`.
        classes: names in order.
        replicates: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        PreparedDataError: there is nothing that could be measured.
    """
    labels, values = arrays(predictions)
    groups = units(predictions)
    predicted = predictions["predicted"].to_numpy().astype(np.int64)
    options: dict[str, Any] = {"replicates": replicates, "seed": seed}
    extra: dict[str, WeightedMetric] = {
        "macro_f1_all_classes": lambda w: f1_of_all_classes(labels, predicted, len(classes), w)
    }
    every = {name: distribution(predictions, name) for name in DISTRIBUTIONS}
    right = {name: p.argmax(1) == labels for name, p in every.items()}
    gained = right["corrected"].astype(np.float64) - right["primary"]
    extra["accuracy_gain"] = lambda w: float(w @ gained / w.sum())
    found = evaluate_classification(labels, values, groups, classes, predicted=predicted, extra=extra, **options)
    widths = _errors_of_equal_widths(labels, {"": values} | every, groups, **options)
    found["ece_15"] = widths[""]
    # what a network has to beat: all its probability on the class that is the commonest
    always = np.eye(len(classes))[np.full(len(labels), commonest(labels))]
    for name, p in (every | {"majority": always}).items():
        compared = evaluate_classification(labels, p, groups, classes, per_class=False, **options)
        compared |= {"ece_15": widths[name]} if name in widths else {}
        found |= {f"{metric}_{name}": compared[metric] for metric in DISTRIBUTIONS.get(name, DECIDED)}
    return found


def commonest(labels: NDArray[np.int64]) -> int:
    """The class that most of the labels (N,) are; the first of equals."""
    return int(np.bincount(labels).argmax())


def ece_15(labels: NDArray[np.int64], p: Floats) -> WeightedMetric:
    """Make the expected calibration error over 15 bins of equal width, a function of row weights.

    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger (2017), arXiv 1706.04599, eq. 3: of the most probable class, in the bins
    (0, 1/15], (1/15, 2/15] and so on.

    Shape:
        labels (N,), p (N, C).
    """
    top = p.max(1)
    bins = np.clip(np.ceil(top * WIDTHS).astype(np.int64) - 1, 0, WIDTHS - 1)
    gaps = (p.argmax(1) == labels) - top
    return lambda weights: float(np.abs(np.bincount(bins, weights * gaps)).sum() / weights.sum())


def _errors_of_equal_widths(
    labels: NDArray[np.int64], every: Mapping[str, Floats], groups: NDArray[Any], *, replicates: int, seed: int
) -> dict[str, Estimate]:
    """`ece_15` of several distributions, on the resamples of `evaluate_classification`."""
    count = next(iter(every.values())).shape[1]
    replicates = min(replicates, 200) if len(labels) * (count - 1) > LARGE else replicates
    metrics = {name: ece_15(labels, p) for name, p in every.items()}
    return group_bootstrap(metrics, len(labels), groups, replicates=replicates, seed=seed, recentre=metrics)


def f1_of_all_classes(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int, weights: Floats
) -> float:
    """`macro_f1` of `official_scores`, with rows that count as often as their weights say.

    Shape:
        labels, predicted and weights (N,).
    """
    cells = np.bincount(labels * n_classes + predicted, weights, n_classes**2).reshape(n_classes, n_classes)
    return float((2 * cells.diagonal() / np.maximum(cells.sum(1) + cells.sum(0), 1.0)).mean())


def arrays(predictions: pl.DataFrame) -> tuple[NDArray[np.int64], Floats]:
    """Labels (N,) and probabilities (N, C) of a table of predictions.

    Raises:
        PreparedDataError: the table has no labels.
    """
    if "label" not in predictions.columns:
        raise PreparedDataError("predictions lack the column label; were they made of faces without labels?")
    return predictions["label"].to_numpy().astype(np.int64), distribution(predictions, "probability")


def distribution(predictions: pl.DataFrame, name: str) -> Floats:
    """Columns `NAME_0` and so on as one array (N, C), rows summing to 1."""
    count = sum(column.startswith("probability_") for column in predictions.columns)
    columns = [predictions[f"{name}_{k}"].to_numpy().astype(np.float64) for k in range(count)]
    values = np.stack(columns, axis=1)
    shares: Floats = values / np.maximum(values.sum(1, keepdims=True), 1e-12)
    return shares


def units(predictions: pl.DataFrame) -> NDArray[np.int64]:
    """Number of the subject of each row; an image of an unknown subject has its own name there."""
    if "subject" not in predictions.columns:
        return np.arange(len(predictions))
    return predictions["subject"].rank("dense").to_numpy().astype(np.int64)


def report_tables(
    predictions: pl.DataFrame, metrics: Mapping[str, Estimate], card: Mapping[str, Any] | None = None
) -> dict[str, list[dict[str, Cell]]]:
    """Tables of a test's report: heading -> rows.

    Args:
        predictions: see `evaluate_expressions`.
        metrics: as it returns them.
        card: `dataset.json` of the data.
    """
    labels, values = arrays(predictions)
    classes = class_names(metrics, values.shape[1])
    tables: dict[str, list[dict[str, Cell]]] = {}
    warnings = doubts(predictions, classes, card or {}, metrics)
    if warnings:
        tables[WARNINGS] = [{"warning": text} for text in warnings]
    tables["Before and after balancing"] = [
        {"distribution": title, **{metric: _compared(metrics, metric, name) for metric in COMPARED}}
        for name, title in TITLES.items()
        if f"ece_{name}" in metrics
    ]
    if "accuracy_majority" in metrics:  # so that numbers below chance are seen
        row: dict[str, Cell] = {"distribution": f"always {classes[commonest(labels)]}, the commonest class"}
        row |= {metric: interval(metrics[f"{metric}_majority"]) if metric in DECIDED else "-" for metric in COMPARED}
        tables["Before and after balancing"].append(row)
    tables["What the correction changed"] = _changes(predictions, labels)
    tables["Classes"] = _classes(labels, predictions, classes, metrics)
    return tables


def _compared(metrics: Mapping[str, Estimate], metric: str, name: str) -> str:
    """A metric of a distribution; where scaling changes nothing, there is one of that before it alone."""
    return interval(metrics[f"{metric}_{name}"]) if f"{metric}_{name}" in metrics else "the same"


def _changes(predictions: pl.DataFrame, labels: NDArray[np.int64]) -> list[dict[str, Cell]]:
    before, after = (distribution(predictions, name).argmax(1) == labels for name in ("primary", "corrected"))
    return [
        {
            "images": len(labels),
            "right before and after": int((before & after).sum()),
            "mended": int((~before & after).sum()),
            "spoilt": int((before & ~after).sum()),
            "wrong before and after": int((~before & ~after).sum()),
        }
    ]


def _classes(
    labels: NDArray[np.int64], predictions: pl.DataFrame, classes: Sequence[str], metrics: Mapping[str, Estimate]
) -> list[dict[str, Cell]]:
    predicted = predictions["predicted"].to_numpy()
    rows: list[dict[str, Cell]] = []
    for k, name in enumerate(classes):
        row: dict[str, Cell] = {
            "class": name,
            "images": int((labels == k).sum()),
            "decided": int((predicted == k).sum()),
        }
        # of what never is, or is never decided for, there is no share; metrics count 0 where a class is missed so
        for title, metric, rows_of in (("recall", "sensitivity", "images"), ("precision", "ppv", "decided")):
            known = row[rows_of] and f"{metric}_{name}" in metrics
            row[title] = interval(metrics[f"{metric}_{name}"]) if known else "-"
        rows.append(row)
    return rows


def interval(estimate: Estimate) -> str:
    """Write a value with its bounds; `-` where it is undefined."""
    if estimate.value != estimate.value:
        return "-"
    bounds = f" [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.low == estimate.low else ""
    return f"{estimate.value:.3f}{bounds}"
