"""What the tests of click-log preparation share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from data_prep.ctr.prepare import prepare

SHARED = Path(__file__).resolve().parents[4] / "shared"


def run(dataset: str, raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Prepare in this process."""
    return prepare(dataset, raw, out, **{"executor": "serial", "progress": False, **options})


def rows(out: Path, split: str = "*") -> pl.DataFrame:
    """All prepared rows in raw order."""
    files = sorted(out.glob(f"{split}/part-*.parquet"))
    return pl.concat([pl.read_parquet(path) for path in files]).sort("row")


def decode(out: Path, table: pl.DataFrame, name: str) -> list[Any]:
    """Tokens of a field: None for missing, "?" for unknown."""
    vocabulary = pl.read_parquet(out / "vocabulary.parquet").filter(pl.col("field") == name)
    words = {0: None, 1: "?", **dict(zip(vocabulary["id"], vocabulary["token"], strict=True))}
    column = table[name].to_list()
    return [[words[i] for i in value] if isinstance(value, list) else words[value] for value in column]
