"""Tables as people send them: CSV in any encoding and with any separator, Excel, Parquet. Cells are read as text."""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import zlib
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, MissingExtraError
from data_prep.common.files import open_binary, translate_os_errors

SEPARATORS = ",;\t"
RECORD = "record"  # name of the column with the number of the row: 0-based, the header not counted
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_EXCEL, _PARQUET, _OLD_EXCEL = b"PK\x03\x04", b"PAR1", b"\xd0\xcf\x11\xe0"


def read_strings(path: Path, encoding: str = "") -> tuple[pl.DataFrame, list[str]]:
    """Read a table with a header; the kind of file is found by its first bytes.

    Args:
        path: CSV, TSV (also packed with gzip), Excel (.xlsx, first sheet) or Parquet.
        encoding: of a text table; found out when empty: UTF-8, what a byte-order mark says, else Latin-1 or
            Windows-1252, which is told.

    Returns:
        Columns of text (empty where nothing stands) without rows that are empty altogether, and the column `record`;
        lines to tell the user.

    Raises:
        DatasetNotFoundError: there is no such file.
        CorruptRecordError: it cannot be read as a table.
        ConfigError: an old Excel file, or an encoding that there is not.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such table; give a CSV, TSV, Excel or Parquet file")
    data = read_whole(path)
    told: list[str] = []
    if data.startswith(_EXCEL):
        frame = _read_excel(path, data)
    elif data.startswith(_PARQUET):
        frame = _read_parquet(path, data)
    elif data.startswith(_OLD_EXCEL):
        raise ConfigError(f"{path}: an Excel file of the old format; save it as .xlsx or .csv")
    else:
        text, told = decode_text(path, data, encoding)
        frame = _read_csv(path, text)
    if frame.height:
        filled = pl.any_horizontal([pl.col(name) != "" for name in frame.columns])
        frame = frame.with_row_index(RECORD).filter(filled)
    if not frame.height:
        raise CorruptRecordError(path, "file", "the table has no rows; give one with a header and a row per slide")
    return frame, told


def read_whole(path: Path) -> bytes:
    """The bytes of a file, plain or gzip.

    Raises:
        CorruptRecordError: a gzip file is damaged.
    """
    with translate_os_errors(path), open_binary(path) as stream:
        try:
            return stream.read()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise CorruptRecordError(path, "file", f"the gzip file is damaged ({error}); copy it again") from error


def decode_text(path: Path, data: bytes, encoding: str = "") -> tuple[str, list[str]]:
    """Text of a file, and lines to tell the user; see `read_strings`."""
    if encoding:
        try:
            return data.decode(encoding).removeprefix("\ufeff"), []
        except LookupError as error:
            raise ConfigError(f"encoding {encoding!r}: there is no such encoding; try utf-8 or latin-1") from error
        except UnicodeDecodeError as error:
            where = f"line {_line(data, error.start)}"
            reason = f"is not {encoding} (byte 0x{data[error.start]:02x}); give another --encoding"
            raise CorruptRecordError(path, where, reason) from error
    marked = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(marked), []
    except UnicodeDecodeError as error:
        line = _line(data, error.start)
        if marked != "utf-8" or b"\0" in data:
            raise CorruptRecordError(path, f"line {line}", "is no text; give a CSV, Excel or Parquet table") from error
    # Windows-1252 has letters and quotation marks where Latin-1 has control characters.
    name = "cp1252" if any(0x80 <= byte < 0xA0 for byte in data) else "latin-1"
    try:
        text = data.decode(name)
    except UnicodeDecodeError:
        name, text = "latin-1", data.decode("latin-1")
    return text, [f"{path.name}: not UTF-8 (line {line}); read as {name}: say --encoding if names come out wrong"]


def _line(data: bytes, position: int) -> int:
    return 1 + data[:position].count(b"\n")


def _read_csv(path: Path, text: str) -> pl.DataFrame:
    header = next(iter(text.splitlines()), "")
    # Excel writes semicolons where the comma is the decimal sign.
    separator = max(SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise CorruptRecordError(path, f"line {reader.line_num}", f"cannot be read ({error}); save it again") from error
    width = len(rows[0]) if rows else 0
    longer = next((index for index, row in enumerate(rows) if any(cell.strip() for cell in row[width:])), None)
    if longer is not None:
        reason = f"has {len(rows[longer])} cells, the header {width}; put text that holds {separator!r} into quotes"
        raise CorruptRecordError(path, f"row {longer - 1}", reason)
    return _with_header(path, rows)


def _read_excel(path: Path, data: bytes) -> pl.DataFrame:
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError as error:
        raise MissingExtraError("medical", f"{path}: reading Excel") from error
    try:
        sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True).worksheets[0]
        rows = [[_cell(value) for value in row] for row in sheet.iter_rows(values_only=True)]
    except Exception as error:  # whatever openpyxl, its XML parser and zipfile raise on damaged bytes
        raise CorruptRecordError(path, "file", f"is no readable Excel file ({error}); save it again") from error
    return _with_header(path, rows)


def _cell(value: Any) -> str:
    # Excel holds every number as a float: 3 is 3.0 there.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _read_parquet(path: Path, data: bytes) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(io.BytesIO(data))
        flat = [name for name, kind in frame.schema.items() if not kind.is_nested() and kind != pl.Binary]
        cells = frame.select(pl.col(flat).cast(pl.String).fill_null(""))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorruptRecordError(path, "file", f"is no readable Parquet file ({error}); save it again") from error
    return _with_header(path, [cells.columns, *map(list, cells.iter_rows())])


def _with_header(path: Path, rows: list[list[str]]) -> pl.DataFrame:
    """Name the columns by the first row and strip the cells; the first of several columns of one name counts."""
    if not rows:
        return pl.DataFrame()
    kept: dict[str, int] = {}
    for index, name in enumerate(rows[0]):
        kept.setdefault(name.strip() if name.strip() != RECORD else f"{RECORD}_", index)
    if not any(kept):
        raise CorruptRecordError(path, "line 1", "the header names no columns; give a table with a header")
    cells = {name: [row[index].strip() if index < len(row) else "" for row in rows[1:]] for name, index in kept.items()}
    return pl.DataFrame(cells, schema=dict.fromkeys(kept, pl.String))
