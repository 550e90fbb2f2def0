"""Patches to read from one slide, the same for all who read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.worker import Step, Work

THIN = 8  # of the rows and columns of a patch that are looked at, whether all read the same


@dataclass(frozen=True)
class Setting:
    """What is read.

    Args:
        slide: file.
        coords: file with the upper-left corners of the patches, level-0 pixels, int64 (N, 2).
        size_level0: side of a patch in level-0 pixels.
        size: side of the picture wanted.
        mpp: micrometres per pixel of the picture wanted.
        count: patches read in a step, one after the other in the order of the file.
        threads: of those who can use more than one.
    """

    slide: str
    coords: str
    size_level0: int
    size: int
    mpp: float
    count: int
    threads: int


def one_by_one(setting: Setting, read: Callable[[int, int], np.ndarray]) -> Step:
    """Return a step that reads patches with a function of their corner."""
    coords = np.load(setting.coords)

    def step(i: int) -> Work:
        total = 0.0
        for x, y in choose(coords, setting.count, i):
            patch = read(int(x), int(y))
            if patch.shape != (setting.size, setting.size, 3) or patch.dtype != np.uint8:
                raise ValueError(f"a patch of {patch.shape}, {patch.dtype}")
            total += float(patch[::THIN, ::THIN].mean())
        return Work({"patches": setting.count}, {"mean": total / setting.count})

    return step


def choose(coords: np.ndarray, count: int, step: int) -> np.ndarray:
    """Corners (count, 2) of the patches of a step."""
    last = max(len(coords) - count, 0)
    first = step * count % (last + 1)
    return coords[first : first + count]
