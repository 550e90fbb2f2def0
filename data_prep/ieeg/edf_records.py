"""Samples of EDF and BDF files, straight from the mapped records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors
from data_prep.ieeg.edf_header import EdfHeader, EdfSignal, read_header
from data_prep.ieeg.errors import TruncatedRecordingError
from data_prep.ieeg.records import F32, Channel, Recording


def map_records(header: EdfHeader, begin: int, end: int, ahead: int = 0) -> npt.NDArray[np.uint8]:
    """Bytes of the records `begin` to `end` (excluded), mapped, not read.

    They are unmapped when nothing refers to them any more: mapping anew for each piece keeps the memory of the process
    from growing with the file.

    Args:
        header: of the file.
        begin: first record.
        end: the one behind the last.
        ahead: bytes before the first record that are mapped as well.

    Shape:
        -> (ahead + bytes of the records,) uint8.

    Raises:
        TruncatedRecordingError: the file has become shorter.
    """
    length = header.record_samples * header.width
    place, size = header.offset + begin * length - ahead, (end - begin) * length + ahead
    with translate_os_errors(header.path):
        if header.path.stat().st_size < place + size:
            raise TruncatedRecordingError(header.path, f"record {begin:,}", "the file has become shorter")
        return np.memmap(header.path, np.uint8, "r", offset=place, shape=(size,))


class EdfReader:
    """Reads kept channels of one file.

    Args:
        recording: as `data_prep.ieeg.edf` describes it.

    Raises:
        CorruptRecordError: the file is not the one that was listed.
    """

    def __init__(self, recording: Recording) -> None:
        self.header = read_header(recording.path)
        self.signals: list[EdfSignal] = []
        self.scales: list[tuple[np.float32, np.float32]] = []
        for channel in recording.kept:
            self._add(channel, recording.path)
        self.per_record = self.signals[0].samples
        if any(signal.samples != self.per_record for signal in self.signals):
            raise CorruptRecordError(recording.path, "header", "channels have other rates than when it was listed")
        self.samples = self.per_record * self.header.records
        if self.samples != recording.samples:
            raise CorruptRecordError(recording.path, "header", "the file has changed since it was listed; run again")

    def _add(self, channel: Channel, path: Path) -> None:
        if channel.index >= len(self.header.signals):
            raise CorruptRecordError(path, f"channel {channel.name}", "is not there any more; run again")
        signal = self.header.signals[channel.index]
        gain, base = signal.gain * channel.scale, signal.base * channel.scale
        self.signals.append(signal)
        self.scales.append((np.float32(gain), np.float32(base)))

    def read(self, start: int, stop: int) -> F32:
        """Samples of the kept channels in microvolts.

        Shape:
            -> (C, stop - start) float32.

        Raises:
            CorruptRecordError: the file has become shorter.
        """
        out = np.empty((len(self.signals), max(stop - start, 0)), np.float32)
        for begin, end, first, last, place in _pieces(start, stop, self.per_record):
            data = map_records(self.header, begin, end, ahead=self.header.width == 3)
            shape = (end - begin, last - first)
            for row, (signal, (gain, base)) in enumerate(zip(self.signals, self.scales, strict=True)):
                # a view: rows of `out` are contiguous
                target = out[row, place : place + shape[0] * shape[1]].reshape(shape)
                np.multiply(self._digital(data, signal.start + first, shape), gain, out=target, casting="unsafe")
                if base:
                    target += base
        return out

    def _digital(
        self, data: npt.NDArray[np.uint8], sample: int, shape: tuple[int, int]
    ) -> npt.NDArray[np.signedinteger]:
        """A run of samples from each record, as integers."""
        width = self.header.width
        strides = (self.header.record_samples * width, width)
        if width == 2:
            return np.ndarray(shape, "<i2", data.data, sample * width, strides)
        # Four bytes from one before each sample: the upper three are the sample, with its sign.
        return np.ndarray(shape, "<i4", data.data, sample * width, strides) >> 8

    def close(self) -> None:
        """Nothing is open between two reads."""


def _pieces(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Cut samples into runs of records: first and last record, first and last sample in each, place in the output."""
    place = 0
    while start < stop:
        record, first = divmod(start, size)
        whole = (stop - start) // size if first == 0 else 0
        if whole:
            yield record, record + whole, 0, size, place
            step = whole * size
        else:
            last = min(first + stop - start, size)
            yield record, record + 1, first, last, place
            step = last - first
        start, place = start + step, place + step


def open_recording(recording: Recording) -> EdfReader:
    """Open a recording of the format `edf`."""
    return EdfReader(recording)
