"""Attention over short sequences on the CPU, where memory traffic and not arithmetic is the cost."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2E = math.log2(math.e)
MAX_LENGTH, MAX_DIM = 256, 32
# scores beyond this, in units of log 2, get the row maximum subtracted first; float32 reaches to 127
SAFE = 60.0


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attend_short` takes these tensors and is faster for them than the fused kernel of torch."""
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == v.dtype == torch.float32
        and q.shape == k.shape == v.shape
        and 2 <= q.shape[-2] <= MAX_LENGTH
        and q.shape[-1] <= MAX_DIM
        and q.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def attend_short(q: Tensor, k: Tensor, v: Tensor, *, scale: float, keys: int) -> Tensor:
    """`softmax(scale q kᵀ) v` over the first `keys` keys.

    The exponentials are taken to base 2 (a vectorised instruction), and their row sums come out of the product with
    v, to which a channel of ones is added; no pass over the (L, L) matrix is spent on normalising it.

    Args:
        q: queries; fastest as transposed views of feature-major tensors (..., head_dim, L), as are k and v.
        k: keys.
        v: values.
        scale: factor on the scores.
        keys: positions behind these are padding.

    Shape:
        q, k, v (..., L, head_dim) float32 -> (..., L, head_dim), a transposed view of a feature-major tensor.
    """
    length = q.shape[-2]
    if length % 2 == 0:
        out: Tensor = _AttendShort.apply(q, k, v, scale, keys)
        return out
    pad = (0, 0, 0, -length % 4)  # odd sizes are slow in the vendors' libraries
    out = _AttendShort.apply(F.pad(q, pad), F.pad(k, pad), F.pad(v, pad), scale, keys)
    return out[..., :length, :]


class _AttendShort(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, keys: int) -> Tensor:
        *lead, length, dim = v.shape
        q, k, v = (x.transpose(-1, -2).reshape(-1, dim, length) for x in (q, k, v))  # views where possible
        ones = v.new_empty(len(v), dim + 1, length)
        ones[:, :dim] = v
        ones[:, dim] = 1
        if keys < length:
            ones[:, :, keys:] = 0  # padding counts neither in the sum nor in the denominator
        e = torch.baddbmm(q.new_empty(1, 1, 1), q.transpose(1, 2), k, beta=0, alpha=scale * LOG2E)
        if not (float(e.amax()) < SAFE and float(e.amin()) > -SAFE):
            e -= e[:, :, :keys].amax(-1, keepdim=True)
            e.clamp_(max=SAFE)  # only padding can be above 0
        e.exp2_()
        joined = torch.bmm(ones, e.transpose(1, 2))
        inverse = joined[:, dim:].reciprocal()
        out = joined[:, :dim] * inverse
        ctx.save_for_backward(q, k, ones, e, out, inverse)
        ctx.scale, ctx.keys, ctx.lead = scale, keys, lead
        return out.view(*lead, dim, length).transpose(-1, -2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, ones, e, out, inverse = ctx.saved_tensors
        _, dim, length = out.shape
        grad = grad.transpose(-1, -2).reshape(out.shape)
        # [g/s; -sum(g o)/s]: its product with [v; 1] is (dP - sum(dP P)) / s, for P = e/s with row sums s
        joined = torch.empty_like(ones)
        scaled = joined[:, :dim]
        torch.mul(grad, inverse, out=scaled)
        torch.sum(scaled * out, 1, out=joined[:, dim]).neg_()
        dv = torch.bmm(scaled, e)
        if ctx.keys < length:
            dv[:, :, ctx.keys :] = 0
        ds = torch.bmm(joined.transpose(1, 2), ones).mul_(e)
        nothing = q.new_empty(1, 1, 1)
        dq = torch.baddbmm(nothing, k, ds.transpose(1, 2), beta=0, alpha=ctx.scale)
        dk = torch.baddbmm(nothing, q, ds, beta=0, alpha=ctx.scale)
        dq, dk, dv = (x.view(*ctx.lead, dim, length).transpose(-1, -2) for x in (dq, dk, dv))
        return dq, dk, dv, None, None
