"""A video becomes persons, tracks, and poses in space, through the commands that users type."""

from __future__ import annotations

import json

import cv2
import numpy as np
import polars as pl
import pytest
from PIL import Image

from domains.pose.evaluation3d import PREDICTED
from domains.pose.layouts import H36M_17
from tests.apps.pose_helpers import fit, here, prepare_coco, prepare_human36m, refusal
from tests.data.pose.make_videos import break_frames, write_video

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

ALL = ("--model.shown", "0.0")  # a network of one step is sure of nobody
ONE = ("--trainer.max_steps", "1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each system: one step, and one epoch."""
    folder = tmp_path_factory.mktemp("runs")
    fit("people", prepare_coco(folder, train=5, valid=2), folder / "found", *ONE)
    fit("lift", prepare_human36m(folder / "lifted"), folder / "lift", "--trainer.max_epochs", "1")
    return folder


@pytest.fixture(scope="module")
def predicted(runs, tmp_path_factory):
    """What is predicted of a video of which one frame is broken."""
    folder = tmp_path_factory.mktemp("predicted")
    video = break_frames(write_video(folder / "walk.avi", frames=12, fps=25.0), [5])
    words = ("--raw", video, "--out", folder / "out", "--workers", "1", "--max_rejects", "0.1", *ALL)
    assert here("predict", "--run", runs / "found", *words) == 0
    return folder / "out"


def test_persons_of_a_video_are_followed(predicted):
    table = pl.read_parquet(predicted / "predictions.parquet")
    assert table["frame"].unique().sort().to_list() == [*range(5), *range(6, 12)]
    tracks = pl.read_parquet(predicted / "tracks.parquet")
    assert len(tracks) == len(table)
    assert tracks.select("video", "frame", "track").is_unique().all()
    assert tracks.select("layout", "width", "height", "fps", "step").unique().rows() == [("coco-17", 64, 48, 25.0, 1)]
    np.testing.assert_allclose(tracks["time_s"], tracks["frame"] / 25.0, atol=1e-3)
    assert set(tracks["keypoints"].list.len()) == {34}


def test_results_never_show_a_constant_as_a_confidence(predicted):
    entries = json.loads((predicted / "coco_results.json").read_text())
    assert {entry["image_id"] for entry in entries} == set(range(1, 12))
    assert {value for entry in entries for value in entry["keypoints"][2::3]} == {1}
    columns = pl.read_parquet(predicted / "predictions.parquet").columns
    assert not [name for name in columns if "visib" in name or "confid" in name]


def test_the_drawn_video_lasts_as_long(predicted):
    video = cv2.VideoCapture(str(predicted / "overlays" / "000-walk.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (12, 25)  # the broken one is repeated
    good, pixels = video.read()
    assert good
    assert pixels.shape == (48, 64, 3)


def test_tracks_are_lifted_by_the_next_command(predicted, runs, tmp_path):
    words = ("predict", "--run", runs / "lift", "--raw", predicted, "--workers", "1")
    said = refusal(*words, "--out", tmp_path / "refused")
    assert "its joints are coco-17, the model's h36m-17: --layout coco-17 makes them of the former" in said
    assert not (tmp_path / "refused" / "predictions.parquet").exists()
    assert here(*words, "--out", tmp_path / "out", "--layout", "coco-17", "--model.pictures", "1") == 0
    poses = pl.read_parquet(tmp_path / "out" / "poses_3d.parquet")
    assert poses.columns == ["clip", "person", "video", "frame", "time_s", "joint", "x_mm", "y_mm", "z_mm"]
    tracks = pl.read_parquet(predicted / "tracks.parquet")
    longest = tracks["track"].mode()[0]
    mine = poses.filter(pl.col("person") == str(longest))
    frames = tracks.filter(pl.col("track") == longest)["frame"]
    assert mine["frame"].unique().sort().to_list() == list(range(frames.min(), frames.max() + 1))
    assert mine["joint"].to_list()[:17] == list(H36M_17.joints)
    assert poses.select(pl.col("x_mm", "y_mm", "z_mm").is_finite().all()).row(0) == (True, True, True)
    np.testing.assert_allclose(mine["time_s"], mine["frame"] / 25.0, atol=1e-3)
    with (
        Image.open(tmp_path / "out" / "poses.png") as sheet,
        Image.open(next((tmp_path / "out").rglob("*.gif"))) as gif,
    ):
        assert sheet.width > 400
        assert gif.n_frames > 1


def test_lifting_the_test_split_agrees_with_its_table(runs, tmp_path):
    assert here("predict", "--run", runs / "lift", "--out", tmp_path / "out", "--model.pictures", "0") == 0
    poses = pl.read_parquet(tmp_path / "out" / "poses_3d.parquet")
    table = pl.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert len(poses) == 17 * len(table)
    flat = np.concatenate(table[PREDICTED].to_list()).reshape(-1, 3)
    np.testing.assert_allclose(poses.select("x_mm", "y_mm", "z_mm").to_numpy(), flat, atol=1e-3)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".png", ".gif")]


def test_images_are_drawn_as_many_as_asked(runs, tmp_path):
    words = ("--raw", runs / "raw" / "train2017", "--out", tmp_path / "out", "--workers", "1", *ALL)
    assert here("predict", "--run", runs / "found", *words, "--model.pictures", "2") == 0
    drawn = sorted((tmp_path / "out" / "overlays").iterdir())
    assert [path.name for path in drawn] == ["000000-000001.png", "000001-000002.png"]
    assert not (tmp_path / "out" / "tracks.parquet").exists()
    with Image.open(drawn[0]) as picture, Image.open(runs / "raw/train2017/000001.png") as before:
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(before)).max() > 50
    table = pl.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert table["image_id"].unique().sort().to_list() == [1, 2, 3, 4, 5]


def test_a_second_prediction_leaves_nothing_of_the_first(runs, predicted, tmp_path):
    words = ("predict", "--run", runs / "found", "--out", tmp_path / "out", "--workers", "1", *ALL, "--raw")
    assert here(*words, write_video(tmp_path / "walk.mp4", frames=3)) == 0
    assert (tmp_path / "out" / "tracks.parquet").exists()
    assert here(*words, runs / "raw" / "val2017") == 0
    assert not (tmp_path / "out" / "tracks.parquet").exists()
    assert not list((tmp_path / "out").rglob("*.mp4"))


@pytest.mark.parametrize("system", ["found", "lift"])
def test_explain(runs, system):
    assert here("explain", "--run", runs / system) == 0
    assert "data:image/png;base64," in (runs / system / "explain.html").read_text()
    table = pl.read_parquet(runs / system / "explain.parquet")
    keys = ["case", "query"] if system == "found" else ["case", "block", "joint"]
    np.testing.assert_allclose(table.group_by(keys).agg(pl.col("attention").sum())["attention"], 1.0, atol=1e-5)


def test_options_of_raw_data_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        here("predict", "--help")
    said = capsys.readouterr().out
    assert all(name in said for name in ("--layout LAYOUT", "--size SIZE", "--fps FPS", "--every EVERY"))
