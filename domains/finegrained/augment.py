"""Random changes of pictures on their device, each a function of (seed, epoch, row) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.common.draws import hashed_uniforms
from domains.common.errors import ConfigError

DRAWS = 12  # uniform numbers of one picture
TILE = 32  # side of the noise that fills what is erased, pixels


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training picture; the defaults are those of fine-grained classes.

    Args:
        flip: half of the pictures are mirrored left to right.
        pad: black pixels that are added on each side before a place is cut out at random (10 in TransReID).
        erase: share of the pictures in which a rectangle is filled with noise (Z. Zhong et al., 2020, arXiv
            1708.04896; 0.5 in TransReID).
        erase_area: range of the area of the rectangle, as a share of the picture.
        erase_aspect: least ratio of its sides in pixels, and the inverse of the largest one.
        brightness: values are multiplied with a factor in [1 - brightness, 1 + brightness].
        colour: each channel is multiplied with such a factor of its own.

    Raises:
        ConfigError: a range that cannot be.
    """

    flip: bool = True
    pad: int = 0
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_aspect: float = 0.3
    brightness: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("erase", "brightness", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.augmentation.{name} is {getattr(self, name)}; it must be between 0 and 1")
        low, high = self.erase_area
        if not 0 <= low <= high <= 1 or not 0 < self.erase_aspect <= 1 or self.pad < 0:
            raise ConfigError(
                f"data.augmentation: erase_area is {list(self.erase_area)} (two shares up to 1), erase_aspect"
                f" {self.erase_aspect} (in (0, 1]), pad {self.pad} (0 or more); correct them"
            )


class DrawnChanges:
    """What is done to each picture of a batch.

    Args:
        options: ranges.
        seed: of the run.
        epoch: number of the pass over the data.
        draws: number of each picture in the epoch: the same number, the same change.

    Shape:
        draws (B,) int64.
    """

    def __init__(self, options: Augmentation, seed: int, epoch: int, draws: Tensor) -> None:
        self.options = options
        uniform = hashed_uniforms(seed, epoch, draws, DRAWS)
        self.flipped = (uniform[:, 0] < 0.5) & options.flip
        self.place = uniform[:, 1:3]
        self.rectangle = uniform[:, 3:7]  # area, aspect, and place
        self.erased = uniform[:, 7] < options.erase
        self.light = 1 + (2 * uniform[:, 8:9] - 1) * options.brightness
        self.tint = 1 + (2 * uniform[:, 9:12] - 1) * options.colour
        self.seed = int(seed), int(epoch), draws

    def apply(self, images: Tensor, size: Sequence[int]) -> Tensor:
        """Cut out, mirror, change light, and erase.

        Args:
            images: at least as large as `size`, with what is added on the sides.
            size: height and width of the result.

        Shape:
            (B, 3, H, W) uint8 -> (B, 3, *size) float32 in [0, 1].
        """
        cut = self._cut(images, size).float() / 255
        if self.options.brightness or self.options.colour:
            cut = (cut * (self.light * self.tint).to(cut)[:, :, None, None]).clamp(max=1.0)
        return self._erase(cut) if self.options.erase else cut

    def _cut(self, images: Tensor, size: Sequence[int]) -> Tensor:
        pad = self.options.pad
        padded = F.pad(images, (pad, pad, pad, pad)) if pad else images
        indices = []
        for axis, side in enumerate(size):
            room = padded.shape[2 + axis] - side
            first = (self.place[:, axis] * (room + 1)).long().clamp(max=room)
            indices.append(first[:, None] + torch.arange(side, device=images.device))
        columns = torch.where(self.flipped[:, None], indices[1].flip(1), indices[1])
        batch = torch.arange(len(images), device=images.device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return padded[batch, channels, indices[0][:, None, :, None], columns[:, None, None, :]]

    def _erase(self, images: Tensor) -> Tensor:
        inside = []
        sides = self._erased_sides(*images.shape[-2:])
        for axis, side in enumerate(images.shape[-2:]):
            at = (torch.arange(side, device=images.device) + 0.5) / side
            low = (self.rectangle[:, 2 + axis] * (1 - sides[:, axis]))[:, None]
            inside.append((at >= low) & (at < low + sides[:, axis, None]))
        chosen = inside[0][:, None, :, None] & inside[1][:, None, None, :] & self.erased[:, None, None, None]
        height, width = images.shape[-2:]
        times = -(-height // TILE), -(-width // TILE)
        noise = self._noise(images).repeat(1, 1, *times)[..., :height, :width]
        return torch.where(chosen, noise, images)

    def _erased_sides(self, height: int, width: int) -> Tensor:
        """Height and width of the rectangles, as shares of the picture's (B, 2).

        The ratio of their sides in pixels is drawn evenly in its logarithm, among those with which they fit.
        """
        low, high = self.options.erase_area
        area = low + self.rectangle[:, 0] * (high - low)
        widest = (area * height / width).clamp(min=self.options.erase_aspect).log()  # of height to width
        tallest = (height / width / area.clamp(min=1e-12)).clamp(max=1 / self.options.erase_aspect).log()
        ratio = torch.exp(widest + self.rectangle[:, 1] * (tallest - widest))
        shares = torch.stack([area * ratio * width / height, area / ratio * height / width], 1).sqrt()
        return shares.clamp(max=1.0)  # of rounding, and where no ratio fits

    def _noise(self, images: Tensor) -> Tensor:
        """Noise of each picture (B, 3, TILE, TILE), even in [0, 1]."""
        seed, epoch, draws = self.seed
        uniform = hashed_uniforms(seed ^ 1, epoch, draws, images.shape[1] * TILE * TILE)
        return uniform.view(len(images), images.shape[1], TILE, TILE).to(images)


def centre_cut(images: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of pictures, as tests take it.

    Shape:
        (B, 3, H, W) uint8 -> (B, 3, *size) float32 in [0, 1].
    """
    top, left = ((images.shape[2 + axis] - side) // 2 for axis, side in enumerate(size))
    return images[..., top : top + size[0], left : left + size[1]].float() / 255
