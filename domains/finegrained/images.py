"""Prepared pictures as arrays: decoded, cut to the part that is used, brought to one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from torch import Tensor

from domains.common.errors import PreparedDataError
from domains.common.indexed import IndexStore
from domains.common.pictures import PictureReader, Pixels, read_picture, resize

REGION = ("left", "top", "right", "bottom")


def read_region(path: Path, region: tuple[int, int, int, int]) -> Pixels:
    """Decode a picture and cut out the part that is used.

    Args:
        path: of the picture.
        region: left, top, right, bottom in pixels; the last two excluded.

    Shape:
        (bottom - top, right - left, 3) uint8, RGB.

    Raises:
        PreparedDataError: the file is missing, damaged, or smaller than it was.
    """
    pixels = read_picture(path)
    left, top, right, bottom = region
    if pixels.shape[0] < bottom or pixels.shape[1] < right:
        raise PreparedDataError(
            f"{path}: has {pixels.shape[1]} x {pixels.shape[0]} pixels, and was larger when it was prepared; prepare"
            " the data again"
        )
    return np.asarray(pixels[top:bottom, left:right], dtype=np.uint8)


def locations(root: Path, image_root: str, frame: pl.DataFrame) -> list[str]:
    """Paths of the pictures of an index.

    Args:
        root: prepared directory.
        image_root: folder of the pictures that stay where they are.
        frame: with the columns image and stored.
    """
    named = zip(frame["image"].to_list(), frame["stored"].to_list(), strict=True)
    return [str((root if stored else Path(image_root)) / image) for image, stored in named]


class RegionReader(PictureReader):
    """Used parts of the pictures of a store.

    Args:
        store: rows with the columns path, left, top, right, bottom.
        size: height and width that they are brought to.
        cache_mb: mebibytes that all of them may take to be kept.

    Shape:
        `read` gives image (n, 3, *size) uint8.
    """

    def __init__(self, store: IndexStore, size: Sequence[int], cache_mb: int = 0) -> None:
        super().__init__(store, {"image": (int(size[0]), int(size[1]), 3)}, cache_mb)
        self.paths: list[str] = store.frame["path"].to_list()
        self.regions = store.frame.select(REGION).rows()

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Parts of some rows; several threads may call this at the same time."""
        return {name: pixels.permute(0, 3, 1, 2) for name, pixels in super().read(rows).items()}

    def decode(self, row: int) -> dict[str, Pixels]:
        """One part (*size, 3) uint8."""
        return {"image": resize(read_region(Path(self.paths[row]), self.regions[row]), self.shapes["image"][:2])}
