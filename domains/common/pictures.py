"""Prepared pictures as arrays: decoded, brought to one size, kept in memory where they fit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.data import HeptadData
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.indexed import IndexStore
from domains.common.loader import Batch

Pixels = NDArray[np.uint8]
POOL = 1 << 24  # rows of an index that are permuted together: all of it


def read_picture(path: Path, channels: int = 3) -> Pixels:
    """Decode a picture of a prepared data set, whole.

    What orientation a camera noted was dealt with by the preparation, and is not looked at again.

    Args:
        path: of the picture.
        channels: 1 for grey, 3 for RGB; the file is converted.

    Shape:
        (H, W) or (H, W, 3) uint8.

    Raises:
        PreparedDataError: the file is missing or damaged.
    """
    kind = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        pixels = cv2.imdecode(content, kind | cv2.IMREAD_IGNORE_ORIENTATION)
    except (OSError, cv2.error) as error:
        reason = str(error).strip().splitlines()[0]
        raise PreparedDataError(f"{path}: cannot be read ({reason[:160]}); prepare the data again") from None
    if pixels is None:
        raise PreparedDataError(f"{path}: is no readable picture; prepare the data again")
    return np.asarray(pixels, dtype=np.uint8)


def resize(pixels: Pixels, size: Sequence[int]) -> Pixels:
    """Bring a picture to a height and width, by area where it shrinks; its aspect ratio is not kept.

    Shape:
        (H, W) or (H, W, 3) uint8 -> (*size) or (*size, 3).
    """
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = pixels.shape[0] >= height and pixels.shape[1] >= width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=method), np.uint8)


class PictureReader(ABC):
    """Arrays of the rows of an index; they are kept where those of all rows fit into memory.

    Args:
        store: rows of the index.
        shapes: of the arrays that a row has, by name; all are uint8.
        cache_mb: mebibytes that they may take to be kept.
    """

    def __init__(self, store: IndexStore, shapes: Mapping[str, tuple[int, ...]], cache_mb: int = 0) -> None:
        self.store, self.shapes = store, dict(shapes)
        rows = len(store.frame)
        size = sum(math.prod(shape) for shape in self.shapes.values())
        self._kept = self._empty(rows) if rows * size <= cache_mb << 20 else None
        self._known = np.zeros(rows, dtype=bool)

    @abstractmethod
    def decode(self, row: int) -> Mapping[str, Pixels]:
        """Arrays of one row; one that is not there stays zero.

        Raises:
            PreparedDataError: a file is missing or damaged.
        """

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Arrays of some rows; several threads may call this at the same time.

        Shape:
            rows (n,) int64 -> each (n, *shape) uint8.

        Raises:
            PreparedDataError: see `decode`.
        """
        places = rows.numpy()
        if self._kept is None:
            arrays = self._empty(len(places))
            for target, row in enumerate(places):
                self._fill(arrays, target, int(row))
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        for row in places[~self._known[places]]:  # two threads that decode the same row write the same values
            self._fill(self._kept, int(row), int(row))
            self._known[row] = True
        return {name: torch.from_numpy(array[places]) for name, array in self._kept.items()}

    def _empty(self, rows: int) -> dict[str, Pixels]:
        return {name: np.zeros((rows, *shape), dtype=np.uint8) for name, shape in self.shapes.items()}

    def _fill(self, arrays: Mapping[str, Pixels], target: int, row: int) -> None:
        for name, values in self.decode(row).items():
            arrays[name][target] = values


Reader = TypeVar("Reader", bound="PictureReader")


class PicturesData(HeptadData, Generic[Reader]):
    """Data module whose rows are pictures that threads decode; what is random happens afterwards on the device.

    A subclass says with `reader` how the pictures of a split are read, with `collate_for` what else a batch has, and
    with `finish` what the network takes.

    Args:
        root: prepared directory.
        batch_size: pictures of a global batch over all processes.
        seed: seed of the order and of the augmentation.
        cache_mb: mebibytes that the pictures of a split may take to be kept in memory.
        **options: other options of `HeptadData`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(self, root: str, batch_size: int, seed: int, cache_mb: int, **options: Any) -> None:
        super().__init__(root, batch_size, seed, POOL, **options)
        if cache_mb < 0:
            raise ConfigError(f"data.cache_mb is {cache_mb}; give 0 or more")
        self.cache_mb = cache_mb
        self._readers: dict[str, Reader] = {}

    @abstractmethod
    def reader(self, split: str) -> Reader:
        """Make the reader of one split."""

    def store(self, split: str) -> IndexStore:
        """Rows of one split; their pictures are kept from one loader to the next."""
        if split not in self._readers:
            self._readers[split] = self.reader(split)
        return self._readers[split].store

    def reader_of(self, store: IndexStore) -> Reader:
        """Return the reader of a store that `store` gave."""
        return next(reader for reader in self._readers.values() if reader.store is store)


def draw_numbers(batch: Batch, rows: int) -> Tensor:
    """Number of each picture of a batch that its random changes are drawn with (B,) int64.

    It is that of the row and, where a picture may be in an epoch several times, differs from one time to the next.

    Args:
        batch: with `row`, and `position` in such an epoch.
        rows: of the index.
    """
    drawn: Tensor = batch["row"]
    return drawn + rows * batch["position"] if "position" in batch else drawn
