"""What every slide can do, whatever its format.

Only pixels of the scanned region are ever read. The label and the macro picture, which often show the patient's
name, are not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.common.errors import PrepError
from data_prep.medical.wsi.slides.find import slide_id

Image = npt.NDArray[np.uint8]
# A level counts as fine enough when its downsample exceeds the wanted one by no more than this: scanners round the
# sizes of levels, and a "4 x" level is often 4.0003 x.
TOLERANCE = 0.01
BAND = 1 << 22  # pixels read at a time from a large level
# Bytes of decoded tiles that a slide keeps: enough that a column of patches finds those of the column before.
CACHED = 128 << 20


class RegionError(PrepError, OSError):
    """A region of a slide cannot be decoded."""


class Slide(ABC):
    """An open slide. Threads may read from one slide at the same time.

    Args:
        path: the file.
        level_dimensions: (width, height) of each level in its own pixels, the finest first.
        properties: metadata, named as OpenSlide names them.
    """

    def __init__(self, path: Path, level_dimensions: list[tuple[int, int]], properties: dict[str, str]) -> None:
        self.path, self.slide_id, self.properties = path, slide_id(path), properties
        self.level_dimensions = level_dimensions
        self.width, self.height = level_dimensions[0]
        # The mean over both axes, as OpenSlide defines it.
        self.level_downsamples = [(self.width / w + self.height / h) / 2 for w, h in level_dimensions]

    @abstractmethod
    def _read(self, x: int, y: int, level: int, width: int, height: int) -> Image:
        """See `read_region`; may raise anything."""

    def close(self) -> None:  # noqa: B027 (not every kind of slide holds something open)
        """Give file handles back."""

    def read_region(self, x: int, y: int, level: int, width: int, height: int) -> Image:
        """Pixels of one level, over white where the slide has none.

        Args:
            x: left edge in level-0 pixels; may be outside of the slide.
            y: upper edge in level-0 pixels.
            level: which level.
            width: of the region, in pixels of that level.
            height: of the region, in pixels of that level.

        Shape:
            (height, width, 3) uint8, RGB.

        Raises:
            RegionError: the file cannot be decoded there.
        """
        try:
            return self._read(x, y, level, width, height)
        except MemoryError:
            raise
        except Exception as error:
            raise RegionError(
                f"{self.path}: level {level}: the region of {width} x {height} px at x {x}, y {y} cannot be decoded "
                f"({error}); the file is damaged there, copy or export it again"
            ) from error

    def best_level(self, downsample: float) -> int:
        """The coarsest level that is still as fine as wanted, or the finest.

        Args:
            downsample: wanted ratio of level-0 to output pixels.
        """
        fine = [i for i, found in enumerate(self.level_downsamples) if found <= downsample * (1 + TOLERANCE)]
        return max(fine, key=lambda i: self.level_downsamples[i], default=0)

    def read_patch(self, x: int, y: int, size_level0: float, size: int, *, retry: bool = False) -> Image:
        """A square of the slide at any resolution, averaged by area from the best level.

        Args:
            x: left edge in level-0 pixels.
            y: upper edge in level-0 pixels.
            size_level0: side in level-0 pixels.
            size: side in output pixels.
            retry: take coarser levels where the best one cannot be decoded.

        Shape:
            (size, size, 3) uint8, RGB.

        Raises:
            RegionError: it cannot be decoded.
        """
        best = self.best_level(size_level0 / size)
        by_size = sorted(range(len(self.level_downsamples)), key=lambda i: self.level_downsamples[i])
        levels = by_size[by_size.index(best) :] if retry else [best]
        for level in levels:
            side = max(1, round(size_level0 / self.level_downsamples[level]))
            try:
                region = self.read_region(x, y, level, side, side)
            except RegionError:
                if level == levels[-1]:
                    raise
                continue
            return resample(region, size, size)
        raise AssertionError("a slide has a level")

    def thumbnail(self, max_side: int) -> Image:
        """The whole slide in small.

        Args:
            max_side: pixels of the longer side; the picture is smaller where the slide is.

        Shape:
            (height, width, 3) uint8, RGB.

        Raises:
            RegionError: it cannot be decoded.
        """
        shrink = max(1.0, max(self.width, self.height) / max_side)
        width, height = max(1, round(self.width / shrink)), max(1, round(self.height / shrink))
        level = self.best_level(shrink)
        full_width, full_height = self.level_dimensions[level]
        if full_width * full_height <= BAND:
            return resample(self.read_region(0, 0, level, full_width, full_height), width, height)
        # Row by row of the output, so that a single-level slide of any size fits into memory.
        picture = np.empty((height, width, 3), np.uint8)
        rows = max(1, BAND * height // (full_width * full_height))
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            first, last = top * full_height // height, max(1, bottom * full_height // height)
            y = round(first * self.level_downsamples[level])
            band = self.read_region(0, y, level, full_width, max(1, last - first))
            picture[top:bottom] = resample(band, width, bottom - top)
        return picture

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def over_white(rgba: npt.NDArray[Any]) -> Image:
    """Blend a picture with transparency with white.

    Shape:
        (H, W, 4) uint8 -> (H, W, 3) uint8.
    """
    rgb, alpha = np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8), rgba[..., 3]
    if alpha.min() == 255:
        return rgb
    part = alpha[..., None].astype(np.uint16)
    return ((rgb * part + (255 - part) * 255 + 127) // 255).astype(np.uint8)


def resample(image: Image, width: int, height: int) -> Image:
    """Shrink by averaging over areas, enlarge linearly.

    Shape:
        (H, W, 3) uint8 -> (height, width, 3) uint8.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
