"""AutoInt as DeepCTR-Torch 0.3.0 trains it: the published class, its loss and its optimiser.

Only the 26 categorical fields enter the attention; the numbers enter the linear term. The deep part and the embedding
penalty, both on by default, are switched off: they would only slow this peer down. The step follows `BaseModel.fit` of
deepctr_torch/models/basemodel.py without its data loader and metrics.
"""

from __future__ import annotations

import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import AutoInt

from benchmarks.peers.clicks import N_NUMERIC, Setting
from benchmarks.peers.worker import Step, Work


def build(setting: Setting) -> Step:
    """Return DeepCTR-Torch's training step over a ring of batches."""
    if setting.width != setting.dim:
        msg = f"DeepCTR-Torch ties the width to the embedding size {setting.dim}; got width {setting.width}"
        raise ValueError(msg)
    numbers = [DenseFeat(f"n{i}", 1) for i in range(N_NUMERIC)]
    categories = [SparseFeat(f"c{i}", size, setting.dim) for i, size in enumerate(setting.field_sizes())]
    model = AutoInt(
        numbers + categories,
        categories,
        att_layer_num=setting.depth,
        att_head_num=setting.heads,
        dnn_hidden_units=(),
        l2_reg_embedding=0.0,
    )
    model.compile("adam", "binary_crossentropy")
    ring = [(torch.cat([b.numbers, b.categories.float()], dim=1), b.label) for b in setting.batches()]
    model.train()

    def step(i: int) -> Work:
        rows, label = ring[i % len(ring)]
        predicted = model(rows).squeeze(-1)
        model.optim.zero_grad()
        loss = model.loss_func(predicted, label, reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        total.backward()
        model.optim.step()
        return Work({"samples": len(label)}, {"loss": float(loss.item()) / len(label)})

    return step
