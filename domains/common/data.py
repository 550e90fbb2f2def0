"""Base data module: prepared directory in, resumable loaders out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from lightning import LightningDataModule

from domains.common.errors import ConfigError, PreparedDataError
from domains.common.loader import Batch, BatchLoader, BlockStore, Order


class HeptadData(LightningDataModule, ABC):
    """Loaders whose order is f(seed, epoch), equal under any number of processes, resumable inside an epoch.

    A subclass implements `store(split)`, and `collate_for(store)` where rows are not yet what the model takes.

    Args:
        root: prepared directory.
        batch_size: rows of a global batch over all processes.
        seed: seed of the order.
        pool_rows: rows gathered before they are permuted; two such pools are held in memory.
        drop_last: leave the incomplete last batch of an epoch out of training.
        workers: threads that read and decode files ahead of the model; 0 where rows come ready from the store.
        predict_root: directory of newly prepared data to predict; default what the subclass says.
    """

    domain = ""

    def __init__(
        self,
        root: str,
        batch_size: int,
        seed: int,
        pool_rows: int,
        *,
        drop_last: bool,
        workers: int = 0,
        predict_root: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data.batch_size is {batch_size}; it must be at least 1")
        if workers < 0:
            raise ConfigError(f"data.workers is {workers}; give 0 or more threads")
        self.workers = workers
        self.root = Path(root)
        self.predict_root = None if predict_root is None else Path(predict_root)
        self.batch_size, self.seed, self.pool_rows, self.drop_last = batch_size, seed, pool_rows, drop_last
        self._resume: dict[str, Any] = {}

    @abstractmethod
    def store(self, split: str) -> BlockStore:
        """Blocks of one split (`train`, `valid`, `test`, `predict`)."""

    def collate_for(self, store: Any) -> Callable[[Batch], Batch] | None:
        """Make what turns gathered rows into what the model takes; by default they stay as they are."""
        del store
        return None

    def order_for(self, store: Any) -> Callable[[int], Order] | None:
        """Make the order of the training rows of each epoch; by default the seeded one, in which each row is once."""
        del store
        return None

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Finish a batch on its device; while training, with the random changes of this epoch."""
        del dataloader_idx
        trainer = self.trainer
        training = trainer is not None and trainer.training
        return self.finish(batch, trainer.current_epoch if trainer is not None and training else None)

    def finish(self, batch: Batch, epoch: int | None = None) -> Batch:
        """Turn a batch into what the network takes; by default it stays as it is.

        Args:
            batch: as a loader gives it.
            epoch: of the random changes; None: there are none.
        """
        del epoch
        return batch

    def input_rules(self) -> dict[str, Any]:
        """How inputs of the network are made, for those who use it elsewhere, as plain values; by default nothing."""
        return {}

    def validation_is_empty(self) -> bool:
        """Whether the preparation left no row to validate on."""
        entry = getattr(self, "card", {}).get("splits", {}).get("valid")
        return entry is not None and entry.get("rows") == 0

    def decode(self, predictions: pl.DataFrame, split: str) -> pl.DataFrame:
        """Put names in the place of ids before predictions are written, part by part; by default nothing is one."""
        del split
        return predictions

    def loader(self, split: str, *, training: bool = False) -> BatchLoader:
        """Make the loader of a split for this process."""
        store = self.store(split)
        rows = sum(store.sizes)
        if rows == 0:
            hint = ", or train without (--select last --trainer.limit_val_batches 0)" if split == "valid" else ""
            raise PreparedDataError(
                f"{self.root}: split {split!r} has no rows; prepare the data with another split{hint}"
            )
        if training and self.drop_last and rows < self.batch_size:
            raise ConfigError(
                f"data.batch_size {self.batch_size} exceeds the {rows} training rows and drop_last leaves none;"
                " lower it or set data.drop_last false"
            )
        trainer = self.trainer
        return BatchLoader(
            store,
            self.batch_size,
            collate=self.collate_for(store),
            seed=self.seed,
            shuffle=training,
            drop_last=training and self.drop_last,
            pool_rows=self.pool_rows,
            rank=0 if trainer is None else trainer.global_rank,
            world=1 if trainer is None else trainer.world_size,
            skip=self._skip() if training else 0,
            workers=self.workers,
            order=self.order_for(store) if training else None,
        )

    def train_dataloader(self) -> BatchLoader:
        """Shuffled training batches."""
        return self.loader("train", training=True)

    def val_dataloader(self) -> BatchLoader:
        """Validation batches in order."""
        return self.loader("valid")

    def test_dataloader(self) -> BatchLoader:
        """Test batches in order."""
        return self.loader("test")

    def predict_dataloader(self) -> BatchLoader:
        """Batches to predict, in order."""
        return self.loader("predict")

    def _order(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "pool_rows": self.pool_rows,
            "drop_last": self.drop_last,
        }

    def state_dict(self) -> dict[str, Any]:
        """Say how far the epoch is; Lightning stores it in every checkpoint."""
        if self.trainer is None:
            return {}
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        # the loader's own count would be ahead of the model's by what is prefetched
        done = 0 if progress.is_last_batch else int(progress.current.state_dict()["processed"])
        return {**self._order(), "batches": done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where to continue; Lightning calls it before the loaders are made."""
        self._resume = dict(state_dict)

    def _skip(self) -> int:
        batches = int(self._resume.get("batches", 0))
        if batches:
            for name, value in self._order().items():
                if self._resume.get(name) != value:
                    raise ConfigError(
                        f"the checkpoint stops inside an epoch run with data.{name}={self._resume.get(name)}, now it is"
                        f" {value}; keep it, or start from the weights alone with --init_from"
                    )
        self._resume = {}
        return batches
