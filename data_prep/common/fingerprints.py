"""Which images are the same, exactly or but for compression, size, contrast and small marks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

SIDE = 32  # pixels of a thumbnail
BITS = 64  # of a hash
DISTANCE = 8  # bits in which the hashes of near duplicates differ at most
CORRELATION = 0.985  # of the ranks of their thumbnails' pixels, at least
_BANDS = DISTANCE + 1  # hashes that differ in DISTANCE bits agree in at least one of so many bands
_ROWS = 1024  # hashes compared with all of their band at a time
_PAIRS = 8192  # pairs of thumbnails compared at a time
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def thumbnail(pixels: U8) -> U8:
    """The image in 32 x 32 grey pixels, proportions not kept.

    Shape:
        (height, width[, 3]) -> (32, 32).
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    shrunk = min(grey.shape) >= SIDE
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrunk else cv2.INTER_LINEAR)
    return np.asarray(small, dtype=np.uint8)


def perceptual_hash(small: U8) -> int:
    """PHash (Zauner, 2010): which of the 8 x 8 lowest frequencies are above their median.

    Shape:
        small (32, 32) -> 64 bits.
    """
    low = cv2.dct(small.astype(np.float32))[:8, :8]
    return int.from_bytes(np.packbits((low > np.median(low)).reshape(-1)).tobytes(), "big")


class Near(NamedTuple):
    """Pairs of near duplicates.

    Args:
        first: index of one image.
        second: index of the other, larger.
        distance: bits in which their hashes differ.
        correlation: of the ranks of their thumbnails' pixels.

    Shape:
        each (P,).
    """

    first: I64
    second: I64
    distance: npt.NDArray[np.uint8]
    correlation: npt.NDArray[np.float32]


def find_close_hashes(hashes: U64, distance: int = DISTANCE) -> I64:
    """Pairs of hashes that differ in few bits, without comparing all with all.

    Hashes that differ in d bits agree in at least one of d + 1 bands of bits (the pigeonhole principle), so only those
    with an equal band are compared.

    Args:
        hashes: 64-bit hashes.
        distance: bits that may differ.

    Shape:
        hashes (N,) uint64 -> (P, 2) int64, each pair once, the smaller index first, sorted.
    """
    bounds = np.linspace(0, BITS, distance + 2).astype(int)
    found = [np.zeros(0, np.int64)]
    for low, high in pairwise(bounds.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=band[order][:1] + np.uint64(1)))
        for members in np.split(order, starts[1:]):
            found += [_compare(hashes, members, at, distance) for at in range(0, len(members), _ROWS)]
        found = [np.unique(np.concatenate(found))]
    return np.stack(np.divmod(found[0], max(len(hashes), 1)), axis=1)


def _compare(hashes: U64, members: I64, at: int, distance: int) -> I64:
    """Close pairs of some members with those behind, each as one number: smaller index times N, plus the larger."""
    rows = members[at : at + _ROWS]
    rest = members[at:]
    close = np.bitwise_count(hashes[rows][:, None] ^ hashes[rest][None, :]) <= distance
    first, second = np.nonzero(np.triu(close, k=1))
    # members ascend, and `rest` begins with `rows`: what is above the diagonal is larger
    return np.asarray(rows[first] * len(hashes) + rest[second], dtype=np.int64)


def find_near(hashes: U64, thumbnails: Callable[[I64], U8]) -> Near:
    """Near duplicates: close hashes whose thumbnails agree, too.

    Hashes alone are not enough: chest X-rays are alike, and of 5,856 of them 12,263 pairs have hashes within 8 bits,
    where none but exact copies are duplicates. Ranks of pixels do not change with brightness, contrast or window.

    Args:
        hashes: of the images.
        thumbnails: gives those of some images.

    Shape:
        hashes (N,) uint64.
    """
    pairs = find_close_hashes(hashes)
    pairs = pairs[_may_agree(pairs, len(hashes), thumbnails)]
    agreed = np.zeros(len(pairs), np.float32)
    for at in range(0, len(pairs), _PAIRS):
        block = pairs[at : at + _PAIRS]
        wanted, place = np.unique(block, return_inverse=True)
        ranks = _rank(thumbnails(wanted))
        first, second = place.reshape(-1, 2).T
        agreed[at : at + _PAIRS] = np.einsum("ij,ij->i", ranks[first], ranks[second])
    kept = agreed >= CORRELATION
    first, second = pairs[kept].T
    return Near(first, second, np.bitwise_count(hashes[first] ^ hashes[second]).astype(np.uint8), agreed[kept])


def _may_agree(pairs: I64, count: int, thumbnails: Callable[[I64], U8]) -> npt.NDArray[np.bool_]:
    """Which pairs can agree, by the means of 4 x 4 pixels of their ranks, computed once for each image.

    Vectors of length 1 whose product is c are sqrt(2 - 2 c) apart, and no further in any projection.

    Shape:
        pairs (P, 2) -> (P,).
    """
    used = np.zeros(count, bool)
    used[pairs] = True
    wanted, place = np.flatnonzero(used), np.cumsum(used) - 1
    means = np.zeros((len(wanted), 64), np.float32)
    for at in range(0, len(wanted), _PAIRS):
        ranks = _rank(thumbnails(wanted[at : at + _PAIRS]))
        means[at : at + _PAIRS] = ranks.reshape(-1, 8, 4, 8, 4).sum(axis=(2, 4)).reshape(-1, 64) / 4
    close = np.zeros(len(pairs), bool)
    for at in range(0, len(pairs), _PAIRS):
        first, second = place[pairs[at : at + _PAIRS]].T
        apart = means[first] - means[second]
        # and a little for what float32 loses
        close[at : at + _PAIRS] = np.einsum("ij,ij->i", apart, apart) <= 2 - 2 * CORRELATION + 1e-4
    return close


def _rank(thumbnails: U8) -> npt.NDArray[np.float32]:
    """Ranks of the pixels of each thumbnail, of mean 0 and length 1; equal pixels share their rank.

    Shape:
        (N, 32, 32) -> (N, 1024) float32.
    """
    flat = thumbnails.reshape(len(thumbnails), -1)
    # Midranks by the histogram of the 256 values.
    counts = np.zeros((len(flat), 256), np.float64)
    np.add.at(counts, (np.arange(len(flat))[:, None], flat), 1)
    midrank = np.cumsum(counts, axis=1) - counts / 2
    ranks = np.take_along_axis(midrank, flat.astype(np.int64), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.asarray(ranks / np.maximum(length, 1e-9), dtype=np.float32)
