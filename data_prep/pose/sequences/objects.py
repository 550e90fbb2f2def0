"""Object arrays in npz files: dictionaries and lists of arrays, which NumPy keeps as a pickle.

A pickle is a program. This one is never run: the machine of `pickles.py` follows the few instructions that data need
and calls nothing that the file names. Python's `Unpickler` with another `find_class` would be shorter, but reserves as
much memory as a damaged file asks for.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors
from data_prep.pose.sequences.errors import UnsafeFileError
from data_prep.pose.sequences.pickles import DamageError, Machine, Made, Word

PACKED = 1100  # zlib makes nothing smaller than by this factor
DEEPEST = 16  # levels of lists, dictionaries and object arrays in each other
_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|[US]\d{1,6}|O8?)")
_BUSY = object()
_FAULTS = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError)


def read_npz(path: Path) -> dict[str, Any]:
    """All members of an npz file; object arrays become dictionaries, lists and arrays, single objects themselves.

    Raises:
        UnsafeFileError: a pickle asks for a function or class that is none of NumPy's arrays.
        CorruptRecordError: the file is damaged, or no npz file.
    """
    found: dict[str, Any] = {}
    with translate_os_errors(path):
        try:
            archive = zipfile.ZipFile(path)
        except _FAULTS as error:
            raise CorruptRecordError(path, "archive", f"is no npz file ({error}); load it again") from error
        with archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if member.file_size > PACKED * (member.compress_size + 1):
                    raise CorruptRecordError(path, name, "cannot unpack to the size it says: the file is damaged")
                try:
                    data = archive.read(member)
                except (*_FAULTS, struct.error, MemoryError) as error:
                    raise CorruptRecordError(path, name, f"cannot be unpacked ({error}); load it again") from error
                found[name] = read_npy(data, path, name)
    return found


def read_npy(data: bytes, path: Path, name: str) -> Any:
    """One array in the format of NumPy, whose objects are read as this module does.

    Args:
        data: the whole file or member.
        path: for messages.
        name: likewise.

    Raises:
        UnsafeFileError: see `read_npz`.
        CorruptRecordError: it is damaged.
    """
    try:
        shape, fortran, dtype, start = _header(data)
        if not dtype.hasobject:
            return _array(dtype, shape, "F" if fortran else "C", memoryview(data)[start:])
        made = load_objects(memoryview(data)[start:])
        if not isinstance(made, np.ndarray) or not made.dtype.hasobject or made.shape != shape:
            raise DamageError("holds other objects than its header says")
    except DamageError as error:
        if error.unsafe:
            raise UnsafeFileError(
                path, name, f"its pickle asks for {error}, which is not run; take the file from a source you trust"
            ) from None
        raise CorruptRecordError(path, name, f"{error}: the file is damaged; load it again") from None
    return made.item() if made.shape == () else made


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, type, and the first byte behind the header of an array."""
    version = data[6:8]
    if data[:6] != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise DamageError("is no array of NumPy")
    width = 2 if version == b"\1\0" else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + length
    if start > len(data) or length > 10_000:
        raise DamageError("has a header longer than itself")
    text = data[8 + width : start].decode("latin-1")
    pattern = r"\{'descr': ?'([^']{1,9})', ?'fortran_order': ?(True|False), ?'shape': ?\(([\d, L]*)\),? ?\}\s*"
    match = re.fullmatch(pattern, text)
    if match is None:
        raise DamageError("has a header that is none of a plain array")
    sides = [part.strip(" L") for part in match[3].split(",")]
    if any(part and not part.isdecimal() for part in sides):
        raise DamageError("has a header that is none of a plain array")
    return tuple(int(part) for part in sides if part), match[2] == "True", _dtype(match[1]), start


def _dtype(code: Any) -> np.dtype[Any]:
    text = code.decode("latin-1") if isinstance(code, bytes) else code
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise DamageError(f"has numbers of an unknown type {str(text)[:20]!r}")
    return np.dtype(object) if "O" in text else np.dtype(text)


def _array(dtype: np.dtype[Any], shape: Any, order: str, data: Any) -> npt.NDArray[Any]:
    """Numbers from bytes; both must say the same size."""
    if not isinstance(shape, tuple) or len(shape) > 8 or any(type(n) is not int or n < 0 for n in shape):
        raise DamageError("has an array of an impossible shape")
    buffer = data.encode("latin-1", "replace") if isinstance(data, str) else data  # Python 2 wrote texts
    if not isinstance(buffer, bytes | bytearray | memoryview) or dtype.itemsize * math.prod(shape) != len(buffer):
        raise DamageError("has an array whose shape and bytes contradict each other")
    try:
        flat = np.frombuffer(buffer, dtype) if len(buffer) else np.zeros(0, dtype)
        return flat.reshape(shape, order="F" if order == "F" else "C")
    except ValueError as error:  # a side beyond what NumPy counts
        raise DamageError("has an array of an impossible shape") from error


def load_objects(data: bytes | memoryview) -> Any:
    """What a pickle of arrays, dictionaries, lists, texts and numbers says.

    Args:
        data: the pickle, protocol 2 to 5.
    """
    machine = Machine(memoryview(data))
    try:
        return _finish(machine.run(), {}, 0)
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, TypeError, OverflowError) as error:
        raise DamageError(f"has a pickle that ends or changes in the middle ({type(error).__name__})") from error


def _finish(value: Any, known: dict[int, Any], depth: int) -> Any:
    """Make arrays of what is `Made`; equal objects stay one, and none may contain itself."""
    if not isinstance(value, list | tuple | dict | Made):
        if isinstance(value, Word):
            raise DamageError("has a name where data are expected")
        return value
    if id(value) in known:
        if known[id(value)] is _BUSY:
            raise DamageError("has a list that contains itself")
        return known[id(value)]
    if depth > DEEPEST:
        raise DamageError("has lists nested too deeply")
    known[id(value)] = _BUSY
    if isinstance(value, dict):
        done: Any = {key: _finish(item, known, depth + 1) for key, item in value.items()}
    elif isinstance(value, Made):
        done = _make(value, known, depth)
    else:
        done = [_finish(item, known, depth + 1) for item in value]
    known[id(value)] = done
    return done


def _make(made: Made, known: dict[int, Any], depth: int) -> Any:
    if made.kind == "bytes":
        return made.parts[0].encode("latin-1", "replace")
    if made.kind == "array":
        if not isinstance(made.state, tuple) or len(made.state) != 5:
            raise DamageError("has an array without content")
        _, shape, dtype, fortran, content = made.state
    elif made.kind == "buffer":
        content, dtype, shape, order = made.parts
        fortran = order == "F"
    elif made.kind == "scalar":
        (dtype, content), shape, fortran = made.parts, (), False
    else:
        raise DamageError("has a type where data are expected")
    kind = _described(dtype)
    if isinstance(content, Made):
        content = _finish(content, known, depth + 1)
    if not kind.hasobject:
        array = _array(kind, shape, "F" if fortran else "C", content)
        return array.item() if made.kind == "scalar" else array
    if not isinstance(content, list) or not isinstance(shape, tuple) or math.prod(shape) != len(content):
        raise DamageError("has an array whose shape and objects contradict each other")
    filled = np.empty(len(content), dtype=object)
    for place, item in enumerate(content):
        filled[place] = _finish(item, known, depth + 1)
    return filled.reshape(shape, order="F" if fortran else "C")


def _described(made: Any) -> np.dtype[Any]:
    """The type of numbers that a pickled `dtype` stands for."""
    if not isinstance(made, Made) or made.kind != "dtype":
        raise DamageError("has an array of an unknown type")
    found = _dtype(made.parts[0])
    if made.state is None or found.hasobject:
        return found
    if not isinstance(made.state, tuple) or len(made.state) < 2 or made.state[1] not in ("<", ">", "|", "="):
        raise DamageError("has an array of an unknown byte order")
    return found.newbyteorder(made.state[1]) if found.kind in "iufU" else found
