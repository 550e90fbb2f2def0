"""Records which could not be used: where they are, why, and when there are too many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from data_prep.common.errors import RejectsExceededError
from data_prep.common.files import translate_os_errors, write_atomic

SCHEMA = {
    "source": pl.String,  # file name
    "record": pl.UInt64,  # 0-based record number inside that file, the header not counted
    "field": pl.String,  # empty where the whole record is at fault
    "reason": pl.String,
    "excerpt": pl.String,
}
EXCERPT = 120  # characters


class Reject(NamedTuple):
    """One unusable record."""

    source: str
    record: int
    field: str
    reason: str
    excerpt: str


def excerpt(data: bytes | str) -> str:
    """The beginning of a record, readable whatever its bytes are."""
    text = data[: EXCERPT * 4].decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    return text[:EXCERPT]


def to_frame(rejects: Iterable[Reject]) -> pl.DataFrame:
    """Rejects as a table with the columns of `rejects.parquet`."""
    return pl.DataFrame(list(rejects), schema=SCHEMA, orient="row")


def check_rejects(rejects: pl.DataFrame, total: int, max_rejects: float, left_at: Path) -> None:
    """Stop a preparation which would lose more records than its user allowed.

    Args:
        rejects: all rejects, in order.
        total: records read, rejects included.
        max_rejects: share allowed, 0..1.
        left_at: where the table of rejects is left for reading.

    Raises:
        RejectsExceededError: naming the commonest reason and the first place, and a CSV file beside `left_at`, which
            people open more easily.
    """
    if rejects.height <= max_rejects * total:
        return
    readable = left_at.with_suffix(".csv")
    write_atomic(readable, rejects.write_csv().encode())
    reason, count = rejects.group_by("reason").len().sort(["len", "reason"], descending=[True, False]).row(0)
    first = rejects.filter(pl.col("reason") == reason).row(0, named=True)
    where = f" field {first['field']}" if first["field"] else ""
    raise RejectsExceededError(
        f"{first['source']}: record {first['record']}{where}: {reason}; {rejects.height:,} of {total:,} records "
        f"are unusable ({count:,} for this reason), more than max_rejects {max_rejects:.2%}; "
        f"all of them are listed in {readable}; correct the file or raise max_rejects"
    )


def collect_rejects(tables: Sequence[Path], total: int, max_rejects: float, target: Path) -> int:
    """Join the tables of all tasks into `rejects.parquet` and check their share.

    Args:
        tables: at least one file with the columns of `SCHEMA`, in order.
        total: records read, rejects included.
        max_rejects: share allowed, 0..1.
        target: file to write; kept when there are too many.

    Returns:
        The number of rejects.

    Raises:
        RejectsExceededError: there are too many.
    """
    with translate_os_errors(target):
        joined = pl.concat([pl.read_parquet(path, memory_map=False) for path in tables])
        joined.write_parquet(target, compression="zstd", statistics=False)
    check_rejects(joined, total, max_rejects, target)
    return joined.height
