"""Tables of a prepared directory as Parquet parts with checksums."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.files import write_atomic

PART_ROWS = 1 << 16


def to_parquet(table: pl.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def write_parts(table: pl.DataFrame, split: str, folder: Path, files: dict[str, Path]) -> dict[str, Any]:
    """Write the rows of a split; one without rows gets an empty part.

    Args:
        table: its rows.
        split: its name.
        folder: where to write.
        files: path inside the prepared directory -> file; those that are written are added.

    Returns:
        The entry of the split in `dataset.json`.
    """
    parts = []
    for number, at in enumerate(range(0, max(len(table), 1), PART_ROWS)):
        part = table.slice(at, PART_ROWS)
        data = to_parquet(part)
        path = f"{split}/part-{number:05d}.parquet"
        files[path] = folder / path.replace("/", "-")
        write_atomic(files[path], data)
        parts.append({"path": path, "rows": len(part), "sha256": hashlib.sha256(data).hexdigest()})
    return {"rows": len(table), "parts": parts}
