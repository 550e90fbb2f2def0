"""Parquet files, and lines of `user item item ...` -> records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.common.rejects import Reject, excerpt
from data_prep.seqrec.layout import Block, Layout
from data_prep.seqrec.stream import line_blocks

ROWS = 1 << 17  # of Parquet per block
_ITEMS = pl.List(pl.String)


def parquet_columns(path: Path) -> list[str]:
    """Column names.

    Raises:
        CorruptRecordError: the file is damaged.
    """
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise CorruptRecordError(path, "footer", f"damaged Parquet ({error}); write the file again") from error


def read_parquet(path: Path, layout: Layout) -> Iterator[Block]:
    """Records of a Parquet file; ids of any type become text.

    Raises:
        CorruptRecordError: the file is damaged.
        ConfigError: a column holds lists.
    """
    roles = {role: name for role in ("user", "item", "time", "rating") if (name := getattr(layout, role))}
    first = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS, columns=list(dict.fromkeys(roles.values())), use_threads=False):
                table = pl.DataFrame(batch)
                for name in table.columns:
                    if table[name].dtype.is_nested():
                        raise ConfigError(f"{path}: column {name!r} holds {table[name].dtype}; give a column of values")
                texts = [_ids(table[roles[role]]).alias(role) for role in ("user", "item")]
                others = [pl.col(roles[role]).alias(role) for role in roles if role not in ("user", "item")]
                yield Block(table.select(*texts, *others), [], table.height, first)
                first += table.height
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError) as error:
        where = f"row {first} or later"
        raise CorruptRecordError(path, where, f"damaged Parquet ({error}); write the file again") from error


def _ids(column: pl.Series) -> pl.Series:
    """Ids as text. Whole numbers stay whole where missing values have made them floats; what is no text is missing."""
    if column.dtype == pl.Binary:
        return pl.Series(column.name, [_text(value) for value in column], dtype=pl.String)
    if not column.dtype.is_float():
        return column.cast(pl.String)
    whole = column.cast(pl.Int64, strict=False)
    return whole.cast(pl.String).zip_with((whole == column).fill_null(True), column.cast(pl.String))


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def read_lines(path: Path, stream: BinaryIO) -> Iterator[Block]:
    """Lines `user item item ...` in chronological order, as S3-Rec publishes them; a record is a line."""
    first = 0
    for data in line_blocks(path, stream):
        lines = [line for line in data.split(b"\n") if line.strip()]
        rejects: list[Reject] = []
        users: list[str] = []
        items: list[list[str]] = []
        records: list[int] = []
        for record, line in enumerate(lines, first):
            try:
                user, *rest = line.decode().split()
            except UnicodeDecodeError:
                rejects.append(Reject(path.name, record, "", "not UTF-8 text", excerpt(line)))
                continue
            if not rest:
                rejects.append(Reject(path.name, record, "", "a user without items", excerpt(line)))
                continue
            users.append(user)
            items.append(rest)
            records.append(record)
        columns = {"record": records, "user": users, "item": items}
        table = pl.DataFrame(
            columns, schema=pl.Schema([("record", pl.Int64), ("user", pl.String), ("item", _ITEMS)])
        ).explode("item")
        yield Block(table, rejects, len(lines), first)
        first += len(lines)
