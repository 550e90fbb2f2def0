"""Videos as frames in order with their numbers and times, one at a time: memory does not grow with the video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
PATIENCE = 250  # frames in a row that cannot be decoded, behind which no good one is looked for
_FASTEST = 10_000  # frames a second


class Frame(NamedTuple):
    """One frame.

    Args:
        number: in the video, from 0; broken frames count.
        seconds: when it is shown.
        pixels: RGB.

    Shape:
        pixels (height, width, 3) uint8.
    """

    number: int
    seconds: float
    pixels: npt.NDArray[np.uint8]


class Video:
    """A video file that is read once, from its beginning; a context manager.

    A frame whose damage the decoder makes up for (most codecs guess what is missing from the frames before) counts as
    decoded.

    Args:
        path: the file.

    Attributes:
        fps: frames a second, as the file says.
        said: frames that the file says it has; 0: it does not.
        decoded: frames that were decoded so far.
        broken: number and seconds of each frame that could not be decoded, those at the end left out.

    Raises:
        DatasetNotFoundError: the file is not there.
        CorruptRecordError: it cannot be opened, or says nothing of its rate.
    """

    def __init__(self, path: Path) -> None:
        with translate_os_errors(path), path.open("rb") as file:
            if not file.read(1):
                raise CorruptRecordError(path, "byte 0", "the video file is empty (0 bytes)")
        self.path = path
        self.decoded = 0
        self.broken: list[tuple[int, float]] = []
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise CorruptRecordError(
                path,
                "header",
                "the video cannot be opened: it is damaged, cut off before its index (an mp4 has that at its end), or "
                "of an unknown codec; copy it again, or convert it",
            )
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        if not np.isfinite(self.fps) or not 0 < self.fps < _FASTEST:
            self._capture.release()
            reason = f"the video says it has {self.fps:g} frames a second; convert it to one with a rate"
            raise CorruptRecordError(path, "header", reason)
        said = float(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.said = int(said) if 0 < said < 1e9 else 0

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Decode the frames; those in between are passed over quickly.

        Args:
            every: give each `every`-th frame.
        """
        failed: list[int] = []
        number, last = -1, -1.0
        while len(failed) < PATIENCE:
            number += 1
            good = self._capture.grab()
            told = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000 if good else 0.0
            pixels = None
            if good and number % every == 0:
                good, pixels = self._capture.retrieve()
            if not good:
                # nothing tells the end of a file from a broken frame but what comes behind
                failed.append(number)
                continue
            self.broken += [(at, round(at / self.fps, 6)) for at in failed]
            failed = []
            # some containers have no times, or times that go back
            last = told if told > last else max(number / self.fps, last)
            self.decoded += 1
            if pixels is not None:
                yield Frame(number, round(last, 6), np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8))

    @property
    def missing_at_the_end(self) -> int:
        """How many frames fewer there were than the file says, broken ones left out; once all are read."""
        return max(0, self.said - self.decoded - len(self.broken))
