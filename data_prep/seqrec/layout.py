"""What one raw file looks like, what is asked of its records, and the table that every reader makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import polars as pl

from data_prep.common.rejects import Reject

Kind = Literal["json", "delimited", "lines", "parquet", "npy"]
UNITS = ("s", "ms", "us", "ns", "position")  # of numbers in the column of times


@dataclass(frozen=True)
class Layout:
    """How the records of one file are written.

    Args:
        kind: json (lines), delimited, lines (`user item item ...`), parquet, or npy (the MQSA-TED pickle).
        user: column of the user.
        item: column of the item.
        time: column of the time; empty: file order is the order.
        rating: column of the rating; empty: none is asked for.
        separator: of delimited text; may be longer than one character.
        columns: of delimited text, in order.
        header: the first line names the columns.
        quote: character around values of delimited text; empty: none.
        unit: of numbers in the column of times, one of `UNITS`.
        textual: times are text (ISO 8601), not numbers.
        exact: the unit was given by the user: numbers of another magnitude are no error.
    """

    kind: Kind
    user: str
    item: str
    time: str = ""
    rating: str = ""
    separator: str = ","
    columns: tuple[str, ...] = ()
    header: bool = False
    quote: str = ""
    unit: str = "s"
    textual: bool = False
    exact: bool = False

    @property
    def timed(self) -> bool:
        """Whether events have times of the clock, and not only an order."""
        return bool(self.time) and self.unit != "position"


@dataclass(frozen=True)
class Rules:
    """Which records become events.

    Args:
        min_rating: a record with a lower rating is left out.
        years: first and last calendar year (UTC) that is kept.
        duplicates: see `prepare`.
    """

    min_rating: float | None = None
    years: tuple[int, int] | None = None
    duplicates: str = "keep"


class Block(NamedTuple):
    """What a reader makes of a block of records.

    Args:
        table: `user` and `item` String, `time` (a number, a text or a Datetime) and `rating` where the layout has
            them, null where a value is missing; `record` Int64 (0-based number in the file) where rows are not
            simply the records from `first` on.
        rejects: records that could not be read.
        records: how many there were, rejects included.
        first: number of the first of them.
    """

    table: pl.DataFrame
    rejects: list[Reject]
    records: int
    first: int
