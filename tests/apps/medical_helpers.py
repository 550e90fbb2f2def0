"""What the tests of training on slides and X-rays share."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import polars as pl

from apps import cli
from tests.apps.helpers import QUIET

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


def here(command: str, *words: object) -> int:
    """Run a command inside this process."""
    return cli.main(["medical", command, *map(str, words)])


def fit_words(system: str, root: Path, run: Path, *more: object) -> list[str]:
    """Words of a small training; what comes later wins."""
    words = ["--system", system, *QUIET, *SMALL[system], "--data.root", root, "--run", run, *more]
    return [str(word) for word in words]


def fit(system: str, root: Path, run: Path, *more: object) -> None:
    assert here("fit", *fit_words(system, root, run, *more)) == 0


def refusal(command: str, *words: object) -> str:
    """The one line that a command says before it ends with exit code 2."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert here(command, *words) == 2
    line = said.getvalue().strip().splitlines()[-1]
    assert line.startswith("heptad: ")
    return line


def predictions(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "predictions.parquet")
