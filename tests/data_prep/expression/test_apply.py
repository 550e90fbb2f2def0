"""New photographs and videos in the way of a saved preparation."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, DatasetNotFoundError, ManifestError, PrepError, RejectsExceededError
from data_prep.common.manifest import write_manifest
from data_prep.expression.apply import apply
from tests.data.expression.make import face, make_detector, make_jaffe, save, scene
from tests.data_prep.common.test_video import write_video
from tests.data_prep.expression.helpers import index, pixels, run
from tests.data_prep.helpers import tree

QUIET = {"executor": "serial", "progress": False}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Packed grey faces of 48 pixels, cut by a detector, which lies beside them."""
    detector = make_detector(tmp_path / "yunet.onnx")
    for number in range(12):
        save(tmp_path / "raw" / ("happy", "sad")[number % 2] / f"{number}.png", scene((40 + 8 * number, 80)))
    out = tmp_path / "prepared"
    options = {"align": "detector", "detector_weights": detector, "side": 48, "margin": 0.0, "channels": 1}
    run("folder", tmp_path / "raw", out, ratios=(1, 0, 0), **options)
    return out


def film(path: Path, *places: tuple[tuple[int, int], ...]) -> Path:
    """A video of scenes, without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 5.0, (320, 320))
    for squares in places:
        writer.write(cv2.cvtColor(scene(*squares), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def test_a_photograph_becomes_what_it_was_in_training(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "yunet.onnx").unlink()  # the prepared directory has a copy
    card = apply(prepared, tmp_path / "raw" / "sad", tmp_path / "new", **QUIET)
    assert card["splits"]["predict"]["rows"] == 6 and card["classes"] == ["happiness", "sadness"]
    trained = {row["name"]: row for row in index(prepared).iter_rows(named=True)}
    for row in index(tmp_path / "new", "predict").iter_rows(named=True):
        assert "label" not in row
        assert np.array_equal(pixels(tmp_path / "new", row), pixels(prepared, trained[row["name"]]))
        assert row["box"] == trained[row["name"]]["box"] and row["frame"] is None


def test_videos_frame_by_frame(tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film(tmp_path / "new" / "talk.avi", ((80, 64),), (), ((80, 64), (200, 160)), ((160, 160),))
    save(tmp_path / "new" / "photo.png", scene((80, 80)))
    card = apply(prepared, tmp_path / "new", tmp_path / "out", **QUIET)
    found = index(tmp_path / "out", "predict")
    assert found["name"].to_list() == ["photo.png", *(f"talk.avi#{number:08d}" for number in (0, 2, 3))]
    assert found["frame"].to_list() == [None, 0, 2, 3]
    assert np.allclose(found["time_s"].to_list()[1:], [0, 0.4, 0.6], atol=1e-3)
    assert found["faces"].to_list() == [1, 1, 2, 1] and found["source"].to_list() == [None, *["talk.avi"] * 3]
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet").to_dicts()
    assert [(row["source"], row["record"], row["reason"]) for row in rejects] == [("talk.avi", 1, "no face is found")]
    assert rejects[0]["field"] == "frame 1 (0.200 s)"
    assert card["videos"] == [{"name": "talk.avi", "fps": 5.0, "decoded": 4, "said": 4, "missing": 0, "broken": []}]
    first = pixels(tmp_path / "out", found.row(1, named=True))
    apply(prepared, tmp_path / "new" / "talk.avi", tmp_path / "every", every=3, **QUIET)
    every = index(tmp_path / "every", "predict")
    assert every["frame"].to_list() == [0, 3]
    assert np.array_equal(pixels(tmp_path / "every", every.row(0, named=True)), first)


def test_workers_and_chunks_change_no_byte(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        film(tmp_path / "new" / f"{number}.avi", *[((40 + 8 * at, 80),) for at in range(10)])
    apply(prepared, tmp_path / "new", tmp_path / "one", **QUIET)
    apply(prepared, tmp_path / "new", tmp_path / "two", workers=2, progress=False)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    monkeypatch.setattr("data_prep.expression.encode.CHUNK", 4)
    apply(prepared, tmp_path / "new", tmp_path / "three", **QUIET)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")


def test_broken_videos_and_pictures_are_told(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "text.mp4").write_text("no video")
    whole = film(tmp_path / "new" / "cut.avi", *[((80, 64),)] * 20)
    whole.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.3)])
    with pytest.raises(RejectsExceededError, match=r"text\.mp4.*--max_rejects 0.5 predicts the others"):
        apply(prepared, tmp_path / "new", tmp_path / "out", **QUIET)
    card = apply(prepared, tmp_path / "new", tmp_path / "out", max_rejects=0.5, **QUIET)
    assert len(card["videos"]) == 1 and 0 < card["videos"][0]["decoded"] < 20
    said = capsys.readouterr().err
    assert "text.mp4: the video cannot be opened" in said and "cut.avi: the video ends early" in said


def test_another_detector_or_none(tmp_path: Path, prepared: Path) -> None:
    make_detector(prepared / "detector.onnx", tilt=4)
    with pytest.raises(ManifestError, match=r"detector\.onnx: missing or not the file"):
        apply(prepared, tmp_path / "raw", tmp_path / "out", **QUIET)
    (prepared / "detector.onnx").unlink()
    with pytest.raises(ManifestError, match=r"detector\.onnx: missing or not the file"):
        apply(prepared, tmp_path / "raw", tmp_path / "out", **QUIET)


def test_whole_pictures(tmp_path: Path) -> None:
    run("jaffe", make_jaffe(tmp_path / "raw"), tmp_path / "prepared", ratios=(0.6, 0.2, 0.2))
    save(tmp_path / "new" / "large.png", face(7, 128, 3))
    write_video(tmp_path / "new" / "video.avi", 12)
    card = apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", **QUIET)
    assert card["channels"] == 1 and card["splits"]["predict"]["rows"] == 13
    assert set(index(tmp_path / "out", "predict").select("width", "height").iter_rows()) == {(64, 64)}


def test_what_cannot_be_applied(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match="holds no image and no video"):
        apply(prepared, tmp_path / "empty", tmp_path / "out", **QUIET)
    save(tmp_path / "dark" / "a.png", scene())
    with pytest.raises(PrepError, match="no face"):
        apply(prepared, tmp_path / "dark", tmp_path / "out", max_rejects=1.0, **QUIET)
    (tmp_path / "other").mkdir()
    write_manifest(tmp_path / "other", {"domain": "ctr"})
    with pytest.raises(ManifestError, match="no preparation of faces"):
        apply(tmp_path / "other", tmp_path / "raw", tmp_path / "out", **QUIET)
    with pytest.raises(ConfigError, match="every 0"):
        apply(prepared, tmp_path / "raw", tmp_path / "out", every=0, **QUIET)


def test_frames_that_a_container_promises_and_that_do_not_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("jaffe", make_jaffe(tmp_path / "raw"), tmp_path / "prepared", ratios=(0.6, 0.2, 0.2))
    path = write_video(tmp_path / "new" / "cut.avi")
    write_video(tmp_path / "new" / "whole.avi")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    card = apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", **QUIET)
    came = card["videos"][0]["decoded"]
    assert 10 < came < 28 and index(tmp_path / "out", "predict").filter(pl.col("source") == "cut.avi").height == came
    told = f"the video ends early: its container promises 30 frames, and {came} came, which are used"
    (row,) = pl.read_parquet(tmp_path / "out" / "rejects.parquet").to_dicts()
    assert (row["source"], row["record"], row["field"]) == ("cut.avi", came, "frames")
    assert row["reason"].startswith(told) and f"cut.avi: {told}" in capsys.readouterr().err


def test_pictures_that_are_no_squares_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        save(tmp_path / "raw" / ("happy", "sad")[number % 2] / f"{number}.png", face(number, 40, 3)[: 40 - number // 6])
    card = run("folder", tmp_path / "raw", tmp_path / "prepared", ratios=(1, 0, 0))
    told = "6 pictures are not square, and stretched to squares, as they are taken whole (--align none): --align center"
    assert told in capsys.readouterr().err and sum(card["counts"]["remarks"].values()) == 6
    card = apply(tmp_path / "prepared", tmp_path / "raw", tmp_path / "out", **QUIET)
    reason = "not square, taken whole: stretched to a square"
    assert card["counts"]["remarks"] == {reason: 6} and f"6 pictures or frames: {reason}" in capsys.readouterr().err
    assert card["side"] is None
    card = run("folder", tmp_path / "raw", tmp_path / "square", ratios=(1, 0, 0), align="center")
    assert card["counts"]["remarks"] == {} and card["preparation"]["align"] == "center"


def test_packed_files_are_to_be_unpacked(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "faces.zip").write_bytes(b"PK")
    with pytest.raises(DatasetNotFoundError, match=r"faces\.zip: is a packed file; unpack it"):
        apply(prepared, tmp_path / "faces.zip", tmp_path / "out", **QUIET)
