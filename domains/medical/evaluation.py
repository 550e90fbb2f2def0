"""How well images and patients are diagnosed, and whether the source of an image could explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.classification import SHOWN_CLASSES, class_names, evaluate_classification
from domains.common.curves import Ranking, auroc, ratio
from domains.common.figures import WARNINGS
from domains.common.intervals import Estimate, Floats, WeightedMetric
from domains.medical.patients import Aggregation, Conflicts, arrays, patient_table, units

STRATA = ("source", "view", "site")
UNKNOWN = ("", None)
SHOWN_STRATA = 40
TELLING = 0.65  # AUROC of the source alone from which on the report warns
RESAMPLES = 200  # of the tables

Cell = float | int | str


def evaluate_diagnosis(
    predictions: pl.DataFrame,
    classes: Sequence[str] = (),
    *,
    threshold: float | None = None,
    aggregation: Aggregation = "mean",
    conflicts: Conflicts = "exclude",
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of `evaluate_classification` over images (or slides), and `patient_...` over patients.

    Intervals resample patients. Metrics of patients are there when a patient has several rows. Where images come from
    several sources, views or sites, `within_source_auroc` (and so on) compares images of one source with each other
    only; it is absent where no source has images of two classes.

    Args:
        predictions: columns `label`, `probability_0` and so on, `predicted`, `patient`; optional `source`, `view`,
            `site`, and `fold` where predictions of several models are pooled.
        classes: names in order; of two, the second is the positive one.
        threshold: of the second of two classes for patients; by default the one that `predicted` tells.
        aggregation: how a patient's probabilities become one: `mean`, or `max`, which finds the patient with one
            suspicious image (of more than two classes the maxima are scaled to sum to 1).
        conflicts: patients with images of several labels (an illness that comes or goes) are left out of the metrics
            of patients (`exclude`), or have the `highest` label.
        replicates: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        PreparedDataError: there is nothing that could be measured.
    """
    labels, probabilities = arrays(predictions)
    groups = units(predictions)
    found = evaluate_classification(
        labels,
        probabilities,
        groups,
        classes,
        predicted=predictions["predicted"].to_numpy(),
        extra=within_strata(predictions),
        replicates=replicates,
        seed=seed,
    )
    if len(np.unique(groups)) < len(predictions):
        patients = patient_table(predictions, threshold=threshold, aggregation=aggregation, conflicts=conflicts)
        if len(patients):
            labels, probabilities = arrays(patients)
            found |= evaluate_classification(
                labels,
                probabilities,
                units(patients),
                classes,
                predicted=patients["predicted"].to_numpy(),
                prefix="patient_",
                replicates=replicates,
                seed=seed,
            )
    return found


def strata(predictions: pl.DataFrame) -> list[str]:
    """Which of source, view and site are known and differ among the rows."""
    return [
        name
        for name in STRATA
        if name in predictions.columns and len(set(predictions[name].unique()) - set(UNKNOWN)) > 1
    ]


def within_strata(predictions: pl.DataFrame) -> dict[str, WeightedMetric]:
    """Name -> AUROC of pairs inside one source (view, site), for those that have rows of two classes somewhere."""
    labels, probabilities = arrays(predictions)
    count = probabilities.shape[1]
    found: dict[str, WeightedMetric] = {}
    for name in strata(predictions):
        parts: list[list[tuple[NDArray[np.int64], Ranking]]] = []
        for k in (1,) if count == 2 else range(count):
            inside = [np.flatnonzero(predictions[name].to_numpy() == value) for value in _known(predictions[name])]
            mixed = [rows for rows in inside if 0 < (labels[rows] == k).sum() < len(rows)]
            if mixed:
                parts.append([(rows, Ranking(labels[rows] == k, probabilities[rows, k])) for rows in mixed])
        if parts:
            found[f"within_{name}_auroc"] = _within(parts)
    return found


def _within(parts: Sequence[Sequence[tuple[NDArray[np.int64], Ranking]]]) -> WeightedMetric:
    def area(weights: Floats) -> float:
        areas = []
        for rankings in parts:  # of one class
            won = pairs = 0.0
            for rows, ranking in rankings:
                hits, misses = ranking.counts(weights[rows])
                here = float(hits[-1] * misses[-1])
                if here:
                    won, pairs = won + auroc(hits, misses) * here, pairs + here
            areas.append(ratio(won, pairs))
        defined = [value for value in areas if value == value]
        return ratio(sum(defined), len(defined))

    return area


def _known(column: pl.Series) -> list[Any]:
    return [value for value in column.unique(maintain_order=True).sort() if value not in UNKNOWN]


def report_tables(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> dict[str, list[dict[str, Cell]]]:
    """Tables of a test's report: heading -> rows.

    Args:
        predictions: see `evaluate_diagnosis`.
        metrics: as it returns them; they tell the names of the classes.
    """
    if "probability_0" not in predictions.columns:  # masks of lungs, which have no classes
        return {}
    classes = class_names(metrics, arrays(predictions)[1].shape[1])
    tables: dict[str, list[dict[str, Cell]]] = {}
    warnings = shortcuts(predictions, classes)
    if warnings:
        tables[WARNINGS] = [{"warning": text} for text in warnings]
    groups = units(predictions)
    if len(np.unique(groups)) < len(predictions):
        tables["Patients"] = [_patient_counts(predictions, groups)]
    for name in strata(predictions):
        tables[f"By {name}"] = _stratum_rows(predictions, name, classes)
    return tables


def shortcuts(predictions: pl.DataFrame, classes: Sequence[str]) -> list[str]:
    """Say where the source (view, site) of a row tells its label, so that a model need not look at the illness.

    Args:
        predictions: see `evaluate_diagnosis`.
        classes: names.
    """
    found = []
    labels = predictions["label"].to_numpy()
    for name in strata(predictions):
        values = _known(predictions[name])
        place = {value: i for i, value in enumerate(values)}
        index = np.array([place.get(value, -1) for value in predictions[name].to_list()])
        kept = index >= 0
        counts = np.zeros((len(values), len(classes)))
        np.add.at(counts, (index[kept], labels[kept]), 1)
        present = np.flatnonzero(counts.sum(axis=0)).tolist()
        if len(present) < 2:
            continue
        homes = {k: [str(values[i]) for i in np.flatnonzero(counts[:, k])] for k in present}
        rates = counts / counts.sum(axis=1, keepdims=True)
        alone = [_area(labels[kept] == k, rates[index[kept], k]) for k in present]
        area = sum(alone) / len(alone)
        if (np.count_nonzero(counts, axis=1) == 1).all():
            where = "; ".join(f"{classes[k]} from {_list(homes[k])}" for k in present)
            found.append(
                f"No {name} has rows of two classes ({where}): a model that recognises the {name} scores perfectly, and"
                f" these rows cannot tell it from one that recognises the illness. {_CONTROL.get(name, '')}".strip()
            )
            continue
        single = [
            f"every row of class {classes[k]} comes from {name} {homes[k][0]}" for k in present if len(homes[k]) == 1
        ]
        telling = area >= TELLING and len(values) * 10 <= kept.sum()
        if telling:
            single.append(f"the {name} alone, without any image, reaches an AUROC of {area:.3f}")
        if single:
            text = " and ".join(single)
            found.append(f"{text[0].upper()}{text[1:]}; read within_{name}_auroc and the table by {name}.")
    return found


_CONTROL = {"source": "Run the control: heptad medical source-control."}


def _patient_counts(predictions: pl.DataFrame, groups: NDArray[np.int64]) -> dict[str, Cell]:
    table = (
        pl.DataFrame({"unit": groups, "label": predictions["label"]})
        .group_by("unit")
        .agg(rows=pl.len(), labels=pl.col("label").n_unique())
    )
    return {
        "rows": len(predictions),
        "patients": len(table),
        "with several rows": len(table.filter(pl.col("rows") > 1)),
        "with several labels (left out of patient_ metrics unless asked for)": len(table.filter(pl.col("labels") > 1)),
    }


def _stratum_rows(predictions: pl.DataFrame, name: str, classes: Sequence[str]) -> list[dict[str, Cell]]:
    column = predictions[name].fill_null("").cast(pl.String)
    counts = column.value_counts(sort=True).sort(["count", name], descending=[True, False])
    values = counts[name].to_list()
    shown = values if len(values) <= SHOWN_STRATA else values[: SHOWN_STRATA - 1]
    rows = [_stratum(predictions.filter(column == value), name, value or "unknown", classes) for value in shown]
    if len(shown) < len(values):
        rest = predictions.filter(~column.is_in(shown))
        rows.append(_stratum(rest, name, f"{len(values) - len(shown)} others", classes))
    return rows


def _stratum(part: pl.DataFrame, name: str, value: str, classes: Sequence[str]) -> dict[str, Cell]:
    labels, probabilities = arrays(part)
    groups = units(part)
    found = evaluate_classification(
        labels, probabilities, groups, classes, predicted=part["predicted"].to_numpy(), replicates=RESAMPLES
    )
    row: dict[str, Cell] = {name: value, "rows": len(part), "patients": len(np.unique(groups))}
    if len(classes) <= SHOWN_CLASSES:
        row |= {title: int((labels == k).sum()) for k, title in enumerate(classes)}
    row["AUROC"] = interval(found["auroc"])
    chosen = ("sensitivity", "specificity") if len(classes) == 2 else ("accuracy", "balanced_accuracy", "macro_f1")
    return row | {title.replace("_", " "): interval(found[title]) for title in chosen}


def interval(estimate: Estimate) -> str:
    """Write a value with its bounds; `-` where it is undefined."""
    if estimate.value != estimate.value:
        return "-"
    bounds = f" [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.low == estimate.low else ""
    return f"{estimate.value:.3f}{bounds}"


def _area(positive: NDArray[np.bool_], scores: Floats) -> float:
    return auroc(*Ranking(positive, scores).counts(np.ones(len(scores))))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
