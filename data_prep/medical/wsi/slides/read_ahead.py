"""Patches of a slide in batches, read by threads ahead of who takes them.

Each thread has a handle of its own: opening a slide costs 11 ms, and after an error OpenSlide's handle is useless for
everybody. A batch is always made of the same patches, so nothing depends on which thread was faster.

Patches are sampled once, by area, from the best level to the size of the encoder's images. (CLAM and ACMIL read the
pixels of a level and resize them bilinearly, which gives slightly other pixels.)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.medical.wsi.patches.coords import PatchGrid
from data_prep.medical.wsi.slides.reader import OpenSlideSlide, open_slide
from data_prep.medical.wsi.slides.slide import Image, RegionError, Slide, resample

AHEAD = 3  # batches that are read while one is encoded
PIECE = 8  # patches that a thread reads at a time


@dataclass
class Batch:
    """Some patches of a slide.

    Args:
        start: number of the first one.
        images: (B, S, S, 3) uint8; white where a patch cannot be read.
        bad: place in the batch -> why it cannot be read.
        retried: places which were read from the next level.
    """

    start: int
    images: npt.NDArray[np.uint8]
    bad: dict[int, str] = field(default_factory=dict)
    retried: set[int] = field(default_factory=set)


class Handles:
    """A slide, opened once in each thread.

    Args:
        path: the slide.

    Raises:
        PrepError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.local, self.lock = path, threading.local(), threading.Lock()
        self.first = open_slide(path)
        self.opened = [self.first]

    def get(self) -> Slide:
        """The handle of this thread; pictures, which are held in memory, and plain TIFF have one for all."""
        if not isinstance(self.first, OpenSlideSlide):
            return self.first
        slide: Slide | None = getattr(self.local, "slide", None)
        if slide is None:
            slide = self.local.slide = open_slide(self.path)
            with self.lock:
                self.opened.append(slide)
        return slide

    def __enter__(self) -> Handles:
        return self

    def __exit__(self, *_: object) -> None:
        for slide in self.opened:
            slide.close()


def read_batches(handles: Handles, grid: PatchGrid, side: int, batch_size: int, threads: int) -> Iterator[Batch]:
    """All patches in order, a few batches ahead of who takes them.

    Args:
        handles: of the slide.
        grid: where the patches are.
        side: pixels of an image.
        batch_size: images per batch, the last one may have fewer.
        threads: how many read.
    """
    count = len(grid.coords)
    starts = iter(range(0, count, batch_size))
    waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="patches") as pool:
        try:
            while True:
                while len(waiting) < AHEAD and (start := next(starts, None)) is not None:
                    size = min(batch_size, count - start)
                    batch = Batch(start, np.full((size, side, side, 3), 255, dtype=np.uint8))
                    pieces = range(0, size, PIECE)
                    waiting.append((batch, [pool.submit(_fill, handles, grid, batch, piece) for piece in pieces]))
                if not waiting:
                    return
                batch, futures = waiting.popleft()
                for future in futures:
                    future.result()
                yield batch
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()


def _fill(handles: Handles, grid: PatchGrid, batch: Batch, first: int) -> None:
    slide, side = handles.get(), batch.images.shape[1]
    # Never finer than the patches were meant to be: an encoder with larger images gets enlarged ones.
    size = min(side, grid.size)
    for place in range(first, min(first + PIECE, len(batch.images))):
        x, y = grid.coords[batch.start + place].tolist()
        try:
            image, retried = read_or_retry(slide, x, y, grid.size_level0, size)
        except RegionError as error:
            batch.bad[place] = str(error).replace(f"{slide.path.parent}/", "")
            continue
        if retried:
            batch.retried.add(place)
        batch.images[place] = image if size == side else cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)


def read_or_retry(slide: Slide, x: int, y: int, size_level0: float, size: int) -> tuple[Image, bool]:
    """A patch, from the next coarser level where the right one cannot be decoded; there is no third try.

    Args:
        slide: to read.
        x: left edge in level-0 pixels.
        y: upper edge in level-0 pixels.
        size_level0: side in level-0 pixels.
        size: side in output pixels.

    Returns:
        (size, size, 3) uint8, RGB, and whether it is from the next level.

    Raises:
        RegionError: neither level can be decoded there.
    """
    try:
        return slide.read_patch(x, y, size_level0, size), False
    except RegionError as error:
        downsamples = slide.level_downsamples
        best = slide.best_level(size_level0 / size)
        coarser = [level for level, found in enumerate(downsamples) if found > downsamples[best]]
        if not coarser:
            raise
        level = min(coarser, key=lambda index: downsamples[index])
        side = max(1, round(size_level0 / downsamples[level]))
        try:
            return resample(slide.read_region(x, y, level, side, side), size, size), True
        except RegionError:
            raise error from None
