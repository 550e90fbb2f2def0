"""Multi-scale deformable attention as its equation stands, in plain torch: each map by `grid_sample`, then the sum.

The peer of `benchmarks/pose_deformable.py`. The maths is that of the paper (Zhu et al., ICLR 2021, arXiv 2010.04159,
eq. 3), from sampling places and weights on. Nothing here is from `domains`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS, WIDTH, POINTS, STRIDES = 8, 32, 4, (8, 16, 32, 64)


@dataclass(frozen=True)
class Setting:
    """What is computed.

    Args:
        what: model or core.
        height: of the image.
        width: of the image.
        seed: of input and weights.
    """

    what: str
    height: int = 512
    width: int = 640
    seed: int = 0


@dataclass(frozen=True)
class Given:
    """Input of the core.

    Attributes:
        sizes: (H_l, W_l) of the levels.
        value: what is sampled (1, S, heads, c).
        places: in 0..1 of each level, x and y (1, S, heads, L, P, 2).
        weights: (1, S, heads, L, P).
    """

    sizes: list[tuple[int, int]]
    value: Tensor
    places: Tensor
    weights: Tensor


def make_input(setting: Setting) -> Given:
    """Input of one encoder layer of Group Pose at the size of the image."""
    generator = torch.Generator().manual_seed(setting.seed)
    sizes = [(-(-setting.height // stride), -(-setting.width // stride)) for stride in STRIDES]
    tokens, levels = sum(height * width for height, width in sizes), len(sizes)
    value = torch.randn(1, tokens, HEADS, WIDTH, generator=generator)
    places = torch.rand(1, tokens, HEADS, levels, POINTS, 2, generator=generator)
    scores = torch.randn(1, tokens, HEADS, levels * POINTS, generator=generator)
    return Given(sizes, value, places, scores.softmax(-1).view(places.shape[:-1]))


def direct_core(given: Given) -> Callable[[], Tensor]:
    """Return the sampling and weighting of one layer."""
    return lambda: sample(given.value, given.sizes, given.places, given.weights)


def sample(value: Tensor, sizes: list[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of what lies at the places: (B, Q, heads c); arguments as in `Given`."""
    batch, _, heads, width = value.shape
    queries, sampled = places.shape[1], []
    maps = torch.split(value, [h * w for h, w in sizes], dim=1)
    for level, (part, (height, long)) in enumerate(zip(maps, sizes, strict=True)):
        image = part.flatten(2).transpose(1, 2).reshape(batch * heads, width, height, long)
        grid = (2 * places[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(image, grid, padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return out.view(batch, heads * width, queries).transpose(1, 2).contiguous()
