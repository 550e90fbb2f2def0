"""Callbacks that every domain runs with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from numpy.typing import NDArray
from torch import Tensor

from domains.common.data import HeptadData
from domains.common.errors import ConfigError
from domains.common.intervals import Estimate
from domains.common.module import HeptadModule
from domains.common.writing import write_tables, write_whole

PART = 1 << 16  # rows of predictions that get names at a time


class PredictionTable(Callback):
    """Collect what test and predict steps return; write `predictions.parquet` and, after a test, `metrics.json`.

    Steps return name -> tensor, or list of strings, with one entry per row, `row` among them; the table is sorted by
    it, so that its bytes do not depend on the number of processes.

    Args:
        directory: where the files go.
        replicates: bootstrap resamples of each metric.
        seed: of the bootstrap.

    Attributes:
        frame: the table, on process 0, once the run has ended.
        metrics: the metrics of a test, likewise.
    """

    def __init__(self, directory: Path, replicates: int = 1000, seed: int = 0) -> None:
        self.directory, self.replicates, self.seed = directory, replicates, seed
        self.frame: pl.DataFrame | None = None
        self.metrics: dict[str, Estimate] = {}
        self._parts: list[dict[str, NDArray[Any]]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where steps may write files of their own."""
        self._tell(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where steps may write files of their own."""
        self._tell(pl_module)

    def _tell(self, pl_module: LightningModule) -> None:
        if isinstance(pl_module, HeptadModule):
            pl_module.output = self.directory

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep a batch's rows."""
        self._keep(outputs)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep a batch's rows."""
        self._keep(outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table and the metrics."""
        self.frame = self._gather(trainer, pl_module)
        if self.frame is None:
            return
        if not isinstance(pl_module, HeptadModule):
            raise ConfigError(f"{type(pl_module).__name__} is no HeptadModule; it cannot be evaluated")
        self.metrics = pl_module.evaluate(self.frame, replicates=self.replicates, seed=self.seed)
        text = json.dumps({name: estimate.to_dict() for name, estimate in self.metrics.items()}, indent=2)
        write_whole(self.directory / "metrics.json", text.encode() + b"\n")
        self._write(trainer, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table, and what the module has to go with it."""
        self.frame = self._gather(trainer, pl_module)
        if self.frame is None:
            return
        self._write(trainer, "predict")
        if isinstance(pl_module, HeptadModule):
            for name, frame in pl_module.side_tables().items():
                self._write_named(trainer, frame, name, "predict")
            pl_module.write_beside(self.frame, self.directory)

    def _keep(self, outputs: Any) -> None:
        arrays = {
            name: value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            for name, value in outputs.items()
        }
        if len(arrays["row"]):  # a process may have no row of a batch, and lists without entries no type
            self._parts.append(arrays)

    def _gather(self, trainer: Trainer, pl_module: LightningModule) -> pl.DataFrame | None:
        parts, self._parts = self._parts, []
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
        gathered: list[Any] = [columns]
        if trainer.world_size > 1:
            gathered = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, columns)
        if not trainer.is_global_zero:
            return None
        frame = pl.concat([pl.DataFrame(part) for part in gathered if part]).sort("row")
        return pl_module.complete(frame) if isinstance(pl_module, HeptadModule) else frame

    def _write(self, trainer: Trainer, split: str) -> None:
        if self.frame is not None:
            self._write_named(trainer, self.frame, "predictions", split)

    def _write_named(self, trainer: Trainer, frame: pl.DataFrame, name: str, split: str) -> None:
        data = getattr(trainer, "datamodule", None)
        parts: Iterable[pl.DataFrame] = [frame]
        if isinstance(data, HeptadData):  # names are longer than ids: never all at once
            parts = (data.decode(frame.slice(start, PART), split) for start in range(0, max(len(frame), 1), PART))
        write_tables(self.directory / f"{name}.parquet", parts)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, but of epochs that are equally good it keeps the last: a metric may be at its best from early on."""

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the epoch is as good as the best one."""
        better = bool(super().check_monitor_top_k(trainer, current))  # asks all processes
        best = self.best_model_score
        return better or (current is not None and best is not None and bool(current == best))


class DefinedMonitor(Callback):
    """Stop a training whose monitored metric is no number: the best epoch would be an accident.

    Args:
        monitor: the metric.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric after each validation.

        Raises:
            ConfigError: it is NaN.
        """
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and not trainer.sanity_checking and bool(torch.isnan(torch.as_tensor(value))):
            raise ConfigError(
                f"{self.monitor} is no number on the validation split: a class is missing from it, or the training"
                " diverged; choose another --monitor (and --mode), other splits, or a lower learning rate"
            )


class LastCheckpoint(Checkpoint):
    """Write the one checkpoint that a stopped run continues from.

    It is written every `every` steps, at the end of each epoch, and wherever training stops inside one (`max_steps`,
    `max_time`, early stopping). Lightning counts an epoch that was cut short as finished, so that its own epoch-end
    checkpoint would lose the rest of the epoch's batches.

    Args:
        path: of the checkpoint.
        every: optimiser steps between two writings.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._written = self._before = -1

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Remember the step, which a batch does not end where gradients are accumulated."""
        self._before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Write after every so many steps, and where a limit of steps or time is reached."""
        stops = trainer.should_stop or trainer.global_step == trainer.max_steps
        due = trainer.global_step % self.every == 0 and trainer.global_step != self._before
        if (due or stops) and not _whole_epoch(trainer):
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write where a validation inside an epoch ended the training."""
        if trainer.should_stop and not trainer.sanity_checking and not _whole_epoch(trainer):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after a whole epoch."""
        if _whole_epoch(trainer):
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.global_step != self._written or _whole_epoch(trainer):
            self._written = trainer.global_step
            trainer.save_checkpoint(self.path, weights_only=False)


def _whole_epoch(trainer: Trainer) -> bool:
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)
