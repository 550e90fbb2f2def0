"""Stored values as they were meant, where a header declares the wrong sign or the wrong number of bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
_PAIRS = 64  # neighbours that a judgement rests on at least
_SHARE = 0.01  # of the pixels that are on the other side of a wrap: more than letters and markers cover


def right_values(array: npt.NDArray[Any], bits: int, signed: bool) -> tuple[I32, list[str]]:
    """Undo a wrap that a wrong header causes.

    Neighbouring pixels are alike. Where a declaration is wrong, values run over the end of the range: neighbours
    jump from one end to the other, all along a line, and are alike again under the other declaration. Only then is
    the other believed.

    Args:
        array: decoded, with all bits that are allocated.
        bits: BitsStored.
        signed: PixelRepresentation.

    Shape:
        array (height, width) of 8 to 32 bits -> (height, width) int32, and remarks.
    """
    allocated = array.dtype.itemsize * 8
    raw = array.astype(np.int64) & ((1 << allocated) - 1)
    remarks = []
    low = raw & ((1 << bits) - 1)
    if bits < allocated and _upper_bits_count(raw, low, bits, allocated):
        remarks.append(f"more than {bits} bits stored")
        bits, low = allocated, raw
    wrapped = (low ^ (1 << (bits - 1))) - (1 << (bits - 1))  # two's complement
    declared, other = (wrapped, low) if signed else (low, wrapped)
    if _is_torn(declared, other, bits):
        remarks.append(f"values are {'unsigned' if signed else 'signed'}, the header says the opposite")
        declared = other
    return np.clip(declared, -(1 << 31), (1 << 31) - 1).astype(np.int32), remarks


def _upper_bits_count(raw: npt.NDArray[np.int64], low: npt.NDArray[np.int64], bits: int, allocated: int) -> bool:
    """Whether the bits above `bits` belong to the values: neither a repeated sign nor an overlay."""
    upper = raw >> bits
    if not upper.any():
        return False
    sign = low >> (bits - 1)
    if (upper == sign * ((1 << (allocated - bits)) - 1)).all():
        return False
    torn, whole = [], []
    for axis in (0, 1):
        crossing = np.diff(upper, axis=axis) != 0
        torn.append(np.abs(np.diff(low, axis=axis))[crossing])
        whole.append(np.abs(np.diff(raw, axis=axis))[crossing])
    if sum(map(len, torn)) < _PAIRS:
        return False
    # Steps as shares of the range: an overlay jumps over half of it, a value goes on where it was.
    shares = [float(np.median(np.concatenate(steps))) for steps in (whole, torn)]
    return shares[0] / (1 << allocated) < shares[1] / (1 << bits)


def _is_torn(declared: npt.NDArray[np.int64], other: npt.NDArray[np.int64], bits: int) -> bool:
    """Whether `declared` jumps over the whole range where `other` runs smoothly."""
    flipped = declared != other
    share = float(flipped.mean())
    if not _SHARE <= share <= 1 - _SHARE:
        return False
    # Saturated values (letters, collimation) have sharp edges: they prove nothing.
    telling = (declared != declared.min()) & (declared != declared.max())
    jumps, steps, usual = [], [], []
    for axis in (0, 1):
        crossing = np.diff(flipped.astype(np.int8), axis=axis) != 0
        step = np.abs(np.diff(other, axis=axis))
        usual.append(step[~crossing])
        first, second = (telling[:-1], telling[1:]) if axis == 0 else (telling[:, :-1], telling[:, 1:])
        crossing &= first & second
        jumps.append(np.abs(np.diff(declared, axis=axis))[crossing])
        steps.append(step[crossing])
    if sum(map(len, jumps)) < _PAIRS:
        return False
    smooth = 2 * np.quantile(np.concatenate(usual), 0.9) + 1
    return bool(np.median(np.concatenate(steps)) <= smooth and np.median(np.concatenate(jumps)) > (1 << bits) / 2)
