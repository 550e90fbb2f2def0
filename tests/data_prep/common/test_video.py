"""Videos frame by frame: numbers, times, ends that come early, files that are none."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.common.video import Video


def write_video(path: Path, frames: int = 30, fps: float = 10.0, size: int = 64) -> Path:
    """A video whose frame i has the brightness 8 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*kind), fps, (size, size))
    for number in range(frames):
        writer.write(np.full((size, size, 3), 8 * number, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("suffix", ["avi", "mp4"])
def test_frames_have_numbers_and_times(tmp_path: Path, suffix: str) -> None:
    with Video(write_video(tmp_path / f"a.{suffix}")) as video:
        frames = list(video.frames())
    assert [frame.number for frame in frames] == list(range(30)) and video.decoded == 30
    assert np.allclose([frame.seconds for frame in frames], np.arange(30) / 10, atol=1e-3)
    for frame in frames:
        assert frame.pixels.shape == (64, 64, 3) and abs(int(frame.pixels.mean()) - 8 * frame.number) <= 4
    assert video.fps == pytest.approx(10) and video.missing_at_the_end == 0 and video.broken == []


def test_frames_in_between_are_passed_over(tmp_path: Path) -> None:
    with Video(write_video(tmp_path / "a.avi")) as video:
        frames = list(video.frames(every=7))
    assert [frame.number for frame in frames] == [0, 7, 14, 21, 28] and video.decoded == 30
    assert abs(int(frames[2].pixels.mean()) - 112) <= 4


def test_a_video_that_ends_early_gives_its_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    with Video(path) as video:
        frames = list(video.frames())
    assert 5 < len(frames) < 30 and video.said == 30 and video.missing_at_the_end == 30 - len(frames)


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    whole = write_video(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the index, at the end, is gone
    for name, message in {"empty": "0 bytes", "text": "cannot be opened", "cut": "cut off before its index"}.items():
        with pytest.raises(CorruptRecordError, match=message) as caught:
            Video(tmp_path / f"{name}.mp4")
        assert f"{name}.mp4" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DatasetNotFoundError):
        Video(tmp_path / "gone.mp4")
