"""AutoInt as RecBole 1.2.0 trains it: the published class and the optimiser its trainer builds.

RecBole's data pipeline wants atomic files on disk; the network itself reads a dozen configuration keys and the field
list of the data set, which two small stand-ins provide. Dropout is off, the deep part has its default [128, 128].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.clicks import N_NUMERIC, Setting
from benchmarks.peers.worker import Step, Work

if not hasattr(np, "long"):  # NumPy 1.24 to 1.26 lack the name that RecBole 1.2.0 uses
    np.long = np.int64

from recbole.model.context_aware_recommender.autoint import AutoInt
from recbole.trainer import Trainer
from recbole.utils import FeatureType


class _Config(dict[str, Any]):
    """RecBole reads keys that nobody set as None."""

    def __missing__(self, key: str) -> None:
        return None


class _Fields:
    """The part of RecBole's Dataset that a context-aware network reads."""

    def __init__(self, setting: Setting) -> None:
        self._sizes = dict.fromkeys([f"n{i}" for i in range(N_NUMERIC)], 2)
        self._sizes |= {f"c{i}": size for i, size in enumerate(setting.field_sizes())}
        self.field2type = {
            name: FeatureType.FLOAT if name.startswith("n") else FeatureType.TOKEN for name in self._sizes
        }

    def fields(self, source: object = None) -> list[str]:
        return list(self._sizes)

    def num(self, field: str) -> int:
        return self._sizes[field]


def _interaction(numbers: Tensor, categories: Tensor, label: Tensor) -> dict[str, Tensor]:
    """A number travels as the pair (value, row of its field)."""
    columns = {f"n{i}": torch.stack([x, torch.ones_like(x)], dim=1) for i, x in enumerate(numbers.unbind(1))}
    return columns | {f"c{i}": x.contiguous() for i, x in enumerate(categories.unbind(1))} | {"label": label}


def build(setting: Setting) -> Step:
    """Return RecBole's training step over a ring of batches."""
    config = _Config(
        LABEL_FIELD="label",
        device=torch.device("cpu"),
        embedding_size=setting.dim,
        numerical_features=[f"n{i}" for i in range(N_NUMERIC)],
        attention_size=setting.width,
        n_layers=setting.depth,
        num_heads=setting.heads,
        dropout_probs=[0.0, 0.0, 0.0],
        mlp_hidden_size=[128, 128],
        has_residual=True,
    )
    model = AutoInt(config, _Fields(setting))
    trainer = Trainer.__new__(Trainer)  # its constructor wants folders and loggers; only the optimiser is needed
    trainer.config, trainer.model = config, model
    trainer.learner, trainer.learning_rate, trainer.weight_decay = "adam", 1e-3, 0.0
    optimiser = trainer._build_optimizer()
    ring = [_interaction(b.numbers, b.categories, b.label) for b in setting.batches()]
    model.train()

    def step(i: int) -> Work:
        optimiser.zero_grad()
        loss = model.calculate_loss(ring[i % len(ring)])
        value = float(loss.item())
        loss.backward()
        optimiser.step()
        return Work({"samples": setting.batch}, {"loss": value})

    return step
