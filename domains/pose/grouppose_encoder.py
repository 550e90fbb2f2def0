"""Group Pose's way from feature maps to memory: projection, positions, and the deformable encoder.

H. Liu et al. (ICCV 2023), arXiv 2308.07313, section 3, on Deformable DETR (X. Zhu et al., 2021, arXiv 2010.04159,
section 4.1). Official code: Michel-liu/GroupPose @ 127fe0e (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention import MultiScaleDeformableAttention
from domains.common.attention.deformable import Backend, View

TEMPERATURE = 20.0
GROUPS = 32  # of the group norm behind the projections
ROWS = 512  # tokens that a layer takes through all its steps at once, in the cache of a CPU


@dataclass(frozen=True)
class Levels:
    """The maps of all levels as one row of tokens.

    Attributes:
        tokens: row by row, level after level.
        padding: True where the token lies in the padding of its image.
        sizes: (H_l, W_l) of the levels.
        ratios: share of width and height of each level that is image.

    Shape:
        tokens (B, S, D), padding (B, S) bool, ratios (B, L, 2) float32.
    """

    tokens: Tensor
    padding: Tensor
    sizes: list[tuple[int, int]]
    ratios: Tensor


class InputProjection(nn.Module):
    """All maps at one width: 1 x 1 convolutions, and for each level beyond the backbone's a 3 x 3 one at stride 2.

    The first extra level is made from the backbone's last map, each further one from the level before it.

    Args:
        channels: of the backbone's maps.
        dim: width D.
        levels: L.

    Shape:
        maps (B, C_l, H_l, W_l) -> L maps (B, D, H_l, W_l).
    """

    def __init__(self, channels: Sequence[int], dim: int, levels: int) -> None:
        super().__init__()
        plan = [(c, 1, 1, 0) for c in channels]
        plan += [(channels[-1] if extra == 0 else dim, 3, 2, 1) for extra in range(levels - len(channels))]
        groups = math.gcd(GROUPS, dim)
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, dim, size, stride, pad), nn.GroupNorm(groups, dim))
            for c, size, stride, pad in plan[:levels]
        )
        for sequence in self.maps:
            nn.init.xavier_uniform_(sequence[0].weight)  # type: ignore[index]
            nn.init.zeros_(sequence[0].bias)  # type: ignore[index]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Apply."""
        projected = [project(x) for project, x in zip(self.maps, maps, strict=False)]
        last = maps[-1]
        for project in self.maps[len(maps) :]:
            last = project(last)
            projected.append(last)
        return projected


def map_positions(padding: Tensor, dim: int, temperature: float = TEMPERATURE) -> Tensor:
    """Sine encoding of the places of a map: D / 2 channels of y, then D / 2 of x, sine and cosine in turns.

    Places are counted over what is no padding and divided by the last count, times 2 pi.

    Args:
        padding: True on padding.
        dim: width D.
        temperature: base of the wave lengths.

    Shape:
        padding (B, H, W) bool -> (B, D, H, W) float32.
    """
    counted = (~padding).to(torch.float32)
    y, x = counted.cumsum(1), counted.cumsum(2)
    y = y / (y[:, -1:] + 1e-6) * (2 * math.pi)
    x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    return torch.cat([waves(y, dim // 2, temperature), waves(x, dim // 2, temperature)], -1).permute(0, 3, 1, 2)


def waves(angle: Tensor, dim: int, temperature: float) -> Tensor:
    """Sine (even channels) and cosine (odd ones) of the angle over `temperature ** (2 floor(j / 2) / dim)`.

    Shape:
        angle (...) -> (..., dim).
    """
    channel = torch.arange(dim, dtype=angle.dtype, device=angle.device)
    scaled = angle[..., None] / temperature ** (2 * torch.div(channel, 2, rounding_mode="floor") / dim)
    return torch.stack([scaled[..., 0::2].sin(), scaled[..., 1::2].cos()], -1).flatten(-2)


def map_padding(padding: Tensor, size: tuple[int, int]) -> Tensor:
    """Padding of a map by that of its image (nearest neighbour).

    Shape:
        padding (B, H, W) bool -> (B, *size) bool.
    """
    return F.interpolate(padding[None].to(torch.float32), size=size)[0].to(torch.bool)


def real_sizes(padding: Tensor) -> Tensor:
    """Width and height of what is no padding, along the first row and column.

    Shape:
        padding (B, H, W) bool -> (B, 2) int.
    """
    return torch.stack([(~padding[:, 0]).sum(1), (~padding[:, :, 0]).sum(1)], -1)


def places(sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """Pixel centres (x, y) of each level, in its pixels.

    Shape:
        -> (H_l W_l, 2) float32 each.
    """
    found = []
    for height, width in sizes:
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float32, device=device) + 0.5,
            torch.arange(width, dtype=torch.float32, device=device) + 0.5,
            indexing="ij",
        )
        found.append(torch.stack([x, y], -1).flatten(0, 1))
    return found


class EncoderLayer(nn.Module):
    """`x = LN(x + MSDA(x + pos, x))`, then `x = LN(x + W2 relu(W1 x))`.

    Args:
        dim: width D.
        heads: of the attention.
        hidden: width inside the feed-forward network.
        levels: L.
        points: P per head and level.
        dropout: of what is added to x, and inside the feed-forward network.
        backend: see `MultiScaleDeformableAttention`.

    Shape:
        x and position (B, S, D), references (B, S, L, 2) -> (B, S, D).
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, levels: int, points: int, dropout: float, backend: Backend
    ) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention(dim, heads, levels, points, backend=backend)
        self.norm1 = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, references: Tensor, levels: Levels) -> Tensor:
        """Apply."""
        view = self.attention.view(x, levels.sizes, levels.padding)
        rows = in_parts(x, self.attention.recording)
        if rows is None:
            return self._tokens(x, position, references, view)
        out = torch.empty_like(x)
        for start in range(0, x.shape[1], rows):
            part = slice(start, start + rows)
            out[:, part] = self._tokens(x[:, part], position[:, part], references[:, part], view)
        return out

    def _tokens(self, x: Tensor, position: Tensor, references: Tensor, view: View) -> Tensor:
        """Apply to some of the tokens."""
        x = self.norm1(x + self.dropout(self.attention.look(x + position, references, view)))
        out: Tensor = self.norm2(x + self.feed_forward(x))
        return out


def in_parts(x: Tensor, recording: bool) -> int | None:
    """How many tokens of each image to take at once so that what is between stays in the cache; None: all.

    Shape:
        x (B, tokens, ...).
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or recording:
        return None
    return max(1, ROWS // len(x))


class FeedForward(nn.Module):
    """`W2 relu(W1 x)`.

    Args:
        dim: width D.
        hidden: width between.
        dropout: behind each of the two.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (..., D)."""
        out: Tensor = self.dropout(self.linear2(self.dropout(self.linear1(x).relu_())))
        return out


class DeformableEncoder(nn.Module):
    """Layers of multi-scale deformable attention in which every token looks around its own place.

    Args:
        dim: width D.
        depth: layers.
        heads: of the attention.
        hidden: width inside the feed-forward networks.
        levels: L.
        points: P per head and level.
        dropout: see `EncoderLayer`.
        backend: see `MultiScaleDeformableAttention`.

    Shape:
        levels, position (B, S, D) -> (B, S, D).
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        levels: int,
        points: int,
        dropout: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, heads, hidden, levels, points, dropout, backend) for _ in range(depth)
        )

    def forward(self, levels: Levels, position: Tensor) -> Tensor:
        """Apply."""
        size = torch.tensor([(w, h) for h, w in levels.sizes], dtype=torch.float32, device=levels.tokens.device)
        own = [
            place / (ratio[:, None] * extent)
            for place, ratio, extent in zip(
                places(levels.sizes, levels.tokens.device), levels.ratios.unbind(1), size, strict=True
            )
        ]
        references = torch.cat(own, 1)[:, :, None] * levels.ratios[:, None]  # (B, S, L, 2)
        x = levels.tokens
        for layer in self.layers:
            x = layer(x, position, references, levels)
        return x
