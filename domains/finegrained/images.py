"""Prepared pictures as arrays: decoded, cut to the part that is used, brought to one size, kept where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.errors import PreparedDataError

Pixels = NDArray[np.uint8]
REGION = ("left", "top", "right", "bottom")


def read_region(path: Path, region: tuple[int, int, int, int]) -> Pixels:
    """Decode a picture and cut out the part that is used.

    What orientation a camera noted was dealt with by the preparation, and is not looked at again.

    Args:
        path: of the picture.
        region: left, top, right, bottom in pixels; the last two excluded.

    Shape:
        (bottom - top, right - left, 3) uint8, RGB.

    Raises:
        PreparedDataError: the file is missing, damaged, or smaller than it was.
    """
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except (OSError, cv2.error) as error:
        reason = str(error).strip().splitlines()[0]
        raise PreparedDataError(f"{path}: cannot be read ({reason[:160]}); prepare the data again") from None
    if pixels is None:
        raise PreparedDataError(f"{path}: is no readable picture; prepare the data again")
    left, top, right, bottom = region
    if pixels.shape[0] < bottom or pixels.shape[1] < right:
        raise PreparedDataError(
            f"{path}: has {pixels.shape[1]} x {pixels.shape[0]} pixels, and was larger when it was prepared; prepare"
            " the data again"
        )
    return np.asarray(pixels[top:bottom, left:right], dtype=np.uint8)


def resize(pixels: Pixels, size: Sequence[int]) -> Pixels:
    """Bring a picture to a height and width, by area where it shrinks; its aspect ratio is not kept.

    Shape:
        (H, W, 3) uint8 -> (*size, 3).
    """
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = pixels.shape[0] >= height and pixels.shape[1] >= width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=method), np.uint8)


def locations(root: Path, image_root: str, frame: pl.DataFrame) -> list[str]:
    """Paths of the pictures of an index.

    Args:
        root: prepared directory.
        image_root: folder of the pictures that stay where they are.
        frame: with the columns image and stored.
    """
    named = zip(frame["image"].to_list(), frame["stored"].to_list(), strict=True)
    return [str((root if stored else Path(image_root)) / image) for image, stored in named]


class PictureReader:
    """Pictures of the rows of an index; decoded ones are kept where all of them fit into memory.

    Args:
        paths: of the pictures.
        frame: with the columns left, top, right, bottom.
        size: height and width that they are brought to.
        cache_mb: mebibytes that all of them may take to be kept.
    """

    def __init__(self, paths: Sequence[str], frame: pl.DataFrame, size: Sequence[int], cache_mb: int = 0) -> None:
        self.paths, self.size = paths, (int(size[0]), int(size[1]))
        self.regions = frame.select(REGION).rows()
        shape = (len(paths), *self.size, 3)
        self._kept = np.empty(shape, np.uint8) if int(np.prod(shape, dtype=np.int64)) <= cache_mb << 20 else None
        self._known = np.zeros(len(paths), dtype=bool)

    def read(self, rows: Tensor) -> Tensor:
        """Pictures of some rows; several threads may call this at the same time.

        Shape:
            rows (n,) int64 -> (n, 3, *size) uint8.

        Raises:
            PreparedDataError: see `read_region`.
        """
        places = rows.numpy()
        if self._kept is None:
            pictures = np.empty((len(places), *self.size, 3), np.uint8)
            for target, row in enumerate(places):
                pictures[target] = self.picture(int(row))
        else:
            for row in places[~self._known[places]]:  # two threads that decode the same row write the same pixels
                self._kept[row] = self.picture(int(row))
                self._known[row] = True
            pictures = self._kept[places]
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    def picture(self, row: int) -> Pixels:
        """One picture (*size, 3) uint8."""
        return resize(read_region(Path(self.paths[row]), self.regions[row]), self.size)
