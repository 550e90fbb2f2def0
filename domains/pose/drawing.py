"""Persons drawn over images, and images joined to a video, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.common.errors import HeptadError, MissingExtraError

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]
# red, green, blue of persons in turns: colours that those with a weak sense of colour can tell apart (M. Okabe, K. Ito)
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66))
REACH = 1 << 14  # pixels beyond which nothing is drawn: the library's coordinates are short


class VideoWriterError(HeptadError, RuntimeError):
    """No video can be written."""


def draw_persons(
    pixels: Pixels,
    persons: Array,
    edges: Sequence[Sequence[int]],
    *,
    numbers: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
) -> Pixels:
    """Draw keypoints and what connects them into a copy of an image.

    Args:
        pixels: red, green, blue.
        persons: keypoints in pixels.
        edges: pairs of keypoints that are connected.
        numbers: of the persons; one number always has one colour. Default: 0, 1, 2, ...
        labels: written above each person.

    Shape:
        pixels (H, W, 3), persons (N, K, 2) -> (H, W, 3).
    """
    cv2 = library()
    drawn = np.ascontiguousarray(pixels).copy()
    width = max(1, round(max(pixels.shape[:2]) / 320))
    scale = max(pixels.shape[:2]) / 1100
    for at, points in enumerate(persons):
        colour = COLOURS[(at if numbers is None else int(numbers[at])) % len(COLOURS)]
        places = np.clip(np.round(np.nan_to_num(points)), -REACH, REACH).astype(int).tolist()
        for start, end in edges:
            cv2.line(drawn, places[start], places[end], colour, width, cv2.LINE_AA)
        for place in places:
            cv2.circle(drawn, place, width + 1, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(drawn, place, width, colour, -1, cv2.LINE_AA)
        if labels is not None:
            _write(cv2, drawn, labels[at], np.asarray(places), colour, scale)
    return drawn


def _write(cv2: Any, drawn: Pixels, label: str, places: NDArray[Any], colour: Sequence[int], scale: float) -> None:
    """A label in a box above a person, moved into the picture."""
    scale, thick = max(scale, 0.3), max(1, round(scale * 1.5))
    (wide, high), below = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    left = int(np.clip(places[:, 0].min(), 0, max(drawn.shape[1] - wide, 0)))
    bottom = int(np.clip(places[:, 1].min() - 3 * thick - 2, high + below, max(drawn.shape[0] - below, high + below)))
    cv2.rectangle(drawn, (left, bottom - high - below), (left + wide, bottom + below), colour, -1)
    dark = sum(colour) < 380
    ink = (255, 255, 255) if dark else (0, 0, 0)
    cv2.putText(drawn, label, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thick, cv2.LINE_AA)


def png(pixels: Pixels) -> bytes:
    """An image (H, W, 3) red, green, blue as the bytes of a PNG file."""
    cv2 = library()
    _, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return bytes(data.tobytes())


class VideoSink:
    """Takes the frames of a video; those of another size than the first are cut or padded.

    Args:
        path: of the file.
        fps: frames a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self.frames = 0
        self._writer: Any = None
        self._size = (0, 0)

    def add(self, pixels: Pixels) -> None:
        """Write one frame.

        Raises:
            VideoWriterError: there is no encoder.
        """
        cv2 = library()
        if self._writer is None:
            height, width = (max(2, side - side % 2) for side in pixels.shape[:2])  # encoders want even sides
            self._size = height, width
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), code, self.fps, (width, height))
            if not self._writer.isOpened():
                raise VideoWriterError(f"{self.path}: cannot be written: this OpenCV has no MPEG-4 encoder")
        height, width = self._size
        canvas = np.zeros((height, width, 3), np.uint8)
        part = pixels[:height, :width]
        canvas[: part.shape[0], : part.shape[1]] = part
        self._writer.write(cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()


@contextmanager
def video_file(path: Path, fps: float) -> Iterator[VideoSink]:
    """Write a video that is there whole or not at all; nothing is written without a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = VideoSink(path.with_name(f".{path.stem}.part{path.suffix}"), fps)
    try:
        yield sink
        sink.close()
        if sink.frames:
            sink.path.replace(path)
    finally:
        sink.close()
        sink.path.unlink(missing_ok=True)


def library() -> Any:
    """OpenCV.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("opencv-python-headless (cv2)", "pose") from None
    return cv2
