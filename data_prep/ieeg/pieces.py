"""A recording cut into files: read as one, with one file open at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError
from data_prep.ieeg.records import F32, Recording


class Piece(Protocol):
    """An open file of a recording."""

    def read(self, rows: npt.NDArray[np.intp], start: int, stop: int) -> npt.NDArray[Any]:
        """Some channels, samples `start` to `stop` (excluded).

        Shape:
            rows (C,) -> (C, stop - start).
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class PieceReader:
    """Reads kept channels of a recording whose files follow each other.

    Args:
        recording: its option `lengths` has the samples of each file.
        opened: opens a file, by its path and its place.
    """

    def __init__(self, recording: Recording, opened: Callable[[Path, int], Piece]) -> None:
        self.files = recording.signal_files
        lengths: Sequence[int] = recording.options["lengths"]
        self.ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
        if len(lengths) != len(self.files) or self.ends[-1] != recording.samples:
            raise CorruptRecordError(recording.path, "files", "are others than when it was listed; run again")
        kept = recording.kept
        self.rows = np.array([channel.index for channel in kept], dtype=np.intp)
        self.scales = np.array([channel.scale for channel in kept], np.float32)[:, None]
        self.opened = opened
        self.at = -1
        self.piece: Piece | None = None
        self._open(0)  # what is not there is told at once

    def read(self, start: int, stop: int) -> F32:
        """Samples of the kept channels in microvolts.

        Shape:
            -> (C, stop - start) float32.

        Raises:
            CorruptRecordError: a file cannot be read.
        """
        out = np.empty((len(self.rows), max(stop - start, 0)), np.float32)
        place = start
        while place < stop:
            at = int(np.searchsorted(self.ends, place, side="right"))
            begin = int(self.ends[at - 1]) if at else 0
            end = min(stop, int(self.ends[at]))
            values = self._open(at).read(self.rows, place - begin, end - begin)
            target = out[:, place - start : end - start]
            with np.errstate(invalid="ignore", over="ignore"):  # a damaged number is found later, as no number
                np.multiply(values, self.scales, out=target, casting="unsafe")
            place = end
        return out

    def _open(self, at: int) -> Piece:
        if self.piece is None or self.at != at:
            self.close()
            self.piece = self.opened(self.files[at], at)
            self.at = at
        return self.piece

    def close(self) -> None:
        """Close the file that is open."""
        if self.piece is not None:
            self.piece.close()
            self.piece = None
