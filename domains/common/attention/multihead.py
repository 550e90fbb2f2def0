"""Multi-head self- and cross-attention (Vaswani et al., 2017, arXiv 1706.03762, section 3.2.2)."""

from __future__ import annotations

from torch import Tensor, nn

from domains.common.attention.core import causal_mask
from domains.common.attention.recorder import Recordable


def split_heads(x: Tensor, heads: int) -> Tensor:
    """View the last axis as contiguous chunks, one a head.

    Shape:
        x (..., L, heads * head_dim) -> (..., heads, L, head_dim).
    """
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`.

    Shape:
        x (..., heads, L, head_dim) -> (..., L, heads * head_dim).
    """
    return x.transpose(-3, -2).flatten(-2)


class MultiHeadAttention(Recordable):
    """Multi-head attention of a sequence to itself, or to a context.

    `concat_h(softmax(Q_h K_hᵀ / sqrt(c)) V_h) W_o` with `Q = x W_q`, `K = y W_k`, `V = y W_v`, y = context or x.

    Args:
        dim: width D of x and of the result.
        heads: number of heads; must divide `dim`.
        context_dim: width of the context; default `dim`.
        causal: position i of x attends to positions 0..i only (self-attention).
        bias: whether the four linear maps have a bias.
        dropout: probability with which an attention weight is dropped in training.

    Shape:
        x (B, L, D), context (B, S, context_dim) -> (B, L, D).

    Raises:
        ValueError: `heads` does not divide `dim`, or a causal block is given a context.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        causal: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim if context_dim is None else context_dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Attend; `mask` (True = attend) and `bias` broadcast to (B, heads, L, S)."""
        if self.causal:
            if context is not None:
                raise ValueError("a causal block attends to its own sequence; it takes no context")
            order = causal_mask(x.shape[-2], device=x.device)
            mask = order if mask is None else mask & order
        key, value = self.key_value(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (split_heads(t, self.heads) for t in (self.query(x), key, value))  # (B, heads, L | S, c)
        out, _ = self.mix(q, k, v, bias=bias, mask=mask, dropout=self.dropout if self.training else 0.0)
        projected: Tensor = self.out(merge_heads(out))  # (B, L, D)
        return projected
