"""The published index of images, and what `dataset.json` says about it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.files import write_atomic
from data_prep.medical.xray.encode import image_name

PART_ROWS = 1 << 16
UNKNOWN = "unknown"
COLUMNS = {
    "row": pl.UInt64,
    "name": pl.String,
    "patient": pl.String,
    "label": pl.UInt32,
    "source": pl.String,  # null: unknown
    "view": pl.String,  # null: unknown
    "image": pl.String,  # path below the prepared directory
    "mask": pl.String,  # null: none
    "width": pl.UInt32,
    "height": pl.UInt32,
}


def number_images(frame: pl.DataFrame) -> pl.DataFrame:
    """Add the paths that images and masks get: `image`, and `mask_path` (null where there is no mask)."""
    names = [image_name(number) for number in range(len(frame))]
    return frame.with_columns(
        image=pl.Series([f"images/{name}" for name in names], dtype=pl.String),
        mask_path=pl.when("mask").then(pl.Series([f"masks/{name}" for name in names], dtype=pl.String)),
    )


def write_index(frame: pl.DataFrame, splits: Iterable[str], folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write the index of each split.

    Args:
        frame: images, with the columns of `number_images`, `split`, and `code` (class) unless nothing is labelled.
        splits: names, in order; those without images get an empty part.
        folder: where to write.

    Returns:
        Path inside the prepared directory -> file, and the `splits` entry of `dataset.json`.
    """
    files: dict[str, Path] = {}
    entries: dict[str, Any] = {}
    names = [name for name in COLUMNS if name != "label" or "code" in frame.columns]
    for split in splits:
        rows = frame.filter(pl.col("split") == split).drop("mask", "label").with_row_index("row")
        rows = rows.rename({"mask_path": "mask", "code": "label"}, strict=False)
        empty = pl.lit(None, dtype=pl.String)
        rows = rows.with_columns(
            pl.when(pl.col(name) == "").then(empty).otherwise(name).alias(name) for name in ("source", "view")
        ).select(pl.col(name).cast(COLUMNS[name]) for name in names)
        parts = []
        for number, at in enumerate(range(0, max(len(rows), 1), PART_ROWS)):
            part = rows.slice(at, PART_ROWS)
            data = to_parquet(part)
            path = f"{split}/part-{number:05d}.parquet"
            files[path] = folder / path.replace("/", "-")
            write_atomic(files[path], data)
            parts.append({"path": path, "rows": len(part), "sha256": hashlib.sha256(data).hexdigest()})
        entries[split] = {"rows": len(rows), "parts": parts}
    return files, entries


def to_parquet(table: pl.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def cross_tables(frame: pl.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """How labels go with other columns: column -> split -> value -> label -> images."""
    found: dict[str, Any] = {}
    for column in columns:
        counted = frame.group_by("split", column, "label").len().sort("split", column, "label")
        for split, value, label, count in counted.iter_rows():
            found.setdefault(column, {}).setdefault(split, {}).setdefault(value or UNKNOWN, {})[label] = count
    return found


def is_confounded(table: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether a value tells the label: several labels, several values, and each value has one label only.

    Args:
        table: value -> label -> images, of one split.
    """
    labels = {label for counts in table.values() for label in counts}
    return len(labels) > 1 and all(len(counts) == 1 for counts in table.values())


def confounding(tables: Mapping[str, Any]) -> list[str]:
    """Lines about splits in which source or view alone tells the label."""
    lines = []
    for column, by_split in tables.items():
        for split, table in by_split.items():
            if set(table) != {UNKNOWN} and is_confounded(table):
                told = "; ".join(f"{value}: {next(iter(counts))}" for value, counts in table.items())
                lines.append(
                    f"{split}: the {column} alone tells the label ({told}): a model that recognises the {column} "
                    "scores the same; check with `heptad medical source-control`"
                )
    return lines
