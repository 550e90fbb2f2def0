"""Samples of BrainVision recordings, straight from the mapped file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors
from data_prep.ieeg.brainvision_header import read_header
from data_prep.ieeg.errors import TruncatedRecordingError
from data_prep.ieeg.records import F32, Recording

_BLOCK = 1 << 16  # numbers that are transposed at once: they stay in the cache


class BrainVisionReader:
    """Reads kept channels of one recording.

    Args:
        recording: as `data_prep.ieeg.brainvision` describes it.

    Raises:
        CorruptRecordError: the file is not the one that was listed.
    """

    def __init__(self, recording: Recording) -> None:
        self.header = read_header(recording.path)
        if self.header.samples != recording.samples:
            raise CorruptRecordError(recording.path, "header", "the file has changed since it was listed; run again")
        if any(channel.index >= len(self.header.names) for channel in recording.kept):
            raise CorruptRecordError(recording.path, "header", "has fewer channels than when it was listed; run again")
        self.rows = np.array([channel.index for channel in recording.kept])
        self.scales = np.array(
            [self.header.resolutions[channel.index] * channel.scale for channel in recording.kept], np.float32
        )

    def read(self, start: int, stop: int) -> F32:
        """Samples of the kept channels in microvolts.

        Shape:
            -> (C, stop - start) float32.

        Raises:
            CorruptRecordError: the file has become shorter.
        """
        out = np.empty((len(self.rows), max(stop - start, 0)), np.float32)
        if out.size:
            with np.errstate(invalid="ignore", over="ignore"):  # a damaged number is found later, as no number
                self._fill(out, start, stop)
        return out

    def _fill(self, out: F32, start: int, stop: int) -> None:
        if self.header.vectorized:
            for row, channel in enumerate(self.rows):
                begin = int(channel) * self.header.samples
                np.multiply(self._map(begin + start, begin + stop), self.scales[row], out=out[row], casting="unsafe")
            return
        channels = len(self.header.names)
        frames = self._map(start * channels, stop * channels).reshape(-1, channels)
        for first in range(0, len(frames), _BLOCK // channels):
            block = frames[first : first + _BLOCK // channels, self.rows]
            target = out[:, first : first + len(block)]
            np.multiply(block.T, self.scales[:, None], out=target, casting="unsafe")

    def _map(self, begin: int, end: int) -> npt.NDArray[np.generic]:
        """Numbers `begin` to `end` (excluded) of the file."""
        dtype = np.dtype(self.header.dtype)
        path = self.header.data
        with translate_os_errors(path):
            if path.stat().st_size < end * dtype.itemsize:
                raise TruncatedRecordingError(path, f"number {begin:,}", "the file has become shorter")
            return np.memmap(path, dtype, "r", offset=begin * dtype.itemsize, shape=(end - begin,))

    def close(self) -> None:
        """Nothing is open between two reads."""


def open_recording(recording: Recording) -> BrainVisionReader:
    """Open a recording of the format `brainvision`."""
    return BrainVisionReader(recording)
