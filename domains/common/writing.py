"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import polars as pl
from pyarrow import parquet


def write_tables(path: Path, parts: Iterable[pl.DataFrame]) -> None:
    """Write tables of the same columns one behind the other into a Parquet file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    writer: parquet.ParquetWriter | None = None
    for part in parts:
        table = part.to_arrow()
        if writer is None:
            writer = parquet.ParquetWriter(partial, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()
        partial.replace(path)


def clear_files(folder: Path, *suffixes: str) -> None:
    """Remove files of these suffixes, which an earlier run wrote, and the folder where nothing else is in it."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.suffix in suffixes:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
