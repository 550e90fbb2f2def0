"""Random changes of faces on their device, each a function of (seed, epoch, row) alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.common.draws import hashed_uniforms
from domains.common.errors import ConfigError

DRAWS = 14  # uniform numbers of one image


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    Args:
        crop: the image is enlarged by this factor, and a random place of the old size is cut out (1.1 in the program of
            ARBEx, 256 / 224 in the paper).
        rotation: largest angle, degrees.
        shear: largest slant of the upright edges, as the tangent of their angle.
        flip: half of the images are mirrored left to right.
        brightness: values are multiplied with a factor in [1 - brightness, 1 + brightness].
        contrast: distances from the image's mean are multiplied with such a factor.
        saturation: distances of colours from their grey are multiplied with such a factor.
        erase: share of the images in which a rectangle is filled with the image's mean (Z. Zhong et al., 2020, arXiv
            1708.04896) ...
        erase_area: ... of an area in this range, as a share of the image.

    Raises:
        ConfigError: a range that is negative, or turns images inside out.
    """

    crop: float = 1.1
    rotation: float = 10.0
    shear: float = 0.0
    flip: bool = True
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    erase: float = 0.25
    erase_area: tuple[float, float] = (0.02, 0.1)

    def __post_init__(self) -> None:
        limits = {"rotation": 180.0, "shear": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "erase": 1.0}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ConfigError(
                    f"data.augmentation.{name} is {getattr(self, name)}; it must be between 0 and {limit:g}"
                )
        if not 1 <= self.crop <= 4:
            raise ConfigError(f"data.augmentation.crop is {self.crop}; it must be between 1 and 4")
        low, high = self.erase_area
        if not 0 <= low <= high <= 0.5:
            raise ConfigError(f"data.augmentation.erase_area is {list(self.erase_area)}; give two shares up to 0.5")


class DrawnChanges:
    """What is done to each image of a batch.

    Args:
        options: ranges.
        seed: of the run.
        epoch: number of the pass over the data.
        draws: number of each image in the epoch: the same number, the same change.

    Shape:
        draws (B,) int64.
    """

    def __init__(self, options: Augmentation, seed: int, epoch: int, draws: Tensor) -> None:
        self.options = options
        uniform = hashed_uniforms(seed, epoch, draws, DRAWS)
        signed = 2 * uniform - 1
        self.angle, self.slant = signed[:, 0] * math.radians(options.rotation), signed[:, 1] * options.shear
        room = 1 - 1 / options.crop  # of a place that is cut out, in sides of 2
        self.place = signed[:, 2:4] * room
        self.sign = torch.where((uniform[:, 4] < 0.5) & options.flip, -1.0, 1.0)
        self.brightness, self.contrast, self.saturation = (
            1 + signed[:, 5 + i] * strength
            for i, strength in enumerate((options.brightness, options.contrast, options.saturation))
        )
        low, high = options.erase_area
        area = low + uniform[:, 8] * (high - low)
        stretch = torch.exp(signed[:, 9] * math.log(2.0)).sqrt()  # of width to height, 1/2 to 2
        half = torch.stack([area.sqrt() * stretch, area.sqrt() / stretch], 1)  # of the sides, which are 2 long
        middle = signed[:, 10:12] * (1 - half).clamp(min=0)
        self.erased = uniform[:, 12] < options.erase
        self.low, self.high = middle - half, middle + half

    def backward_map(self) -> Tensor:
        """Where each pixel of the result comes from: affine maps (B, 2, 3) in grid coordinates, the sides at ±1."""
        cos, sin = self.angle.cos() / self.options.crop, self.angle.sin() / self.options.crop
        upper = torch.stack([cos * self.sign, sin + self.slant * cos], 1)
        lower = torch.stack([-sin * self.sign, cos - self.slant * sin], 1)
        return torch.cat([torch.stack([upper, lower], 1), self.place[:, :, None]], 2)

    def apply(self, images: Tensor) -> Tensor:
        """Change images.

        Shape:
            (B, C, H, W) float32 in [0, 1] -> same.
        """
        if not len(images):  # a process may have no row of the last batch, of which no grid can be made
            return images
        grid = F.affine_grid(self.backward_map().to(images), list(images.shape), align_corners=False)
        # what comes from outside repeats the edge: black corners would tell how a face was turned
        moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return self._erase(self._light(moved)).clamp(0.0, 1.0)

    def _light(self, images: Tensor) -> Tensor:
        brightness, contrast, saturation = (
            factor.to(images)[:, None, None, None] for factor in (self.brightness, self.contrast, self.saturation)
        )
        if images.shape[1] == 3 and self.options.saturation:
            grey = images.mean(dim=1, keepdim=True)
            images = grey + (images - grey) * saturation
        if not self.options.brightness and not self.options.contrast:
            return images
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return (images - mean) * (brightness * contrast) + mean * brightness

    def _erase(self, images: Tensor) -> Tensor:
        if not self.options.erase:
            return images
        sides = images.shape[-1], images.shape[-2]
        inside = []
        for axis, side in enumerate(sides):
            at = (torch.arange(side, device=images.device) + 0.5) * (2 / side) - 1
            inside.append((at >= self.low[:, axis, None]) & (at <= self.high[:, axis, None]))
        chosen = inside[1][:, None, :, None] & inside[0][:, None, None, :] & self.erased[:, None, None, None]
        return torch.where(chosen, images.mean(dim=(1, 2, 3), keepdim=True), images)
