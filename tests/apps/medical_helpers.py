"""What the tests of training on slides and X-rays share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl

from tests.apps.helpers import QUIET, refused, run_here

SMALL = {
    "acmil": ["--model.dim", "16", "--model.gate_dim", "8", "--model.branches", "3", "--data.batch_size", "4"],
    "abmil": ["--model.dim", "16", "--model.gate_dim", "8", "--data.batch_size", "4"],
    "pooling": ["--model.dim", "16", "--data.batch_size", "4"],
    "medusa": [
        "--model.configuration", "medusa_tiny", "--model.width", "4", "--data.side", "28", "--data.gray_side", "28",
        "--data.batch_size", "8", "--data.workers", "1",
    ],
    "medusa-body": ["--model.width", "4", "--model.levels", "3", "--data.gray_side", "28", "--data.batch_size", "8"],
}  # fmt: skip


here = partial(run_here, "medical")
refusal = partial(refused, "medical")


def fit_words(system: str, root: Path, run: Path, *more: object) -> list[str]:
    """Words of a small training; what comes later wins."""
    words = ["--system", system, *QUIET, *SMALL[system], "--data.root", root, "--run", run, *more]
    return [str(word) for word in words]


def fit(system: str, root: Path, run: Path, *more: object) -> None:
    assert here("fit", *fit_words(system, root, run, *more)) == 0


def predictions(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "predictions.parquet")
