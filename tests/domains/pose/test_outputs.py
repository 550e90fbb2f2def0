"""Drawings, videos, tracks and tables of joints that a prediction leaves."""

from __future__ import annotations

import cv2
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.pose import drawing
from domains.pose.data3d import SequenceData
from domains.pose.drawing import VideoWriterError, draw_persons, video_file
from domains.pose.evaluation3d import PREDICTED
from domains.pose.lift_outputs import joint_table
from domains.pose.people_outputs import Keypoints, follow, tracks_table
from tests.domains.pose.sequence_helpers import write_prepared

EDGES = [(0, 1), (1, 2)]
WALK = np.array([[10.0, 10.0], [20.0, 30.0], [30.0, 60.0]])


def near(pixel, colour):
    """Lines have smooth edges."""
    return np.abs(pixel.astype(int) - colour).max() < 25


def test_a_person_is_drawn_where_it_is_and_nowhere_else():
    pixels = np.zeros((80, 120, 3), np.uint8)
    drawn = draw_persons(pixels, WALK[None] + [60, 0], EDGES)
    assert not pixels.any()  # the image itself stays as it is
    changed = drawn.any(-1)
    assert changed[10, 70]
    assert changed[20, 75]
    assert not changed[:, :60].any()
    assert near(drawn[20, 75], drawing.COLOURS[0])


def test_one_number_has_one_colour():
    pixels = np.zeros((80, 120, 3), np.uint8)
    persons = np.stack([WALK, WALK + np.array([60, 0])])
    both = draw_persons(pixels, persons, EDGES, numbers=[3, 1], labels=["3: 0.9", "1: 0.8"])
    assert near(both[20, 15], drawing.COLOURS[3])
    assert near(both[20, 75], drawing.COLOURS[1])


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(-1e9, 1e9))
def test_persons_beyond_the_picture_break_nothing(x, y):
    persons = np.array([[[x, y], [5, 5], [1e7, -1e7]]])
    drawn = draw_persons(np.zeros((20, 30, 3), np.uint8), persons, EDGES, labels=["a"])
    assert drawn.shape == (20, 30, 3)


def test_frames_of_other_sizes_are_cut_or_padded(tmp_path):
    with video_file(tmp_path / "out.mp4", 10.0) as sink:
        for size in ((40, 60), (20, 30), (50, 90)):
            sink.add(np.full((*size, 3), 200, np.uint8))
    video = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    frames = [video.read()[1] for _ in range(3)]
    assert [frame.shape for frame in frames] == [(40, 60, 3)] * 3
    assert frames[1][:15, :25].mean() > 150 > 60 > frames[1][25:, 35:].mean()


def test_no_half_written_video_stays(tmp_path):
    with pytest.raises(KeyError), video_file(tmp_path / "out.mp4", 10.0) as sink:
        sink.add(np.zeros((40, 60, 3), np.uint8))
        raise KeyError
    with video_file(tmp_path / "none.mp4", 10.0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_encoder_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2.VideoWriter, "fourcc", lambda *code: 0x21212121)
    with pytest.raises(VideoWriterError, match="has no MPEG-4 encoder"), video_file(tmp_path / "a.mp4", 9.0) as sink:
        sink.add(np.zeros((40, 60, 3), np.uint8))


def detections(video: str, frames: list[int], points: np.ndarray, step: int = 1) -> pl.DataFrame:
    rows = [
        {
            **{"row": 100 * len(video) + frame, "video": video, "frame": frame, "time_s": frame / 25},
            **{
                "fps": 25.0 / step,
                "step": step,
                "width": 640,
                "height": 480,
                "score": 0.9,
                "keypoints": (points + frame).ravel().tolist(),
            },
        }
        for frame in frames
    ]
    return pl.DataFrame(rows)


def test_each_video_is_followed_by_itself():
    keypoints = Keypoints("three", [0.1] * 3, EDGES)
    single = detections("", [0], WALK).with_columns(pl.lit(None, pl.Int64).alias("frame"))
    table = pl.concat([single, detections("a", [0, 1, 2, 40], WALK), detections("bb", [0, 2, 4], WALK, step=2)])
    followed = follow(table, keypoints)
    assert followed["track"].to_list() == [-1, 0, 0, 0, 1, 0, 0, 0]  # forgotten after a second
    tracks = tracks_table(followed, keypoints.layout)
    assert tracks["video"].to_list() == ["a"] * 4 + ["bb"] * 3
    assert tracks["layout"].unique().to_list() == ["three"]


def test_a_row_for_each_joint_with_the_place_in_the_video(tmp_path):
    data = SequenceData(str(write_prepared(tmp_path / "prepared", frames=12)))
    store = data.clips("test")
    names, counts = store.frame["name"].to_list(), store.frame["frames"].to_list()
    frames = [frame for count in counts for frame in range(count)]
    poses = np.arange(len(frames) * 45, dtype=np.float32).reshape(-1, 45)
    table = pl.DataFrame(
        {
            "row": range(len(frames)),
            "clip": [name for name, count in zip(names, counts, strict=True) for _ in range(count)],
            "frame": frames,
            PREDICTED: poses.tolist(),
        }
    )
    store.frame = store.frame.with_columns(
        person=pl.lit("3"), first_frame=pl.lit(100), step=pl.lit(2), start_s=pl.lit(4.0)
    )
    found = pl.concat(joint_table(table, store, data._layout))
    assert len(found) == 15 * len(frames)
    row = found.row(15 * 5 + 2, named=True)
    assert (row["joint"], row["frame"], row["time_s"], row["person"]) == ("left_shoulder", 110, 4.1, "3")
    assert [row["x_mm"], row["y_mm"], row["z_mm"]] == poses[5, 6:9].tolist()
    assert "frame_name" not in found.columns
    named = [None, [f"{at}.jpg" for at in range(counts[1])], *[None] * (len(counts) - 2)]
    store.frame = store.frame.with_columns(frame_names=pl.Series(named, dtype=pl.List(pl.String)))
    found = pl.concat(joint_table(table, store, data._layout)).filter(pl.col("clip") == names[1])
    assert found["frame_name"][::15].to_list() == named[1]
