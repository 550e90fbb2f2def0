"""CSV files with the pixels of one grey image in each row (FER2013): rows are found by their place, and read alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.common.files import translate_os_errors

LONGEST = 1 << 22  # bytes of a line: 1024 x 1024 pixels
_MARKS = b' "\t\r\n'
_DIGITS = b"0123456789 "
_NAMES = {"label": ("emotion", "label", "expression", "class"), "usage": ("usage", "split"), "pixels": ("pixels",)}


class Line(NamedTuple):
    """A row of the table.

    Args:
        record: its number, from 0.
        start: of its line in the file, bytes.
        size: of its line, bytes.
        label: its label, or "" without one.
        usage: its split as it is written, or "".
        fault: why it cannot be used; empty: it can.
    """

    record: int
    start: int
    size: int
    label: str
    usage: str
    fault: str


class PixelTable(NamedTuple):
    """Where everything is.

    Args:
        path: the file.
        columns: meaning -> number of the column.
        side: pixels of an image, by the first row.
        lines: of all rows.
    """

    path: Path
    columns: Mapping[str, int]
    side: int
    lines: tuple[Line, ...]


def is_pixel_table(path: Path) -> bool:
    """Whether the header of a CSV file names a column of pixels."""
    with translate_os_errors(path), path.open("rb") as stream:
        return "pixels" in _names(stream.readline(1 << 12))


def scan(path: Path) -> PixelTable:
    """Go through a table without keeping pixels.

    Raises:
        CorruptRecordError: it is no such table.
        ConfigError: it has no column of labels: these are test images without.
    """
    with translate_os_errors(path):
        lines = _read_lines(path)
        _, head = next(lines, (0, b""))
        names = _names(head)
        columns = {
            meaning: names.index(known)
            for meaning, words in _NAMES.items()
            for known in [next((word for word in words if word in names), "")]
            if known
        }
        if "pixels" not in columns:
            raise CorruptRecordError(path, "header", f"has no column 'pixels', only {', '.join(names)[:99]}")
        if "label" not in columns:
            raise ConfigError(f"{path}: has no column 'emotion': images without labels; give fer2013.csv")
        found: list[Line] = []
        side = 0
        for start, line in lines:
            cells = [cell.strip(_MARKS) for cell in line.split(b",")]
            fault = f"{len(cells)} cells instead of {len(names)}" if len(cells) != len(names) else ""
            label = "" if fault else cells[columns["label"]].decode("utf-8", "replace")
            usage = cells[columns["usage"]].decode("utf-8", "replace") if "usage" in columns and not fault else ""
            if not side and not fault:
                side = math.isqrt(cells[columns["pixels"]].count(b" ") + 1)
            found.append(Line(len(found), start, len(line), label, usage, fault))
    if not found:
        raise CorruptRecordError(path, "table", "has no rows; load the file again")
    return PixelTable(path, columns, side, tuple(found))


def read_pixels(path: Path, start: int, size: int, column: int) -> npt.NDArray[np.uint8]:
    """The image of one row.

    Args:
        path: the table.
        start: of the line, bytes.
        size: of the line, bytes.
        column: of the pixels.

    Shape:
        -> (side, side) uint8.

    Raises:
        CorruptRecordError: the cell does not hold as many numbers of 0 to 255 as a square has pixels.
    """
    with translate_os_errors(path), path.open("rb") as stream:
        stream.seek(start)
        cells = stream.read(size).split(b",")
    text = cells[column].strip(_MARKS) if column < len(cells) else b""
    if text.translate(None, _DIGITS) or not text:
        raise CorruptRecordError(path, "pixels", "the cell of the pixels is not a row of whole numbers")
    # digits and blanks alone: what cannot be a number cannot be in there
    values = np.fromstring(text.decode(), dtype=np.float64, sep=" ")
    if values.max() > 255:
        raise CorruptRecordError(path, "pixels", f"a pixel is {values.max():.0f}; values are 0 to 255")
    side = math.isqrt(len(values))
    if side * side != len(values):
        raise CorruptRecordError(path, "pixels", f"{len(values):,} pixel values are no square image: the row is cut")
    return values.astype(np.uint8).reshape(side, side)


def _names(head: bytes) -> list[str]:
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    return [name.strip(' "\t\r\n').lower() for name in text.split(",")]


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with the byte each begins at."""
    at = 0
    with path.open("rb") as stream:
        while line := stream.readline(LONGEST):
            if len(line) == LONGEST and not line.endswith(b"\n"):
                raise CorruptRecordError(path, f"byte {at:,}", "no end of the line is found: this is no such table")
            if line.strip():
                yield at, line
            at += len(line)
