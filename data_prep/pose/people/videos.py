"""Videos as images in order with their times: frames that cannot be decoded are named, the others stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import polars as pl

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors
from data_prep.common.video import Frame, Video

QUALITY = 95  # of the JPEG of a frame
FRAMES: dict[str, pl.DataType | type[pl.DataType]] = {
    "frame": pl.UInt32,  # number in the video, from 0
    "time_s": pl.Float64,
    "width": pl.UInt32,
    "height": pl.UInt32,
    "stored": pl.String,  # below the folder of the task
}


def read_video(path: str, label: str, every: int, folder: Path) -> dict[str, Any]:
    """Task: write frames as JPEG below `images`, one at a time, and `frames.parquet`.

    Args:
        path: of the video.
        label: folder of its frames.
        every: write each `every`-th frame.
        folder: of the task.

    Returns:
        `fps`; `written`, `decoded` and `said` frames (as the file says; 0: it does not), and how many are
        `missing_at_the_end`; `broken`: number and seconds of each frame that cannot be decoded; `reason` why the video
        cannot be used, empty if it can.
    """
    info: dict[str, Any] = {"fps": 0.0, "written": 0, "decoded": 0, "said": 0, "broken": [], "reason": ""}
    info["missing_at_the_end"] = 0
    try:
        with Video(Path(path)) as video:
            rows = [_write(frame, label, folder) for frame in video.frames(every)]
            info |= {"fps": video.fps, "written": len(rows), "decoded": video.decoded, "said": video.said}
            info |= {"broken": [list(each) for each in video.broken], "missing_at_the_end": video.missing_at_the_end}
    except CorruptRecordError as error:
        return info | {"reason": error.reason}
    if not rows:
        info["reason"] = "no frame of the video can be decoded; copy or download it again"
    table = pl.DataFrame(rows, schema=FRAMES, orient="row")
    table.write_parquet(folder / "frames.parquet", compression="zstd", statistics=False)
    return info


def _write(frame: Frame, label: str, folder: Path) -> tuple[int, float, int, int, str]:
    stored = f"images/{label}/{frame.number:08d}.jpg"
    path = folder / stored
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2BGR)
    good, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not good:
        raise CorruptRecordError(path, "frame", "cannot be written as JPEG: it is larger than that format allows")
    with translate_os_errors(path):
        path.write_bytes(data.tobytes())
    return frame.number, frame.seconds, frame.pixels.shape[1], frame.pixels.shape[0], stored
