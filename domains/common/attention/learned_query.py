"""Pooling of bags by learned queries with several heads, in a form that makes no keys and no values.

The multi-head branches of ACMIL: Y. Zhang et al. (ECCV 2024), arXiv 2311.07125; dazhangyu123/ACMIL @ e53d19c.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention.instance_blocks import Scorer
from domains.common.attention.multi_branch import BranchLinear, InstanceMasking, Pooled, pool_bags
from domains.common.attention.recorder import Recordable
from domains.common.errors import ConfigError


class LearnedQueryPooling(Recordable):
    """Branch k has a query q_k and attends with H heads of width c: `softmax(Q_kh (W_k h)ᵀ / sqrt(c)) W_v h`.

    The queries do not depend on the bag. So the key map folds into them, `Q_khᵀ (W_k h_n + b) = (W_kᵀ Q_kh)ᵀ h_n +
    const`, and since weights add up to 1 the value map acts behind the sum, `sum_n a_n (W_v h_n + b) = W_v (sum_n a_n
    h_n) + b`: all branches and heads are one product of K H folded queries with the instances, and no (N, D) key or
    value exists. The results are those of the usual form but for rounding.

    Args:
        dim: width D; divisible by `heads`.
        branches: number of branches K.
        heads: heads H of each branch.

    Shape:
        h (N, D) packed -> branches (B, K, H, D), the weighted sums of instances; groups is H. `project` makes the
        vectors of the branches of them.

    Raises:
        ConfigError: `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, branches: int, heads: int = 8) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"heads={heads} does not divide dim={dim}")
        self.dim, self.branches, self.heads = dim, branches, heads
        self.queries = nn.Parameter(torch.empty(branches, dim).normal_(std=1e-6))
        self.query, self.key = BranchLinear(branches, dim, dim), BranchLinear(branches, dim, dim)
        self.out = HeadProjection(dim, branches, heads)

    def fold(self) -> tuple[Tensor, Tensor]:
        """Queries that score instances directly, and what the key's bias adds to all instances alike.

        Shape:
            -> (K, H, D), (K, H), both scaled by 1 / sqrt(c).
        """
        width = self.dim // self.heads
        query = self.query(self.queries).view(-1, self.heads, width) * width**-0.5  # (K, H, c)
        key = self.key.weight.view(-1, self.heads, width, self.dim)  # (K, H, c, D)
        constant = (query * self.key.bias.view(-1, self.heads, width)).sum(-1)
        return torch.einsum("khc,khcd->khd", query, key), constant

    def scorer(self) -> Scorer:
        """Make what scores instances for each branch and head.

        Shape:
            h (N, D) -> (K H, N).
        """
        folded, constant = self.fold()
        return Scorer(_score, (folded.flatten(0, 1), constant.flatten()[:, None]))

    def forward(
        self,
        h: Tensor,
        sizes: Sequence[int] | None = None,
        *,
        scores: Tensor | None = None,
        masking: InstanceMasking | None = None,
        draws: Sequence[Tensor] | None = None,
    ) -> Pooled:
        """Pool each bag; the arguments are those of `GatedAttentionPooling`, draws are (K, H, k) for each bag."""
        found = self.scorer()(h) if scores is None else scores
        return pool_bags(self, found, h, sizes, (self.branches, self.heads), masking, draws)

    def project(self, pooled: Tensor, dropout: float = 0.0) -> Tensor:
        """Make the vectors of the branches: (B, K, H, D) -> (B, K, D)."""
        vectors: Tensor = self.out(pooled, dropout)
        return vectors


def _score(h: Tensor, queries: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, queries, h.T)


class HeadProjection(nn.Module):
    """What stands behind the weighted sums: value map per head, output map, dropout, layer normalisation.

    Args:
        dim: width D; divisible by `heads`.
        branches: number of branches K, each with its own weights.
        heads: number of heads H.
        eps: of the layer normalisation.

    Shape:
        pooled (B, K, H, D) -> (B, K, D).
    """

    def __init__(self, dim: int, branches: int, heads: int = 8, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.value, self.project = BranchLinear(branches, dim, dim), BranchLinear(branches, dim, dim)
        self.norm_weight = nn.Parameter(torch.ones(branches, dim))
        self.norm_bias = nn.Parameter(torch.zeros(branches, dim))

    def forward(self, pooled: Tensor, dropout: float = 0.0) -> Tensor:
        """Project; `dropout` is that of the output map."""
        by_head = self.value.weight.view(len(self.value.weight), self.heads, -1, pooled.shape[-1])  # (K, H, c, D)
        values = torch.einsum("bkhd,khcd->bkhc", pooled, by_head).flatten(-2) + self.value.bias
        out = F.dropout(self.project(values), dropout)
        return F.layer_norm(out, out.shape[-1:], eps=self.eps) * self.norm_weight + self.norm_bias
