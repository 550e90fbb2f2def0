"""Rows of embedding tables: their lookup, the sums of their gradients, and how they start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 20  # numbers of a table that are drawn, or gathered, at a time


def draw_seed() -> int:
    """Take one number from torch's generator; it stands for all rows of a table, however many there are."""
    return int(torch.randint(2**63 - 1, (), device="cpu"))


def normal_rows(rows: int, dim: int, std: float, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Draw N(0, std²) for a table block by block, always the same blocks, so that any share of it can be kept.

    Yields:
        First row of the block, and the block (n, dim) float32 on the CPU; it is overwritten by the next one.
    """
    generator = torch.Generator().manual_seed(seed)
    size = max(1, BLOCK // dim)
    buffer = torch.empty(min(size, rows), dim, device="cpu", dtype=torch.float32)
    for start in range(0, rows, size):
        yield start, buffer[: rows - start].normal_(std=std, generator=generator)


def look_up(ids: Tensor, values: Tensor | None, weight: Tensor, *, sparse: bool) -> Tensor:
    """Rows times values; with `sparse` the gradient in `weight` is a sparse tensor of the touched rows.

    Shape:
        ids (B, S) int, values (B, S) float32 or None for ones, weight (rows, dim) -> (B, S, dim).
    """
    if values is None:
        return F.embedding(ids, weight, sparse=sparse)
    if sparse and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        scaled: Tensor = _ScaledRows.apply(ids, values, weight)
        return scaled
    return F.embedding(ids, weight) * values[..., None]


def summed_by_row(ids: Tensor, grad: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum gradients, times values, of equal ids; sorting once and summing by bags avoids coalescing.

    Shape:
        ids (N,) int, grad (N, dim), values (N,) -> distinct ids (U,) ascending, sums (U, dim).
    """
    order, slots = torch.sort(ids)
    rows, counts = torch.unique_consecutive(order, return_counts=True)
    return rows, bag_sums(slots, counts, grad, values)


def bag_sums(slots: Tensor, counts: Tensor, grad: Tensor, values: Tensor | None = None) -> Tensor:
    """Sum runs of slots: run u has counts[u] entries of `slots`, and its sum is that of value * gradient over them.

    Shape:
        slots (N,) int, counts (U,) int, grad (N, dim), values (N,) -> (U, dim).
    """
    if not len(slots):
        return grad.new_zeros(0, grad.shape[1])
    starts = counts.cumsum(0) - counts
    weights = None if values is None else values[slots].to(grad.dtype)
    return F.embedding_bag(slots, grad, starts, mode="sum", per_sample_weights=weights)


def sparse_rows(rows: Tensor, sums: Tensor, total: int) -> Tensor:
    """Sparse gradient (total, dim) that holds `sums` in distinct ascending `rows`."""
    shape = torch.Size([total, sums.shape[1]])
    return torch.sparse_coo_tensor(rows[None], sums, shape, is_coalesced=True, check_invariants=False)


class _ScaledRows(torch.autograd.Function):
    """`weight[ids] * values` whose gradient in `weight` is sparse and already summed by row."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids, values)
        ctx.rows = weight.shape[0]
        return F.embedding(ids, weight).mul_(values[..., None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        ids, values = ctx.saved_tensors
        rows, sums = summed_by_row(ids.flatten(), grad.flatten(0, -2), values.flatten())
        return None, None, sparse_rows(rows, sums, ctx.rows)
