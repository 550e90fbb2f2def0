"""Prepared multivariate series as batches of windows: look-back and horizon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from domains.common.data import HeptadData
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.loader import Batch
from domains.ieeg.data import POOL, read_kind


class SeriesStore:
    """Windows of one split, whose horizon lies inside it; the look-back may reach into the split before.

    Args:
        values: the whole series.
        first: step at which the split begins.
        stop: step behind its last.
        look_back: steps seen.
        horizon: steps forecast; 0: none are known, one window at the end.
    """

    def __init__(self, values: Tensor, first: int, stop: int, look_back: int, horizon: int) -> None:
        self.values, self.look_back, self.horizon = values, look_back, horizon
        begin = max(first - look_back, 0)
        self.start = torch.arange(begin, max(stop - look_back - horizon + 1, begin))
        if not horizon:
            self.start = self.start[-1:]
        self.sizes = [len(self.start)]

    def load(self, block: int) -> Batch:
        """Return all windows."""
        del block
        return {"row": torch.arange(len(self.start))}

    def __call__(self, batch: Batch) -> Batch:
        """Cut the windows of a batch.

        Shape:
            row (B,) -> also x (B, N, C), y (B, H, C) float32 where the horizon is known, begin (B,) int64.
        """
        begin = self.start[batch["row"]]
        windows = self.values[begin[:, None] + torch.arange(self.look_back + self.horizon)]
        found = {"row": batch["row"], "begin": begin + self.look_back, "x": windows[:, : self.look_back]}
        return found | ({"y": windows[:, self.look_back :]} if self.horizon else {})


class SeriesData(HeptadData):
    """Series prepared by `heptad ieeg prep ett` or `series`, cut into windows at every step.

    Args:
        root: prepared directory.
        batch_size: windows of a global batch over all processes.
        seed: seed of the order of windows.
        look_back: steps that a forecast sees.
        horizon: steps that are forecast.
        drop_last: leave the incomplete last batch of an epoch out of training; a test leaves out nothing.
        predict_root: directory of a newly prepared series, whose end is continued; default the test split of `root`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another kind, or a split is too short.
        ConfigError: an option is out of range.
    """

    domain = "ieeg"

    def __init__(
        self,
        root: str,
        batch_size: int = 64,
        seed: int = 0,
        look_back: int = 336,
        horizon: int = 96,
        drop_last: bool = False,
        predict_root: str | None = None,
    ) -> None:
        super().__init__(root, batch_size, seed, POOL, drop_last=drop_last, predict_root=predict_root)
        if look_back < 1 or horizon < 1:
            raise ConfigError(f"data.look_back {look_back} and data.horizon {horizon} count steps from 1")
        self.card = read_kind(self.root, "series")
        # what a model must know: plain values, linked to its constructor
        self.variates: list[str] = list(self.card["variates"])
        self.n_variates, self.look_back, self.horizon = len(self.variates), look_back, horizon

    def _values(self, root: Path) -> Tensor:
        path = root / "series.parquet"
        try:
            table = pl.read_parquet(path, columns=self.variates)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise PreparedDataError(f"{path}: cannot be read ({error}); prepare the series again") from None
        return torch.from_numpy(table.to_numpy().astype("float32"))

    def store(self, split: str) -> SeriesStore:
        """Windows of one split; `predict` is the end of `predict_root`, or else the test split."""
        if split == "predict" and self.predict_root is not None:
            values = self._values(self.predict_root)
            if len(values) < self.look_back:
                raise PreparedDataError(
                    f"{self.predict_root}: {len(values)} steps, the model looks back on {self.look_back}; give a longer"
                    " series"
                )
            return SeriesStore(values, 0, len(values), self.look_back, 0)
        entry = self.card["splits"]["test" if split == "predict" else split]
        first, stop = int(entry["first"]), int(entry["first"]) + int(entry["rows"])
        store = SeriesStore(self._values(self.root), first, stop, self.look_back, self.horizon)
        if not len(store.start):
            raise PreparedDataError(
                f"{self.root}: split {split!r} has {stop - first} steps, too few for data.look_back {self.look_back}"
                f" and data.horizon {self.horizon}; lower them"
            )
        return store

    def collate_for(self, store: SeriesStore) -> Callable[[Batch], Batch]:
        """Make what cuts windows: the store itself."""
        return store

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) of each variate over the training split."""
        entry = self.card["splits"]["train"]
        train = self._values(self.root)[entry["first"] : entry["first"] + entry["rows"]].double()
        deviation = train.std(0, unbiased=False)
        return train.mean(0).float(), torch.where(deviation > 0, deviation, 1.0).float()
