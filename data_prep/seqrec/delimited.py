"""Delimited text -> records: one pass of the parser for clean blocks, record by record for others."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from data_prep.common.errors import CorruptRecordError
from data_prep.common.rejects import Reject, excerpt
from data_prep.seqrec.layout import Block, Layout
from data_prep.seqrec.stream import line_blocks

LONGEST = 1 << 20  # bytes; a quoted record longer than this was opened by a stray quote
_ROLES = ("user", "item", "time", "rating")


def read_delimited(path: Path, stream: BinaryIO, layout: Layout) -> Iterator[Block]:
    """Records of delimited text; blank lines and the header do not count."""
    first, carry, header = 0, b"", layout.header
    for data in line_blocks(path, stream):
        if header:
            data, header = data[data.find(b"\n") + 1 :] if b"\n" in data else b"", False
        block, carry = _read(carry + data, layout, path.name, first, last=False)
        first += block.records
        yield block
    if carry:
        block, _ = _read(carry, layout, path.name, first, last=True)
        yield block


def split_line(line: bytes, separator: str, quote: str = '"') -> list[str]:
    """The values of one line."""
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    if not quote or quote not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text.replace(separator, _single(separator))], delimiter=_single(separator)), [])
    except csv.Error:  # damaged: a carriage return inside, or a field of more than csv takes
        return text.split(separator)


def header_names(path: Path, head: bytes, separator: str) -> list[str]:
    """Column names in the first line.

    Raises:
        CorruptRecordError: a name occurs twice.
    """
    names = [name.strip() for name in split_line(head.split(b"\n", 1)[0], separator)]
    for name in names:
        if name and names.count(name) > 1:
            raise CorruptRecordError(path, "header", f"duplicate column name {name!r}; rename one of them")
    return names


def _single(separator: str) -> str:
    return separator if len(separator) == 1 else "\x1f"


def _read(data: bytes, layout: Layout, source: str, first: int, *, last: bool) -> tuple[Block, bytes]:
    """Records of a block, and the beginning of one that goes on in the next."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    if len(layout.separator) > 1:
        data = data.replace(layout.separator.encode(), _single(layout.separator).encode())
    if not layout.quote or layout.quote.encode() not in data:
        block = _read_fast(data, layout, first)
        if block is not None:
            return block, b""
    return _read_carefully(data, layout, source, first, last=last)


def _wanted(layout: Layout) -> dict[str, str]:
    return {role: name for role in _ROLES if (name := getattr(layout, role))}


def _read_fast(data: bytes, layout: Layout, first: int) -> Block | None:
    records = data.count(b"\n") + (not data.endswith(b"\n"))
    # The parser refuses long records but fills short ones with nulls: only the number of separators tells.
    if data.count(_single(layout.separator).encode()) != records * (len(layout.columns) - 1):
        return None
    roles = _wanted(layout)
    places = {name: index for index, name in enumerate(layout.columns)}
    try:
        table = pl.read_csv(
            data,
            separator=_single(layout.separator),
            has_header=False,
            schema={f"{index}": pl.String() for index in range(len(layout.columns))},
            columns=sorted({places[name] for name in roles.values()}),
            quote_char=None,
            null_values=[""],
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError, ValueError):
        return None
    if table.height != records:
        return None
    chosen = pl.DataFrame({role: table[str(places[name])] for role, name in roles.items()})
    return Block(chosen, [], records, first)


def _read_carefully(data: bytes, layout: Layout, source: str, first: int, *, last: bool) -> tuple[Block, bytes]:
    roles = _wanted(layout)
    places = [layout.columns.index(name) for name in roles.values()]
    rows: list[tuple[Any, ...]] = []
    rejects: list[Reject] = []
    record, carry = first - 1, b""
    for line, reason in _records(data, layout.quote.encode(), last=last):
        if reason == _OPEN:
            carry = line
            break
        record += 1
        values: list[str] = []
        if not reason:
            values, reason = _values(line, layout)
        if reason:
            rejects.append(Reject(source, record, "", reason, excerpt(line.replace(b"\x1f", b"::"))))
        else:
            rows.append((record, *(values[place] or None for place in places)))
    schema = {"record": pl.Int64, **dict.fromkeys(roles, pl.String)}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return Block(table, rejects, record + 1 - first, first), carry


_OPEN = "open"  # the record goes on in the next block
_STRAY = "a quote is misplaced or never closed"


def _records(data: bytes, quote: bytes, *, last: bool) -> Iterator[tuple[bytes, str]]:
    """Records (a quoted value may hold line ends), each with a reason why it is unusable, or none."""
    lines = data.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    index = 0
    while index < len(lines):
        line = lines[index]
        index += 1
        if not line.strip():
            continue
        if not quote or line.count(quote) % 2 == 0:
            yield line, ""
            continue
        end, size, closed = index, len(line), False
        while end < len(lines) and size <= LONGEST and not closed:
            size += len(lines[end]) + 1
            closed = lines[end].count(quote) % 2 == 1
            end += 1
        if closed:
            yield b"\n".join(lines[index - 1 : end]), ""
            index = end
        elif not last and size <= LONGEST:
            yield b"\n".join(lines[index - 1 :]) + b"\n", _OPEN
            return
        else:  # what follows a stray quote is read as if it were not there
            yield line, _STRAY


def _values(line: bytes, layout: Layout) -> tuple[list[str], str]:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return [], "not UTF-8 text"
    separator = _single(layout.separator)
    if not layout.quote or layout.quote not in text:
        values = text.split(separator)
    else:
        try:
            rows = list(csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True))
        except csv.Error:
            return [], _STRAY
        values = rows[0] if len(rows) == 1 else []
    if len(values) != len(layout.columns):
        hint = f" (wrong separator? expected {layout.separator!r})" if len(values) == 1 else ""
        return [], f"{len(layout.columns)} values expected, {len(values)} found{hint}"
    return values, ""
