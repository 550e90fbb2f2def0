"""Augmentation of a batch on its device: one geometry for all views of an image, drawn from its row and the epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.common.draws import hashed_uniforms
from domains.common.errors import ConfigError

DRAWS = 8  # uniform numbers of one image


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image, with the ranges of the official script of COVID-Net.

    Args:
        rotation: largest angle, degrees.
        shift: largest shift in each direction, share of the side.
        zoom: size changes by a factor in [1 - zoom, 1 + zoom].
        aspect: the ratio of width to height changes by a factor in [1 - aspect, 1 + aspect] ...
        aspect_share: ... in this share of the images.
        brightness: values are multiplied with a factor in [1 - brightness, 1 + brightness], and cut at white.
        flip: half of the images are mirrored left to right, which moves the heart to the other side.

    Raises:
        ConfigError: a range that is negative, or turns images inside out.
    """

    rotation: float = 10.0
    shift: float = 0.1
    zoom: float = 0.15
    aspect: float = 0.1
    aspect_share: float = 0.3
    brightness: float = 0.1
    flip: bool = True

    def __post_init__(self) -> None:
        limits = {"rotation": 180.0, "shift": 1.0, "zoom": 0.9, "aspect": 0.9, "aspect_share": 1.0, "brightness": 1.0}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ConfigError(
                    f"data.augmentation.{name} is {getattr(self, name)}; it must be between 0 and {limit:g}"
                )


class DrawnChanges:
    """What is done to each image of a batch, as a function of (seed, epoch, draw) alone.

    Args:
        options: ranges.
        seed: of the run.
        epoch: number of the pass over the data.
        draws: number of each image in the epoch, (B,) int64: the same number, the same change.
    """

    def __init__(self, options: Augmentation, seed: int, epoch: int, draws: Tensor) -> None:
        uniform = hashed_uniforms(seed, epoch, draws, DRAWS)
        angle, right, down, zoom, aspect, chosen, brightness, mirrored = (2 * uniform - 1).unbind(1)  # each in [-1, 1)
        self.angle = angle * math.radians(options.rotation)
        self.shift = torch.stack([right, down], dim=1) * 2 * options.shift  # sides are 2 long in grid coordinates
        stretch = torch.where(chosen < 2 * options.aspect_share - 1, 1 + aspect * options.aspect, 1.0).sqrt()
        size = 1 + zoom * options.zoom
        self.scale = torch.stack([size * stretch, size / stretch], dim=1)
        self.brightness = 1 + brightness * options.brightness
        self.sign = torch.where((mirrored < 0) & options.flip, -1.0, 1.0)

    def backward_map(self) -> Tensor:
        """Where each pixel of the result comes from: affine maps (B, 2, 3) in grid coordinates, the sides at ±1.

        The image is mirrored, stretched, turned, then shifted: y = R S M x + t, hence x = M S^-1 R^T (y - t).
        """
        cos, sin = self.angle.cos(), self.angle.sin()
        turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)  # R^T
        mirror = torch.stack([self.sign, torch.ones_like(self.sign)], dim=1)
        linear = (mirror / self.scale)[:, :, None] * turn
        return torch.cat([linear, -linear @ self.shift[:, :, None]], dim=2)

    def move(self, images: Tensor, mode: str = "bilinear") -> Tensor:
        """Apply the geometry; what comes from outside the image is 0.

        Shape:
            (B, C, H, W) float32 of any size -> same.
        """
        if not len(images):  # a process may have no row of the last batch, of which no grid can be made
            return images
        grid = F.affine_grid(self.backward_map().to(images), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)

    def image(self, images: Tensor) -> Tensor:
        """Geometry and brightness of images (B, C, H, W) float32 in [0, 1]."""
        return (self.move(images) * self.brightness.to(images)[:, None, None, None]).clamp(max=1.0)

    def mask(self, masks: Tensor) -> Tensor:
        """Geometry of masks (B, 1, H, W) float32 of zeros and ones, which they stay."""
        return self.move(masks, mode="nearest")
