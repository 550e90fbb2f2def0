"""Prepared X-rays as views of the two sizes that a network takes."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from domains.common.indexed import IndexStore
from domains.common.loader import Batch
from domains.common.pictures import PictureReader, Pixels, read_picture, resize


def resize_mask(pixels: Pixels, side: int) -> Pixels:
    """Bring a mask to a square by its nearest pixels, as 0 and 1; white, or any grey above half, is inside."""
    nearest = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return (np.asarray(nearest) > 127).astype(np.uint8)


def z_scores(gray: Tensor) -> Tensor:
    """Subtract each image's mean and divide by its standard deviation, at least 1e-6: a constant image becomes zeros.

    Shape:
        (B, 1, H, W) float32 -> same.
    """
    centred = gray - gray.mean(dim=(1, 2, 3), keepdim=True)
    return centred / centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)


class ViewReader(PictureReader):
    """Views of the images of a store.

    Args:
        store: rows whose column `image` names a file.
        channels: 1 or 3, of the view for the classification network.
        side: of this view.
        gray_side: of the grey view for the body.
        masks: read the lung masks, too; the column `mask` names their files, where there is one.
        cache_mb: mebibytes that the views of all rows may take to be kept.

    Shape:
        `read` gives image (n, channels, side, side) uint8; gray (n, 1, gray_side, gray_side) uint8 unless it equals
        image; with masks, mask (n, 1, gray_side, gray_side) uint8 of 0 and 1, and has_mask (n,) bool.
    """

    def __init__(
        self, store: IndexStore, channels: int, side: int, gray_side: int, *, masks: bool = False, cache_mb: int = 0
    ) -> None:
        self.images: list[str] = store.frame["image"].to_list()
        self.masks: list[str | None] = [None] * len(self.images)
        shapes = {"image": (channels, side, side)}
        if channels != 1 or gray_side != side:
            shapes["gray"] = (1, gray_side, gray_side)
        if masks:
            shapes["mask"] = (1, gray_side, gray_side)
            if "mask" in store.frame.columns:
                self.masks = store.frame["mask"].to_list()
        super().__init__(store, shapes, cache_mb)

    def read(self, rows: Tensor) -> Batch:
        """Views of some rows; several threads may call this at the same time."""
        result: Batch = super().read(rows)
        if "mask" in result:
            result["has_mask"] = torch.tensor([self.masks[row] is not None for row in rows.tolist()], dtype=torch.bool)
        return result

    def decode(self, row: int) -> dict[str, Pixels]:
        """Views of one row."""
        channels, *size = self.shapes["image"]
        pixels = read_picture(self.store.path(self.images[row]), channels)
        views: dict[str, Pixels] = {"image": np.moveaxis(np.atleast_3d(resize(pixels, size)), 2, 0)}
        if "gray" in self.shapes:
            gray = pixels if channels == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
            views["gray"] = resize(np.asarray(gray, dtype=np.uint8), self.shapes["gray"][1:])[None]
        mask = self.masks[row]
        if "mask" in self.shapes and mask is not None:
            views["mask"] = resize_mask(read_picture(self.store.path(mask), 1), self.shapes["mask"][1])[None]
        return views
