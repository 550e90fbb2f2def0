"""On which sides of the split each user is: counted over all rows written, in bounded memory.

Each chunk leaves its distinct users, as hashes in ascending order, with the splits it has them in; the chunks are then
merged one range of hashes at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.hashing import U64
from data_prep.common.splits import SPLITS, merge_sides
from data_prep.ctr.tokens import dictionary, hash_or_empty

ENTRIES = 4_000_000  # users of chunks that one task holds at a time
_HASHES, _SIDES = "groups.npy", "sides.npy"


def write_sides(users: pl.Series, split: npt.NDArray[np.uint8], folder: Path) -> tuple[U64, int]:
    """Hash of each row's user; the distinct users and their splits go into `groups.npy` and `sides.npy`.

    Rows without a user are no group: nobody knows whose they are.

    Shape:
        users (N,) String, split (N,) uint8 -> (N,) uint64, and the number of distinct users.
    """
    codes, tokens = dictionary(users)
    hashes = hash_or_empty(tokens)
    sides = np.zeros(len(hashes), dtype=np.uint8)
    for index in range(len(SPLITS)):
        sides[codes[split == index]] |= np.uint8(1 << index)
    order = 1 + np.argsort(hashes[1:], kind="stable")
    order = order[sides[order] > 0]
    np.save(folder / _HASHES, hashes[order])
    np.save(folder / _SIDES, sides[order])
    return hashes[codes], len(order)


def plan_ranges(entries: int) -> list[tuple[int, int]]:
    """Ranges of hashes (first, last) with about ENTRIES entries each."""
    pieces = max(1, -(-entries // ENTRIES))
    bounds = [(1 << 64) * piece // pieces for piece in range(pieces + 1)]
    return [(low, high - 1) for low, high in pairwise(bounds)]


def merge_range(digests: Sequence[Path], first: int, last: int, folder: Path) -> dict[str, Any]:
    """Count the users of one range of hashes, and those on more than one side.

    Args:
        digests: folders of all chunks.
        first: smallest hash.
        last: largest hash.
        folder: where a task may write; nothing is written.

    Returns:
        groups, on_two_sides, and one of the latter: its hash (as text: JSON has no such numbers) and the index of a
        chunk that holds it.
    """
    parts = []
    for digest in digests:
        hashes = np.load(digest / _HASHES, mmap_mode="r")
        low, high = np.searchsorted(hashes, np.array([first, last], np.uint64), side="left")
        high += int(high < len(hashes) and int(hashes[high]) == last)
        parts.append((np.array(hashes[low:high]), np.load(digest / _SIDES, mmap_mode="r")[low:high]))
    hashes, sides = merge_sides([part for part, _ in parts], [part for _, part in parts])
    leaking = hashes[(sides & (sides - np.uint8(1))) > 0]  # more than one bit
    found: dict[str, Any] = {"groups": len(hashes), "on_two_sides": len(leaking)}
    if len(leaking):
        found["example"] = str(int(leaking[0]))
        found["chunk"] = next(index for index, (part, _) in enumerate(parts) if leaking[0] in part)
    return found
