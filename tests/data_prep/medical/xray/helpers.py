"""What the tests of X-rays share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl

from data_prep.medical.xray.prepare import prepare


def run(dataset: str, raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Prepare in this process."""
    return prepare(dataset, raw, out, **{"executor": "serial", "progress": False, **options})


def index(out: Path, split: str = "") -> pl.DataFrame:
    """The index of a split, or of all with a column `split`."""
    if split:
        return pl.concat([pl.read_parquet(path) for path in sorted((out / split).glob("part-*.parquet"))])
    tables = [index(out, name).with_columns(split=pl.lit(name)) for name in ("train", "valid", "test")]
    return pl.concat(tables)


def image(out: Path, name: str, column: str = "image") -> np.ndarray:
    """A prepared image (or mask) by its name in the index."""
    path = index(out).filter(pl.col("name") == name)[column].item()
    return cv2.imread(str(out / path), cv2.IMREAD_UNCHANGED)


def rejects(out: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(out / "rejects.parquet").to_dicts()
