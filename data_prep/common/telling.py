"""What a preparation says to its user besides its result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from data_prep.common.rejects import SCHEMA, Reject

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
    """Say what the preparation in a directory could not use, by its `rejects.parquet`."""
    path = directory / "rejects.parquet"
    if path.is_file():
        tell_rejects([Reject(*row) for row in pl.read_parquet(path).select(list(SCHEMA)).iter_rows()])


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names of many, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
