"""Losses over a whole catalogue: next item and transition-aware distillation (Zhu et al., 2024, arXiv 2311.01056).

Logits exist for one slice of rows at a time. A training step therefore costs the products it needs and no more: no
logit of a padded position, no dense row of the transition matrix, no stored matrix of probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Teacher = Literal["row_max", "row_sum"]
SLICE_ELEMENTS = 1 << 20  # logits of a slice of rows, 4 MB: more would leave the cache, fewer make thin products


@dataclass(frozen=True)
class Transitions:
    """Rows of the transition matrix C for the distinct items of a batch, sparse.

    Shape:
        head (H,) int64 distinct items; count (H,) float32, how often each stands in the batch; start (H,) int64, where
        the row of each begins among the edges; tail (E,) int64; transitions (E,) float32, C[head, tail] > 0.
    """

    head: Tensor
    count: Tensor
    start: Tensor
    tail: Tensor
    transitions: Tensor

    @property
    def row(self) -> Tensor:
        """Row of each edge (E,) int64."""
        stops = torch.cat([self.start[1:], self.start.new_tensor([len(self.tail)])])
        return torch.repeat_interleave(torch.arange(len(self.head), device=self.head.device), stops - self.start)


def next_item_loss(users: Tensor, table: Tensor, target: Tensor) -> Tensor:
    """Summed cross entropy of the next items over the catalogue and one padding class of logit 0 (official `loss_rec`).

    Shape:
        users (N, D), table (V, D), target (N,) int64 -> ().
    """
    partition = summed_log_partition(users, table, users.new_ones(len(users)), null=True)
    return partition - (users * F.embedding(target, table)).sum()


def distillation_loss(heads: Tensor, table: Tensor, rows: Transitions, tau: float, teacher: Teacher) -> Tensor:
    """Summed cross entropy of the student against the transitions (eq. 9-11, official `loss_kd`).

    The teacher of item i is `softmax_j(c_ij / tau)` over all items, c the counts over their row maximum; the student
    `softmax_j(h_i . E_j / tau)`. With `w = exp(c / tau)`, which is 1 wherever nothing was observed, the teacher's mean
    of E is `(sum_observed (w - 1) E + sum_all E) / Z`, so that only observed transitions are touched one by one.

    Args:
        heads: student vectors of `rows.head`, scaled and dropped out.
        table: item vectors.
        rows: observed transitions.
        tau: temperature of both sides.
        teacher: counts over the row's maximum (official), or over its sum (paper).

    Shape:
        heads (H, D), table (V, D) -> (), each row times its count.
    """
    scaled = heads / tau
    partition = summed_log_partition(scaled, table, rows.count, null=False)
    excess, total = teacher_excess(rows, len(table), tau, teacher)
    observed = F.embedding_bag(rows.tail, table, rows.start, mode="sum", per_sample_weights=excess)  # (H, D)
    mean = (observed + table.sum(0)) / total[:, None]
    return partition - (scaled * mean * rows.count[:, None]).sum()


def teacher_excess(rows: Transitions, n_items: int, tau: float, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """`w - 1` of each observed transition (E,), and the teacher's normaliser Z of each row (H,)."""
    row = rows.row
    norm = rows.transitions.new_zeros(len(rows.head))
    if teacher == "row_max":
        norm.scatter_reduce_(0, row, rows.transitions, "amax")
    else:
        norm.index_add_(0, row, rows.transitions)
    excess = torch.expm1(rows.transitions / norm[row] / tau)
    total = rows.transitions.new_full((len(rows.head),), float(n_items)).index_add_(0, row, excess)
    return excess, total


def squared_norm(tensors: list[Tensor]) -> Tensor:
    """Half the sum of squares of all tensors (official weight decay)."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum() / 2


def summed_log_partition(rows: Tensor, table: Tensor, weight: Tensor, *, null: bool) -> Tensor:
    """`sum_m weight_m log sum_v exp(rows_m . table_v)`, slice by slice, gradients along with the value.

    Args:
        rows: vectors.
        table: what each is compared with.
        weight: of each row; a constant.
        null: whether one more class of logit 0 belongs to the sum.

    Shape:
        rows (M, D), table (V, D), weight (M,) -> ().
    """
    value: Tensor = _LogPartition.apply(rows, table, weight, null)
    return value


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, weight: Tensor, null: bool) -> Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        size = max(16, SLICE_ELEMENTS // len(table))
        buffer = table.new_empty(min(size, len(rows)), len(table))
        lowered = table.T
        row_grad, table_grad = torch.empty_like(rows), torch.zeros_like(table) if wanted else None
        total = rows.new_zeros((), dtype=torch.float64 if rows.device.type == "cpu" else rows.dtype)
        for start in range(0, len(rows), size):
            part, factor = rows[start : start + size], weight[start : start + size]
            scores = torch.mm(part, lowered, out=buffer[: len(part)])
            highest = scores.amax(1, keepdim=True)
            if null:
                highest.clamp_(min=0.0)
            sums = scores.sub_(highest).exp_().sum(1)
            if null:
                sums += torch.exp(-highest[:, 0])
            total += ((sums.log() + highest[:, 0]) * factor).sum()
            if table_grad is not None:
                share = (factor / sums)[:, None]
                torch.mm(scores, table, out=row_grad[start : start + size]).mul_(share)
                table_grad.addmm_(scores.T, part * share)
        ctx.gradients = (row_grad, table_grad)
        return total.to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        row_grad, table_grad = ctx.gradients
        ctx.gradients = None
        return row_grad.mul_(outer), table_grad.mul_(outer), None, None
