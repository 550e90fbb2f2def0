"""Windows over prepared recordings: where they lie, what they are called, and their signal, read from HDF5."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.errors import PreparedDataError
from domains.common.loader import Batch

INDEX = ("name", "subject", "samples", "channels", "annotated", "files", "file_samples")
OPEN_FILES = 64


@dataclass(frozen=True)
class Windowing:
    """How windows are cut.

    Args:
        segment: samples L of a segment.
        segments: T of a window.
        stride: samples between two windows.
        whole: leave out windows that begin before their recording, unless it has no other.
    """

    segment: int
    segments: int
    stride: int
    whole: bool


class WindowStore:
    """Windows of a split as one block: `row`, `recording`, `start`, `channels` and, where known, `label`.

    A window decides about its last segment, and its label is 1 where that segment touches a seizure (closed intervals,
    as in the official code). The context of the first segments of a recording would begin before it: there the signal
    is mirrored in time, so that every segment is decided about.

    Args:
        root: prepared directory.
        frame: index of the recordings.
        events: seizures: recording, onset, offset in seconds.
        rate: sampling rate, Hz.
        windowing: how to cut.
        positions: channels of each recording that are read, in their order; absent: all.
        annotated_only: leave out recordings that nobody looked at.

    Raises:
        PreparedDataError: a recording is shorter than a segment.
    """

    def __init__(
        self,
        root: Path,
        frame: pl.DataFrame,
        events: pl.DataFrame,
        rate: float,
        windowing: Windowing,
        positions: Mapping[str, NDArray[np.int64]] | None = None,
        *,
        annotated_only: bool = False,
    ) -> None:
        self.root, self.frame, self.rate, self.windowing = root, frame, rate, windowing
        self.positions = dict(positions or {})
        self.names: list[str] = frame["name"].to_list()
        self.subjects: list[str] = frame["subject"].to_list()
        self.annotated: list[bool] = frame["annotated"].to_list()
        intervals = {name: np.zeros((0, 2)) for name in self.names}
        for (name,), part in events.partition_by("recording", as_dict=True).items():
            intervals[str(name)] = part.select("onset", "offset").to_numpy()
        recordings, starts, labels = [], [], []
        for i, (name, samples) in enumerate(zip(self.names, frame["samples"].to_list(), strict=True)):
            if annotated_only and not self.annotated[i]:
                continue
            here = self._starts(name, int(samples))
            recordings.append(np.full(len(here), i))
            starts.append(here)
            labels.append(self._labels(here, intervals[name]))
        empty = np.zeros(0, np.int64)
        self.recording = torch.from_numpy(np.concatenate([empty, *recordings]))
        self.start = torch.from_numpy(np.concatenate([empty, *starts]))
        self.label = torch.from_numpy(np.concatenate([empty, *labels]))
        counts = [
            len(self.positions[n]) if n in self.positions else c for n, c in frame.select("name", "channels").rows()
        ]
        self.channels = torch.tensor(counts, dtype=torch.long)[self.recording]
        self.sizes = [len(self.start)]

    def _starts(self, name: str, samples: int) -> NDArray[np.int64]:
        cut = self.windowing
        if samples < cut.segment:
            raise PreparedDataError(
                f"{self.root}: recording {name} has {samples / self.rate:g} s, less than a segment of "
                f"{cut.segment / self.rate:g} s; choose a shorter data.segment, or leave it out"
            )
        context = (cut.segments - 1) * cut.segment
        starts = np.arange(-context, samples - cut.segment + 1 - context, cut.stride, dtype=np.int64)
        whole = starts[starts >= 0]
        if not cut.whole:
            return starts
        return whole if len(whole) else starts[-1:]

    def _labels(self, starts: NDArray[np.int64], intervals: NDArray[np.float64]) -> NDArray[np.int64]:
        end = (starts + self.windowing.segments * self.windowing.segment) / self.rate
        begin = end - self.windowing.segment / self.rate
        touched = (begin[:, None] <= intervals[:, 1]) & (end[:, None] >= intervals[:, 0])
        return np.asarray(touched.any(axis=1), dtype=np.int64)

    def load(self, block: int) -> Batch:
        """Return all windows."""
        del block
        return {"row": torch.arange(len(self.start)), "label": self.label}

    def onset(self, rows: Tensor) -> Tensor:
        """Seconds at which the decided segments of some windows begin, (n,) float64."""
        context = (self.windowing.segments - 1) * self.windowing.segment
        return (self.start[rows] + context).double() / self.rate


class WindowReader:
    """Reads the signal of windows; turns rows of a store into what a model takes.

    Args:
        store: the windows.
        labelled: keep the labels.
    """

    def __init__(self, store: WindowStore, *, labelled: bool = True) -> None:
        self.store, self.labelled = store, labelled
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, batch: Batch) -> Batch:
        """Read a batch.

        Shape:
            row (B,) -> also x (B, T, C, L) float32 microvolts, padded with zeros behind the channels of each window;
            counts (B,) int64 where those differ; recording, subject (B strings), onset, duration (B,) float64 seconds,
            annotated (B,) bool.
        """
        store, cut = self.store, self.store.windowing
        rows = batch["row"]
        which = store.recording[rows].tolist()
        signals = [self.read(i, int(start)) for i, start in zip(which, store.start[rows].tolist(), strict=True)]
        counts = [len(signal) for signal in signals]
        x = torch.zeros(len(rows), cut.segments, max(counts, default=1), cut.segment)
        for place, signal in enumerate(signals):
            pieces = torch.from_numpy(signal).view(len(signal), cut.segments, cut.segment)
            x[place, :, : len(signal)] = pieces.transpose(0, 1)
        found: Batch = {name: value for name, value in batch.items() if name != "position"}
        if not self.labelled:
            found.pop("label", None)
        if len(set(counts)) > 1:
            found["counts"] = torch.tensor(counts)
        return found | {
            "x": x,
            "recording": [store.names[i] for i in which],
            "subject": [store.subjects[i] for i in which],
            "onset": store.onset(rows),
            "duration": torch.full((len(rows),), cut.segment / store.rate, dtype=torch.float64),
            "annotated": torch.tensor([store.annotated[i] for i in which], dtype=torch.bool),
        }

    def read(self, recording: int, start: int) -> NDArray[np.float32]:
        """Signal of a window, mirrored where it begins before its recording.

        Shape:
            -> (C, T L) float32.
        """
        cut = self.store.windowing
        length = cut.segments * cut.segment
        entry = self.store.frame.row(recording, named=True)
        begin = max(start, 0)
        missing = begin - start
        # mirroring may need more than the window itself holds
        stop = min(max(start + length, missing + 1), int(entry["samples"]))
        signal = self._samples(entry, begin, stop)
        if missing:
            signal = np.pad(signal, ((0, 0), (missing, 0)), mode="reflect" if signal.shape[1] > 1 else "edge")
        signal = signal[:, :length]
        chosen = self.store.positions.get(entry["name"])
        return np.ascontiguousarray(signal if chosen is None else signal[chosen])

    def _samples(self, entry: Mapping[str, Any], start: int, stop: int) -> NDArray[np.float32]:
        pieces, first = [], 0
        for name, count in zip(entry["files"], entry["file_samples"], strict=True):
            inside = max(start - first, 0), min(stop - first, count)
            if inside[0] < inside[1]:
                pieces.append(self._slice(self.store.root / name, *inside))
            first += count
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def _slice(self, path: Path, start: int, stop: int) -> NDArray[np.float32]:
        try:
            with self._lock:
                signal = self._dataset(path)[:, start:stop]
        except (OSError, KeyError) as error:
            reason = str(error).split("\n")[0]
            raise PreparedDataError(f"{path}: cannot be read ({reason}); prepare the data again") from None
        if signal.shape[1] != stop - start:
            raise PreparedDataError(f"{path}: is shorter than the index says; prepare the data again")
        return np.asarray(signal, dtype=np.float32)

    def _dataset(self, path: Path) -> Any:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]["signal"]
        while len(self._open) >= OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        # pieces of a window are read once: keeping chunks would only cost memory
        self._open[path] = h5py.File(path, "r", rdcc_nbytes=0)
        return self._open[path]["signal"]
