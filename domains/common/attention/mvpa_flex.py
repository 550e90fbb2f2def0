"""MVPA by FlexAttention (Dong et al., 2024, arXiv 2412.05496), for GPUs: one fused kernel, no tensor over all pairs."""

from __future__ import annotations

import functools
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


def flex_attends(q: Tensor) -> bool:
    """Whether FlexAttention is to be used unasked: without gradients, on a GPU that has it, no float64.

    Its gradients of terms that a score looks up are sums of single entries, which the tiles' products beat on paper;
    `backend="flex"` also trains with it.
    """
    if torch.is_grad_enabled() or q.device.type != "cuda" or q.dtype == torch.float64 or q.shape[-1] < 16:
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0) and find_spec("triton") is not None


def flex_mvpa(q: Tensor, k: Tensor, v: Tensor, tau: Tensor, chi: Tensor, window: int) -> Tensor:
    """Attend.

    Args:
        q: queries with their content bias, scaled.
        k: keys.
        v: values.
        tau: terms of time for each key segment.
        chi: terms of channels for each key channel; -inf hides one.
        window: see `MultiVariateParallelAttention`.

    Shape:
        q (B, K, Tq, G, C, D), k and v (B, K, T, C, D), tau (B, K, Tq, G, C, T), chi (B, K, Tq, G, C, C) ->
        (B, K, Tq, G, C, D).
    """
    batch, heads, asked, group, channels, width = q.shape
    segments = k.shape[2]
    # tokens in the order of time, heads as FlexAttention groups them
    q, tau, chi = (t.transpose(2, 3).flatten(1, 2).flatten(2, 3).contiguous() for t in (q, tau, chi))
    k, v = (t.flatten(2, 3).contiguous() for t in (k, v))
    first = segments - asked

    def score(content: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own, other = query // channels + first, key // channels
        compared = (own - other <= window) | (own == segments - 1)
        return torch.where(compared, content, 0.0) + tau[b, h, query, other] + chi[b, h, query, key % channels]

    mask = _block_mask(asked, segments, channels, q.device)
    out = _attend(q, k, v, score, mask)
    return out.view(batch, heads, group, asked, channels, width).transpose(2, 3)


def _attend(q: Tensor, k: Tensor, v: Tensor, score: Any, mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    options = {"score_mod": score, "block_mask": mask, "scale": 1.0, "enable_gqa": q.shape[1] != k.shape[1]}
    if q.device.type != "cuda":  # the same formula without a kernel
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile.*")
            out: Tensor = flex_attention(q, k, v, **options)
        return out
    out = _compiled()(q, k, v, **options)
    return out


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@functools.lru_cache(maxsize=32)
def _block_mask(asked: int, segments: int, channels: int, device: torch.device) -> Any:
    """Which blocks of keys a block of queries sees: those that are not wholly in its future."""
    from torch.nn.attention.flex_attention import create_block_mask

    first = segments - asked

    def past(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key // channels <= query // channels + first

    return create_block_mask(past, None, None, asked * channels, segments * channels, device=str(device))
