"""What the tests of fine-grained data share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from data_prep.finegrained.prepare import prepare


def run(dataset: str, raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Prepare in this process."""
    return prepare(dataset, raw, out, **{"executor": "serial", "progress": False, **options})


def index(out: Path, split: str = "") -> pl.DataFrame:
    """The index of a split, or of all with a column `split`."""
    if split:
        return pl.concat([pl.read_parquet(path) for path in sorted((out / split).glob("part-*.parquet"))])
    tables = [index(out, name).with_columns(split=pl.lit(name)) for name in ("train", "valid", "test")]
    return pl.concat(tables)


def rejects(out: Path) -> list[tuple[str, int, str]]:
    """Source, record and reason."""
    return pl.read_parquet(out / "rejects.parquet").select("source", "record", "reason").rows()


def rows(card: dict[str, Any]) -> dict[str, int]:
    """Rows of each split."""
    return {name: entry["rows"] for name, entry in card["splits"].items()}


def regions(frame: pl.DataFrame) -> set[tuple[int, ...]]:
    return set(frame.select("left", "top", "right", "bottom").rows())
