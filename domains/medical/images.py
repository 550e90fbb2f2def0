"""Prepared images as views: decoded, brought to the two sizes a network takes, and kept in memory where they fit."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.errors import PreparedDataError
from domains.common.indexed import IndexStore
from domains.common.loader import Batch

Pixels = NDArray[np.uint8]


def read_image(path: Path, channels: int = 1) -> Pixels:
    """Decode a prepared image, whole.

    Args:
        path: of a file that the preparation wrote.
        channels: 1 for grey, 3 for RGB; the file is converted.

    Shape:
        (H, W) or (H, W, 3) uint8.

    Raises:
        PreparedDataError: the file is missing or damaged.
    """
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB)
    except (OSError, cv2.error) as error:
        reason = str(error).strip().splitlines()[0]
        raise PreparedDataError(f"{path}: cannot be read ({reason[:160]}); prepare the data again") from None
    if pixels is None:
        raise PreparedDataError(f"{path}: is no readable image; prepare the data again")
    return np.asarray(pixels, dtype=np.uint8)


def resize(pixels: Pixels, side: int) -> Pixels:
    """Bring the whole image to a square, by area where it shrinks; its aspect ratio is not kept (as the official code).

    Shape:
        (H, W) or (H, W, 3) uint8 -> (side, side) or (side, side, 3).
    """
    if pixels.shape[:2] == (side, side):
        return pixels
    shrinks = pixels.shape[0] >= side and pixels.shape[1] >= side
    resized = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


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


class ViewReader:
    """Views of the images of a store; decoded ones are kept where all of them fit into memory.

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
        self.store = store
        self.images: list[str] = store.frame["image"].to_list()
        rows = len(self.images)
        self.masks: list[str | None] = [None] * rows
        self.shapes = {"image": (channels, side, side)}
        if channels != 1 or gray_side != side:
            self.shapes["gray"] = (1, gray_side, gray_side)
        if masks:
            self.shapes["mask"] = (1, gray_side, gray_side)
            if "mask" in store.frame.columns:
                self.masks = store.frame["mask"].to_list()
        size = sum(math.prod(shape) for shape in self.shapes.values())
        self._kept = self._empty(rows) if rows * size <= cache_mb << 20 else None
        self._known = np.zeros(rows, dtype=bool)

    def read(self, rows: Tensor) -> Batch:
        """Views of some rows; several threads may call this at the same time."""
        places = rows.numpy()
        views = self._kept
        if views is None:
            views = self._empty(len(places))
            for target, row in enumerate(places):
                self._decode(int(row), target, views)
            result = {name: torch.from_numpy(view) for name, view in views.items()}
        else:
            for row in places[~self._known[places]]:  # two threads that decode the same row write the same pixels
                self._decode(int(row), int(row), views)
                self._known[row] = True
            result = {name: torch.from_numpy(view[places]) for name, view in views.items()}
        if "mask" in result:
            result["has_mask"] = torch.tensor([self.masks[row] is not None for row in places], dtype=torch.bool)
        return result

    def _empty(self, rows: int) -> dict[str, Pixels]:
        return {name: np.zeros((rows, *shape), dtype=np.uint8) for name, shape in self.shapes.items()}

    def _decode(self, row: int, target: int, views: dict[str, Pixels]) -> None:
        """Write the views of a row into their places."""
        path = self.store.path(self.images[row])
        channels, side, _ = self.shapes["image"]
        pixels = read_image(path, channels)
        views["image"][target] = np.moveaxis(np.atleast_3d(resize(pixels, side)), 2, 0)
        if "gray" in views:
            gray = pixels if channels == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
            views["gray"][target, 0] = resize(np.asarray(gray, dtype=np.uint8), self.shapes["gray"][1])
        mask = self.masks[row]
        if "mask" in views and mask is not None:
            views["mask"][target, 0] = resize_mask(read_image(self.store.path(mask)), self.shapes["mask"][1])
