"""2D joints of other programs are prepared for lifting: layouts are named, never guessed; what is missing is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, PrepError
from data_prep.pose.apply import apply
from data_prep.pose.sequences.apply_keypoints import runs
from data_prep.pose.sequences.errors import LayoutError
from data_prep.pose.sequences.keypoint_files import TRACKS
from data_prep.pose.sequences.skeletons import H36M_17, HUMANEVA_15
from tests.data.pose.make_sequences import EVA_META, save_npz
from tests.domains.pose.sequence_helpers import seen

WIDE = {"layout": "coco-17", "size": "640x480"}


def prepared(folder: Path, skeleton: Any = HUMANEVA_15) -> Path:
    """As much of a preparation as is looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    card = {"format": "heptad/1", "domain": "pose", "kind": "sequences", "name": "by hand", "licence": "none"}
    card |= {"layout": skeleton.describe(), "fps": [50.0], "splits": {}}
    (folder / "dataset.json").write_text(json.dumps(card))
    return folder


def walking(frames: int, joints: int = 17, seed: int = 0) -> np.ndarray:
    """Keypoints in pixels of 640 x 480 that move a little."""
    rng = np.random.default_rng(seed)
    start = rng.uniform([200, 100], [400, 400], (joints, 2))
    return start + np.arange(frames)[:, None, None] * [1.0, 0.5]


def results(path: Path, persons: dict[int | None, np.ndarray], first: int = 0, names: bool = False) -> Path:
    """A results file of COCO: track -> keypoints, NaN where the person is not found."""
    entries = []
    for track, points in persons.items():
        for frame, pose in enumerate(points):
            if np.isfinite(pose).all():
                flat = np.concatenate([pose, np.full((len(pose), 1), 0.9)], axis=1).ravel().tolist()
                image = f"frame{first + frame}.jpg" if names else first + frame
                entry = {"image_id": image, "category_id": 1, "keypoints": flat, "score": 0.8}
                entries.append(entry | ({} if track is None else {"track_id": track}))
    path.write_text(json.dumps(entries))
    return path


def tracks(path: Path, points: np.ndarray, *, layout: str = "coco-17", step: int = 1, **columns: Any) -> Path:
    """A table of tracks as a prediction of persons leaves it."""
    rows = [
        {
            **{"video": "walk.mp4", "frame": 10 + step * at, "time_s": 0.4 + at * step / 25, "fps": 25.0 / step},
            **{"step": step, "width": 640, "height": 480, "layout": layout, "track": 3, "score": 0.9},
            "keypoints": pose.ravel().tolist(),
        }
        | columns
        for at, pose in enumerate(points)
        if np.isfinite(pose).all()
    ]
    pl.DataFrame(rows).write_parquet(path)
    return path


def encode(root: Path, raw: Path | list[Path], out: Path, **options: Any) -> tuple[dict[str, Any], pl.DataFrame]:
    card = apply(root, raw, out, **{"progress": False, "executor": "serial", **options})
    return card, pl.read_parquet(out / "predict" / "part-00000.parquet")


def test_results_of_coco_become_clips_of_the_model_s_joints(tmp_path):
    points = walking(30)
    path = results(tmp_path / "found.json", {7: points, 2: points[:12] + 50}, first=5)
    card, table = encode(prepared(tmp_path / "prep"), path, tmp_path / "out", **WIDE, fps=30.0)
    assert (card["poses"], card["layout"]["name"], card["fps"]) == (False, "humaneva-15", [30.0])
    assert table["person"].to_list() == ["7", "2"]
    assert table["frames"].to_list() == [30, 12]
    assert table["first_frame"].to_list() == [5, 5]
    tensors = load_file(tmp_path / "out" / table["files"][0][0])
    found = dict(zip(HUMANEVA_15.joints, tensors["keypoints_2d"].swapaxes(0, 1), strict=True))
    np.testing.assert_allclose(found["thorax"], points[:, [5, 6]].mean(1), atol=1e-3)
    np.testing.assert_allclose(found["pelvis"], points[:, [11, 12]].mean(1), atol=1e-3)
    np.testing.assert_allclose(found["right_wrist"], points[:, 10], atol=1e-3)
    assert tensors["valid_2d"].all()
    again, _ = encode(tmp_path / "prep", path, tmp_path / "out", **WIDE, fps=30.0)
    assert again == card


def test_a_wrong_rate_is_refused(tmp_path):
    root = prepared(tmp_path / "root")
    path = tracks(tmp_path / TRACKS, walking(40), step=2)
    with pytest.raises(ConfigError, match=r"12\.5 a second, not --fps 25"):
        encode(root, path, tmp_path / "out", layout="coco-17", fps=25.0)
    card, _ = encode(root, path, tmp_path / "out", layout="coco-17", fps=12.5)
    assert card["splits"]["predict"]["rows"] == 1


def test_joints_of_no_confidence_are_missing(tmp_path):
    path = results(tmp_path / "results.json", {None: walking(40)})
    entries = json.loads(path.read_text())
    for entry in entries[5:9]:
        entry["keypoints"][27:30] = [9999.0, 9999.0, 0.0]
    path.write_text(json.dumps(entries))
    _, table = encode(prepared(tmp_path / "root"), path, tmp_path / "out", **WIDE)
    clip = load_file(tmp_path / "out" / table["files"][0][0])
    assert (~clip["valid_2d"].all(axis=1)).sum() == 4 and clip["keypoints_2d"].max() < 1000
    assert table["filled_frames"].to_list() == [4]


def test_named_frames_without_the_person_are_gaps(tmp_path):
    points = walking(120)
    away = points.copy()
    away[40:80] = np.nan
    path = results(tmp_path / "results.json", {1: points, 2: away}, names=True)
    _, table = encode(prepared(tmp_path / "root"), path, tmp_path / "out", fps=50.0, **WIDE)
    assert sorted(table["frames"].to_list()) == [40, 40, 120]


def test_short_gaps_are_filled_and_long_ones_cut(tmp_path):
    points = walking(60)
    whole = points.copy()
    points[10:13] = points[30:45] = np.nan
    path = results(tmp_path / "found.json", {1: points})
    _, table = encode(prepared(tmp_path / "prep"), path, tmp_path / "out", **WIDE, fps=25.0)
    assert table.select("first_frame", "frames", "filled_frames").rows() == [(0, 30, 3), (45, 15, 0)]
    tensors = load_file(tmp_path / "out" / table["files"][0][0])
    np.testing.assert_allclose(tensors["keypoints_2d"][:, 4], whole[:30, 9], atol=1e-3)  # left wrist, in a line
    assert (~tensors["valid_2d"]).all(1).nonzero()[0].tolist() == [10, 11, 12]


def test_without_tracks_the_best_of_each_frame_is_taken_and_told(tmp_path, capfd):
    path = results(tmp_path / "found.json", {None: walking(9)}, names=True)
    entries = json.loads(path.read_text())
    entries.append({**entries[0], "score": 0.1, "keypoints": [value + 9 for value in entries[0]["keypoints"]]})
    path.write_text(json.dumps(entries))
    _, table = encode(prepared(tmp_path / "prep"), path, tmp_path / "out", **WIDE)
    said = capfd.readouterr().err
    assert "says no track_id: the best detection of each image is taken for one person" in said
    assert "does not say its frame rate; that of the training data is taken, 50 a second" in said
    assert table["frame_names"][0].to_list()[8] == "frame8.jpg"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "640x480"}, "name their layout, such as coco-17 or h36m-17"),
        ({"layout": "coco-17"}, "does not say how large the picture is; give --size"),
        ({"layout": "coco17", "size": "640x480"}, "layout 'coco17' is unknown; the layouts are h36m-17"),
        ({"layout": "mpi-inf-3dhp-17", "size": "640x480"}, "and no conversion is defined"),
        ({**WIDE, "size": "640"}, "give width and height in pixels, as in 1920x1080"),
        ({**WIDE, "every": 2}, "every: is for videos"),
        ({"layout": "humaneva-15", "size": "640x480"}, "51 numbers, where 15 keypoints have 45"),
    ],
)
def test_nothing_is_guessed(tmp_path, options, words):
    path = results(tmp_path / "found.json", {1: walking(9)})
    with pytest.raises(PrepError, match=words):
        encode(prepared(tmp_path / "prep"), path, tmp_path / "out", **options)


def test_tracks_name_their_layout_and_are_converted_only_when_asked(tmp_path):
    (tmp_path / "run").mkdir()
    points = walking(20)
    points[4:6] = np.nan
    tracks(tmp_path / "run" / TRACKS, points, step=2)
    root = prepared(tmp_path / "prep", H36M_17)
    with pytest.raises(LayoutError, match=r"walk\.mp4, person 3: its joints are coco-17.*--layout coco-17 makes them"):
        encode(root, tmp_path / "run", tmp_path / "out")
    _, table = encode(root, tmp_path / "run", tmp_path / "out", layout="coco-17")
    row = table.row(0, named=True)
    assert (row["recording"], row["person"], row["fps"], row["step"]) == ("walk.mp4", "3", 12.5, 2)
    assert (row["frames"], row["first_frame"], row["start_s"], row["filled_frames"]) == (20, 10, 0.4, 2)
    assert (row["width"], row["height"]) == (640, 480)
    with pytest.raises(LayoutError, match="its joints are coco-17, not h36m-17 as --layout says"):
        encode(root, tmp_path / "run", tmp_path / "other", layout="h36m-17")
    with pytest.raises(ConfigError, match="its picture has 640 x 480 pixels, not --size 100x100"):
        encode(root, tmp_path / "run", tmp_path / "other", layout="coco-17", size="100x100")


def test_tracks_of_another_set_of_keypoints_are_refused(tmp_path):
    path = tracks(tmp_path / TRACKS, walking(9, 14), layout="crowdpose-14")
    with pytest.raises(LayoutError, match="its joints are crowdpose-14, the model's humaneva-15"):
        encode(prepared(tmp_path / "prep"), path, tmp_path / "out")
    path = tracks(tmp_path / TRACKS, walking(9, 4), layout="")
    with pytest.raises(LayoutError, match="4 joints do not say which they are"):
        encode(prepared(tmp_path / "prep"), path, tmp_path / "out")


def test_damaged_tracks_are_refused(tmp_path):
    path = tmp_path / TRACKS
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(CorruptRecordError, match="is no Parquet file"):
        encode(prepared(tmp_path / "prep"), path, tmp_path / "out")
    tracks(path, walking(5))
    pl.read_parquet(path).drop("fps").write_parquet(path)
    with pytest.raises(CorruptRecordError, match="column fps: is missing"):
        encode(tmp_path / "prep", path, tmp_path / "out")
    tracks(path, walking(5), frame=3)
    with pytest.raises(CorruptRecordError, match="frames or keypoints are there twice"):
        encode(tmp_path / "prep", path, tmp_path / "out", layout="coco-17")


def test_npz_of_videopose3d(tmp_path):
    points = walking(25).astype(np.float32)
    meta = {"layout_name": "coco", "num_joints": 17, "video_metadata": {"clip.mp4": {"w": 640, "h": 480}}}
    path = save_npz(tmp_path / "data_2d_custom_me.npz", positions_2d={"clip.mp4": {"custom": [points]}}, metadata=meta)
    root = prepared(tmp_path / "prep", H36M_17)
    with pytest.raises(LayoutError, match="its joints are coco-17"):
        encode(root, path, tmp_path / "out")
    _, table = encode(root, path, tmp_path / "out", layout="coco-17", fps=50.0)
    assert table.select("recording", "person", "frames", "width").rows() == [("clip.mp4", "custom", 25, 640)]
    pixels = seen(np.zeros((9, 15, 3)) + np.arange(15)[:, None] / 20)[1]
    path = save_npz(tmp_path / "data_2d_eva.npz", positions_2d={"S1": {"Walk": [pixels]}}, metadata=EVA_META)
    with pytest.raises(ConfigError, match="does not say how large the picture is"):
        encode(prepared(tmp_path / "eva"), path, tmp_path / "second")
    _, table = encode(tmp_path / "eva", path, tmp_path / "second", size="640x480")
    np.testing.assert_array_equal(load_file(tmp_path / "second" / table["files"][0][0])["keypoints_2d"], pixels)


def test_a_joint_that_is_never_there_makes_a_reject(tmp_path):
    points = walking(12)
    entries = json.loads(results(tmp_path / "found.json", {1: points, 2: points + 30}).read_text())
    for entry in entries[12:]:
        entry["keypoints"][27:30] = [0, 0, 0]  # left wrist of the second person
    (tmp_path / "found.json").write_text(json.dumps(entries))
    card, table = encode(
        prepared(tmp_path / "prep"), tmp_path / "found.json", tmp_path / "out", **WIDE, max_rejects=0.1
    )
    assert (table["person"].to_list(), card["rejects"]["count"]) == (["1"], 1)
    reject = pl.read_parquet(tmp_path / "out" / "rejects.parquet").row(0, named=True)
    assert reject["field"].startswith("found, person 2")
    assert reject["reason"] == "joint left_wrist is missing (NaN or 0) in every frame"


def test_no_file_of_keypoints(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"holds no tracks\.parquet, no JSON and no npz file"):
        encode(prepared(tmp_path / "prep"), tmp_path / "empty", tmp_path / "out")
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"a\.mp4: no file of 2D keypoints; give tracks\.parquet"):
        encode(tmp_path / "prep", tmp_path / "a.mp4", tmp_path / "out")


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 5))
def test_runs_have_every_frame_that_is_there_and_no_long_gap(there, gap):
    mask = np.array(there, bool)
    found = runs(mask, gap)
    covered = np.zeros(len(mask), bool)
    for (begin, end), following in zip(found, [*found[1:], None], strict=False):
        assert mask[begin]
        assert mask[end - 1]
        assert not covered[begin:end].any()
        covered[begin:end] = True
        text = "".join("x" if value else "." for value in mask[begin:end])
        assert max((len(part) for part in text.split("x")), default=0) <= gap
        assert following is None or following[0] - end > gap
    assert (covered | ~mask).all()
