"""Schedules of the learning rate."""

from __future__ import annotations

import math

from lightning import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_factor(step: int, total: float, warmup: int = 0, floor: float = 0.0) -> float:
    """Factor of the learning rate at a step: a straight rise, then half a cosine (Loshchilov and Hutter, 2017).

    Args:
        step: number of steps done.
        total: of the training; from there on the factor is `floor`.
        warmup: steps in which the factor rises; the first one has 1 / (warmup + 1).
        floor: factor at the end.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * done)) / 2.0


def cosine_schedule(optimizer: Optimizer, total: float, *, warmup: int = 0, floor: float = 0.0) -> LambdaLR:
    """Schedule each group of an optimiser by `cosine_factor`; to be advanced every step."""
    return LambdaLR(optimizer, lambda step: cosine_factor(step, total, warmup, floor))


def training_steps(trainer: Trainer, epochs: float) -> tuple[float, int]:
    """Optimiser steps of the whole training, infinite where only time ends it, and of `epochs` of its epochs."""
    trainer.fit_loop.setup_data()  # the loader knows the batches of an epoch
    batches = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return trainer.estimated_stepping_batches, round(epochs * batches)
