"""Multi-query self-attention over sequences: T. Zhu, Y. Shi, Y. Zhang, Y. Wu, F. Mo, J.-Y. Nie (WSDM 2024).

*Collaboration and Transition: Distilling Item Transitions into Multi-Query Self-Attention for Sequential
Recommendation*, arXiv 2311.01056, section 4.1. Whose maths where the paper leaves it open: zhuty16/MQSA-TED @ 91c9001.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention.multihead import merge_heads, split_heads
from domains.common.attention.recorder import Recordable

NORM_EPS = 1e-24  # the official constant; float32 holds it


def sequence_mask(keep: Tensor, segment: Tensor | None = None) -> Tensor:
    """Mask under which a position attends to the real positions of its own sequence up to itself.

    Args:
        keep: True where a position is real.
        segment: number of the sequence that a position belongs to, where several share a row; default one a row.

    Shape:
        keep (B, T) bool, segment (B, T) int -> (B, 1, T, T) bool, True = attend.
    """
    length = keep.shape[1]
    mask = keep[:, None, :] & torch.ones(length, length, dtype=torch.bool, device=keep.device).tril()
    if segment is not None:
        mask = mask & (segment[:, :, None] == segment[:, None, :])
    return mask[:, None]


def window_means(x: Tensor, keep: Tensor, window: int, segment: Tensor | None = None) -> Tensor:
    """Mean of the last `window` real rows of the same sequence up to each position (eq. 7).

    Shape:
        x (B, T, D), zero where not real; keep (B, T) bool; segment (B, T) int -> (B, T, D).
    """
    if window == 1:
        return x
    total, count = x, keep.to(x.dtype)
    for shift in range(1, min(window, x.shape[1])):
        inside = keep[:, :-shift]
        if segment is not None:
            inside = inside & (segment[:, :-shift] == segment[:, shift:])
        weight = inside.to(x.dtype)
        total = total + F.pad(x[:, :-shift] * weight[..., None], (0, 0, shift, 0))
        count = count + F.pad(weight, (shift, 0))
    return total / count.clamp(min=1.0)[..., None]


class LQueryAttention(Recordable):
    """L-query self-attention: a query is the mean of the L latest items (section 4.1, eq. 7).

    `softmax(Q Kᵀ / sqrt(c)) V + N` with `N = LN(window mean of x)`, `Q = N W_q`, `K = x W_k`, `V = x W_v`: keys and
    values come from the items themselves, and the residual from the normalised queries. L = 1 is the attention of
    SASRec (Kang and McAuley, 2018, arXiv 1808.09781).

    Args:
        dim: width D.
        heads: number of heads, contiguous chunks of the width; must divide it.
        window: the number L of latest items in a query.
        dropout: probability with which an attention weight is dropped in training.
        norm_eps: of the layer normalisation.

    Shape:
        x (B, T, D), zero where not real; keep (B, T) bool; segment (B, T) int or None -> (B, T, D).

    Raises:
        ValueError: `heads` does not divide `dim`, or the window is empty.
    """

    def __init__(
        self, dim: int, heads: int = 1, *, window: int = 1, dropout: float = 0.0, norm_eps: float = NORM_EPS
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        if window < 1:
            raise ValueError(f"window={window}; a query holds at least the latest item")
        self.heads, self.window, self.dropout = heads, window, dropout
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform kernels and zero biases (the official start)."""
        for kernel in (self.query.weight, *self.key_value.weight.chunk(2)):
            nn.init.xavier_uniform_(kernel)
        nn.init.zeros_(self.query.bias)
        nn.init.zeros_(self.key_value.bias)

    def forward(self, x: Tensor, keep: Tensor, segment: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Attend; `mask` is `sequence_mask(keep, segment)` where the caller has it already."""
        mask = sequence_mask(keep, segment) if mask is None else mask
        normed = self.norm(window_means(x, keep, self.window, segment))  # (B, T, D)
        key, value = self.key_value(x).chunk(2, dim=-1)
        q, k, v = (split_heads(t, self.heads) for t in (self.query(normed), key, value))  # (B, H, T, c)
        out, _ = self.mix(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0)
        attended: Tensor = merge_heads(out) + normed
        return attended


class LQueryBlock(nn.Module):
    """L-query attention, layer normalisation, and a feed-forward net with its residual.

    Args:
        dim: width D.
        heads: attention heads.
        window: the number L of latest items in a query.
        dropout: of attention weights and of both layers of the feed-forward net.
        norm_eps: of the layer normalisations.

    Shape:
        x (B, T, D), zero where not real; keep (B, T) bool; segment (B, T) int or None -> (B, T, D), zero again.
    """

    def __init__(
        self, dim: int, heads: int = 1, *, window: int = 1, dropout: float = 0.0, norm_eps: float = NORM_EPS
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention = LQueryAttention(dim, heads, window=window, dropout=dropout, norm_eps=norm_eps)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, keep: Tensor, segment: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Let each position attend to its past."""
        attended = self.norm(self.attention(x, keep, segment, mask=mask))
        inner = F.dropout(self.inner(attended).relu(), self.dropout, self.training)
        outer = F.dropout(self.outer(inner), self.dropout, self.training)
        masked: Tensor = (attended + outer) * keep[..., None].to(x.dtype)
        return masked


class MultiQueryAttention(nn.Module):
    """Branches of L-query blocks over the same sequence, combined with fixed weights (section 4.1, eq. 8).

    `R = sum_b weight_b LN(branch_b(x))`; the paper's two are L = 1, for what the user does now, and a longer window,
    for what they have been doing, with weights alpha and 1 - alpha.

    Args:
        dim: width D.
        depth: blocks of each branch.
        heads: attention heads.
        windows: the number L of each branch.
        weights: of each branch.
        dropout: see `LQueryBlock`.
        norm_eps: of the layer normalisations.

    Shape:
        x (B, T, D), zero where not real; keep (B, T) bool; segment (B, T) int or None -> (B, T, D).

    Raises:
        ValueError: not as many weights as windows.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 1,
        heads: int = 1,
        *,
        windows: Sequence[int] = (1, 3),
        weights: Sequence[float] = (0.5, 0.5),
        dropout: float = 0.0,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        if len(windows) != len(weights):
            raise ValueError(f"{len(windows)} windows and {len(weights)} weights; each branch needs one of both")
        self.windows, self.weights = list(windows), list(weights)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                LQueryBlock(dim, heads, window=window, dropout=dropout, norm_eps=norm_eps) for _ in range(depth)
            )
            for window in self.windows
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=norm_eps) for _ in self.windows)

    def forward(self, x: Tensor, keep: Tensor, segment: Tensor | None = None) -> Tensor:
        """Combine the branches before anything else is computed of them: eq. 8 is linear."""
        parts = self.each(x, keep, segment)
        combined = parts[0] * self.weights[0]
        for part, weight in zip(parts[1:], self.weights[1:], strict=True):
            combined = combined + part * weight
        return combined

    def each(self, x: Tensor, keep: Tensor, segment: Tensor | None = None) -> list[Tensor]:
        """Representations (B, T, D) of each branch."""
        mask = sequence_mask(keep, segment)
        parts = []
        for blocks, norm in zip(self.branches, self.norms, strict=True):
            hidden = x
            for block in cast(nn.ModuleList, blocks):
                hidden = block(hidden, keep, segment, mask=mask)
            parts.append(norm(hidden))
        return parts
