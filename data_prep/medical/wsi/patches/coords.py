"""Coordinates of patches in the HDF5 layouts of TRIDENT, CLAM (also its old one) and ACMIL.

Our own files are in TRIDENT's layout, with the resolutions in micrometres per pixel as further attributes.
Whatever the layout, coordinates are those of upper left corners in level-0 pixels once they are read.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import write_atomic
from data_prep.medical.wsi.slides.resolution import to_magnification, to_mpp

Coordinates = npt.NDArray[np.int64]
SUFFIX = "_patches"  # TRIDENT's files are called SLIDE_patches.h5


@dataclass(frozen=True)
class PatchGrid:
    """Where the patches of one slide are.

    Args:
        slide: slide id.
        coords: (N, 2) int64, x and y of upper left corners in level-0 pixels.
        size_level0: side of a patch in level-0 pixels.
        size: side in pixels at the resolution the patches are meant for.
        mpp: that resolution in micrometres per pixel; None when not known.
        width: of level 0; 0 when not known.
        height: of level 0; 0 when not known.
        labels: (N,) int64, 1 = inside of an annotation; None when there are no labels.
        attributes: everything else that the file said.
    """

    slide: str
    coords: Coordinates
    size_level0: float
    size: int
    mpp: float | None
    width: int
    height: int
    labels: npt.NDArray[np.int64] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


def read_coords(path: Path) -> PatchGrid:
    """Read coordinates in any of the known layouts, told apart by what is in the file.

    Raises:
        DatasetNotFoundError: there is no such file.
        CorruptRecordError: damaged, or not a file of coordinates.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such file; give a file of patch coordinates (.h5)")
    try:
        with h5py.File(path, "r") as file:
            old = "imgs" in file
            if "coords" not in file:
                raise ValueError("it has no dataset 'coords'")
            coords = np.asarray(file["coords"][()])
            attributes = {name: _plain(value) for name, value in file["imgs" if old else "coords"].attrs.items()}
            if old:
                attributes["patch_size"] = int(file["imgs"].shape[1])
            labels = np.asarray(file["labels"][()]).astype(np.int64) if "labels" in file else None
        if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iu":
            raise ValueError(f"'coords' is {coords.dtype} of shape {coords.shape}, not whole numbers of shape (N, 2)")
        if labels is not None and labels.shape != (len(coords),):
            raise ValueError(f"{len(coords)} coordinates and {labels.size} labels")
        read = _read_old if old else _read_trident if "patch_size_level0" in attributes else _read_clam
        return read(_name_of(path, attributes), coords.astype(np.int64), labels, attributes)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        raise CorruptRecordError(
            path, "coordinates", f"cannot be read as CLAM, TRIDENT or ACMIL write them ({error}); make the file again"
        ) from error


def write_coords(
    path: Path,
    grid: PatchGrid,
    layout: Literal["trident", "clam"] = "trident",
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write coordinates, whole or not at all; the same grid gives the same bytes.

    Args:
        path: file to write.
        grid: what to write.
        layout: whose attributes.
        attributes: further ones of `coords`, or others in place of ours.
    """
    found = {**_trident(grid)} if layout == "trident" else {**_clam(grid)}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        dataset = file.create_dataset("coords", data=np.asarray(grid.coords, np.int64).reshape(-1, 2))
        for name, value in {**found, **(attributes or {})}.items():
            if value is not None:
                dataset.attrs[name] = value
        if grid.labels is not None:
            file.create_dataset("labels", data=grid.labels)
    write_atomic(path, buffer.getvalue())


def _trident(grid: PatchGrid) -> dict[str, Any]:
    side = int(grid.size_level0) if float(grid.size_level0).is_integer() else grid.size_level0
    known = grid.mpp is not None
    return {
        "name": grid.slide,
        "patch_size": grid.size,
        "patch_size_level0": side,
        # Their ratio is that of the sizes exactly, which is what readers of this layout go by.
        "level0_magnification": to_magnification(grid.mpp) * grid.size_level0 / grid.size if grid.mpp else None,
        "target_magnification": to_magnification(grid.mpp) if grid.mpp else None,
        "overlap": 0,
        "level0_width": grid.width,
        "level0_height": grid.height,
        "savetodir": "",
        "target_mpp": grid.mpp if known else None,
    }


def _clam(grid: PatchGrid) -> dict[str, Any]:
    """A patch as its square of level 0, which every program that reads this layout finds, whatever the pyramid."""
    return {
        "patch_size": round(grid.size_level0),
        "patch_level": 0,
        "downsample": np.array([1.0, 1.0]),
        "downsampled_level_dim": np.array([grid.width, grid.height]),
        "level_dim": np.array([grid.width, grid.height]),
        "name": grid.slide,
        "save_path": "",
    }


def _read_trident(
    name: str, coords: Coordinates, labels: npt.NDArray[np.int64] | None, attributes: dict[str, Any]
) -> PatchGrid:
    mpp, power = attributes.get("target_mpp"), attributes.get("target_magnification")
    if mpp is None and power:
        mpp = to_mpp(float(power))
    return PatchGrid(
        name,
        coords,
        float(attributes["patch_size_level0"]),
        int(attributes["patch_size"]),
        None if mpp is None else float(mpp),
        int(attributes.get("level0_width", 0)),
        int(attributes.get("level0_height", 0)),
        labels,
        attributes,
    )


def _read_clam(
    name: str, coords: Coordinates, labels: npt.NDArray[np.int64] | None, attributes: dict[str, Any]
) -> PatchGrid:
    down, size = np.atleast_1d(attributes["downsample"]), int(attributes["patch_size"])
    width, height = _level0_size(attributes)
    mpp = attributes.get("target_mpp")
    return PatchGrid(
        name,
        coords,
        # CLAM itself drops the fraction of a downsample such as 4.0003.
        float(size * int(down[0])),
        size // max(1, int(attributes.get("custom_downsample", 1))),
        None if mpp is None else float(mpp),
        width,
        height,
        labels,
        attributes,
    )


def _read_old(
    name: str, coords: Coordinates, labels: npt.NDArray[np.int64] | None, attributes: dict[str, Any]
) -> PatchGrid:
    """The layout with the pixels in `imgs`: coordinates are divided by the downsample, and by a custom one."""
    down, size = np.atleast_1d(attributes.get("downsample", 1.0)).astype(float), int(attributes["patch_size"])
    level, shrunk = (
        np.atleast_1d(attributes.get("level_dim", 1)),
        np.atleast_1d(attributes.get("downsampled_level_dim", 1)),
    )
    custom = max(1, round(float(level[0]) / max(1.0, float(shrunk[0]))))
    scale = np.array([int(down[0]) * custom, int(down[-1]) * custom])
    width, height = _level0_size(attributes)
    return PatchGrid(name, coords * scale, float(size * scale[0]), size, None, width, height, labels, attributes)


def _level0_size(attributes: Mapping[str, Any]) -> tuple[int, int]:
    if "level_dim" not in attributes:
        return 0, 0
    level, down = np.atleast_1d(attributes["level_dim"]), np.atleast_1d(attributes.get("downsample", 1.0))
    return round(float(level[0]) * float(down[0])), round(float(level[-1]) * float(down[-1]))


def _name_of(path: Path, attributes: Mapping[str, Any]) -> str:
    name = attributes.get("name", attributes.get("wsi_name", ""))
    return str(name) if name else path.stem.removesuffix(SUFFIX)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value
