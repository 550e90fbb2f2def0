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


def check_open_set(out: Path, card: dict) -> pl.DataFrame:
    """Identities are on one side; codes of training count from 0; queries and gallery have their roles."""
    table = index(out)
    own = table.filter(pl.col("extra") == "")
    assert own.group_by("identity").agg(pl.col("split").n_unique())["split"].max() == 1
    train = table.filter(pl.col("split") == "train")
    assert card["identities"] == sorted(set(train["identity"]))
    assert [card["identities"][code] for code in train["label"]] == train["identity"].to_list()
    assert set(train["role"]) == {""}
    rest = table.filter(pl.col("split") != "train")
    assert set(rest["role"]) <= {"query", "gallery"}
    assert rest["label"].filter(rest["extra"] == "").min() >= len(card["identities"])
    return table
