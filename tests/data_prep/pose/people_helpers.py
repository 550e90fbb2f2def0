"""What the tests of images of persons share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from data_prep.pose.people.prepare import prepare_people
from tests.data.pose.make_people import document, write_images, write_json


def run(dataset: str, raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Prepare in this process."""
    return prepare_people(dataset, raw, out, **{"executor": "serial", "progress": False, **options})


def table(out: Path, split: str, name: str = "part") -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((out / split).glob(f"{name}-*.parquet"))])


def notes(out: Path, name: str) -> list[tuple[str, str, str]]:
    """Field, reason and excerpt of rejects or remarks."""
    return pl.read_parquet(out / f"{name}.parquet").select("field", "reason", "excerpt").rows()


def prepare_changed(folder: Path, change: Any, *, images: int = 3, **options: Any) -> dict[str, Any]:
    """Prepare a file of annotations of `images` images into `folder / "out"`, changed before it is written."""
    content = document(images)
    write_images(folder / "raw", content)
    change(content)
    write_json(folder / "raw/person_keypoints_val2017.json", content)
    return run("coco", folder / "raw", folder / "out", **{"max_rejects": 1.0, **options})
