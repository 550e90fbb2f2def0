"""Base training module: what every domain's module has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from numpy.typing import NDArray
from torch import Tensor, nn

from domains.common.errors import ConfigError
from domains.common.files import check_fit
from domains.common.intervals import Estimate
from domains.common.loader import mix_seed
from domains.common.optim import coalesced
from domains.common.sharded import gathered_state, norm_over_shards, place_tables, sharded_tables


class HeptadModule(LightningModule, ABC):
    """A network in `self.net`, trained, tested and predicted with the rules that all domains share.

    - Each training step reseeds torch from (seed, step, rank), so that a resumed run draws the same dropout.
    - `test_step` and `predict_step` return one entry per row; the predictions table and the metrics with their
      intervals are made of these.
    - Weights that do not fit are named in one line.
    - Sharded tables (`ShardedTable`) are divided when a run starts; checkpoints hold them whole, as if they were not.

    A subclass sets `self.net`, whose attribute `arguments` holds what builds it again as plain values, and implements
    `example_inputs` and `evaluate`.
    """

    net: nn.Module
    seed = 0
    # what validation logs, and --monitor may name
    validation_metrics: tuple[str, ...] = ()
    # weights that the run starts from (--init_from)
    started_from: str | None = None
    # where a test or a prediction writes; set when it begins, for steps that write files of their own
    output: Path | None = None

    @abstractmethod
    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Random inputs of the network, for export; `length` is the size of every other free axis."""

    @abstractmethod
    def free_axes(self) -> tuple[dict[int, str], ...]:
        """For each of these inputs, axis -> name of those whose size an exported program leaves free."""

    def least_sizes(self) -> dict[str, int]:
        """Name of a free axis -> its least size in an exported program; by default 0, for every axis."""
        return {}

    def exportable(self) -> nn.Module:
        """Make what `export` writes as a program, with the inputs of `example_inputs`; by default it is `net`."""
        return self.net

    def input_rules(self) -> dict[str, Any]:
        """What the module does to inputs before its network, besides the data's own rules; by default nothing."""
        return {}

    def output_names(self) -> tuple[str, ...]:
        """Names of what `exportable` gives, for an exported model; by default none."""
        return ()

    @abstractmethod
    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """Metrics with intervals over the independent unit, from the predictions table."""

    def complete(self, predictions: pl.DataFrame) -> pl.DataFrame:
        """Add to the predictions table what needs the rows of all processes, such as smoothing; by default nothing."""
        return predictions

    def write_beside(self, predictions: pl.DataFrame, directory: Path) -> None:
        """Write files of the domain's own formats beside the predictions of `predict`; by default none."""

    def gathered(self, parts: list[tuple[Tensor, ...]]) -> tuple[NDArray[Any], ...]:
        """Join tuples of tensors over batches and processes, of which some may have had no row.

        Args:
            parts: a tuple of each batch; at least one on some process.

        Returns:
            One array for each member of the tuples.
        """
        mine = [torch.cat(members).cpu().numpy() for members in zip(*parts, strict=True)]
        every: list[Any] = [mine]
        if self.trainer.world_size > 1:
            every = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(every, mine)
        return tuple(np.concatenate(members) for members in zip(*filter(None, every), strict=True))

    def side_tables(self) -> dict[str, pl.DataFrame]:
        """Tables that `predict` writes beside its predictions: name -> table; by default none."""
        return {}

    def protocol(self, data: Any) -> str:
        """Say in a sentence or two how the metrics are measured, for the report; by default nothing."""
        del data
        return ""

    def setup(self, stage: str) -> None:
        """Divide sharded tables among the processes, which exist only now.

        Raises:
            ConfigError: the run uses what sharded tables cannot do.
        """
        if not sharded_tables(self):
            return
        if self.trainer.world_size > 1 and not isinstance(self.trainer.strategy, DDPStrategy):
            raise ConfigError("sharded tables need trainer.strategy ddp; choose it, or replicated tables")
        if self.trainer.precision == "16-mixed":  # its scaler would skip a step on some processes only
            raise ConfigError("sharded tables do not work with trainer.precision 16-mixed; use bf16-mixed or 32")
        if any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise ConfigError("averaging weights (--ema) touches all rows in every step; use replicated tables for it")
        place_tables(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put whole tables in the place of shares; Lightning calls this on every process, and process 0 writes."""
        checkpoint["state_dict"] = gathered_state(self, checkpoint["state_dict"])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make this step's random draws a function of (seed, step, rank)."""
        torch.manual_seed(mix_seed(self.seed, self.global_step, self.global_rank))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as asked; sparse gradients, which torch's clipping refuses, count by their coalesced rows.

        Of sharded tables the rows of all processes count.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        sparse = [p for p in parameters if p.grad is not None and p.grad.is_sparse]
        if not gradient_clip_val or not sparse:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        sharded = {id(table.weight) for table in sharded_tables(self).values()}
        parts: list[Tensor] = []
        shards: list[Tensor] = []
        for parameter in parameters:
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:
                parameter.grad = grad = coalesced(grad)
            values = grad.values() if grad.is_sparse else grad
            (shards if id(parameter) in sharded else parts).append(values)
        if gradient_clip_algorithm == "value":
            for part in parts + shards:
                part.clamp_(-gradient_clip_val, gradient_clip_val)
            return
        norms = [part.norm() for part in parts] + ([norm_over_shards(shards)] if shards else [])
        factor = (gradient_clip_val / (torch.stack(norms).norm() + 1e-6)).clamp(max=1.0)
        for part in parts + shards:
            part.mul_(factor)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, or say in one line which do not fit.

        Raises:
            CheckpointMismatchError: with `strict`, names or shapes differ.
        """
        if strict:
            trainer = self._trainer  # the property raises where there is none
            path = None if trainer is None else trainer.ckpt_path
            check_fit(self, state_dict, "checkpoint" if path is None else str(path))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
