"""First stage: the records of one file -> events in chunks, with the chunk's own dictionaries of users and items.

Tokens are looked at once, here. Later stages handle codes, and the distinct tokens of a chunk only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.rejects import Reject, excerpt, to_frame
from data_prep.seqrec.layout import Block, Layout, Rules
from data_prep.seqrec.sources import Source, read_source
from data_prep.seqrec.stream import open_apart
from data_prep.seqrec.times import MICRO, to_micros
from data_prep.seqrec.vocabulary import encode

CHUNK_EVENTS = 1 << 19
SIDES = ("users", "items")


def read_events(source: Source, rules: Rules, folder: Path) -> dict[str, Any]:
    """Read one raw file into `chunk-*/{users,items}.arrow`, `{users,items,times}.npy`, and `rejects.parquet`.

    Args:
        source: the file.
        rules: which records count.
        folder: where to write.

    Returns:
        bytes and sha256 of the file, its records, rejects, counts per rule, and events of each chunk.

    Raises:
        CorruptRecordError: the file is damaged.
    """
    counts = {"below_min_rating": 0, "outside_years": 0}
    rejects: list[pl.DataFrame] = [to_frame([])]
    waiting: list[pl.DataFrame] = []
    chunks: list[int] = []
    height = records = 0
    with open_apart(source.path) as (stream, reader):
        for block in read_source(source.path, stream, source.layout):
            table, bad = clean(block, source, rules, counts)
            records += block.records
            if bad:
                rejects.append(to_frame(sorted(bad, key=lambda item: item.record)))
            waiting.append(table)
            height += table.height
            if height >= CHUNK_EVENTS:
                chunks.append(_write_chunk(waiting, folder / f"chunk-{len(chunks):05d}"))
                waiting, height = [], 0
        if height:
            chunks.append(_write_chunk(waiting, folder / f"chunk-{len(chunks):05d}"))
        described = reader.finish()
    table = pl.concat(rejects)
    table.write_parquet(folder / "rejects.parquet")
    return {**described, "records": records, "rejects": table.height, "counts": counts, "chunks": chunks}


def clean(block: Block, source: Source, rules: Rules, counts: dict[str, int]) -> tuple[pl.DataFrame, list[Reject]]:
    """Events of a block: user, item, and time in microseconds (or a position) where the layout has one.

    Args:
        block: records.
        source: where they come from.
        rules: which of them count.
        counts: records left out by each rule; added to.
    """
    table, layout = block.table, source.layout
    marks = _Marks(table.height)
    for role, name in (("user", layout.user), ("item", layout.item)):
        marks.add((table[role] == "").fill_null(True), f"{role} is missing", name)
    if layout.time:
        times, why = to_micros(table["time"], layout.unit, exact=layout.exact)
        if why is not None:
            marks.add(why.is_not_null(), why, layout.time)
        table = table.with_columns(times.alias("time"))
    if layout.rating and rules.min_rating is not None:
        rating = table["rating"].cast(pl.Float64, strict=False).fill_nan(None)
        marks.add(rating.is_null(), "rating is missing or no number", layout.rating)
        table = table.with_columns(rating.alias("rating"))
    rejects: list[Reject] = []
    if marks.reason is not None:
        rejects = _rejects(block, marks, source.path.name)
        table = table.filter(marks.reason.is_null())
    table = _leave_out(table, layout, rules, counts)
    return table.select("user", "item", *(["time"] if layout.time else [])), block.rejects + rejects


class _Marks:
    """Reasons why rows cannot be used; the first one of a row counts. Nothing is made while there are none."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.reason: pl.Series | None = None
        self.field: pl.Series | None = None

    def add(self, where: pl.Series, reason: str | pl.Series, field: str) -> None:
        """Mark the rows of a mask."""
        if not where.any():
            return
        if self.reason is None or self.field is None:
            self.reason = self.field = pl.Series([None] * self.height, dtype=pl.String)
        fresh = where & self.reason.is_null()
        self.reason = (
            self.reason.set(fresh, reason) if isinstance(reason, str) else self.reason.zip_with(~fresh, reason)
        )
        self.field = self.field.set(fresh, field)


def _rejects(block: Block, marks: _Marks, source: str) -> list[Reject]:
    table = block.table
    if "record" not in table.columns:
        table = table.with_columns(pl.int_range(block.first, block.first + pl.len()).alias("record"))
    roles = [name for name in ("user", "item", "time", "rating") if name in table.columns]
    shown = table.select("record", *(pl.col(name).cast(pl.String, strict=False).fill_null("") for name in roles))
    bad = shown.with_columns(pl.Series("reason", marks.reason), pl.Series("field", marks.field))
    found: dict[int, Reject] = {}
    for record, *values, why, where in bad.filter(pl.col("reason").is_not_null()).iter_rows():
        found.setdefault(record, Reject(source, record, where or "", why, excerpt(",".join(values))))
    return list(found.values())


def _leave_out(table: pl.DataFrame, layout: Layout, rules: Rules, counts: dict[str, int]) -> pl.DataFrame:
    before = table.height
    if layout.rating and rules.min_rating is not None:
        table = table.filter(pl.col("rating") >= rules.min_rating)
        counts["below_min_rating"] += before - table.height
    if rules.years is not None and layout.timed:
        before = table.height
        seconds = pl.col("time").floordiv(MICRO)
        year = pl.from_epoch(seconds, time_unit="s").dt.year()
        table = table.filter(year.is_between(*rules.years))
        counts["outside_years"] += before - table.height
    return table


def _write_chunk(tables: list[pl.DataFrame], folder: Path) -> int:
    table = pl.concat(tables)
    folder.mkdir()
    for role, side in (("user", "users"), ("item", "items")):
        codes, first = encode(table[role])
        np.save(folder / f"{side}.npy", codes)
        tokens = table[role].gather(first).alias("token")
        tokens.to_frame().write_ipc(folder / f"{side}.arrow", compression="uncompressed")
    if "time" in table.columns:
        np.save(folder / "times.npy", table["time"].to_numpy())
    return table.height
