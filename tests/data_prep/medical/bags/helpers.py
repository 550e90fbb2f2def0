"""What the tests of tables, splits and bags share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl

from data_prep.medical.wsi.bags.bags import prepare
from data_prep.medical.wsi.features.native import write_features

# Patient, slide, label, site: every class has patients enough for three splits.
SLIDES = [
    (f"p{patient:02d}", f"s{patient:02d}.{number}", ("normal", "tumor")[patient % 2], "AB"[patient // 2 % 2])
    for patient in range(12)
    for number in range(1 + patient % 3)
]


def write_table(path: Path, rows: Any = SLIDES, header: str = "case_id,slide_id,label,site") -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def values(slide: str, rows: int = 6, dim: int = 4) -> np.ndarray:
    """Features that tell slides apart."""
    rng = np.random.default_rng(list(slide.encode()))
    return rng.standard_normal((rows, dim)).astype(np.float32)


def places(rows: int) -> np.ndarray:
    return np.stack([np.arange(rows) * 512, np.zeros(rows, np.int64)], axis=1)


def write_native(folder: Path, slides: Any = None, dim: int = 4, encoder: str = "vit") -> Path:
    """Feature files of all slides."""
    folder.mkdir(parents=True, exist_ok=True)
    for slide in [row[1] for row in SLIDES] if slides is None else slides:
        x = values(slide, dim=dim)
        known = {"patch_size_level0": 512, "patch_size": 256, "level0_width": 4096, "level0_height": 2048}
        attributes = {"name": slide, "target_mpp": 0.5, "encoder": encoder, **known}
        write_features(folder / f"{slide}.h5", x, places(len(x)), attributes, "float32")
    return folder


def damage(path: Path, features: np.ndarray | None = None, coords: np.ndarray | None = None) -> None:
    """Other content for a feature file, as other programs leave it."""
    with h5py.File(path, "w") as file:
        if features is not None:
            file["features"] = features
        if coords is not None:
            file["coords"] = coords


def run(raw: Path | list[Path], out: Path, table: Path | None = None, **options: Any) -> dict[str, Any]:
    """Prepare bags in this process."""
    return prepare("bags", raw, out, table=table, **{"executor": "serial", "progress": False, **options})


def index(out: Path, split: str = "all") -> pl.DataFrame:
    return pl.read_parquet(out / split / "part-00000.parquet")


def bag(out: Path, name: str) -> np.ndarray:
    """Features of a bag, read as training reads them."""
    row = index(out).row(by_predicate=pl.col("name") == name, named=True)
    with h5py.File(out / row["file"]) as file:
        return file[row["dataset"]][()]


def rejects(out: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(out / "rejects.parquet").to_dicts()
