"""Values of any kind -> 8-bit grey, and what a reader returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.common.files import translate_os_errors
from data_prep.medical.xray.errors import ConstantImageError, UnsupportedImageError

U8 = npt.NDArray[np.uint8]
MAX_PIXELS = 1 << 28  # the largest detectors have 2^25
MAX_BYTES = 1 << 30  # of one file
_BRIGHTEST = 255


@dataclass(frozen=True)
class Radiograph:
    """A decoded image.

    Args:
        pixels: (height, width) uint8, or (height, width, 3) RGB where colour was asked for.
        view: `normalise_view` of the header; empty: it says nothing.
        patient: patient id of the header, to group images by; never written.
        age: years, if the header says them.
        remarks: what was missing or wrong in the header, and put right.
    """

    pixels: U8
    view: str = ""
    patient: str = ""
    age: float | None = None
    remarks: tuple[str, ...] = ()


def read_bytes(path: Path) -> bytes:
    """The whole file.

    Raises:
        DatasetNotFoundError: it is not there.
        UnsupportedImageError: it is larger than any radiograph.
    """
    with translate_os_errors(path):
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UnsupportedImageError(path, "file", f"{size:,} bytes: larger than any single radiograph")
        return path.read_bytes()


def check_size(path: Path, height: int, width: int) -> None:
    """Refuse sizes that no radiograph has, before memory is asked for.

    Raises:
        UnsupportedImageError: no pixels, or too many.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise UnsupportedImageError(path, "header", f"{width:,} x {height:,} pixels: no radiograph has this size")


def scale_to_unit(
    values: npt.NDArray[Any], percentile: float = 0.0, ignore: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float32] | None:
    """Smallest value -> 0, largest -> 1.

    Args:
        values: numbers of any type.
        percentile: instead of the extremes, the values below which so many per cent of the pixels lie, and above which
            as many do; what is beyond them is clipped.
        ignore: pixels that do not count (padding).

    Shape:
        values (height, width) -> (height, width) float32 in [0, 1]; None when all values that count are one.
    """
    counted = values[~ignore] if ignore is not None and not ignore.all() else values
    low, high = float(counted.min()), float(counted.max())
    if percentile:
        # Whole values, as they occur: few lesions are as bright as a metal letter, but some are.
        cut = np.percentile(counted, [percentile, 100 - percentile], method="nearest")
        if cut[0] < cut[1]:
            low, high = float(cut[0]), float(cut[1])
    if not low < high:  # also for values that are no numbers
        return None
    scaled = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def to_bytes(unit: npt.NDArray[np.float32]) -> U8:
    """[0, 1] -> 0..255, rounded.

    Shape:
        any float32 -> the same uint8.
    """
    return np.asarray(np.floor(unit * _BRIGHTEST + 0.5), dtype=np.uint8)


def to_grey(
    path: Path, values: npt.NDArray[Any], percentile: float = 0.0, ignore: npt.NDArray[np.bool_] | None = None
) -> U8:
    """`scale_to_unit`, then `to_bytes`.

    Raises:
        ConstantImageError: all values are one.
    """
    unit = scale_to_unit(values, percentile, ignore)
    if unit is None:
        raise ConstantImageError(path, "pixel data", "all pixels have one value")
    return to_bytes(unit)
