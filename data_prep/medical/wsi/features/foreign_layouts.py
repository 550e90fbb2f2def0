"""Feature files as CLAM, TRIDENT and ACMIL write them, for their programs to read. See `layouts` for the layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors
from data_prep.medical.wsi.features.native import BLOCK, Coords, Features, Stored
from data_prep.medical.wsi.patches.coords import PatchGrid, write_coords


def write_clam(folder: Path, slide: str, features: Features, coords: Coords | None, dtype: Stored) -> list[str]:
    """`h5_files/<slide>.h5` (where there are coordinates) and `pt_files/<slide>.pt`.

    Args:
        folder: to write into.
        slide: its id.
        features: (N, D).
        coords: (N, 2) in level-0 pixels.
        dtype: to store; CLAM's networks want float32.

    Returns:
        The names of the files.

    Raises:
        PrepError: the file cannot be written.
    """
    import torch

    names = [f"pt_files/{slide}.pt"]
    with translate_os_errors(folder):
        (folder / "pt_files").mkdir()
        torch.save(torch.from_numpy(features.astype(dtype)), folder / names[0])
        if coords is not None:
            names.insert(0, f"h5_files/{slide}.h5")
            (folder / "h5_files").mkdir()
            with h5py.File(folder / names[0], "w") as file:
                file.create_dataset("features", data=features.astype(dtype))
                file.create_dataset("coords", data=coords.astype(np.int32))
    return names


def write_trident(
    folder: Path, slide: str, features: Features, coords: Coords | None, attributes: Mapping[str, Any], dtype: Stored
) -> list[str]:
    """`features_<encoder>/<slide>.h5` with the attributes of TRIDENT.

    Args:
        folder: to write into.
        slide: its id.
        features: (N, D).
        coords: (N, 2) in level-0 pixels.
        attributes: of the patches; their size has to be known.
        dtype: to store.

    Returns:
        The names of the files.

    Raises:
        CorruptRecordError: there are no coordinates, or the size of patches is not known.
        PrepError: the file cannot be written.
    """
    if coords is None or not attributes.get("patch_size_level0") or not attributes.get("patch_size"):
        raise CorruptRecordError(
            slide, "coordinates", "TRIDENT's layout holds them and the size of patches; give their files as patches"
        )
    encoder = str(attributes.get("encoder") or "unknown")
    name = f"features_{plain_name(encoder)}/{slide}.h5"
    mpp = attributes.get("target_mpp")
    power = attributes.get("target_magnification")
    grid = PatchGrid(
        slide,
        coords,
        float(attributes["patch_size_level0"]),
        int(attributes["patch_size"]),
        float(mpp) if mpp else 10 / float(power) if power else None,
        int(attributes.get("level0_width") or 0),
        int(attributes.get("level0_height") or 0),
    )
    with translate_os_errors(folder):
        (folder / name).parent.mkdir()
        write_coords(folder / name, grid, "trident")
        with h5py.File(folder / name, "a") as file:
            stored = file.create_dataset("features", data=features.astype(dtype))
            stored.attrs.update({"name": slide, "savetodir": "", "encoder": encoder})
    return [name]


def merge_acmil(slides: Sequence[tuple[str, Path, int | None]], target: Path) -> None:
    """One file with a group per slide, as ACMIL reads it.

    Args:
        slides: id, native file and class code of each.
        target: file to write.

    Raises:
        PrepError: the file cannot be written.
    """
    with translate_os_errors(target), h5py.File(target, "w") as file:
        for slide, path, label in slides:
            group = file.create_group(slide)
            with h5py.File(path, "r") as source:
                data = source["features"]
                feat = group.create_dataset("feat", shape=data.shape, dtype=data.dtype)
                for start in range(0, len(data), BLOCK):
                    feat[start : start + BLOCK] = data[start : start + BLOCK]
                if "coords" in source:
                    group.create_dataset("coords", data=source["coords"][()])
            if label is not None:
                group.attrs["label"] = label


def plain_name(encoder: str) -> str:
    """An encoder's name as part of a file name."""
    return "".join(mark if mark.isalnum() or mark in "._-" else "_" for mark in encoder)
