"""Base training module: what every domain's module has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import torch
from lightning import LightningModule
from torch import Tensor, nn

from domains.common.files import check_fit
from domains.common.intervals import Estimate
from domains.common.loader import mix_seed
from domains.common.optim import coalesced


class HeptadModule(LightningModule):
    """A network in `self.net`, trained, tested and predicted with the rules that all domains share.

    - Each training step reseeds torch from (seed, step, rank), so that a resumed run draws the same dropout.
    - `test_step` and `predict_step` return one entry per row; the predictions table and the metrics with their
      intervals are made of these.
    - Weights that do not fit are named in one line.

    A subclass sets `self.net`, whose attribute `arguments` holds what builds it again as plain values, and implements
    `example_inputs` and `evaluate`.
    """

    net: nn.Module
    seed = 0
    # what validation logs, and --monitor may name
    validation_metrics: tuple[str, ...] = ()

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Random inputs of the network, for export; `length` is the size of every other free axis."""
        raise NotImplementedError(f"{type(self).__name__} must give example inputs")

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """For each of these inputs, axis -> name of those whose size an exported program leaves free."""
        raise NotImplementedError(f"{type(self).__name__} must say which axes are free")

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """Metrics with intervals over the independent unit, from the predictions table."""
        raise NotImplementedError(f"{type(self).__name__} must say how it is evaluated")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make this step's random draws a function of (seed, step, rank)."""
        torch.manual_seed(mix_seed(self.seed, self.global_step, self.global_rank))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as asked; sparse gradients, which torch's clipping refuses, count by their coalesced rows."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        sparse = [p for p in parameters if p.grad is not None and p.grad.is_sparse]
        if not gradient_clip_val or not sparse:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parts = []
        for parameter in parameters:
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:
                parameter.grad = grad = coalesced(grad)
            parts.append(grad.values() if grad.is_sparse else grad)
        if gradient_clip_algorithm == "value":
            for part in parts:
                part.clamp_(-gradient_clip_val, gradient_clip_val)
            return
        norm = torch.stack([part.norm() for part in parts]).norm()
        factor = (gradient_clip_val / (norm + 1e-6)).clamp(max=1.0)
        for part in parts:
            part.mul_(factor)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, or say in one line which do not fit.

        Raises:
            CheckpointMismatchError: with `strict`, names or shapes differ.
        """
        if strict:
            check_fit(self, state_dict, "checkpoint")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
