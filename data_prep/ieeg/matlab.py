"""MATLAB files: matrices of signals and a few numbers; versions 5 to 7 by `mat5`, 7.3 (HDF5) by h5py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError, PrepError
from data_prep.common.files import translate_os_errors
from data_prep.ieeg.errors import HeaderError
from data_prep.ieeg.find import check_file, some
from data_prep.ieeg.mat5 import list_variables, read_variable
from data_prep.ieeg.pieces import PieceReader
from data_prep.ieeg.records import Recording

_CHANNELS = 1024  # more than any recording has: the other axis is time


@dataclass(frozen=True, slots=True)
class MatMatrix:
    """A signal in a MATLAB file.

    Args:
        variable: its name.
        channels: the shorter axis.
        samples: the longer one.
    """

    variable: str
    channels: int
    samples: int


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what HDF5 says about a damaged file into one line."""
    try:
        with translate_os_errors(path):
            yield
    except PrepError as error:
        # h5py raises OSError for damage, too
        if type(error) is not PrepError:
            raise
        raise CorruptRecordError(path, "file", _first_line(error.message, path)) from error
    except (KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        reason = _first_line(str(error), path)
        raise CorruptRecordError(path, "file", f"cannot be read as MATLAB ({reason}); copy it again") from error


def _first_line(text: str, path: Path) -> str:
    return (text.strip().splitlines() or ["damaged"])[0].removeprefix(f"{path}: ")


def is_hdf5(path: Path) -> bool:
    """Whether a file is of version 7.3, which is HDF5.

    Raises:
        DatasetNotFoundError: it is not there.
        EmptyFileError: it has 0 bytes.
    """
    import h5py

    check_file(path)
    with translate_os_errors(path):
        return bool(h5py.is_hdf5(path))


def describe_matrix(path: Path, names: Sequence[str]) -> MatMatrix:
    """Find a signal by the name of its variable, without reading it.

    Args:
        path: of the file.
        names: of the variable; the first that is there.

    Raises:
        DatasetNotFoundError: the file is not there.
        EmptyFileError: it has 0 bytes.
        HeaderError: it has no such matrix.
        CorruptRecordError: it is damaged.
    """
    shapes = _hdf5_shapes(path) if is_hdf5(path) else _mat_shapes(path)
    name = next((name for name in names if name in shapes), None)
    if name is None:
        raise HeaderError(path, "variables", f"has no matrix {names[0]!r}, only {some(shapes) or 'none'}")
    shape = shapes[name]
    if len(shape) != 2 or 0 in shape:
        raise HeaderError(path, f"variable {name}", f"has the shape {shape}: no channels x samples")
    channels, samples = min(shape), max(shape)
    if channels > _CHANNELS:
        raise HeaderError(path, f"variable {name}", f"has the shape {shape}: which axis is time cannot be known")
    return MatMatrix(name, channels, samples)


def _hdf5_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    import h5py

    with _told(path), h5py.File(path, "r") as file:
        return {
            name: tuple(map(int, item.shape))
            for name, item in file.items()
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf"
        }


def _mat_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {variable.name: variable.shape for variable in list_variables(path) if variable.kind}


def read_numbers(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Small variables as flat vectors; those that are not there are left out.

    Raises:
        DatasetNotFoundError: the file is not there.
        EmptyFileError: it has 0 bytes.
        CorruptRecordError: it is damaged, or one of them is no number.
    """
    found: dict[str, Any] = {}
    if is_hdf5(path):
        import h5py

        with _told(path), h5py.File(path, "r") as file:
            for name in names:
                if name in file:
                    empty = "MATLAB_empty" in file[name].attrs  # such a dataset holds the shape instead
                    found[name] = np.empty(0) if empty else file[name][()]
    else:
        for variable in list_variables(path):
            if variable.name in names:
                found[variable.name] = read_variable(path, variable) if variable.kind else ""
    numbers = {}
    for name in names:
        if name not in found:
            continue
        values = np.asarray(found[name])
        if values.dtype.kind not in "iuf":
            raise HeaderError(path, f"variable {name}", "is no number")
        numbers[name] = values.astype(np.float64).ravel()
    return numbers


class _MatMatrix:
    """A matrix of a file up to version 7; one that is compressed stays in memory while it is open."""

    def __init__(self, path: Path, variable: str, channels: int, samples: int) -> None:
        found = next((one for one in list_variables(path) if one.name == variable and one.kind), None)
        if found is None or sorted(found.shape) != sorted((channels, samples)):
            raise _changed(path, variable)
        values = read_variable(path, found)
        self.values = values if values.shape == (channels, samples) else values.T

    def read(self, rows: npt.NDArray[np.intp], start: int, stop: int) -> npt.NDArray[Any]:
        return self.values[rows, start:stop]

    def close(self) -> None:
        self.values = np.empty((0, 0))


def _changed(path: Path, variable: str) -> CorruptRecordError:
    return CorruptRecordError(path, f"variable {variable}", "has changed since it was listed; run again")


class _HdfMatrix:
    """A matrix of a file of version 7.3, read in pieces."""

    def __init__(self, path: Path, variable: str, channels: int, samples: int) -> None:
        import h5py

        self.path, self.shape = path, (channels, samples)
        with _told(path):
            self.file = h5py.File(path, "r")
            self.data = self.file[variable]
        if tuple(self.data.shape) not in (self.shape, self.shape[::-1]):
            self.close()
            raise _changed(path, variable)

    def read(self, rows: npt.NDArray[np.intp], start: int, stop: int) -> npt.NDArray[Any]:
        with _told(self.path):
            if tuple(self.data.shape) == self.shape:
                return np.asarray(self.data[:, start:stop])[rows]
            return np.asarray(self.data[start:stop, :]).T[rows]

    def close(self) -> None:
        self.file.close()


def open_recording(recording: Recording) -> PieceReader:
    """Open a recording of the format `mat`: its options are `variables`, `lengths` and `channels`."""
    options = recording.options

    def opened(path: Path, at: int) -> _MatMatrix | _HdfMatrix:
        kind = _HdfMatrix if is_hdf5(path) else _MatMatrix
        return kind(path, options["variables"][at], options["channels"], options["lengths"][at])

    return PieceReader(recording, opened)
