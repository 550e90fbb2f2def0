"""Scaling of images to the bit as Pillow does it, on any device.

Filter and fixed-point arithmetic of Pillow's `Image.resize` with the bilinear filter (python-pillow/Pillow,
src/libImaging/Resample.c, MIT-CMU), which the published networks saw in training. Columns come first, then rows; Pillow
13 turns that round for some sizes, which changes some pixels by a level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BITS = 22  # of the fixed-point weights


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale with a triangle filter that widens where the image shrinks: first the columns, then the rows.

    Args:
        image: whole numbers of 0..255.
        size: height and width of the result.

    Shape:
        image (..., H, W) uint8 -> (..., *size) uint8.
    """
    height, width = size
    columns = _along(image, width)
    return _along(columns.transpose(-1, -2), height).transpose(-1, -2).contiguous()


def _along(image: Tensor, size: int) -> Tensor:
    """Scale the last axis."""
    if image.shape[-1] == size:
        return image
    first, weights = (table.to(image.device) for table in _taps(image.shape[-1], size))
    total = torch.full((*image.shape[:-1], size), 1 << (BITS - 1), dtype=torch.int32, device=image.device)
    for tap, weight in enumerate(weights):
        place = (first + tap).clamp(max=image.shape[-1] - 1)  # beyond the last the weight is zero
        total += image.index_select(-1, place).to(torch.int32) * weight
    return (total >> BITS).clamp_(0, 255).to(torch.uint8)


def _taps(old: int, new: int) -> tuple[Tensor, Tensor]:
    """First source place of each target place (new,), and weights (taps, new) in units of 2^-22."""
    scale = old / new
    reach = max(scale, 1.0)
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    first = (centre - reach + 0.5).clamp(min=0).to(torch.int64)
    last = (centre + reach + 0.5).to(torch.int64).clamp(max=old)
    place = first + torch.arange(2 * math.ceil(reach) + 1)[:, None]
    # in the order of Pillow's own operations, because a last bit may round a pixel the other way
    weights = (1 - ((place - centre + 0.5) * (1.0 / reach)).abs()).clamp(min=0) * (place < last)
    weights = weights / weights.cumsum(0)[-1]
    return first, (0.5 + weights * (1 << BITS)).to(torch.int32)
