"""Numeric variables of MATLAB files of version 5 to 7 (MAT-File Format, The MathWorks), every field checked.

scipy reads such files as well, but type numbers of a damaged file send it out of its tables: it ends the process (seen
with 1.17.1). Here, damage is an error, and matrices that are not compressed are mapped instead of loaded.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors
from data_prep.ieeg.errors import HeaderError, TruncatedRecordingError

_HEADER = 128  # bytes before the first element
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x08
_HEAD = 4096  # bytes in which flags, shape and name of a variable end
_VARIABLES = 10_000
_PACKED = 1100  # zlib makes nothing smaller than by this factor


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable, by its head.

    Args:
        name: as in MATLAB.
        shape: of the array.
        kind: numpy's name of the numbers' class; empty: they are no real numbers.
        stored: numpy's name of what is in the file, with its byte order.
        start: first byte of the numbers, in the file or in the unpacked element.
        packed: first byte and length of the compressed element; None: it is not compressed.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    stored: str
    start: int
    packed: tuple[int, int] | None

    @property
    def size(self) -> int:
        """Bytes of the numbers in the file."""
        return math.prod(self.shape) * np.dtype(self.stored).itemsize


def list_variables(path: Path) -> list[Variable]:
    """All variables of a file, without their numbers.

    Raises:
        HeaderError: it is no such file, or damaged.
        TruncatedRecordingError: it ends too early.
    """
    with translate_os_errors(path), path.open("rb") as stream:
        size = path.stat().st_size
        head = stream.read(_HEADER)
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        if len(head) < _HEADER or order is None or struct.unpack(f"{order}H", head[124:126])[0] != 0x0100:
            raise HeaderError(path, "header", "is no MATLAB file of version 5 to 7.3")
        return list(_walk(stream, path, size, order))


def _walk(stream: BinaryIO, path: Path, size: int, order: str) -> Iterator[Variable]:
    place = _HEADER
    for number in range(_VARIABLES):
        if place == size:
            return
        stream.seek(place)
        kind, length = struct.unpack(f"{order}II", stream.read(8).ljust(8, b"\0"))
        begin = place + 8
        if kind not in (_MATRIX, _COMPRESSED):
            raise HeaderError(path, f"byte {place:,}", f"element {number + 1} has the type {kind}: the file is damaged")
        if begin + length > size:
            raise TruncatedRecordingError(
                path, f"byte {place:,}", f"truncated: {size - begin:,} of {length:,} bytes of a variable are there"
            )
        if kind == _MATRIX:
            yield _read_head(stream.read(min(length, _HEAD)), path, order, begin, length, None)
        else:
            head = _unpack_head(stream.read(min(length, _HEAD)), path, place)
            inner, inside = struct.unpack(f"{order}II", head[:8].ljust(8, b"\0"))
            if inner != _MATRIX or inside > _PACKED * length:
                raise HeaderError(path, f"byte {place:,}", f"element {number + 1} is no variable: the file is damaged")
            yield _read_head(head[8:], path, order, 8, inside, (begin, length))
        place = begin + length
    raise HeaderError(path, "variables", "are too many: the file is damaged")


def _unpack_head(data: bytes, path: Path, place: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _HEAD)
    except zlib.error as error:
        raise CorruptRecordError(path, f"byte {place:,}", f"cannot be unpacked ({error}); copy it again") from error


def _element(head: bytes, place: int, order: str) -> tuple[int, bytes, int]:
    """Type, content and end of an element inside a variable; short ones have four bytes beside the type."""
    word = struct.unpack_from(f"{order}I", head, place)[0]
    if word >> 16:
        length = word >> 16
        return word & 0xFFFF, head[place + 4 : place + 4 + length], place + 8
    length = struct.unpack_from(f"{order}I", head, place + 4)[0]
    return word, head[place + 8 : place + 8 + length], place + 8 + -(-length // 8) * 8


def _read_head(
    head: bytes, path: Path, order: str, begin: int, length: int, packed: tuple[int, int] | None
) -> Variable:
    """Flags, shape, name, and where the numbers are.

    Args:
        head: beginning of the variable's content.
        path: for messages.
        order: of bytes.
        begin: place of the content, in the file or in the unpacked element.
        length: of the content.
        packed: see `Variable`.
    """
    try:
        _, flags, place = _element(head, 0, order)
        kind, bits = struct.unpack(f"{order}I", flags[:4])[0] & 0xFF, struct.unpack(f"{order}I", flags[:4])[0] >> 8
        dtype, dims, place = _element(head, place, order)
        _, name, place = _element(head, place, order)
        if dtype != 5 or len(dims) % 4 or not 8 <= len(dims) <= 32 * 4:
            raise HeaderError(path, "variable", "has no shape: the file is damaged")
        shape = tuple(struct.unpack(f"{order}{len(dims) // 4}i", dims))
        text = name.decode("ascii", "replace")
        if kind not in _CLASSES or bits & _COMPLEX:
            return Variable(text, shape, "", "u1", 0, packed)
        word = struct.unpack_from(f"{order}I", head, place)[0]
        # short elements hold their numbers in the tag
        stored, size = (
            (word & 0xFFFF, word >> 16) if word >> 16 else (word, struct.unpack_from(f"{order}I", head, place + 4)[0])
        )
        start = place + (4 if word >> 16 else 8)
    except struct.error as error:
        raise TruncatedRecordingError(path, "variable", "ends inside its description; copy it again") from error
    found = Variable(text, shape, _CLASSES[kind], f"{order}{_TYPES.get(stored, 'u1')}", begin + start, packed)
    if min(shape) < 0 or stored not in _TYPES or found.size != size or start + size > length:
        raise HeaderError(path, f"variable {text}", f"shape {shape} and {size:,} bytes contradict each other")
    return found


def read_variable(path: Path, variable: Variable) -> npt.NDArray[Any]:
    """The numbers of a variable: mapped where they are not compressed, else loaded.

    Raises:
        CorruptRecordError: they cannot be unpacked, or the file has become shorter.
    """
    dtype = np.dtype(variable.stored)
    if not variable.size:
        return np.empty(variable.shape, dtype)
    with translate_os_errors(path):
        if variable.packed is None:
            if path.stat().st_size < variable.start + variable.size:
                raise TruncatedRecordingError(path, f"variable {variable.name}", "the file has become shorter")
            return np.memmap(path, dtype, "r", offset=variable.start, shape=variable.shape, order="F")
        with path.open("rb") as stream:
            stream.seek(variable.packed[0])
            data = stream.read(variable.packed[1])
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(data, variable.start + variable.size)
        # what follows is padding, and the checksum, which is only looked at when all is unpacked
        unpacking.decompress(unpacking.unconsumed_tail, 64)
    except zlib.error as error:
        raise CorruptRecordError(
            path, f"variable {variable.name}", f"cannot be unpacked ({error}); copy the file again"
        ) from error
    if len(content) < variable.start + variable.size or not unpacking.eof:
        raise TruncatedRecordingError(path, f"variable {variable.name}", "ends too early; copy the file again")
    return np.frombuffer(content, dtype, math.prod(variable.shape), variable.start).reshape(variable.shape, order="F")
