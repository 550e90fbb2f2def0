"""Predictions over the frames of videos: smoothed, and as a table with classes by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.writing import write_whole

Smoothing = Literal["exponential", "window", "none"]
Floats = NDArray[np.float64]


def exponential(values: Floats, seconds: Floats, constant: float) -> Floats:
    """Exponential mean of the past: `s_i = s_(i-1) + (1 - exp(-dt / constant)) (x_i - s_(i-1))`.

    Args:
        values: of each frame.
        seconds: time of each frame, ascending; gaps of any length.
        constant: time constant, seconds.

    Shape:
        values (n, C), seconds (n,) -> (n, C).
    """
    result = values.copy()
    kept = np.exp(-np.diff(seconds).clip(min=0) / constant)
    for i, factor in enumerate(kept, 1):
        result[i] = values[i] + factor * (result[i - 1] - values[i])
    return result


def window(values: Floats, seconds: Floats, length: float) -> Floats:
    """Mean of the frames at most half a window away, in the past and in the future.

    Args:
        values: of each frame.
        seconds: time of each frame, ascending.
        length: of the window, seconds.

    Shape:
        values (n, C), seconds (n,) -> (n, C).
    """
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    slack = 1e-9 * max(length, 1.0)
    first = np.searchsorted(seconds, seconds - length / 2 - slack, side="left")
    last = np.searchsorted(seconds, seconds + length / 2 + slack, side="right")
    means: Floats = (sums[last] - sums[first]) / (last - first)[:, None]
    return means


def smoothed_columns(predictions: pl.DataFrame, kind: Smoothing, seconds: float) -> pl.DataFrame:
    """Add `smoothed_0` and so on, and `predicted_smoothed`, where rows are frames of videos.

    Args:
        predictions: columns `row`, `source`, `time_s` and the probabilities; frames of a video have one source.
        kind: how; `none` adds nothing.
        seconds: time constant, or length of the window.
    """
    if kind == "none" or not {"source", "time_s"} <= set(predictions.columns):
        return predictions
    names = sorted((n for n in predictions.columns if n.startswith("probability_")), key=lambda n: int(n[12:]))
    values = predictions.select(names).to_numpy().astype(np.float64)
    result = values.copy()  # a picture that is of no video stays as it is
    places = predictions.with_row_index("place").filter((pl.col("source") != "") & (pl.col("time_s") >= 0))
    for _, part in places.sort("time_s", maintain_order=True).group_by("source", maintain_order=True):
        at = part["place"].to_numpy()
        smooth = exponential if kind == "exponential" else window
        result[at] = smooth(values[at], part["time_s"].to_numpy().astype(np.float64), seconds)
    added = [pl.Series(f"smoothed_{k}", column.astype(np.float32)) for k, column in enumerate(result.T)]
    return predictions.with_columns(*added, pl.Series("predicted_smoothed", result.argmax(1), dtype=pl.Int64))


def write_csv(predictions: pl.DataFrame, classes: Sequence[str], path: Path) -> None:
    """Write predictions for other programs: names, times, decisions and probabilities by class name.

    Args:
        predictions: as the module returns them.
        classes: names.
        path: of the file.
    """
    named = dict(enumerate(classes))
    columns: list[pl.Expr] = [pl.col(n) for n in ("name", "source", "frame", "time_s") if n in predictions.columns]
    decided = [n for n in ("predicted", "predicted_smoothed") if n in predictions.columns]
    columns += [pl.col(n).replace_strict(named, return_dtype=pl.String) for n in decided]
    columns += [pl.col(n) for n in predictions.columns if n.startswith("confidence")]
    for kind in ("probability", "smoothed"):
        for k, name in named.items():
            if f"{kind}_{k}" in predictions.columns:
                columns.append(pl.col(f"{kind}_{k}").alias(f"{kind}_{name}"))
    write_whole(path, predictions.select(columns).write_csv(float_precision=6).encode())
