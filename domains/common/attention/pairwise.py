"""Pair-wise cross-attention: H. Zhu, W. Ke, D. Li, J. Liu, L. Tian, Y. Shan (CVPR 2022), arXiv 2205.02151.

*Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object Re-Identification*, section 3.3. There
is no official code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from domains.common.attention.multihead import merge_heads, split_heads
from domains.common.attention.recorder import Recordable


class JointProjectionAttention(Recordable):
    """Multi-head attention whose queries, keys and values come from one linear map, as in vision transformers of timm.

    Args:
        dim: width D of tokens.
        heads: number of heads; must divide `dim`.
        bias: whether the joint map has a bias.
        dropout: probability with which an attention weight is dropped in training.

    Raises:
        ValueError: `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        self.heads, self.dropout, self.scale = heads, dropout, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)  # rows: queries, keys, values
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        self.proj = nn.Linear(dim, dim)

    @classmethod
    def around(cls, other: Any) -> Any:
        """Take over the layers of another attention, which keep their names: `qkv`, `q_norm`, `k_norm`, `proj`.

        Args:
            other: a block of ours, or a module with these layers, `num_heads`, `scale` and `attn_drop`, as
                `timm.layers.Attention`.
        """
        made = cls.__new__(cls)
        Recordable.__init__(made)
        ours = isinstance(other, JointProjectionAttention)
        made.heads, made.scale = other.heads if ours else other.num_heads, other.scale
        made.dropout = other.dropout if ours else float(other.attn_drop.p)
        made.qkv, made.q_norm, made.k_norm, made.proj = other.qkv, other.q_norm, other.k_norm, other.proj
        return made

    def finish(self, out: Tensor) -> Tensor:
        """Merge the heads and project: (B, heads, L, c) -> (B, L, D)."""
        projected: Tensor = self.proj(merge_heads(out))
        return projected

    @property
    def rate(self) -> float:
        """Dropout that is in force now."""
        return self.dropout if self.training else 0.0


class PairwiseCrossAttention(JointProjectionAttention):
    """Self-attention that, where a second image is given, also attends to the tokens of that one.

    `softmax(Q_1 [K_1; K_2]ᵀ / sqrt(c)) [V_1; V_2]` with one softmax over both images' keys (eq. 4): the second image
    distracts, which regularises training. Without it this is plain self-attention with the same weights, and an image
    paired with itself gives the same as that.

    Args:
        dim: see `JointProjectionAttention`.
        heads: likewise.
        bias: likewise.
        dropout: likewise.

    Shape:
        x (B, L, D), other (keys, values) each (B, heads, S, c) -> (B, L, D).

    Example:
        >>> import torch
        >>> block = PairwiseCrossAttention(dim=16, heads=2)
        >>> x = torch.randn(4, 5, 16)
        >>> _, keys, values = block.project(x)
        >>> block(x, (keys.roll(1, 0), values.roll(1, 0))).shape
        torch.Size([4, 5, 16])
    """

    def forward(self, x: Tensor, other: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Project, then attend."""
        return self.attend(*self.project(x), other)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, each (B, heads, L, c)."""
        q, k, v = self.qkv(x).view(*x.shape[:-1], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def project_context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x, each (B, heads, L, c); costs two thirds of `project`."""
        return project_context(self, x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, other: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Attend with what was projected before; Lq of q may differ from the length of k and v."""
        if other is not None:
            k, v = torch.cat([k, other[0]], dim=-2), torch.cat([v, other[1]], dim=-2)
        out, _ = self.mix(q, k, v, scale=self.scale, dropout=self.rate)
        return self.finish(out)


def project_queries(attention: JointProjectionAttention, x: Tensor) -> Tensor:
    """Queries alone, (B, heads, L, c)."""
    dim = attention.qkv.out_features // 3
    bias = attention.qkv.bias
    q = nn.functional.linear(x, attention.qkv.weight[:dim], None if bias is None else bias[:dim])
    projected: Tensor = attention.q_norm(split_heads(q, attention.heads))
    return projected


def project_context(attention: JointProjectionAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values alone, each (B, heads, L, c)."""
    dim = attention.qkv.out_features // 3
    bias = attention.qkv.bias
    both = nn.functional.linear(x, attention.qkv.weight[dim:], None if bias is None else bias[dim:])
    k, v = both.view(*both.shape[:-1], 2, attention.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return attention.k_norm(k), v
