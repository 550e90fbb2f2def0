"""Prepared faces as arrays: rows of packed arrays or files, brought to one size."""

from __future__ import annotations

import cv2
import numpy as np

from domains.common.errors import PreparedDataError
from domains.common.indexed import IndexStore
from domains.common.pictures import PictureReader, Pixels, read_picture, resize


class FaceReader(PictureReader):
    """Faces of the rows of a store.

    Args:
        store: rows whose columns `image` and `at` name a file, or a row of a packed array.
        channels: 1 or 3; faces are converted.
        side: height and width in pixels.
        cache_mb: mebibytes that all of them may take to be kept.

    Shape:
        `read` gives image (n, channels, side, side) uint8.

    Raises:
        PreparedDataError: a file is missing or damaged.
    """

    def __init__(self, store: IndexStore, channels: int, side: int, *, cache_mb: int = 0) -> None:
        super().__init__(store, {"image": (channels, side, side)}, cache_mb)
        self.images: list[str] = store.frame["image"].to_list()
        self.places: list[int | None] = store.frame["at"].to_list()
        self._arrays: dict[str, Pixels] = {}

    def decode(self, row: int) -> dict[str, Pixels]:
        """One face (channels, side, side)."""
        channels, *size = self.shapes["image"]
        name, at = self.images[row], self.places[row]
        pixels = read_picture(self.store.path(name), channels) if at is None else self._packed(name)[at]
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if pixels.ndim == 3 and channels == 1:
            pixels = np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY), np.uint8)
        pixels = resize(pixels, size)
        face = np.broadcast_to(pixels, (channels, *size)) if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
        return {"image": face}

    def _packed(self, name: str) -> Pixels:
        found = self._arrays.get(name)
        if found is None:
            path = self.store.path(name)
            try:
                found = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                reason = " ".join(str(error).split())[:160]
                raise PreparedDataError(f"{path}: cannot be read ({reason}); prepare the data again") from None
            rows = 1 + max(
                at for image, at in zip(self.images, self.places, strict=True) if image == name and at is not None
            )
            if found.ndim != 4 or found.dtype != np.uint8 or len(found) < rows:
                raise PreparedDataError(f"{path}: is no array of {rows:,} faces or more; prepare the data again")
            self._arrays[name] = found
        return found
