"""JSON lines -> records. Whole blocks are decoded at once; a block with a bad line is looked at line by line.

Python dictionaries in single quotes, as in some of the older Amazon files, are read by `ast.literal_eval`.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import polars as pl

from data_prep.common.rejects import Reject, excerpt
from data_prep.seqrec.layout import Block, Layout
from data_prep.seqrec.stream import line_views

ROWS = 1 << 16  # records per block, or a few more
_LITERAL = 1 << 20  # bytes; longer lines are not tried as Python
_HUGE = 1 << 63
_ROLES = ("user", "item", "time", "rating")


def read_json_lines(path: Path, stream: BinaryIO, layout: Layout) -> Iterator[Block]:
    """Records of a file of JSON lines; blank lines do not count."""
    decoder = _decoder(layout)
    columns = _Columns(layout)
    first = 0
    for data in line_views(path, stream):
        try:
            rows = decoder.decode_lines(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            rows = None
        if rows is not None and columns.extend(rows):
            if len(columns) >= ROWS:
                first += len(columns)
                yield columns.take(first - len(columns))
            continue
        if len(columns):
            first += len(columns)
            yield columns.take(first - len(columns))
        block = _decode_slowly(bytes(data), layout, path.name, first)
        first += block.records
        yield block
    if len(columns):
        yield columns.take(first)


class _Columns:
    """Values of well-formed records, column by column."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._empty()

    def _empty(self) -> None:
        self.users: list[str] = []
        self.items: list[str] = []
        self.times: list[Any] = []
        self.ratings: list[float] = []

    def __len__(self) -> int:
        return len(self.users)

    def extend(self, rows: list[Any]) -> bool:
        """Add records, or none of them where a time does not fit into 64 bits."""
        if self.layout.time:
            times = [row.time for row in rows]
            if not self.layout.textual and times and not -_HUGE < min(times) <= max(times) < _HUGE:
                return False
            self.times += times
        self.users += _texts([row.user for row in rows])
        self.items += _texts([row.item for row in rows])
        if self.layout.rating:
            self.ratings += [row.rating for row in rows]
        return True

    def take(self, first: int) -> Block:
        """A block of everything added so far."""
        table = {"user": pl.Series(self.users, dtype=pl.String), "item": pl.Series(self.items, dtype=pl.String)}
        if self.layout.time:
            table["time"] = pl.Series(self.times, dtype=pl.String if self.layout.textual else pl.Int64)
        if self.layout.rating:
            table["rating"] = pl.Series(self.ratings, dtype=pl.Float64)
        block = Block(pl.DataFrame(table), [], len(self), first)
        self._empty()
        return block


def _texts(values: list[Any]) -> list[str]:
    """Ids as text; some logs write them as numbers."""
    return values if set(map(type, values)) <= {str} else list(map(str, values))


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object on one line, JSON or Python; None when it is neither."""
    try:
        found = msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = _literal(line)
    return found if isinstance(found, dict) else None


def _decoder(layout: Layout) -> msgspec.json.Decoder[Any]:
    kinds = {"user": str | int, "item": str | int, "time": str if layout.textual else int, "rating": float}
    names = _columns(layout)
    fields = [(role, kinds[role], msgspec.field(name=name)) for role, name in names.items()]
    # gc=False: these objects refer to nothing that could refer to them.
    return msgspec.json.Decoder(msgspec.defstruct("Record", fields, gc=False))


def _columns(layout: Layout) -> dict[str, str]:
    return {role: name for role in _ROLES if (name := getattr(layout, role))}


def _decode_slowly(data: bytes, layout: Layout, source: str, first: int) -> Block:
    names = _columns(layout)
    rows: list[tuple[int, *tuple[str | None, ...]]] = []
    rejects: list[Reject] = []
    record = first - 1
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        record += 1
        found = parse_line(line)
        if found is None:
            rejects.append(Reject(source, record, "", "neither a JSON object nor a Python dictionary", excerpt(line)))
            continue
        values = [_text(found.get(name), number=role in ("time", "rating")) for role, name in names.items()]
        wrong = next((name for value, name in zip(values, names.values(), strict=True) if value is _WRONG), None)
        if wrong is not None:
            rejects.append(Reject(source, record, wrong, f"{wrong} is no text or number", excerpt(line)))
            continue
        rows.append((record, *values))
    schema = {"record": pl.Int64, **dict.fromkeys(names, pl.String)}
    return Block(pl.DataFrame(rows, schema=schema, orient="row"), rejects, record + 1 - first, first)


_WRONG = "\0 no text"  # a mark that is compared by identity


def _text(value: Any, *, number: bool) -> str | None:
    """A value as text; `_WRONG` for what is none (objects, lists, booleans, fractions as ids)."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return _WRONG
    if isinstance(value, float) and not number:
        return _WRONG
    try:
        text = str(value)  # whole numbers of thousands of digits are refused by Python
        text.encode()  # half of a surrogate pair is no text
    except ValueError:
        return _WRONG
    return text


def _literal(line: bytes) -> Any:
    if len(line) > _LITERAL or not line.lstrip().startswith(b"{"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in somebody's review
            return ast.literal_eval(line.strip().decode())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
