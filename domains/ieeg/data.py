"""Prepared recordings as batches of windows: the only place of this domain that knows their layout on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.card import read_card
from domains.common.data import HeptadData
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.indexed import read_index
from domains.common.loader import Batch
from domains.ieeg.sampling import WindowSampling
from domains.ieeg.windows import INDEX, Windowing, WindowReader, WindowStore

POOL = 1 << 24  # windows that are permuted together: all of them
EVENTS = {"recording": pl.String, "onset": pl.Float64, "offset": pl.Float64}
SIGNAL = ("rate", "reference", "highpass", "lowpass", "notch")  # options that make another signal of the same files
CHANNELS = ("recording", "position", "name", "variance", "kurtosis")


def read_kind(root: Path, kind: str) -> dict[str, Any]:
    """Read `dataset.json` of a prepared directory of this domain.

    Raises:
        PreparedDataError: it is missing, or holds something else.
    """
    card = read_card(root, "ieeg")
    if card.get("kind") != kind:
        raise PreparedDataError(
            f"{root}: holds {card.get('kind')}, this system needs kind {kind!r}; choose --system or --data.root"
        )
    return card


class RecordingData(HeptadData):
    """Recordings prepared by `heptad ieeg prep`, cut into windows.

    Args:
        root: prepared directory.
        batch_size: windows of a global batch over all processes.
        seed: seed of the order of windows.
        segment: seconds of a segment, for which one token per channel stands.
        segments: segments T of a window.
        stride: seconds between two windows of training; default a segment.
        decision_stride: seconds between two decisions where nothing is trained; default a segment.
        channels: read at most so many channels of a recording: those with the largest variance / (1 + kurtosis), as
            the paper does (32) at test time; default all.
        max_channels: largest number of channels that the model will meet; default that of the data.
        seizure_share: share of windows with a seizure in an epoch of training; default as they occur.
        epoch_windows: windows of an epoch of training; default all.
        bucket: batches of windows with alike numbers of channels, so that little is padded.
        drop_last: leave the incomplete last batch of an epoch out.
        workers: threads that read ahead of the model; each holds one batch.
        predict_root: directory of newly prepared recordings to predict; default the test split of `root`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another kind.
        ConfigError: an option is out of range.
    """

    domain = "ieeg"

    def __init__(
        self,
        root: str,
        batch_size: int = 8,
        seed: int = 0,
        segment: float = 5.0,
        segments: int = 25,
        stride: float | None = None,
        decision_stride: float | None = None,
        channels: int | None = None,
        max_channels: int | None = None,
        seizure_share: float | None = None,
        epoch_windows: int | None = None,
        bucket: bool = True,
        drop_last: bool = False,
        workers: int = 2,
        predict_root: str | None = None,
    ) -> None:
        super().__init__(root, batch_size, seed, POOL, drop_last=drop_last, workers=workers, predict_root=predict_root)
        self.card = read_kind(self.root, "recordings")
        self.rate = float(self.card["sampling_rate"])
        if channels is not None and channels < 1:
            raise ConfigError(f"data.channels is {channels}; give at least 1, or none for all")
        if segments < 1:
            raise ConfigError(f"data.segments is {segments}; a window has at least 1")
        # what a model must know: plain values, linked to its constructor
        self.samples = self._count("segment", segment)
        self.segments = segments
        self.stride = self._count("stride", segment if stride is None else stride)
        decisions = segment if decision_stride is None else decision_stride
        self.decision_stride = self._count("decision_stride", decisions)
        self.channels = channels
        self.max_channels = self._most_channels() if max_channels is None else max_channels
        self.seizure_share, self.epoch_windows, self.bucket = seizure_share, epoch_windows, bucket
        self.annotated_only = False  # a module that learns from labels sets it

    def _count(self, name: str, seconds: float) -> int:
        samples = round(seconds * self.rate)
        if samples < 1:
            raise ConfigError(f"data.{name} is {seconds} s; at {self.rate:g} Hz that is no sample")
        return samples

    def _most_channels(self) -> int:
        counts = [read_index(self.root, self.card, split, INDEX)["channels"] for split in self.card["splits"]]
        most = max((int(found.max()) for found in counts if len(found)), default=1)  # type: ignore[arg-type]
        return most if self.channels is None else min(most, self.channels)

    def store(self, split: str) -> WindowStore:
        """Windows of one split; `predict` is `predict_root`, or else the test split."""
        root, card, name = self.root, self.card, "test" if split == "predict" else split
        if split == "predict" and self.predict_root is not None:
            root, card = self.predict_root, read_kind(self.predict_root, "recordings")
            name = next(iter(card["splits"]))
            if float(card["sampling_rate"]) != self.rate:
                raise PreparedDataError(
                    f"{root}: sampled at {card['sampling_rate']:g} Hz, the model reads {self.rate:g} Hz; prepare the"
                    " recordings as the training data were"
                )
        frame = read_index(root, card, name, INDEX)
        training, learning = split == "train", self.annotated_only and split in ("train", "valid")
        if learning and len(frame) and not frame["annotated"].any():
            raise PreparedDataError(
                f"{root}: no recording of split {split!r} was looked through for seizures; prepare the data with"
                " annotations (--events), say that all were looked through (--reviewed true), or divide them another"
                " way (--split)"
            )
        stride = self.stride if training else self.decision_stride
        return WindowStore(
            root,
            frame,
            read_table(root / "events.parquet", EVENTS),
            self.rate,
            Windowing(self.samples, self.segments, stride, whole=training),
            self._chosen(root, frame),
            annotated_only=learning,
        )

    def _chosen(self, root: Path, frame: pl.DataFrame) -> dict[str, NDArray[np.int64]]:
        """Places of the channels that are read, for recordings that have more than are asked for."""
        if self.channels is None or not len(frame):
            return {}
        large = frame.filter(pl.col("channels") > self.channels)["name"].implode()
        table = read_table(root / "channels.parquet", dict.fromkeys(CHANNELS)).filter(
            pl.col("position").is_not_null() & pl.col("recording").is_in(large)
        )
        quality = pl.col("variance") / (1 + pl.col("kurtosis"))
        found = {}
        for (name,), part in table.with_columns(quality=quality).partition_by("recording", as_dict=True).items():
            best = part.sort("quality", "position", descending=[True, False]).head(self.channels)
            found[str(name)] = np.sort(best["position"].to_numpy().astype(np.int64))
        return found

    def events(self) -> pl.DataFrame:
        """Annotated seizures of all splits: recording, onset, offset in seconds."""
        return read_table(self.root / "events.parquet", EVENTS)

    def durations(self) -> dict[str, float]:
        """Recording -> its length in seconds, of all splits and of what is to be predicted."""
        found: dict[str, float] = {}
        for root in (self.root, self.predict_root):
            if root is not None:
                card = read_kind(root, "recordings")
                for split in card["splits"]:
                    names, samples = read_index(root, card, split, INDEX).select("name", "samples").to_dict().values()
                    found |= dict(zip(names.to_list(), (samples / self.rate).to_list(), strict=True))
        return found

    def predicted_channels(self) -> dict[str, int]:
        """Recording -> channels that are read, of what is to be predicted."""
        store = self.store("predict")
        counts = dict(store.frame.select("name", "channels").iter_rows())
        return {name: len(store.positions[name]) if name in store.positions else n for name, n in counts.items()}

    def state_dict(self) -> dict[str, Any]:
        """As of every data module, and how the signal was prepared."""
        state = super().state_dict()
        return state | {"signal": self._signal()} if state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the preparation with the one that the weights are trained on.

        Raises:
            PreparedDataError: the signal was prepared in another way.
        """
        trained, mine = state_dict.get("signal", {}), self._signal()
        for name, value in mine.items():
            if name in trained and trained[name] != value:
                raise PreparedDataError(
                    f"{self.root}: prepared with --{name} {value}, the model was trained with --{name}"
                    f" {trained[name]}; prepare the data as those of the training were"
                )
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "signal"})

    def _signal(self) -> dict[str, Any]:
        return {name: value for name, value in self.card.get("preparation", {}).items() if name in SIGNAL}

    def channel_names(self, store: WindowStore, recording: str) -> list[str]:
        """Names of the channels of a recording that are read, in their order."""
        table = read_table(store.root / "channels.parquet", dict.fromkeys(CHANNELS))
        mine = table.filter((pl.col("recording") == recording) & pl.col("position").is_not_null()).sort("position")
        names = mine["name"].to_list()
        chosen = store.positions.get(recording)
        return names if chosen is None else [names[i] for i in chosen]

    def collate_for(self, store: WindowStore) -> Callable[[Batch], Batch]:
        """Make what reads the windows of a batch."""
        return WindowReader(store, labelled=self.predict_root is None or store.root != self.predict_root)

    def order_for(self, store: WindowStore) -> WindowSampling | None:
        """Windows of an epoch, where they are not simply all in the seeded order."""
        alike = bool((store.channels == store.channels[:1]).all())
        if self.seizure_share is None and self.epoch_windows is None and (alike or not self.bucket):
            return None
        return WindowSampling(
            store.label,
            store.channels,
            self.batch_size,
            self.seed,
            seizure_share=self.seizure_share,
            epoch_windows=self.epoch_windows,
            bucket=self.bucket,
        )

    def _order(self) -> dict[str, Any]:
        sampling = {"seizure_share": self.seizure_share, "epoch_windows": self.epoch_windows, "bucket": self.bucket}
        return super()._order() | sampling | {"stride": self.stride, "segments": self.segments}


def read_table(path: Path, columns: dict[str, Any]) -> pl.DataFrame:
    """Read a Parquet table with these columns.

    Raises:
        PreparedDataError: it is missing or damaged.
    """
    try:
        return pl.read_parquet(path, columns=list(columns))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise PreparedDataError(f"{path}: cannot be read ({error}); prepare the data again") from None
