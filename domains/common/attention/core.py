"""The one primitive on which every attention block of the project is written."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.common.attention.short import attend_short, suits


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention (Vaswani et al., 2017, arXiv 1706.03762, eq. 1) with bias and mask.

    `softmax(scale * q kᵀ + bias) v`, softmax over the keys that `mask` admits. A query that may attend to no key at
    all gets zeros (and zero weights), never NaN.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the scaled scores.
        mask: boolean, **True = attend**.
        scale: factor on the scores; default 1 / sqrt(head_dim).
        dropout: probability with which a weight is dropped; pass 0 outside training.
        need_weights: also return the weights (after dropout), by the explicit path.

    Shape:
        q (..., heads, Lq, head_dim), k (..., heads, Lk, head_dim), v (..., heads, Lk, value_dim); bias and mask
        broadcast to (..., heads, Lq, Lk) -> out (..., heads, Lq, value_dim), weights (..., heads, Lq, Lk) or None.
    """
    if need_weights or (bias is not None and bias.requires_grad and q.device.type == "cpu"):
        # the fused CPU kernel has no gradient for the bias
        out, weights = _explicit(q, k, v, bias, mask, scale, dropout)
        return out, (weights if need_weights else None)
    if dropout == 0.0 and bias is None and suits(q, k, v):
        keys = q.shape[-2] if mask is None else _unpadded(mask, k.shape[-2])
        if keys:
            return attend_short(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, keys=keys), None
    return _fused(q, k, v, bias, mask, scale, dropout), None


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (q if factor == 1.0 else q * factor) @ k.transpose(-2, -1)  # (..., heads, Lq, Lk)
    if bias is not None:
        scores = scores + bias
    return weigh(scores, v, mask=mask, dropout=dropout)


def weigh(scores: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Second half of `attend`, for blocks that score their keys otherwise, or look at the scores: softmax and sum.

    Args:
        scores: of the keys.
        v: values.
        mask: boolean, **True = attend**.
        dropout: probability with which a weight is dropped; pass 0 outside training.

    Shape:
        scores (..., Lq, Lk), v (..., Lk, value_dim) -> out (..., Lq, value_dim), weights (..., Lq, Lk).
    """
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(dim=-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)  # a row without any key is NaN until here
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    return weights @ v, weights


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    if mask is not None and mask.ndim < 2:
        mask = mask[None]  # the fused kernels broadcast from two axes on
    combined = mask
    if bias is not None:
        bias = bias.to(q.dtype)
        combined = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=combined, dropout_p=dropout, scale=scale)
    if mask is not None:
        # the fused kernels disagree on rows without any key: some give NaN, some the mean of v
        out = out.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
    return out


def _unpadded(mask: Tensor, length: int) -> int:
    """Number of keys where `mask` hides the same padding behind them from every query, else 0."""
    if mask.numel() != length or mask.shape[-1] != length:
        return 0
    keys = int(mask.sum())
    return keys if bool(mask.flatten()[:keys].all()) else 0


def causal_mask(length: int, *, device: torch.device | None = None) -> Tensor:
    """Mask under which position i attends to positions 0..i.

    Shape:
        -> (length, length) bool, True = attend.
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def key_padding_mask(lengths: Tensor, length: int) -> Tensor:
    """Mask that hides the padding behind each sequence.

    Args:
        lengths: number of real positions of each sequence.
        length: padded length.

    Shape:
        lengths (B,) int -> (B, 1, 1, length) bool, True = attend.
    """
    positions = torch.arange(length, device=lengths.device)
    return (positions < lengths[:, None])[:, None, None, :]
