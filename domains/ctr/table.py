"""One embedding table for all fields."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class EmbeddingTable(nn.Embedding):
    """Rows of `dim` numbers, one gather for all fields of a batch.

    It is an `nn.Embedding` so that DistributedDataParallel knows its gradient to be sparse.

    Args:
        rows: number of rows.
        dim: numbers per row.
        sparse: the gradient is a sparse tensor of the touched rows, so that a training step costs what its batch
            touches and not what the table holds.

    Shape:
        ids (B, S) int, values (B, S) float32 -> (B, S, dim), the rows times the values.
    """

    def __init__(self, rows: int, dim: int, *, sparse: bool = False) -> None:
        super().__init__(rows, dim, sparse=sparse)

    def reset_parameters(self) -> None:
        """N(0, 0.01²), as in the official program."""
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, ids: Tensor, values: Tensor | None = None) -> Tensor:
        """Look up rows and scale them."""
        if values is None:
            return F.embedding(ids, self.weight, sparse=self.sparse)
        if self.sparse and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            scaled: Tensor = _ScaledRows.apply(ids, values, self.weight)
            return scaled
        return F.embedding(ids, self.weight) * values[..., None]


class _ScaledRows(torch.autograd.Function):
    """`weight[ids] * values` whose gradient in `weight` is sparse and already summed by row.

    Sorting the ids once and summing by `embedding_bag` takes a third of the time of coalescing a sparse tensor.
    """

    @staticmethod
    def forward(ctx: Any, ids: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids, values)
        ctx.shape = weight.shape
        return F.embedding(ids, weight).mul_(values[..., None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        ids, values = ctx.saved_tensors
        order, slots = torch.sort(ids.flatten())
        rows, counts = torch.unique_consecutive(order, return_counts=True)
        starts, weights = counts.cumsum(0) - counts, values.flatten()[slots]
        grad = grad.flatten(0, -2)
        # row r gets the sum of value * gradient over its slots: a weighted bag
        summed = F.embedding_bag(slots, grad, starts, mode="sum", per_sample_weights=weights.to(grad.dtype))
        shape = torch.Size([ctx.shape[0], summed.shape[1]])
        return None, None, torch.sparse_coo_tensor(rows[None], summed, shape, is_coalesced=True, check_invariants=False)
