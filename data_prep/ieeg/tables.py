"""Tables and JSON files that come with recordings: TSV of BIDS, CSV of users; in any of the usual encodings."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.files import translate_os_errors
from data_prep.ieeg.errors import SidecarError
from data_prep.ieeg.find import check_file

_MISSING = frozenset({"n/a", "na", "nan", "none", "null"})
_LARGEST = 1 << 30  # bytes


@dataclass(frozen=True)
class Table:
    """Cells as text, without blanks around them; missing ones, such as `n/a`, are empty.

    Args:
        path: of the file.
        columns: their names, as written.
        rows: one mapping per line below the header.
        remarks: what is unusual about the file.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    remarks: tuple[str, ...] = ()

    def find(self, *names: str) -> str | None:
        """The first column that has one of some names, whatever its case; None: there is none."""
        by_name = {column.casefold(): column for column in reversed(self.columns)}
        return next((by_name[name.casefold()] for name in names if name.casefold() in by_name), None)


def decode(data: bytes) -> tuple[str, str]:
    """Text of a file, and the name of its encoding: UTF-8, UTF-16 with its mark, else Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16"), "UTF-16"
        except UnicodeDecodeError:
            return data.decode("latin-1"), "Latin-1"
    try:
        return data.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "Latin-1"


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """A text file and remarks about its encoding.

    Raises:
        DatasetNotFoundError: it is not there.
        EmptyFileError: it has 0 bytes.
        SidecarError: it is larger than any text.
    """
    if check_file(path) > _LARGEST:
        raise SidecarError(path, "file", "larger than 1 GiB: no text file")
    with translate_os_errors(path):
        text, encoding = decode(path.read_bytes())
    return text, () if encoding == "UTF-8" else (f"{path.name}: not UTF-8, read as {encoding}",)


def read_table(path: Path) -> Table:
    """Read a TSV file (tabs, no quotes) or a CSV file (comma or semicolon, quotes).

    Raises:
        DatasetNotFoundError: it is not there.
        EmptyFileError: it has 0 bytes.
        SidecarError: it is no table, or has two columns of one name.
    """
    text, remarks = read_text(path)
    head = text.split("\n", 1)[0].rstrip("\r")
    tabs = path.suffix.lower() == ".tsv" or ("\t" in head and head.count("\t") >= head.count(","))
    separator = "\t" if tabs else max((",", ";"), key=head.count)
    names = [name.strip() for name in (head.split("\t") if tabs else next(csv.reader([head], delimiter=separator), []))]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SidecarError(path, "header", f"has column {twice!r} twice; rename one")
    try:
        table = pl.read_csv(
            text.encode(), separator=separator, infer_schema=False, quote_char=None if tabs else '"', null_values=None
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise SidecarError(path, "table", f"cannot be read ({reason}); mend or export it again") from error
    if len(table.columns) != len(names):
        raise SidecarError(path, "header", "is no row of column names; mend it")
    table.columns = names
    rows = tuple({name: clean(cell) for name, cell in row.items()} for row in table.to_dicts())
    return Table(path, tuple(names), rows, remarks)


def clean(cell: str | None) -> str:
    """A cell without blanks; empty for what stands for a missing value."""
    text = (cell or "").strip().strip("\ufeff\x00")
    return "" if text.casefold() in _MISSING else text


def number(cell: str) -> float:
    """A number, also with a decimal comma; NaN for an empty cell.

    Raises:
        ValueError: it is none.
    """
    if not cell:
        return math.nan
    return float(cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell)


def read_json(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A JSON object, and remarks about its encoding.

    Raises:
        DatasetNotFoundError: it is not there.
        EmptyFileError: it has 0 bytes.
        SidecarError: it is no JSON object.
    """
    text, remarks = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SidecarError(path, _place(error), "no valid JSON; mend it") from error
    if not isinstance(value, dict):
        raise SidecarError(path, "file", "holds no JSON object {...}")
    return value, remarks


def _place(error: Exception) -> str:
    return f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "file"


def text_of(value: Any) -> str:
    """A value of a JSON file as text; empty for what stands for a missing one."""
    if isinstance(value, str):
        return clean(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


def number_of(value: Any, path: Path, key: str) -> float:
    """A number of a JSON file; NaN for what stands for a missing one.

    Raises:
        SidecarError: it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return number(text_of(value))
    except ValueError as error:
        raise SidecarError(path, key, f"{text_of(value)!r} is no number; mend it") from error
