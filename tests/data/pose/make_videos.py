"""Makes small videos of a moving disc, whole and damaged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

CODES = {".avi": "MJPG", ".mp4": "mp4v"}


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A disc that moves to the right with each frame; blue, green, red."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    return cv2.circle(pixels, (8 + 2 * number, height // 2), 6, (0, 200, 255), -1)


def write_video(path: Path, frames: int = 12, fps: float = 25.0) -> Path:
    """A video whose codec follows from its suffix: each frame by itself (avi), or from those before (mp4)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*CODES[path.suffix]), fps, (64, 48))
    for number in range(frames):
        writer.write(picture(number))
    writer.release()
    return path


def _places(data: bytes) -> list[int]:
    """Where the frames of an avi file begin."""
    start = data.index(b"movi")
    return [match.start() for match in re.finditer(b"00dc", data) if match.start() > start]


def break_frames(path: Path, frames: Iterable[int]) -> Path:
    """Overwrite frames of an avi file with zeros."""
    data = bytearray(path.read_bytes())
    places = _places(bytes(data))
    for frame in frames:
        at = places[frame]
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        data[at + 8 : at + 8 + size] = bytes(size)
    path.write_bytes(data)
    return path


def cut_after(path: Path, frames: int) -> Path:
    """Cut an avi file off inside the frame behind so many."""
    data = path.read_bytes()
    path.write_bytes(data[: _places(data)[frames] + 20])
    return path
