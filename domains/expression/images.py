"""Prepared faces as arrays: rows of packed arrays or files, brought to one size, kept in memory where they fit."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.errors import PreparedDataError
from domains.common.indexed import IndexStore

Pixels = NDArray[np.uint8]


class FaceReader:
    """Faces of the rows of a store.

    Args:
        store: rows whose columns `image` and `at` name a file, or a row of a packed array.
        channels: 1 or 3; faces are converted.
        side: height and width in pixels.
        cache_mb: mebibytes that all of them may take to be kept.

    Raises:
        PreparedDataError: a file is missing or damaged.
    """

    def __init__(self, store: IndexStore, channels: int, side: int, *, cache_mb: int = 0) -> None:
        self.store, self.channels, self.side = store, channels, side
        self.images: list[str] = store.frame["image"].to_list()
        self.places: list[int | None] = store.frame["at"].to_list()
        self._arrays: dict[str, Pixels] = {}
        rows = len(self.images)
        shape = (rows, channels, side, side)
        self._kept = np.empty(shape, np.uint8) if rows * channels * side * side <= cache_mb << 20 else None
        self._known = np.zeros(rows, dtype=bool)

    def read(self, rows: Tensor) -> Tensor:
        """Faces of some rows; several threads may call this at the same time.

        Shape:
            rows (n,) int64 -> (n, channels, side, side) uint8.
        """
        places = rows.numpy()
        if self._kept is None:
            faces = np.empty((len(places), self.channels, self.side, self.side), np.uint8)
            for target, row in enumerate(places):
                faces[target] = self._face(int(row))
            return torch.from_numpy(faces)
        for row in places[~self._known[places]]:  # two threads that read the same row write the same pixels
            self._kept[row] = self._face(int(row))
            self._known[row] = True
        return torch.from_numpy(self._kept[places])

    def _face(self, row: int) -> Pixels:
        """One face (channels, side, side)."""
        name, at = self.images[row], self.places[row]
        pixels = _read_file(self.store.path(name), self.channels) if at is None else self._packed(name)[at]
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if pixels.ndim == 3 and self.channels == 1:
            pixels = np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY), np.uint8)
        pixels = resize(pixels, self.side)
        if pixels.ndim == 2:
            return np.broadcast_to(pixels, (self.channels, *pixels.shape))
        return np.moveaxis(pixels, 2, 0)

    def _packed(self, name: str) -> Pixels:
        found = self._arrays.get(name)
        if found is None:
            path = self.store.path(name)
            try:
                found = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                reason = " ".join(str(error).split())[:160]
                raise PreparedDataError(f"{path}: cannot be read ({reason}); prepare the data again") from None
            rows = sum(image == name for image in self.images)
            if found.ndim != 4 or found.dtype != np.uint8 or len(found) < rows:
                raise PreparedDataError(f"{path}: is no array of {rows:,} faces or more; prepare the data again")
            self._arrays[name] = found
        return found


def resize(pixels: Pixels, side: int) -> Pixels:
    """Bring a face to a square, by area where it shrinks.

    Shape:
        (H, W) or (H, W, 3) uint8 -> (side, side) or (side, side, 3).
    """
    if pixels.shape[:2] == (side, side):
        return pixels
    shrinks = pixels.shape[0] >= side and pixels.shape[1] >= side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), (side, side), interpolation=method), np.uint8)


def _read_file(path: Path, channels: int) -> Pixels:
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB)
    except (OSError, cv2.error) as error:
        reason = str(error).strip().splitlines()[0]
        raise PreparedDataError(f"{path}: cannot be read ({reason[:160]}); prepare the data again") from None
    if pixels is None:
        raise PreparedDataError(f"{path}: is no readable image; prepare the data again")
    return np.asarray(pixels, dtype=np.uint8)
