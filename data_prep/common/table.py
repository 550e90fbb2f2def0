"""CSV tables that users write: every cell a text, header names in lower case."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors


def read_table(path: Path) -> pl.DataFrame:
    """Read a CSV or TSV file; cells without blanks around them, missing ones empty.

    Raises:
        DatasetNotFoundError: it is not there.
        CorruptRecordError: it is no UTF-8 table, or has two columns of one name.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such table")
    with translate_os_errors(path):
        data = path.read_bytes()
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.start:,} (line {data.count(10, 0, error.start) + 1:,})"
        raise CorruptRecordError(path, place, "not UTF-8 text; save the table as UTF-8") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    head = data.split(b"\n", 1)[0].decode().rstrip("\r")
    separator = max((";", "\t", ","), key=head.count)
    # polars would give a second column of one name another name.
    names = [name.strip().lower() for name in next(csv.reader([head], delimiter=separator), [])]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CorruptRecordError(path, "header", f"has column {twice!r} twice")
    try:
        table = pl.read_csv(data, separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise CorruptRecordError(path, "table", f"cannot be read as CSV ({reason})") from error
    table.columns = names
    return table.with_columns(pl.all().str.strip_chars().fill_null(""))
