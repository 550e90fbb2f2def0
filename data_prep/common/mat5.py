"""Variables of MATLAB files of version 5 to 7 (MAT-File Format, The MathWorks): numbers, texts, cells, structures.

Every length is compared with what is there; what is damaged is an error, never a crash, and nothing is ever executed.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors

HEADER = 128  # bytes before the first element
MAX_UNPACKED = 1 << 31  # bytes of one variable
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _PACKED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBERS = range(6, 16)  # classes of matrices of numbers
_DEEPEST = 6  # cells in structures in cells
_HDF5 = b"\x89HDF\r\n\x1a\n"
# An array, a text, the values of a cell array in the order of MATLAB, the records of a structure; None: another kind.
Value = Any


class _DamageError(Exception):
    """The file contradicts itself."""


def read_variables(path: Path, names: Collection[str]) -> dict[str, Value]:
    """Read some variables of a file.

    Args:
        path: the file.
        names: of the variables that are wanted; others are passed over.

    Returns:
        Name -> array of numbers, text, list of the values of a cell array, or list of dictionaries of a structure.

    Raises:
        CorruptRecordError: the file is damaged, or none of these versions.
    """
    found: dict[str, Value] = {}
    with translate_os_errors(path):
        data = memoryview(path.read_bytes())
    order = _check_version(path, data)
    try:
        for kind, content in _elements(data[HEADER:], order):
            inner = content
            if kind == _PACKED:
                kind, inner = next(_elements(memoryview(_unpack(content)), order))
            if kind != _MATRIX:
                raise _DamageError(f"has an element of type {kind}")
            name, value = _matrix(inner, order, names, 0)
            if value is not None:
                found[name] = value
    except (_DamageError, struct.error, StopIteration, UnicodeDecodeError) as error:
        reason = str(error) or "ends too early"
        raise CorruptRecordError(path, "variables", f"{reason}: the file is damaged; download it again") from error
    return found


def _check_version(path: Path, data: memoryview) -> str:
    """Order of bytes.

    Raises:
        CorruptRecordError: it is of another version, which is told, or no MATLAB file.
    """
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if bytes(data[:8]) == _HDF5 or bytes(data[512:520]) == _HDF5:
        version = "7.3 (HDF5)"
    elif len(data) >= 20 and order is None and 0 in bytes(data[:4]):
        version = "4"  # whose files begin with a number below 5000 instead of a text
    elif len(data) < HEADER or order is None:
        raise CorruptRecordError(path, "header", "is no MATLAB file of version 5 to 7; download it again")
    else:
        return order
    raise CorruptRecordError(
        path, "header", f"wrong .mat version: {version}, and 5 to 7 are read; save it in MATLAB with the option -v7"
    )


def _unpack(data: memoryview) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(data, MAX_UNPACKED)
    except zlib.error as error:
        raise _DamageError(f"cannot be unpacked ({error})") from error
    if unpacking.unconsumed_tail:
        raise _DamageError(f"has a variable of more than {MAX_UNPACKED:,} bytes")
    if not unpacking.eof:
        raise _DamageError("ends too early")
    return content


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each element; short ones have four bytes beside the type."""
    place = 0
    while place < len(data):
        word = struct.unpack_from(f"{order}I", data, place)[0]
        if word >> 16:
            length, start, end = word >> 16, place + 4, place + 8
            word &= 0xFFFF
        else:
            length = struct.unpack_from(f"{order}I", data, place + 4)[0]
            start = place + 8
            # compressed elements are not padded
            end = start + (length if word == _PACKED else -(-length // 8) * 8)
        if start + length > len(data):
            raise _DamageError(f"ends too early ({len(data) - start:,} of {length:,} bytes of an element are there)")
        yield word, data[start : start + length]
        place = end


def _matrix(data: memoryview, order: str, names: Collection[str] | None, depth: int) -> tuple[str, Value]:
    """Name and value of a variable; None: it is not wanted, or of another kind.

    Args:
        data: content of its element.
        order: of bytes.
        names: see `read_variables`; None: this is in a cell or structure, whose contents have no names.
        depth: of cells and structures around it.
    """
    if not len(data) and names is None:
        return "", np.zeros((0, 0))
    if depth > _DEEPEST:
        raise _DamageError("has cells in cells without end")
    parts = _elements(data, order)
    kind = struct.unpack_from(f"{order}I", next(parts)[1])[0] & 0xFF
    dims = next(parts)[1]
    if len(dims) % 4 or not 8 <= len(dims) <= 32:
        raise _DamageError("has a variable without shape")
    shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
    name = bytes(next(parts)[1]).decode("ascii")
    if names is not None and name not in names:
        return name, None
    if min(shape) < 0:
        raise _DamageError(f"has a negative shape in {name or 'a cell'}")
    if kind == _CELL:
        return name, _cells(parts, order, math.prod(shape), name, depth)
    if kind == _STRUCT:
        return name, _records(parts, order, math.prod(shape), name, depth)
    if kind == _CHAR:
        return name, _text(parts, order, shape)
    if kind not in _NUMBERS:
        return name, None
    return name, _numbers(parts, order, shape, name)


def _cells(parts: Iterator[tuple[int, memoryview]], order: str, count: int, name: str, depth: int) -> list[Value]:
    cells = [_matrix(content, order, None, depth + 1)[1] for word, content in parts if word == _MATRIX]
    if len(cells) != count:
        raise _DamageError(f"has {len(cells)} matrices in the {count} cells of {name or 'a cell'}")
    return cells


def _records(
    parts: Iterator[tuple[int, memoryview]], order: str, count: int, name: str, depth: int
) -> list[dict[str, Value]]:
    width = struct.unpack_from(f"{order}i", next(parts)[1])[0]
    text = bytes(next(parts)[1])
    if width < 1 or len(text) % width:
        raise _DamageError(f"has a structure {name} without names of fields")
    fields = [text[at : at + width].split(b"\0")[0].decode("ascii") for at in range(0, len(text), width)]
    values = _cells(parts, order, count * len(fields), name, depth)
    step = len(fields)
    return [dict(zip(fields, values[at : at + step], strict=True)) for at in range(0, len(values), max(step, 1))]


def _text(parts: Iterator[tuple[int, memoryview]], order: str, shape: tuple[int, ...]) -> str | list[str]:
    if not math.prod(shape):
        return ""
    stored, content = next(parts)
    if stored not in _TEXTS:
        raise _DamageError(f"has letters of type {stored}")
    coding = _TEXTS[stored]
    wide = coding in ("utf-16", "utf-32")
    text = bytes(content).decode(f"{coding}-{'le' if order == '<' else 'be'}" if wide else coding)
    rows = shape[0]
    if rows > 1 and len(text) != math.prod(shape):
        raise _DamageError("has a shape and letters that contradict each other")
    # a matrix of letters is stored column by column
    return text if rows == 1 else [text[row::rows] for row in range(rows)]


def _numbers(
    parts: Iterator[tuple[int, memoryview]], order: str, shape: tuple[int, ...], name: str
) -> npt.NDArray[Any]:
    stored, content = next(parts)
    if stored not in _TYPES:
        raise _DamageError(f"has numbers of type {stored} in {name or 'a cell'}")
    dtype = np.dtype(f"{order}{_TYPES[stored]}")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise _DamageError(f"has a shape and numbers in {name or 'a cell'} that contradict each other")
    return np.frombuffer(content, dtype).reshape(shape, order="F") if len(content) else np.zeros(shape, dtype)
