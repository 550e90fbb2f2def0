"""The layout of features that Heptad writes: one HDF5 file per slide, both datasets contiguous.

Tools of the field store features in chunks of one row, each of which HDF5 looks up and reads by itself; a contiguous
dataset is one read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from data_prep.common.errors import PrepError
from data_prep.common.files import translate_os_errors

HALF_MAX = 65519.99  # what is smaller rounds to 65,504, the largest float16
BLOCK = 8192  # rows that are handled together: a few megabytes
# On coordinates; the names are TRIDENT's. Sizes in pixels, target_mpp in micrometres per pixel.
ATTRIBUTES = ("name", "patch_size_level0", "patch_size", "level0_width", "level0_height", "target_mpp")

Stored = Literal["float16", "float32"]
Features = npt.NDArray[np.floating[Any]]
Coords = npt.NDArray[np.int64]


def write_features(
    path: Path, features: Features, coords: Coords | None, attributes: Mapping[str, Any], dtype: Stored
) -> None:
    """Write a file of the native layout.

    Args:
        path: file to write; it appears under this name only when whole.
        features: (N, D); an array mapped from a file is not loaded as a whole.
        coords: (N, 2), upper-left corners in level-0 pixels.
        attributes: of `ATTRIBUTES` those that are known are stored with the coordinates (with the features where there
            are none), `encoder` and `name` with the features, `label` (a class code) with the file, others not at all.
        dtype: to store.

    Raises:
        PrepError: a value is too large for float16, or the file cannot be written.
    """
    if dtype == "float16" and (lost := count_overflow(features)):
        raise PrepError(f"{path}: {lost:,} values are beyond 65,504, the range of float16; store float32")
    temporary = path.with_name(f".{path.name}.tmp")
    with translate_os_errors(path):
        try:
            with h5py.File(temporary, "w") as file:
                stored = file.create_dataset("features", shape=features.shape, dtype=dtype)
                for start in range(0, len(features), BLOCK):
                    stored[start : start + BLOCK] = features[start : start + BLOCK].astype(dtype)
                if coords is not None:
                    file.create_dataset("coords", data=np.ascontiguousarray(coords, dtype=np.int64))
                write_attributes(file, attributes)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Give the datasets of a native file what is known of their slide; see `write_features`."""
    on_coords = file["coords" if "coords" in file else "features"].attrs
    for name in ATTRIBUTES:
        if attributes.get(name) is not None:
            on_coords[name] = attributes[name]
    for name in ("name", "encoder"):
        if attributes.get(name) is not None:
            file["features"].attrs[name] = attributes[name]
    if attributes.get("label") is not None:
        file.attrs["label"] = attributes["label"]


def count_overflow(features: Features) -> int:
    """How many finite values float16 cannot hold."""
    if features.dtype == np.float16:
        return 0
    blocks = (features[start : start + BLOCK] for start in range(0, len(features), BLOCK))
    return sum(int(np.count_nonzero(np.isfinite(block) & (np.abs(block) > HALF_MAX))) for block in blocks)
