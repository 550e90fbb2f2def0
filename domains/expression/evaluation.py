"""How well expressions are recognised, before and after reliability balancing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.classification import class_names, evaluate_classification
from domains.common.errors import PreparedDataError
from domains.common.figures import WARNINGS
from domains.common.intervals import Estimate, Floats, WeightedMetric

COMPARED = ("accuracy", "macro_f1", "ece", "log_loss")  # measured of both distributions
SCALED = ("ece", "log_loss")  # what temperature scaling changes
# columns of predictions -> what is measured of them
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
    `log_loss` are of both after temperature scaling, which changes no decision. `macro_f1_all_classes` is that of
    Aff-Wild2: a class that neither occurs nor is predicted counts 0. Intervals resample subjects, or images of unknown
    subjects.

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
    for name, p in every.items():
        compared = evaluate_classification(labels, p, groups, classes, per_class=False, **options)
        found |= {f"{metric}_{name}": compared[metric] for metric in DISTRIBUTIONS[name]}
    return found


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
    warnings = doubts(predictions, classes, card or {})
    if warnings:
        tables[WARNINGS] = [{"warning": text} for text in warnings]
    tables["Before and after balancing"] = [
        {"distribution": title, **{metric: _compared(metrics, metric, name) for metric in COMPARED}}
        for name, title in TITLES.items()
        if f"ece_{name}" in metrics
    ]
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
        for title, metric in (("recall", "sensitivity"), ("precision", "ppv")):
            row[title] = interval(metrics[f"{metric}_{name}"]) if f"{metric}_{name}" in metrics else "-"
        rows.append(row)
    return rows


def doubts(predictions: pl.DataFrame, classes: Sequence[str], card: Mapping[str, Any]) -> list[str]:
    """What makes the numbers better than they are, or says little of them: copies, contradicting labels, subjects."""
    found = []
    duplicates = card.get("duplicates") or {}
    across = (duplicates.get("exact") or {}).get("images_across") or {}
    for border, images in sorted(across.items()):
        one, other = border.split("-")
        kept = "" if not duplicates.get("dropped") else f" (left out: {duplicates['dropped']})"
        found.append(
            f"{sum(images.values()):,} images of {one} and {other} are copies of each other{kept}; see"
            " duplicates.parquet of the prepared data."
        )
    conflicts = duplicates.get("groups_with_several_labels") or 0
    if conflicts:
        found.append(f"{conflicts:,} groups of equal images have several labels: no model can be right about all.")
    group = card.get("group") or {}
    unknown = group.get("images_of_unknown_subjects") or 0
    if unknown:
        found.append(f"The {group.get('name', 'subject')} of {unknown:,} images is not known: one may be on two sides.")
    elif group and not group.get("kept_apart"):
        found.append("Faces of one subject are in training and test: these are the results of known faces.")
    labels = predictions["label"].to_numpy()
    absent = [name for k, name in enumerate(classes) if not (labels == k).any()]
    if absent:
        found.append(
            f"No image of {', '.join(absent)} is tested; macro_f1_all_classes counts 0 for what is never there."
        )
    decided = predictions["predicted"].to_numpy()
    never = [name for k, name in enumerate(classes) if (labels == k).any() and not (decided == k).any()]
    if never:
        found.append(f"{', '.join(never)} is never decided for; try --data.per_class, or --model.balanced_loss true.")
    return found


def interval(estimate: Estimate) -> str:
    """Write a value with its bounds; `-` where it is undefined."""
    if estimate.value != estimate.value:
        return "-"
    bounds = f" [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.low == estimate.low else ""
    return f"{estimate.value:.3f}{bounds}"
