"""From predictions of images to predictions of patients."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.classification import decide
from domains.common.errors import PreparedDataError
from domains.common.intervals import Floats

Aggregation = Literal["mean", "max"]
Conflicts = Literal["exclude", "highest"]


def arrays(predictions: pl.DataFrame) -> tuple[NDArray[np.int64], Floats]:
    """Labels (N,) and probabilities (N, C) of a table of predictions.

    Raises:
        PreparedDataError: columns are missing.
    """
    count = sum(name.startswith("probability_") for name in predictions.columns)
    needed = ["label", *(f"probability_{k}" for k in range(max(count, 2))), "predicted", "patient"]
    missing = [name for name in needed if name not in predictions.columns]
    if missing:
        raise PreparedDataError(f"predictions lack the columns {', '.join(missing)}; were they made without labels?")
    columns = [predictions[f"probability_{k}"].to_numpy() for k in range(count)]
    return predictions["label"].to_numpy().astype(np.int64), np.stack(columns, axis=1).astype(np.float64)


def units(predictions: pl.DataFrame) -> NDArray[np.int64]:
    """Number of the patient of each row; rows without a patient are patients of their own."""
    known = pl.col("patient").is_not_null() & (pl.col("patient").cast(pl.String) != "")
    table = (
        predictions.lazy()
        .with_row_index("place")
        .select(
            key=pl.when(known)
            .then("p" + pl.col("patient").cast(pl.String))
            .otherwise("r" + pl.col("place").cast(pl.String))
        )
    )
    return table.collect()["key"].rank("dense").to_numpy().astype(np.int64)


def patient_table(
    predictions: pl.DataFrame,
    *,
    threshold: float | None = None,
    aggregation: Aggregation = "mean",
    conflicts: Conflicts = "exclude",
) -> pl.DataFrame:
    """One row per patient (and per fold, where predictions of several models are pooled).

    Args:
        predictions: see `evaluate_diagnosis`.
        threshold: likewise.
        aggregation: likewise.
        conflicts: likewise.

    Returns:
        Columns `patient`, `fold` where given, `label`, `rows`, `labels` (how many distinct), the probabilities and
        `predicted`.
    """
    shares = sorted((n for n in predictions.columns if n.startswith("probability_")), key=lambda n: int(n[12:]))
    fold = ["fold"] if "fold" in predictions.columns else []
    table = predictions.with_columns(unit=pl.Series(units(predictions)))
    gathered = [pl.col(name).cast(pl.Float64).mean() for name in shares]
    if aggregation == "max":
        gathered = [pl.col(name).cast(pl.Float64).max() for name in shares]
    result = table.group_by(["unit", *fold], maintain_order=True).agg(
        pl.col("patient").first(),
        pl.col("label").max(),
        pl.len().alias("rows"),
        pl.col("label").n_unique().alias("labels"),
        *gathered,
    )
    if conflicts == "exclude":
        result = result.filter(pl.col("labels") == 1)
    if aggregation == "max" and len(shares) == 2:
        result = result.with_columns((1 - pl.col("probability_1")).alias("probability_0"))
    elif aggregation == "max":
        total = pl.sum_horizontal(shares)
        result = result.with_columns(pl.col(name) / total for name in shares)
    cut = implied_thresholds(predictions) if threshold is None else {}
    decided = np.zeros(len(result), dtype=np.int64)
    values = result.select(shares).to_numpy()
    folds = result["fold"].to_list() if fold else [None] * len(result)
    for one in dict.fromkeys(folds):
        mine = np.array([other == one for other in folds], dtype=bool)
        decided[mine] = decide(values[mine], cut.get(one, threshold))
    return result.with_columns(predicted=pl.Series(decided, dtype=pl.Int64)).drop("unit")


def implied_thresholds(predictions: pl.DataFrame) -> dict[Any, float | None]:
    """Fold (None without folds) -> threshold that `predicted` was decided with.

    It is known up to the gap between two scores: 0.5 where that lies inside, else the middle. None where `predicted` is
    no function of the second of two probabilities.
    """
    parts: dict[Any, pl.DataFrame] = {None: predictions}
    if "fold" in predictions.columns:
        parts = {key[0]: part for key, part in predictions.partition_by("fold", as_dict=True).items()}
    found: dict[Any, float | None] = {}
    for fold, part in parts.items():
        scores = part["probability_1"].cast(pl.Float64).to_numpy()
        called = part["predicted"].to_numpy() == 1
        low, high = scores[~called].max(initial=0.0), scores[called].min(initial=1.0)
        binary = "probability_2" not in part.columns
        found[fold] = None if not binary or low >= high else 0.5 if low < 0.5 <= high else float((low + high) / 2)
    return found
