"""What a preparation says to its user besides its result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from data_prep.common.rejects import Reject

_TOLD = 5  # rejects that are printed


def say(line: str) -> None:
    """Tell the user something that is no error."""
    sys.stderr.write("".join(mark if mark.isprintable() else "?" for mark in line) + "\n")


def tell_rejects(rejects: Sequence[Reject]) -> None:
    """Say the first of them, and how many more there are."""
    for reject in rejects[:_TOLD]:
        field = f" {reject.field}:" if reject.field else ""
        say(f"{reject.source}: record {reject.record}:{field} {reject.reason} ({reject.excerpt})")
    if len(rejects) > _TOLD:
        say(f"... and {len(rejects) - _TOLD:,} more, listed in rejects.parquet")


def tell_left_out(directory: Path) -> None:
    """Say in a line how many records a prepared directory has in its `rejects.parquet`, and what the first one is."""
    path = directory / "rejects.parquet"
    table = pl.read_parquet(path) if path.is_file() else pl.DataFrame()
    if len(table):
        first = table.row(0, named=True)
        count = f"{len(table):,} records were" if len(table) > 1 else "1 record was"
        said = f"{first['source']}: {first['reason']}"
        say(f"{count} left out, wholly or in part ({'the first is ' * (len(table) > 1)}{said}); see {path}")


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names of many, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
