"""Tables, windows and padding of a DICOM header: applied, or found to matter where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from data_prep.medical.xray.pixels import U8, scale_to_unit

Values = npt.NDArray[Any]
EIGHT_BITS = "8 bits: "  # begin of the remarks on them
NOT_APPLIED = " not applied"  # end of those that an option could change
_GREY = 1 / 255  # a difference that one may see
_FAULTS = (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, NotImplementedError)


def apply_luts(dataset: Dataset, stored: Values, padding: npt.NDArray[np.bool_] | None) -> tuple[Values, list[str]]:
    """Modality LUT or rescale, then VOI LUT or window; one that is damaged, or leaves nothing to see, is left out.

    Shape:
        stored and padding (height, width) -> (height, width), and remarks.
    """
    rescaled = _modality(dataset, stored, padding)
    values = stored if rescaled is None else rescaled
    seen = _voi(dataset, values, padding)
    remarks = [f"{name} ignored" for name, found in (("modality LUT", rescaled), ("VOI LUT", seen)) if found is None]
    return values if seen is None else seen, remarks


def falls(dataset: Dataset) -> bool:
    """Whether a negative rescale slope makes small values bright."""
    steps = None if dataset.get("ModalityLUTSequence") else _modality(dataset, np.arange(2, dtype=np.uint8), None)
    return steps is not None and bool(steps[1] < steps[0])


def find_unused(dataset: Dataset, values: U8, *, inverted: bool) -> list[str]:
    """What would change the picture by more than a stretch of its greys, if it were applied.

    Args:
        dataset: header.
        values: pixels of 8 bits.
        inverted: whether they are shown as 255 - values.
    """
    padding = find_padding(dataset, values)
    found = []
    if padding is not None and (values[padding] != (255 if inverted else 0)).any():
        found.append("padding")
    # every step maps values one by one: those that occur are enough
    present = np.unique(values if padding is None else values[~padding])
    rescaled = _modality(dataset, present, None)
    rescaled = present if rescaled is None else rescaled
    if _differ(-present.astype(np.int32) if falls(dataset) else present, rescaled):
        found.append("modality LUT")
    seen = _voi(dataset, rescaled, None)
    if seen is not None and _differ(rescaled, seen):
        found.append("VOI LUT" if dataset.get("VOILUTSequence") else "window")
    return found


def find_padding(dataset: Dataset, stored: Values) -> npt.NDArray[np.bool_] | None:
    """Pixels that the header declares to be no image.

    Shape:
        stored (height, width) -> (height, width), or None where there are none, or nothing else.
    """
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int):
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((first, last if isinstance(last, int) else first))
    # A signed value read as an unsigned one, or the other way round, differs by this.
    turn = 1 << int(dataset.BitsAllocated)
    found = np.zeros(stored.shape, bool)
    for shift in (-turn, 0, turn):
        found |= (stored >= low + shift) & (stored <= high + shift)
    return found if found.any() and not found.all() else None


def is_constant(values: Values, padding: npt.NDArray[np.bool_] | None) -> bool:
    """Whether all pixels that count have one value."""
    counted = values if padding is None else values[~padding]
    return bool(counted.min() == counted.max())


def _modality(dataset: Dataset, values: Values, padding: npt.NDArray[np.bool_] | None) -> Values | None:
    try:
        return _checked(apply_modality_lut(values, dataset), padding)
    except _FAULTS:
        return None


def _voi(dataset: Dataset, values: Values, padding: npt.NDArray[np.bool_] | None) -> Values | None:
    if dataset.get("VOILUTSequence") and not np.issubdtype(values.dtype, np.integer):
        values = np.rint(values).astype(np.int32)  # rescaled values are floating-point, a table wants indices
    try:
        seen = _checked(np.asarray(apply_voi_lut(values, dataset)), padding)
    except _FAULTS:
        return None
    # a window keeps the order of values (PS3.3 C.11.2.1.2), but pydicom's turns it round under a negative rescale slope
    first, last = values.argmin(), values.argmax()
    turned = not dataset.get("VOILUTSequence") and seen.flat[first] > seen.flat[last]
    return -seen if turned else seen


def _checked(values: Values, padding: npt.NDArray[np.bool_] | None) -> Values:
    if is_constant(values, padding) or not np.isfinite(values).all():
        raise ValueError("nothing is left to see")
    return values


def _differ(before: Values, after: Values) -> bool:
    units = [scale_to_unit(values) for values in (before, after)]
    return units[0] is not None and units[1] is not None and bool(np.abs(units[0] - units[1]).max() > _GREY)
