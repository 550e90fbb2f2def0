"""Transformer over the tokens of all levels, and the gate behind it.

J. Mao et al., *POSTER++* (2023), arXiv 2301.12149, section 3.3; A. Dosovitskiy et al. (2021), 2010.11929, eq. 1-4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention import MultiHeadAttention, merge_heads, split_heads

EPS, MLP_RATIO = 1e-6, 4


class OneQueryAttention(MultiHeadAttention):
    """Multi-head self-attention that can give the result of the first token alone, without any key or value.

    `q_h K_hᵀ = (q_h W_k,h) xᵀ` but for a constant, which the softmax takes off, and `P_h V_h = (P_h x) W_v,hᵀ + b_v,h`.
    For a single query both are products with one row of a head, instead of maps of all tokens.
    """

    def first(self, x: Tensor) -> Tensor:
        """Result of the first of the tokens x (B, L, D), (B, 1, D)."""
        dim = x.shape[-1]
        query = split_heads(self.query(x[:, :1]), self.heads)  # (B, heads, 1, c)
        key, value = self.key_value.weight.view(2, self.heads, -1, dim)  # (heads, c, D)
        tokens = x[:, None].expand(-1, self.heads, -1, -1)
        seen, _ = self.mix(query @ key, tokens, tokens, scale=query.shape[-1] ** -0.5)  # (B, heads, 1, D)
        mixed = seen @ value.transpose(1, 2) + self.key_value.bias[dim:].view(self.heads, 1, -1)
        first: Tensor = self.out(merge_heads(mixed))
        return first


class ViTBlock(nn.Module):
    """`x + A(LN(x))`, then `x + MLP(LN(x))`, with GELU by the error function.

    Args:
        dim: width D.
        heads: of the attention.

    Shape:
        x (B, L, D) -> (B, L, D).
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attention = OneQueryAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor, *, first: bool = False) -> Tensor:
        """Apply.

        Args:
            x: tokens.
            first: compute the result of the first token only, (B, 1, D).
        """
        normed = self.norm1(x)
        x = x[:, :1] + self.attention.first(normed) if first else x + self.attention(normed)
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class SqueezeExcitation(nn.Module):
    """`x sigmoid(W2 relu(W1 x + b1) + b2)` (J. Hu et al., 2018, arXiv 1709.01507), without a bottleneck.

    Args:
        dim: width D.

    Shape:
        x (B, D) -> (B, D).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, dim)
        self.linear2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        gate: Tensor = self.linear2(self.linear1(x).relu()).sigmoid()
        return x * gate


class TokenViT(nn.Module):
    """Embedding of an image from its tokens: class token, positions, blocks, norm, gate.

    Args:
        tokens: number L of tokens.
        dim: width D.
        depth: blocks.
        heads: of their attention.
        fuse: the last block computes the class token only, which is all that goes on; the numbers are the same.

    Shape:
        tokens (B, L, D) -> (B, D).
    """

    def __init__(self, tokens: int, dim: int = 768, depth: int = 2, heads: int = 8, *, fuse: bool = True) -> None:
        super().__init__()
        self.fuse = fuse
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, tokens + 1, dim))
        self.blocks = nn.ModuleList(ViTBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, EPS)
        self.gate = SqueezeExcitation(dim)
        self._start()

    def _start(self) -> None:
        """As in the official code: std 0.01 of linear maps, 0.02 of tokens and positions."""
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply."""
        x = self.placed(tokens)
        for i, block in enumerate(self.blocks):
            x = block(x, first=self.fuse and i == len(self.blocks) - 1)
        embedding: Tensor = self.gate(self.norm(x[:, 0]))
        return embedding

    def placed(self, tokens: Tensor) -> Tensor:
        """Class token and tokens with their positions (B, L + 1, D)."""
        first = self.class_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        return torch.cat([first, tokens], 1) + self.positions
