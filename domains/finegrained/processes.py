"""Batches over several processes: what a loss or a norm needs of all rows, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Number of processes that train together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, those of process 0 first; each process may have another number, or none.

    The gradient of a row is the sum of what all processes have for it.

    Shape:
        (n, ...) -> (n over all processes, ...).
    """
    if world_size() == 1:
        return rows
    return _Gather.apply(rows)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        count = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.zeros_like(count) for _ in range(world_size())]
        torch.distributed.all_gather(counts, count)
        sizes = [int(size) for size in counts]
        filled = rows.new_zeros(max(sizes), *rows.shape[1:])
        filled[: len(rows)] = rows
        parts = [torch.empty_like(filled) for _ in sizes]
        torch.distributed.all_gather(parts, filled)
        rank = torch.distributed.get_rank()
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        total = outer.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[ctx.own]


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch norm whose statistics in training are those of the batches of all processes.

    Shape:
        (B, C) -> same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        together = gather_rows(input)
        first = _rows_before(len(input), input.device)
        return super().forward(together)[first : first + len(input)]


def _rows_before(count: int, device: torch.device) -> int:
    """Rows of the processes before this one."""
    mine = torch.tensor([count], device=device)
    counts = [torch.zeros_like(mine) for _ in range(world_size())]
    torch.distributed.all_gather(counts, mine)
    return sum(int(size) for size in counts[: torch.distributed.get_rank()])
