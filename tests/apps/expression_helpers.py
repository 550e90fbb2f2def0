"""What the tests of training on faces through the command share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl

from tests.apps.helpers import QUIET, refused, run_here

SMALL = [
    "--model.backbone", "small", "--model.image_size", "24", "--model.dim", "16", "--model.heads", "2",
    "--model.hidden", "[8]", "--data.batch_size", "16", "--data.workers", "1", "--trainer.max_epochs", "2",
]  # fmt: skip
here = partial(run_here, "expression")
refusal = partial(refused, "expression")


def fit_words(root: Path, run: Path, *more: object) -> list[str]:
    """Words of a small training; what comes later wins."""
    return [str(word) for word in (*QUIET, *SMALL, "--data.root", root, "--run", run, *more)]


def fit(root: Path, run: Path, *more: object) -> None:
    assert here("fit", *fit_words(root, run, *more)) == 0


def predictions(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "predictions.parquet")
