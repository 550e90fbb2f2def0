"""Attention rollout: S. Abnar, W. Zuidema (ACL 2020), arXiv 2005.00928, section 3.

*Quantifying Attention Flow in Transformers*; as DCAL uses it (H. Zhu et al., CVPR 2022, arXiv 2205.02151, eq. 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

HeadFusion = Literal["mean", "max"]

# elements of a block of scores: on the CPU it stays in the cache, elsewhere it keeps the device busy
CPU_BLOCK, DEVICE_BLOCK = 2**18, 2**26
# scores below this need no row maximum before the exponential; float32 reaches to 88
SAFE = 60.0


def attention_map(q: Tensor, k: Tensor, *, scale: float | None = None, fusion: HeadFusion = "mean") -> Tensor:
    """Attention weights of a layer, fused over its heads.

    Args:
        q: queries.
        k: keys.
        scale: factor on the scores; default 1 / sqrt(head_dim).
        fusion: mean over the heads, as Abnar and Zuidema, or their maximum, whose rows add up to more than 1.

    Shape:
        q (B, heads, Lq, head_dim), k (B, heads, Lk, head_dim) -> (B, Lq, Lk).
    """
    weights = ((q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)).softmax(-1)
    return weights.amax(1) if fusion == "max" else weights.mean(1)


def rollout_matrix(maps: Sequence[Tensor]) -> Tensor:
    """Accumulated attention of every token to every input token: `S̄_L ... S̄_1` with `S̄ = (S + E) / 2` (eq. 2).

    Costs L^3 a layer; where one row is enough, `rollout_row` costs L^2 and needs no maps.

    Args:
        maps: of the layers, first to last, fused over heads.

    Shape:
        each (B, L, L) -> (B, L, L).
    """
    product = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device).expand_as(maps[0])
    for weights in maps:
        product = 0.5 * (product + weights @ product)
    return product


@torch.no_grad()
def rollout_row(
    queries: Sequence[Tensor], keys: Sequence[Tensor], *, scale: float | None = None, fusion: HeadFusion = "mean"
) -> Tensor:
    """Row 0 of `rollout_matrix`, exactly, from queries and keys: `r <- (r + r S_l) / 2`, last layer first, r = e_0.

    Associativity lets the row go through the layers one by one, and scores are made anew block by block, so that no
    map is ever stored and the layers themselves may use fused attention. Of the last layer only the first query counts.
    Not differentiable; in float32 or better, whatever autocast says.

    Args:
        queries: of the layers, first to last.
        keys: likewise.
        scale: factor on the scores; default 1 / sqrt(head_dim).
        fusion: see `attention_map`.

    Shape:
        each (B, heads, L, head_dim) -> (B, L); with `mean` a row adds up to 1.
    """
    last = queries[-1]
    dtype = torch.promote_types(last.dtype, torch.float32)
    scale = last.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(last.device.type, enabled=False):
        first = attention_map(last[:, :, :1].to(dtype), keys[-1].to(dtype), scale=scale, fusion=fusion)[:, 0]
        row = 0.5 * first
        row[:, 0] += 0.5
        for q, k in zip(reversed(queries[:-1]), reversed(keys[:-1]), strict=True):
            row = 0.5 * (row + _passed(row, q.to(dtype), k.to(dtype), scale, fusion))
    return row


def _passed(row: Tensor, q: Tensor, k: Tensor, scale: float, fusion: HeadFusion) -> Tensor:
    """R S for one layer (B, L)."""
    if torch.compiler.is_compiling() or fusion == "max":  # a program that is exported has no loop over its batch
        return (row[:, None] @ attention_map(q, k, scale=scale, fusion=fusion))[:, 0]
    batch, heads, length, _ = q.shape
    q, k = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)  # (B heads, L, c), (B heads, c, L)
    given = row[:, None].expand(-1, heads, -1).reshape(batch * heads, length, 1)
    out = torch.zeros_like(given).transpose(1, 2)
    bounded = bool(q.norm(dim=-1).amax() * k.norm(dim=1).amax() * scale < SAFE)
    block = CPU_BLOCK if q.device.type == "cpu" else DEVICE_BLOCK
    matrices, rows = max(block // (length * length), 1), max(min(block // length, length), 1)
    ones = row.new_ones(length, 1)
    space = row.new_empty(min(matrices, len(q)), rows, length)  # reused: fresh memory costs as much as the exponentials
    for first in range(0, len(q), matrices):
        some = slice(first, first + matrices)
        for start in range(0, length, rows):
            part = slice(start, start + rows)
            left, asked = q[some, part], given[some, part]
            scores = space[: len(left), : left.shape[1]]
            if scores.is_contiguous() or len(left) == 1:
                torch.baddbmm(scores, left, k[some], beta=0.0, alpha=scale, out=scores)
            else:
                scores = torch.baddbmm(scores, left, k[some], beta=0.0, alpha=scale)
            if not bounded:
                scores.sub_(scores.amax(-1, keepdim=True))
            scores.exp_()
            out[some].baddbmm_((asked / (scores @ ones)).transpose(1, 2), scores)
    return out.view(batch, heads, length).mean(1)
