"""Many instances, reduced in width and scored in blocks that stay in the cache of a CPU, in training, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1024  # instances


@dataclass(frozen=True)
class Scorer:
    """What scores instances; it can be called on any share of them.

    Args:
        function: of instances and operands.
        operands: tensors that are made once for all instances, and through which gradients flow.

    Shape:
        h (N, D) -> (R, N), a row for each branch (and head).
    """

    function: Callable[..., Tensor]
    operands: tuple[Tensor, ...]

    def __call__(self, h: Tensor) -> Tensor:
        """Score instances."""
        return self.function(h, *self.operands)


def reduce_and_score(
    x: Tensor, weight: Tensor, prepare: Callable[[Tensor], Tensor], scorer: Scorer
) -> tuple[Tensor, Tensor]:
    """`h = relu(prepare(x) weightᵀ)` and the scores of h, block by block, in the backward pass, too.

    What is prepared of x, and the gradient before the rectification, exist for one block at a time. So x may be stored
    in half the width of the weights and never lies there in full width as a whole. Gradients are those of the plain
    form but for rounding; the backward pass can be done once.

    Args:
        x: features as they are stored; they get no gradient.
        weight: of the reduction.
        prepare: makes of some rows of x what is multiplied; nothing in it is trained.
        scorer: of the instances.

    Shape:
        x (N, D_feat), weight (D, D_feat) -> h (N, D), scores (R, N).
    """
    if torch.is_grad_enabled():
        h, scores = _ReduceAndScore.apply(x, weight, prepare, scorer.function, *scorer.operands)
        return h, scores
    h = weight.new_empty(len(x), len(weight))
    return h, torch.cat([scorer(_reduce(prepare(x[rows]), weight, h[rows])) for rows in _blocks(len(x))], 1)


class _ReduceAndScore(torch.autograd.Function):
    """The scores of each block have a small graph of their own, from the block and the operands on."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        prepare: Callable[[Tensor], Tensor],
        score: Callable[..., Tensor],
        *operands: Tensor,
    ) -> tuple[Tensor, Tensor]:
        h, ctx.parts = weight.new_empty(len(x), len(weight)), []
        ctx.leaves = [operand.detach().requires_grad_() for operand in operands]
        for rows in _blocks(len(x)):
            # .data: to detach() a part of h would count as changed when the other parts are written
            block = _reduce(prepare(x[rows]), weight, h[rows]).data.requires_grad_()
            with torch.enable_grad():
                ctx.parts.append((rows, block, score(block, *ctx.leaves)))
        ctx.prepare = prepare
        ctx.save_for_backward(x, weight)
        return h, torch.cat([scores.detach() for _, _, scores in ctx.parts], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_weight = torch.zeros_like(weight)
        for rows, block, scores in ctx.parts:
            scores.backward(grad_scores[:, rows])  # adds to the gradients of the leaves
            grad = torch.ops.aten.threshold_backward(block.grad.add_(grad_h[rows]), block, 0)  # of relu
            grad_weight.addmm_(grad.T, ctx.prepare(x[rows]))
            block.grad = None
        return None, grad_weight, None, None, *(leaf.grad for leaf in ctx.leaves)


def _reduce(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    return torch.mm(x, weight.T, out=out).relu_()


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]
