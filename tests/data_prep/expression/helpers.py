"""What the tests of faces share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl

from data_prep.expression.prepare import prepare


def run(dataset: str, raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Prepare in this process."""
    return prepare(dataset, raw, out, **{"executor": "serial", "progress": False, **options})


def index(out: Path, split: str = "") -> pl.DataFrame:
    """The index of a split, or of all with a column `split`."""
    if split:
        return pl.concat([pl.read_parquet(path) for path in sorted((out / split).glob("part-*.parquet"))])
    tables = [index(out, name).with_columns(split=pl.lit(name)) for name in ("train", "valid", "test")]
    return pl.concat(tables)


def pixels(out: Path, row: dict[str, Any]) -> np.ndarray:
    """The face of a row of the index: (height, width) or (height, width, 3) RGB."""
    if row["at"] is not None:
        face = np.load(out / row["image"], mmap_mode="r")[row["at"]]
        return np.asarray(face[..., 0] if face.shape[-1] == 1 else face)
    found = cv2.imread(str(out / row["image"]), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB) if found.ndim == 3 else found


def named(out: Path, name: str) -> dict[str, Any]:
    """The row of a name."""
    return index(out).filter(pl.col("name") == name).row(0, named=True)


def labels(out: Path, card: dict[str, Any]) -> dict[str, str]:
    """Class of each image."""
    return {name: card["classes"][code] for name, code in index(out).select("name", "label").iter_rows()}


def reasons(out: Path, name: str = "rejects") -> dict[str, str]:
    """Source -> reason of rejects, or remarks."""
    table = pl.read_parquet(out / f"{name}.parquet")
    return dict(table.select("source", "reason").iter_rows())
