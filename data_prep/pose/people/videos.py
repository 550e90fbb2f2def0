"""Videos as images in order with their times: frames that cannot be decoded are named, the others stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import CorruptRecordError, MissingExtraError
from data_prep.common.files import translate_os_errors

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
QUALITY = 95  # of the JPEG of a frame
PATIENCE = 250  # frames in a row that cannot be decoded, behind which no good one is looked for
FRAMES: dict[str, pl.DataType | type[pl.DataType]] = {
    "frame": pl.UInt32,  # number in the video, from 0
    "time_s": pl.Float64,
    "width": pl.UInt32,
    "height": pl.UInt32,
    "stored": pl.String,  # below the folder of the task
}


def read_video(path: str, label: str, every: int, folder: Path) -> dict[str, Any]:
    """Task: write frames as JPEG below `images`, one at a time, and `frames.parquet`.

    A frame whose damage the decoder makes up for (most codecs guess what is missing from the frames before) counts as
    decoded.

    Args:
        path: of the video.
        label: folder of its frames.
        every: write each `every`-th frame.
        folder: of the task.

    Returns:
        `fps`; `written`, `decoded` and `said` frames (as the file says; 0: it does not); `broken`: number and seconds
        of each frame that cannot be decoded; `reason` why the video cannot be used, empty if it can.
    """
    cv2 = _library()
    info: dict[str, Any] = {"fps": 0.0, "written": 0, "decoded": 0, "said": 0, "broken": [], "reason": ""}
    with translate_os_errors(Path(path)), Path(path).open("rb") as file:
        empty = not file.read(1)
    video = cv2.VideoCapture(path)
    try:
        if empty or not video.isOpened():
            info["reason"] = "the video file is empty (0 bytes)" if empty else _UNREADABLE
            return info
        rate = float(video.get(cv2.CAP_PROP_FPS))
        if not np.isfinite(rate) or not 0 < rate < 10_000:
            info["reason"] = f"the video says it has {rate:g} frames a second; convert it to one with a rate"
            return info
        said = video.get(cv2.CAP_PROP_FRAME_COUNT)
        info |= {"fps": rate, "said": int(said) if 0 < said < 1e9 else 0}
        rows = _write_frames(cv2, video, info, label, every, folder)
    finally:
        video.release()
    if not rows:
        info["reason"] = "no frame of the video can be decoded; copy or download it again"
    table = pl.DataFrame(rows, schema=FRAMES, orient="row")
    table.write_parquet(folder / "frames.parquet", compression="zstd", statistics=False)
    return info


_UNREADABLE = (
    "the video cannot be opened: it is damaged, cut off before its index (an mp4 has that at its end), or of an unknown"
    " codec; copy it again, or convert it"
)


def _write_frames(cv2: Any, video: Any, info: dict[str, Any], label: str, every: int, folder: Path) -> list[Any]:
    rows: list[Any] = []
    failed: list[int] = []
    number, last = -1, -1.0
    while len(failed) < PATIENCE:
        number += 1
        grabbed = video.grab()
        told = float(video.get(cv2.CAP_PROP_POS_MSEC)) / 1000.0 if grabbed else 0.0
        good, pixels = video.retrieve() if grabbed else (False, None)
        if not good or pixels is None:
            # nothing tells the end of a file from a broken frame but what comes behind
            failed.append(number)
            continue
        info["broken"] += [[at, round(at / info["fps"], 6)] for at in failed]
        failed = []
        # some containers have no times, or times that go back
        time = told if told > last else max(number / info["fps"], last)
        last = time
        info["decoded"] += 1
        if number % every == 0:
            stored = f"images/{label}/{number:08d}.jpg"
            rows.append((number, round(time, 6), pixels.shape[1], pixels.shape[0], stored))
            _write(cv2, folder / stored, pixels)
    info["written"] = len(rows)
    return rows


def _write(cv2: Any, path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    good, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not good:
        raise CorruptRecordError(path, "frame", "cannot be written as JPEG: it is larger than that format allows")
    with translate_os_errors(path):
        path.write_bytes(data.tobytes())


def _library() -> Any:
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("pose", "reading videos (cv2)") from None
    return cv2


def missing_at_the_end(info: dict[str, Any]) -> int:
    """How many frames fewer there are than the file says, those that are broken left out."""
    return max(0, int(info["said"]) - int(info["decoded"]) - len(info["broken"]))
