"""Swin Transformer for detection: Z. Liu, Y. Lin, Y. Cao, H. Hu, Y. Wei et al. (ICCV 2021), arXiv 2103.14030.

Official code: SwinTransformer/Swin-Transformer-Object-Detection @ c7b2011 (MIT), as Group Pose uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from domains.common.attention import ShiftedWindowAttention

PATCH = 4
MLP_RATIO = 4


class DropPath(nn.Module):
    """Leave a residual branch out, for each image by itself (G. Huang et al., 2016, arXiv 1603.09382).

    Args:
        probability: with which a branch is left out in training; kept ones are scaled up.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        if not self.training or self.probability == 0.0:
            return x
        kept = 1.0 - self.probability
        return x * (torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < kept).to(x.dtype) / kept


class SwinBlock(nn.Module):
    """`x + A(LN(x))`, then `x + MLP(LN(x))` (eq. 3).

    Args:
        dim: width D of tokens.
        heads: of the attention.
        window: places along one side of a window.
        shift: places by which the windows are shifted.
        drop_path: see `DropPath`.

    Shape:
        x (B, H, W, D) -> (B, H, W, D).
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ShiftedWindowAttention(dim, heads, window, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        return out


class PatchMerging(nn.Module):
    """Join neighbours two by two: half the height and width, twice the channels; odd sizes are padded with zeros.

    Args:
        dim: width D of tokens.

    Shape:
        x (B, H, W, D) -> (B, ceil(H / 2), ceil(W / 2), 2 D).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        joined = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
        out: Tensor = self.reduction(self.norm(joined))
        return out


class Swin(nn.Module):
    """Feature maps of the last three stages, each behind a norm of its own.

    Args:
        dim: width of the first stage; each next one has twice of it.
        depths: blocks of the four stages.
        heads: of their attention.
        window: places along one side of a window.
        drop_path: probability at the last block; it grows from 0 along the blocks.
        checkpointing: compute blocks again in the backward pass, which saves their activations.

    Shape:
        x (B, 3, H, W) -> (B, 2 D, H / 8, W / 8), (B, 4 D, H / 16, W / 16), (B, 8 D, H / 32, W / 32), sizes rounded up.
    """

    def __init__(
        self,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        *,
        drop_path: float = 0.2,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.channels = [dim * 2**stage for stage in range(1, len(depths))]
        self.patch = nn.Conv2d(3, dim, PATCH, PATCH)
        self.patch_norm = nn.LayerNorm(dim)
        total, first = sum(depths), 0
        stages = []
        for stage, depth in enumerate(depths):
            width = dim * 2**stage
            rates = [drop_path * (first + i) / max(total - 1, 1) for i in range(depth)]
            blocks = [
                SwinBlock(width, heads[stage], window, window // 2 if i % 2 else 0, rate)
                for i, rate in enumerate(rates)
            ]
            stages.append(nn.ModuleList(blocks))
            first += depth
        self.stages = nn.ModuleList(stages)
        self.merging = nn.ModuleList(PatchMerging(dim * 2**stage) for stage in range(len(depths) - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)
        self._start()

    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Apply."""
        x = self.patch(F.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH))).permute(0, 2, 3, 1)
        x, maps = self.patch_norm(x), []
        for stage, blocks in enumerate(self.stages):
            for block in blocks:  # type: ignore[attr-defined]
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
            if stage:
                maps.append(self.norms[stage - 1](x).permute(0, 3, 1, 2))
            if stage < len(self.merging):
                x = self.merging[stage](x)
        return maps
