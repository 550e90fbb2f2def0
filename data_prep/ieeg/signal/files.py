"""HDF5 files of prepared signal: the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from data_prep.ieeg.records import F32
from data_prep.ieeg.signal.statistics import power_sums

SEGMENT = 5.0  # s of a chunk: what models read at a time


class PartWriter:
    """Writes a stretch of a prepared recording.

    The file has `signal` (C, n) float32 in microvolts, chunks of 5 s of all channels; `channels` (C,), their names; the
    attributes `sampling_rate` (Hz), `start` (s from the beginning of the recording) and `units`; and `events` (E, 2),
    onset and offset of the recording's seizures in seconds.

    Args:
        path: the file.
        names: of the channels.
        rate: Hz.
        start: s.
        samples: n.
        events: onset and offset of each seizure.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        rate: float,
        start: float,
        samples: int,
        events: Sequence[tuple[float, float]],
    ) -> None:
        # no times in it, so that equal content is equal bytes
        self._file = h5py.File(path, "w", track_order=False, libver=("earliest", "v110"))
        chunk = max(1, min(samples, round(SEGMENT * rate)))
        self._signal = self._file.create_dataset(
            "signal", (len(names), samples), np.float32, chunks=(len(names), chunk), track_times=False
        )
        text = h5py.string_dtype("utf-8")
        self._file.create_dataset("channels", data=list(names), dtype=text, track_times=False)
        table = np.asarray(events, dtype=np.float64).reshape(-1, 2)
        self._file.create_dataset("events", data=table, track_times=False)
        self._file.attrs["sampling_rate"], self._file.attrs["start"], self._file.attrs["units"] = rate, start, "uV"
        self._place = 0
        self._count = len(names)
        self.moments = np.zeros((4, len(names)))
        self.samples = 0

    def append(self, signal: F32) -> None:
        """Write the next samples.

        Shape:
            (C, n) float32.
        """
        self._signal[:, self._place : self._place + signal.shape[1]] = signal
        self._place += signal.shape[1]
        self.samples += signal.shape[1]
        self.moments += power_sums(signal)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
