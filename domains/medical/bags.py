"""Bags of prepared slides: features and, where they are known, places of their patches, read from HDF5."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.errors import PreparedDataError
from domains.common.indexed import IndexStore
from domains.common.loader import Batch

NAMES = ("name", "patient", "source", "view", "site")  # what a row may be called and grouped by
INDEX = ("name", "patient", "patches", "file", "dataset", "coords", "size_level0", "width", "height")


class BagReader:
    """Reads the features of slides; keeps as many as fit a budget of memory, as they are stored.

    Args:
        store: index of the slides.
        cache_mb: mebibytes of features that are kept; 0: none.
        coords: also read the places of patches.
    """

    def __init__(self, store: IndexStore, cache_mb: int = 0, *, coords: bool = False) -> None:
        self.store, self.coords = store, coords
        self._room = cache_mb << 20
        self._kept: dict[int, Tensor] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: Batch) -> Batch:
        """Read the bags of a batch.

        Shape:
            row (B,) -> also x (N, D_feat) as stored, sizes (B ints), name and patient (B strings) and, with
            coordinates, coords (N, 2) int64 at level 0 (-1 where unknown), patch_size (B,) float32 and canvas (B, 2)
            int64, both of level 0 and 0 where unknown.
        """
        table = self.store.at(batch["row"])
        bags = [self._features(int(row), entry) for row, entry in zip(batch["row"], _rows(table), strict=True)]
        result: Batch = {
            **batch,
            "x": bags[0] if len(bags) == 1 else torch.cat(bags or [torch.zeros(0, 0)]),
            "sizes": [len(bag) for bag in bags],
            "name": table["name"].to_list(),
            "patient": table["patient"].to_list(),
        }
        if "site" in table.columns:
            result["site"] = table["site"].fill_null("").to_list()
        if self.coords:
            places = [self._places(entry, len(bag)) for entry, bag in zip(_rows(table), bags, strict=True)]
            result["coords"] = torch.cat(places) if places else torch.zeros(0, 2, dtype=torch.long)
            result["patch_size"] = torch.from_numpy(table["size_level0"].fill_null(0).to_numpy().astype(np.float32))
            result["canvas"] = torch.from_numpy(
                table.select(pl.col("width", "height").fill_null(0)).to_numpy().astype(np.int64)
            )
        return result

    def _features(self, row: int, entry: dict[str, Any]) -> Tensor:
        with self._lock:
            if row in self._kept:
                return self._kept[row]
        array = _read(self.store.path(entry["file"]), entry["dataset"])
        array = array[0] if array.ndim == 3 and len(array) == 1 else array
        path = self.store.path(entry["file"])
        if array.ndim != 2 or len(array) != entry["patches"] or not len(array):
            raise PreparedDataError(
                f"{path}: {entry['dataset']} has shape {array.shape}, the index says {entry['patches']} patches; "
                "prepare the data again"
            )
        features = torch.from_numpy(array if array.dtype in (np.float16, np.float32) else array.astype(np.float32))
        size = features.numel() * features.element_size()
        with self._lock:
            if size <= self._room:
                self._room -= size
                self._kept[row] = features
        return features

    def _places(self, entry: dict[str, Any], count: int) -> Tensor:
        if not entry["coords"]:
            return torch.full((count, 2), -1)
        path = self.store.path(entry["file"])
        places = _read(path, entry["coords"]).astype(np.int64)
        if places.shape != (count, 2):
            raise PreparedDataError(f"{path}: {places.shape} coordinates of {count} patches; prepare the data again")
        return torch.from_numpy(places)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature over all patches of all slides, read one at a time.

        Shape:
            -> (D_feat,), (D_feat,) float32.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for row, entry in enumerate(_rows(self.store.frame)):
            x = self._features(row, entry).double()
            count, total, squares = count + len(x), total + x.sum(0), squares + (x * x).sum(0)
        mean = total / count
        variance = (squares / count - mean * mean).clamp(min=0.0)
        return mean.float(), variance.sqrt().float()


def _rows(table: pl.DataFrame) -> Any:
    columns = ("patches", "file", "dataset", "coords")
    return (dict(zip(columns, values, strict=True)) for values in table.select(columns).iter_rows())


def _read(path: Path, name: str) -> NDArray[Any]:
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file[name])
    except (OSError, KeyError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise PreparedDataError(f"{path}: {name!r} cannot be read ({reason}); prepare the data again") from None
