"""Low-rank adaptation: E. Hu, Y. Shen, P. Wallis et al. (ICLR 2022), arXiv 2106.09685, section 4."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Linear):
    """A linear map W x whose frozen weight is adapted by (alpha / rank) B A, on its last outputs or on all.

    A starts Kaiming-uniform and B at zero, so that a fresh adapter changes nothing. Weights stay apart, in training and
    evaluation, until `merged` is asked for: nothing is ever counted twice.

    Args:
        in_features: width of x.
        out_features: width of the result.
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        adapted: number of outputs, counted from the last, that are adapted; default all.
        bias: whether there is a bias; it is frozen, too.

    Shape:
        x (..., in_features) -> (..., out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        *,
        adapted: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.start = 0 if adapted is None else out_features - adapted
        self.scaling = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, in_features))  # A
        self.up = nn.Parameter(torch.zeros(out_features - self.start, rank))  # B
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    @classmethod
    def around(cls, linear: nn.Linear, rank: int, alpha: float, adapted: int | None = None) -> LowRankLinear:
        """Adapt an existing map; its weight becomes W, the same tensor."""
        bias = linear.bias is not None
        made = cls(linear.in_features, linear.out_features, rank, alpha, adapted=adapted, bias=bias)
        made.weight = linear.weight
        if bias:
            made.bias = linear.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Apply W and its update."""
        out = super().forward(x)
        update = nn.functional.linear(nn.functional.linear(x, self.down), self.up * self.scaling)
        if not self.start:
            return out + update
        return torch.cat([out[..., : self.start], out[..., self.start :] + update], dim=-1)

    def merged(self) -> Tensor:
        """Weight that does the same alone: W + (alpha / rank) B A."""
        weight = self.weight.detach().clone()
        weight[self.start :] += self.scaling * (self.up.detach() @ self.down.detach())
        return weight


def freeze_adapted(module: nn.Module) -> None:
    """Leave the adapters of a module alone trainable."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, LowRankLinear):
            part.down.requires_grad_(True)
            part.up.requires_grad_(True)
