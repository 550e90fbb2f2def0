"""The pickled npy files of the official MQSA-TED code, read without executing anything in them.

An object array of 5: `train {user: [items]}`, `valid {user: item}`, `test {user: item}`, `num_user`, `num_item`
(Zhu et al., WSDM 2024, `utils.py`). A pickle names classes and calls them. Here every name is looked up in a table of
four inert stand-ins, so that a hostile file can build nothing but lists, numbers and texts.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import CorruptRecordError
from data_prep.seqrec.layout import Block

_USERS = 1 << 14  # per block


class _Name:
    """Stands for the class `numpy.ndarray`, which is only mentioned."""


class _Type:
    """Stands for a numpy type: remembers how it is spelt."""

    def __init__(self, *arguments: Any) -> None:
        self.text = str(arguments[0])[:8] if arguments else ""

    def __setstate__(self, state: Any) -> None:
        return


class _Number:
    """Stands for a numpy number: a type and its bytes."""

    def __init__(self, kind: Any, data: Any) -> None:
        if not isinstance(kind, _Type) or kind.text[:1] not in "iu" or not isinstance(data, bytes) or len(data) > 8:
            raise pickle.UnpicklingError("a number that is no whole number")
        self.value = int.from_bytes(data, "little", signed=kind.text[0] == "i")


class _Array:
    """Stands for an array of objects: remembers them."""

    def __init__(self, *_: Any) -> None:
        self.values: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        values = state[4] if isinstance(state, tuple) and len(state) == 5 else None
        if not isinstance(values, list):
            raise pickle.UnpicklingError("an array that is no array of objects")
        self.values = values


_ALLOWED: dict[str, type] = {"_reconstruct": _Array, "ndarray": _Name, "dtype": _Type, "scalar": _Number}
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")


# The version written in Python: its memory grows with the file alone, not with a number in it.
class _Reader(pickle._Unpickler):
    """An unpickler that knows four names, all of them inert."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in _MODULES or name not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of this format")
        return _ALLOWED[name]

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"it asks for extension {code}, which is not part of this format")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for an object outside the file")


def read_npy(path: Path, data: bytes) -> Iterator[Block]:
    """Events of each user in order: training items, validation item, test item. A record is a user.

    Args:
        path: for messages.
        data: the whole file.

    Raises:
        CorruptRecordError: the file is not of this format, damaged, or hostile.
    """
    train, valid, test = _load(path, data)
    users = list(train)
    for at in range(0, len(users), _USERS):
        names = users[at : at + _USERS]
        rows = [[*train[user], *(one[user] for one in (valid, test) if user in one)] for user in names]
        table = pl.DataFrame(
            {"record": range(at, at + len(names)), "user": [str(user) for user in names], "item": rows},
            schema={"record": pl.Int64, "user": pl.String, "item": pl.List(pl.Int64)},
        )
        exploded = table.filter(pl.col("item").list.len() > 0).explode("item")
        yield Block(exploded.with_columns(pl.col("item").cast(pl.String)), [], len(names), at)


def _load(path: Path, data: bytes) -> tuple[dict[int, list[int]], dict[int, int], dict[int, int]]:
    try:
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        if dtype != np.dtype(object) or shape != (5,):
            raise ValueError(f"an array of {shape} {dtype}, not of 5 objects")
        found = _Reader(stream).load()
        if not isinstance(found, _Array) or len(found.values) != 5:
            raise ValueError("not an array of 5 objects")
        given = found.values[0]
        if not isinstance(given, dict) or not all(isinstance(items, list) for items in given.values()):
            raise ValueError("its first part is no dictionary of lists")
        # A list may be mentioned many times in a pickle; written out, it takes a byte per item at least.
        if sum(map(len, given.values())) > len(data):
            raise ValueError("it holds more events than bytes")
        train = {_whole(user): [_whole(item) for item in items] for user, items in given.items()}
        return train, _targets(found.values[1], train), _targets(found.values[2], train)
    except Exception as error:  # whatever a damaged or hostile pickle provokes is one kind of error to its reader
        text = str(error) or type(error).__name__
        raise CorruptRecordError(
            path, "array", f"not an npy file of MQSA-TED, or a damaged or hostile one ({text}); nothing was executed"
        ) from error


def _targets(given: Any, train: dict[int, list[int]]) -> dict[int, int]:
    if not isinstance(given, dict):
        raise ValueError("valid and test are no dictionaries")
    found = {_whole(user): _whole(item) for user, item in given.items()}
    if not found.keys() <= train.keys():
        raise ValueError("a user of valid or test has no training items")
    return found


def _whole(value: Any) -> int:
    number = value.value if isinstance(value, _Number) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 31:
        raise ValueError(f"{str(number)[:20]!r} is no id")
    return int(number)
