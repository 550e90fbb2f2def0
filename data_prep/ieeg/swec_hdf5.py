"""SWEC-ETHZ long-term recordings as HDF5: `IDxx_total.h5`, a virtual dataset over `IDxx_part_k.h5`.

The dataset `data/ieeg` is (channels, samples) float32 in microvolts, in chunks of three minutes, compressed by LZ4;
`data/seizures` has onsets and offsets in seconds; the attribute `sampling_rate` is of the file.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError, PrepError
from data_prep.common.files import translate_os_errors
from data_prep.ieeg.annotations import INTERVAL, Mark
from data_prep.ieeg.errors import HeaderError, MissingFilterError
from data_prep.ieeg.find import check_file, natural_key, some
from data_prep.ieeg.pieces import PieceReader
from data_prep.ieeg.records import Recording

SIGNAL, SEIZURES, RATE = "data/ieeg", "data/seizures", "sampling_rate"
_CHANNELS = 1024
_CACHE = 1 << 28  # bytes of chunks that a reader keeps, at most


@dataclass(frozen=True)
class HdfSignal:
    """One recording by its HDF5 files.

    Args:
        files: that hold the samples, in order of time.
        lengths: samples of each.
        datasets: name of the dataset in each.
        channels: how many.
        rate: Hz.
        marks: seizures; None: nobody tells.
        remarks: what was unusual.
    """

    files: tuple[Path, ...]
    lengths: tuple[int, ...]
    datasets: tuple[str, ...]
    channels: int
    rate: float
    marks: tuple[Mark, ...] | None
    remarks: tuple[str, ...] = ()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open file; whatever HDF5 says about damage becomes one line."""
    check_file(path)
    try:
        with translate_os_errors(path), h5py.File(path, "r") as file:
            yield file
    except PrepError as error:
        if type(error) is not PrepError:
            raise
        raise CorruptRecordError(path, "file", error.message.removeprefix(f"{path}: ")) from error
    except (KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, PrepError):
            raise
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise CorruptRecordError(path, "file", f"cannot be read as HDF5 ({reason}); copy it again") from error


def describe_files(total: Path | None, parts: Sequence[Path], owner: str) -> HdfSignal:
    """A recording by its total file, its parts, or both.

    The parts beside are read themselves: HDF5 fills a part that is not there with zeros, without a word, and the
    published totals point at parts of another subject.

    Args:
        total: the file over the parts; None: it is not there.
        parts: the subject's own parts.
        owner: what the parts' names begin with, as in ID07.

    Raises:
        DatasetNotFoundError: parts are missing.
        HeaderError: parts and total contradict each other.
        MissingFilterError: a filter is not installed.
        CorruptRecordError: a file is damaged.
    """
    if total is None:
        return _join(parts, None, ())
    check_file(total)
    with _opened(total) as file:
        data = _signal(file, total)
        shape = _shape(data, total, SIGNAL)
        marks = _seizures(file, total)
        rate = _rate(file, total)
        if not data.is_virtual:
            check_filters(data, total)
            return HdfSignal((total,), shape[1:], (SIGNAL,), shape[0], rate or _needed(total), marks, _said(marks))
        wanted = [Path(source.file_name).name for source in data.virtual_sources() if source.file_name != "."]
    wanted = sorted(dict.fromkeys(wanted), key=natural_key)
    foreign = [name for name in wanted if not _is_of(name, owner)]
    beside = {part.name: part for part in parts}
    missing = [] if foreign else [name for name in wanted if name not in beside]
    if missing or not parts:
        raise DatasetNotFoundError(f"{total}: its parts {some(missing or wanted)} are not there; put them beside")
    remarks = []
    chosen = [beside[name] for name in wanted] if not foreign else list(parts)
    if foreign:
        remarks.append(
            f"{total.name} points at the parts of another subject ({some(foreign, 2)}); its own {len(parts)} are read"
        )
    joined = _join(chosen, rate, remarks)
    if (joined.channels, sum(joined.lengths)) != shape:
        raise HeaderError(
            total, SIGNAL, f"has the shape {shape}, its parts {joined.channels, sum(joined.lengths)}; one is missing?"
        )
    said = (*joined.remarks, *_said(marks))
    return HdfSignal(joined.files, joined.lengths, joined.datasets, joined.channels, joined.rate, marks, said)


def _is_of(name: str, owner: str) -> bool:
    found = re.match(r"ID[\s_-]*0*(\d+)", name, re.IGNORECASE)
    return found is None or int(found[1]) == int(re.sub(r"\D", "", owner) or -1)


def _said(marks: tuple[Mark, ...] | None) -> tuple[str, ...]:
    return () if marks is not None else (f"has no {SEIZURES}: whether there are seizures is unknown",)


def _needed(path: Path) -> float:
    raise HeaderError(path, "attributes", f"has no {RATE}: the sampling rate is unknown")


def _join(parts: Sequence[Path], rate: float | None, remarks: Sequence[str]) -> HdfSignal:
    lengths, datasets = [], []
    channels: set[int] = set()
    rates: list[float] = [] if rate is None else [rate]
    marks: tuple[Mark, ...] | None = None
    for part in parts:
        with _opened(part) as file:
            data = _signal(file, part)
            count, samples = _shape(data, part, data.name)
            check_filters(data, part)
            channels.add(count)
            lengths.append(samples)
            datasets.append(str(data.name).lstrip("/"))
            own = _rate(file, part)
            rates += [] if own is None else [own]
            marks = _seizures(file, part) if marks is None else marks
    if len(channels) != 1:
        raise HeaderError(parts[0], SIGNAL, f"parts have unlike numbers of channels: {sorted(channels)}")
    if len(set(rates)) > 1:
        raise HeaderError(parts[0], RATE, f"parts have unlike sampling rates: {sorted(set(rates))}")
    said = (*remarks, *_said(marks)) if rate is None else tuple(remarks)
    found = rates[0] if rates else _needed(parts[0])
    return HdfSignal(tuple(parts), tuple(lengths), tuple(datasets), channels.pop(), found, marks, said)


def _signal(file: Any, path: Path) -> Any:
    for name in (SIGNAL, "ieeg"):
        if isinstance(file.get(name), h5py.Dataset):
            return file[name]
    raise HeaderError(path, "datasets", f"has no {SIGNAL}, only {some(file) or 'nothing'}")


def _shape(data: Any, path: Path, name: str) -> tuple[int, int]:
    shape = tuple(map(int, data.shape))
    if len(shape) != 2 or 0 in shape or shape[0] > _CHANNELS or data.dtype.kind not in "fiu":
        raise HeaderError(path, name, f"is {data.dtype} of shape {shape}, not channels x samples")
    return shape[0], shape[1]


def _rate(file: Any, path: Path) -> float | None:
    if RATE not in file.attrs:
        return None
    rate = float(np.asarray(file.attrs[RATE]).ravel()[0])
    if not math.isfinite(rate) or rate <= 0:
        raise HeaderError(path, RATE, f"is {rate:g}")
    return rate


def _seizures(file: Any, path: Path) -> tuple[Mark, ...] | None:
    if SEIZURES not in file:
        return None
    values = np.asarray(file[SEIZURES][()])
    fields = values.dtype.names or ()
    names = [next((name for name in fields if name.startswith(word)), None) for word in ("onset", "offset")]
    if None in names:
        raise HeaderError(path, SEIZURES, "has no fields onsets and offsets")
    flat = values.ravel()
    rows = zip(flat[names[0]].astype(float), flat[names[1]].astype(float), strict=True)
    return tuple(
        Mark(float(onset), float(offset - onset), ("seizure",), row, f"row {row}", meaning=INTERVAL)
        for row, (onset, offset) in enumerate(rows)
    )


def check_filters(data: Any, path: Path) -> None:
    """Make sure that a dataset can be decompressed, with what `hdf5plugin` brings where it must be.

    Raises:
        MissingFilterError: naming the filter, and what to install.
    """
    properties = data.id.get_create_plist()
    for at in range(properties.get_nfilters()):
        number, _, _, name = properties.get_filter(at)
        if h5py.h5z.filter_avail(number):
            continue
        if find_spec("hdf5plugin") is not None:
            import hdf5plugin  # noqa: F401  # registers its filters

        if not h5py.h5z.filter_avail(number):
            raise MissingFilterError(path, number, name.decode("latin-1") if isinstance(name, bytes) else str(name))


class _HdfPiece:
    """One open file; chunks of some minutes are kept, because blocks are shorter."""

    def __init__(self, path: Path, dataset: str, channels: int, samples: int) -> None:
        self.path = path
        with _opened(path) as file:
            data = file[dataset]
            check_filters(data, path)
            if _shape(data, path, dataset) != (channels, samples):
                raise CorruptRecordError(path, dataset, "has changed since it was listed; run again")
            chunk = int(np.prod(data.chunks or (1,))) * data.dtype.itemsize
        with translate_os_errors(path):
            self.file = h5py.File(path, "r", rdcc_nbytes=min(max(2 * chunk, 1 << 20), _CACHE), rdcc_nslots=521)
        self.data = self.file[dataset]

    def read(self, rows: npt.NDArray[np.intp], start: int, stop: int) -> npt.NDArray[Any]:
        try:
            values = np.asarray(self.data[:, start:stop])
        except (OSError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or ["damaged"])[0]
            raise CorruptRecordError(
                self.path, f"sample {start:,}", f"cannot be read ({reason}); copy the file again"
            ) from error
        return values if len(rows) == len(values) and (rows == np.arange(len(rows))).all() else values[rows]

    def close(self) -> None:
        self.file.close()


def open_recording(recording: Recording) -> PieceReader:
    """Open a recording of the format `swec-h5`: its options are `datasets`, `lengths` and `channels`."""
    options = recording.options

    def opened(path: Path, at: int) -> _HdfPiece:
        return _HdfPiece(path, options["datasets"][at], options["channels"], options["lengths"][at])

    return PieceReader(recording, opened)
