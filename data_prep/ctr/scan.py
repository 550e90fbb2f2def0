"""Where records begin and end in raw bytes, and how many separators each has.

The CSV parser is fast but forgiving: it fills short records with nulls and lets a stray quote swallow what follows.
This scan tells which records are whole before the parser sees them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
LONGEST = 1 << 20  # bytes; a quoted record longer than this was opened by a stray quote
_NEWLINE, _RETURN = 10, 13


@dataclass(frozen=True)
class Records:
    """Records of a block of bytes.

    Args:
        starts: first byte of each record.
        stops: one past the last byte, line end not included.
        separators: separators outside quotes in each record.
        stray: indices of records with a misplaced quote.

    Shape:
        starts, stops, separators (R,) int64; stray (S,) int64.
    """

    starts: I64
    stops: I64
    separators: I64
    stray: I64


def scan(data: bytes, separator: str, quote: str) -> Records:
    """Find the records of a block which begins at a record.

    Args:
        data: raw bytes; the last record needs no line end.
        separator: one byte.
        quote: one byte, or empty for formats without quotes.
    """
    array = np.frombuffer(data, dtype=np.uint8)
    newlines = np.flatnonzero(array == _NEWLINE)
    separators = np.flatnonzero(array == ord(separator))
    if quote and quote.encode() in data:
        quotes = np.flatnonzero(array == ord(quote))
        if not _well_placed(array, quotes, ord(separator)):
            return _scan_slowly(data, separator, quote)
        # An odd number of quotes before a byte: it is inside a quoted value.
        newlines = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
        separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
    records = _bounds(array, newlines, separators)
    if quote and len(records.starts) and int((records.stops - records.starts).max()) > LONGEST:
        return _scan_slowly(data, separator, quote)
    return records


def _well_placed(array: npt.NDArray[np.uint8], quotes: I64, separator: int) -> bool:
    """Each opening quote begins a value and each closing quote ends one (or is doubled)."""
    if len(quotes) % 2:
        return False
    opening, closing = quotes[0::2], quotes[1::2]
    # A doubled quote looks like closing and opening again: the two are neighbours.
    doubled_open = np.isin(opening - 1, closing)
    doubled_close = np.isin(closing + 1, opening)
    before = np.where(opening > 0, array[opening - 1], _NEWLINE)
    last = len(array) - 1
    after = np.where(closing < last, array[np.minimum(closing + 1, last)], _NEWLINE)
    begins = doubled_open | (before == separator) | (before == _NEWLINE)
    ends = doubled_close | (after == separator) | (after == _NEWLINE) | (after == _RETURN)
    return bool(begins.all() and ends.all())


def _bounds(array: npt.NDArray[np.uint8], newlines: I64, separators: I64) -> Records:
    starts = np.concatenate([[0], newlines + 1]).astype(np.int64)
    stops = np.concatenate([newlines, [len(array)]]).astype(np.int64)
    if starts[-1] == len(array):  # the block ends with a line end
        starts, stops = starts[:-1], stops[:-1]
    counts = np.diff(np.searchsorted(separators, np.concatenate([starts, [len(array)]])))
    filled = stops > starts
    stops = stops - (filled & (array[np.maximum(stops - 1, 0)] == _RETURN)) if len(stops) else stops
    return Records(starts, stops, counts.astype(np.int64), np.zeros(0, dtype=np.int64))


def _scan_slowly(data: bytes, separator: str, quote: str) -> Records:
    """One record after the other; a line that cannot be one is given up alone, and the next line is tried."""
    q, s = re.escape(quote.encode()), re.escape(separator.encode())
    value = rb"(?:" + q + rb"(?:[^" + q + rb"]++|" + q + q + rb")*+" + q + rb"|[^" + q + s + rb"\n]*+)"
    record = re.compile(value + rb"(?:" + s + value + rb")*+\r?(?:\n|\Z)")
    values = re.compile(value)
    starts: list[int] = []
    stops: list[int] = []
    counts: list[int] = []
    stray: list[int] = []
    position = 0
    while position < len(data):
        match = record.match(data, position)
        whole = match is not None and match.end() - position <= LONGEST
        line_end = data.find(b"\n", position)
        end = match.end() if match is not None and whole else (line_end + 1 if line_end >= 0 else len(data))
        text = data[position:end].rstrip(b"\r\n") if whole else data[position:end]
        if whole:
            counts.append(values.sub(b"", text).count(separator.encode()))
        else:
            counts.append(0)
            stray.append(len(starts))
        starts.append(position)
        stops.append(position + len(text.rstrip(b"\r\n")))
        position = end
    return Records(*(np.asarray(item, dtype=np.int64) for item in (starts, stops, counts, stray)))
