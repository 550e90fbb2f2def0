"""Matrices, and cells of matrices, in MATLAB files of version 5 to 7 (MAT-File Format, The MathWorks).

Every length is compared with what is there; what is damaged is an error, never a crash.
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
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _PACKED, _CELL = 14, 15, 1
_NUMBERS = range(6, 16)  # classes of matrices of numbers
Values = dict[str, npt.NDArray[Any] | list[npt.NDArray[Any]]]


def read_cells(path: Path, names: Collection[str]) -> Values:
    """Variables of a file: matrices, or lists of the matrices in cells, in the order of MATLAB.

    Args:
        path: the file.
        names: of the variables that are wanted; others are passed over.

    Raises:
        CorruptRecordError: the file is damaged, or none of these versions.
    """
    found: Values = {}
    with translate_os_errors(path):
        data = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if len(data) < HEADER or order is None:
        raise CorruptRecordError(path, "header", "is no MATLAB file of version 5 to 7; download it again")
    try:
        for kind, content in _elements(data[HEADER:], order):
            inner = content
            if kind == _PACKED:
                kind, inner = next(_elements(memoryview(_unpack(content)), order))
            if kind != _MATRIX:
                raise _DamageError(f"has an element of type {kind}")
            name, values = _matrix(inner, order, names)
            if values is not None:
                found[name] = values
    except (_DamageError, struct.error, StopIteration, UnicodeDecodeError) as error:
        reason = str(error) or "ends too early"
        raise CorruptRecordError(path, "variables", f"{reason}: the file is damaged; download it again") from error
    return found


class _DamageError(Exception):
    """The file contradicts itself."""


def _unpack(data: memoryview) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(data)
    except zlib.error as error:
        raise _DamageError(f"cannot be unpacked ({error})") from error
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


def _matrix(
    data: memoryview, order: str, names: Collection[str] | None
) -> tuple[str, npt.NDArray[Any] | list[npt.NDArray[Any]] | None]:
    """Name and values of a variable; None: it is not wanted, or holds neither numbers nor cells of numbers.

    Args:
        data: content of its element.
        order: of bytes.
        names: see `read_cells`; None: this is in a cell, whose contents have no names.
    """
    parts = _elements(data, order)
    flags = next(parts)[1]
    kind = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    dims = next(parts)[1]
    if len(dims) % 4 or not 8 <= len(dims) <= 32:
        raise _DamageError("has a variable without shape")
    shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
    name = bytes(next(parts)[1]).decode("ascii")
    if names is not None and name not in names:
        return name, None
    if kind == _CELL and names is not None:
        cells = [_matrix(content, order, None)[1] for word, content in parts if word == _MATRIX]
        if len(cells) != math.prod(shape) or not all(isinstance(cell, np.ndarray) for cell in cells):
            raise _DamageError(f"has {len(cells)} matrices in the {math.prod(shape)} cells of {name}")
        return name, [cell for cell in cells if isinstance(cell, np.ndarray)]
    if kind not in _NUMBERS:
        return name, None
    stored, content = next(parts)
    if stored not in _TYPES or min(shape) < 0:
        raise _DamageError(f"has numbers of type {stored} in {name or 'a cell'}")
    dtype = np.dtype(f"{order}{_TYPES[stored]}")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise _DamageError(f"has a shape and numbers in {name or 'a cell'} that contradict each other")
    return name, np.frombuffer(content, dtype).reshape(shape, order="F") if len(content) else np.zeros(shape, dtype)
