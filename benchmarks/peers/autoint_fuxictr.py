"""AutoInt as FuxiCTR 2.3.10 trains it.

The wheel holds FuxiCTR's layers, losses, optimiser and training step, but not its model zoo. The network is therefore
put together here from the installed layers in the structure of `model_zoo/AutoInt/src/AutoInt.py` (reczoo/FuxiCTR @
0245987): Q, K and V without bias, a projected residual only where the widths differ, ReLU, one linear output, no wide
or deep part. The step is the installed `BaseModel.train_step`: loss, gradient clipping at norm 10, dense Adam.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, ScaledDotProductAttention
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from benchmarks.peers.clicks import N_NUMERIC, Setting
from benchmarks.peers.worker import Step, Work


class _Interacting(nn.Module):
    def __init__(self, width_in: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width_in, width, bias=False)
        self.key = nn.Linear(width_in, width, bias=False)
        self.value = nn.Linear(width_in, width, bias=False)
        self.residual = nn.Linear(width_in, width, bias=False) if width_in != width else nn.Identity()
        self.attention = ScaledDotProductAttention(0.0)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.attention(self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x)))
        merged: Tensor = out.transpose(1, 2).contiguous().flatten(2)
        merged += self.residual(x)
        return merged.relu()


class _AutoInt(BaseModel):  # type: ignore[misc]
    def __init__(self, features: FeatureMap, setting: Setting, **options: Any) -> None:
        super().__init__(features, model_id="AutoInt", gpu=-1, **options)
        self.embedding_layer = FeatureEmbedding(features, setting.dim)
        widths = [setting.dim] + [setting.width] * setting.depth
        self.self_attention = nn.Sequential(*[_Interacting(a, b, setting.heads) for a, b in pairwise(widths)])
        self.fc = nn.Linear(features.num_fields * setting.width, 1)
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        attended = self.self_attention(self.embedding_layer(self.get_inputs(inputs)))
        return {"y_pred": self.output_activation(self.fc(attended.flatten(start_dim=1)))}


def build(setting: Setting) -> Step:
    """Return FuxiCTR's training step over a ring of batches."""
    names = [f"n{i}" for i in range(N_NUMERIC)] + [f"c{i}" for i in range(len(setting.field_sizes()))]
    features = FeatureMap("clicks", tempfile.gettempdir())
    features.labels = ["label"]
    for name in names[:N_NUMERIC]:
        features.features[name] = {"source": "", "type": "numeric"}
    for name, size in zip(names[N_NUMERIC:], setting.field_sizes(), strict=True):
        features.features[name] = {"source": "", "type": "categorical", "vocab_size": size}
    features.num_fields = features.get_num_fields()
    model = _AutoInt(features, setting, verbose=0, metrics=["AUC"], model_root=tempfile.gettempdir())
    model._max_gradient_norm = 10.0
    ring = []
    for batch in setting.batches():
        columns = torch.cat([batch.numbers.double(), batch.categories.double()], dim=1).unbind(1)
        ring.append(dict(zip(names, columns, strict=True)) | {"label": batch.label})
    model.train()

    def step(i: int) -> Work:
        return Work({"samples": setting.batch}, {"loss": float(model.train_step(ring[i % len(ring)]).item())})

    return step
