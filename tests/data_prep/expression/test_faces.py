"""Faces found, chosen and cut, and what is recorded of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
from PIL import Image

from data_prep.common.errors import ConfigError, DatasetNotFoundError, RejectsExceededError
from data_prep.expression.faces import Face, FaceRules, choose, open_detector, take_face
from tests.data.expression.make import face, make_detector, save, scene
from tests.data_prep.expression.helpers import index, named, pixels, reasons, run

SCENES: dict[str, tuple[tuple[int, int], ...]] = {
    "one.png": ((80, 64),),
    "two.png": ((80, 64), (200, 160)),
    "none.png": (),
}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_detector(tmp_path_factory.mktemp("detector") / "yunet.onnx")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for number in range(12):
        places = ((40 + 8 * number, 80),)
        save(tmp_path / "raw" / ("happy", "sad")[number % 2] / f"{number}.png", scene(*places))
    for name, places in SCENES.items():
        save(tmp_path / "raw" / "happy" / name, scene(*places))
    return tmp_path / "raw"


def prepare(raw: Path, out: Path, detector: Path, **options: Any) -> dict[str, Any]:
    given = {"align": "detector", "detector_weights": detector, "side": 48, "ratios": (1, 0, 0), "max_rejects": 0.5}
    return run("folder", raw, out, **{**given, **options})


def test_boxes_scores_and_counts_are_recorded(tmp_path: Path, raw: Path, detector: Path) -> None:
    card = prepare(raw, tmp_path / "out", detector, margin=0.0)
    row = named(tmp_path / "out", "one.png")
    assert np.allclose(row["box"], [52, 36, 64, 64], atol=1) and row["score"] > 0.9 and row["faces"] == 1
    wanted = cv2.resize(scene((80, 64))[36:100, 52:116], (48, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels(tmp_path / "out", row).astype(int) - wanted).mean() < 8
    assert named(tmp_path / "out", "two.png")["faces"] == 2
    assert reasons(tmp_path / "out") == {"none.png": "no face is found"}
    assert "rule 'largest'" in reasons(tmp_path / "out", "remarks")["two.png"]
    saved = card["preparation"]
    assert saved["align"] == "detector" and saved["detector_name"] == "yunet.onnx" and len(saved["detector"]) == 64
    assert (tmp_path / "out" / saved["detector_file"]).read_bytes() == detector.read_bytes()
    assert card["counts"]["rejects"] == {"no face is found": 1}


def test_policies_for_no_face_and_for_several(tmp_path: Path, raw: Path, detector: Path) -> None:
    prepare(raw, tmp_path / "whole", detector, no_face="whole", faces="refuse")
    row = named(tmp_path / "whole", "none.png")
    assert row["faces"] == 0 and row["box"] is None and row["width"] == 48
    assert reasons(tmp_path / "whole") == {"two.png": "2 faces are found: one is needed"}
    prepare(raw, tmp_path / "center", detector, faces="center")
    assert np.allclose(named(tmp_path / "center", "two.png")["box"][:2], [172, 132], atol=1)
    with pytest.raises(RejectsExceededError, match="no face is found"):
        prepare(raw, tmp_path / "none", detector, max_rejects=0.01)


def test_one_of_several_is_chosen_by_rule() -> None:
    small, middle = Face((0, 0, 9, 9), 0.9, None), Face((45, 45, 10, 10), 0.8, None)
    large = Face((60, 60, 30, 30), 0.7, None)
    faces = [small, middle, large]
    assert choose(faces, "largest", 100, 100) is large
    assert choose(faces, "center", 100, 100) is middle
    assert choose(faces, "score", 100, 100) is small


def test_level_eyes(tmp_path: Path) -> None:
    """A picture turned by 20 degrees gives the same face as the level one, where the eyes are known."""
    level = np.kron(face(3, 40, 3), np.ones((4, 4, 1), np.uint8))
    turn = cv2.getRotationMatrix2D((79.5, 79.5), -20, 1)
    tilted = np.asarray(cv2.warpAffine(level, turn, (160, 160)))
    eyes = np.array([[60.0, 70], [100, 70], [80, 90], [65, 100], [95, 100]])
    moved = (eyes - 0.5) @ turn[:, :2].T + turn[:, 2] + 0.5
    rules = FaceRules("given", margin=0.0, side=64)
    box = (48.0, 48.0, 64.0, 64.0)
    one = take_face(tmp_path, level, rules, given=Face(box, float("nan"), eyes)).pixels
    other = take_face(tmp_path, tilted, rules, given=Face(box, float("nan"), moved)).pixels
    plain = take_face(
        tmp_path, tilted, FaceRules("given", margin=0.0, side=64, upright=False), given=Face(box, 0, moved)
    )
    assert np.abs(one.astype(int) - other).mean() < 3 < np.abs(one.astype(int) - plain.pixels).mean()
    assert np.array_equal(one, level[48:112, 48:112])
    mirrored = take_face(tmp_path, tilted, rules, given=Face(box, float("nan"), moved[[1, 0, 2, 4, 3]]))
    assert np.array_equal(mirrored.pixels, other)  # data sets name either eye first


def test_a_box_over_the_border_is_black_outside(tmp_path: Path) -> None:
    white = np.full((40, 40), 255, np.uint8)
    taken = take_face(tmp_path, white, FaceRules("given", margin=0.0, side=20), given=Face((-10, 0, 20, 20), 0.9, None))
    assert (taken.pixels[:, :9] == 0).all() and (taken.pixels[:, 11:] == 255).all()


def test_large_photographs_are_shrunk_by_area(tmp_path: Path) -> None:
    """Pixels that alternate become their mean, not one or the other."""
    board = (np.indices((800, 800)).sum(axis=0) % 2 * 255).astype(np.uint8)
    taken = take_face(
        tmp_path, board, FaceRules("given", margin=0.0, side=40), given=Face((200, 200, 400, 400), 1, None)
    )
    assert taken.pixels.shape == (40, 40) and np.abs(taken.pixels.astype(int) - 127).max() <= 2


def test_boxes_of_a_table(tmp_path: Path) -> None:
    lines = ["image,emotion,subject,x,y,width,height"]
    for number in range(8):
        save(tmp_path / "raw" / f"{number}.png", face(number, 80, 3))
        box = "10,20,40,30" if number else ",,,"
        lines.append(f"{number}.png,{'joy' if number % 2 else 'fear'},p{number},{box}")
    (tmp_path / "faces.csv").write_text("\n".join(lines))
    options = {
        "table": tmp_path / "faces.csv",
        "align": "given",
        "margin": 0.0,
        "max_rejects": 0.2,
        "ratios": (1, 0, 0),
    }
    run("folder", tmp_path / "raw", tmp_path / "out", **options)
    row = named(tmp_path / "out", "3.png")
    assert row["box"] == [10, 20, 40, 30] and (row["width"], row["height"]) == (40, 40)
    assert np.array_equal(pixels(tmp_path / "out", row), face(3, 80, 3)[15:55, 10:50])
    assert reasons(tmp_path / "out") == {"0.png": "no box of the face comes with the data"}


def test_center_and_none(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "raw" / "ab"[number % 2] / f"{number}.png", face(number, 64)[:40])
    run("folder", tmp_path / "raw", tmp_path / "center", align="center", side=40, ratios=(1, 0, 0))
    found = pixels(tmp_path / "center", named(tmp_path / "center", "1.png"))
    assert np.array_equal(found, face(1, 64)[:40, 12:52])
    card = run("folder", tmp_path / "raw", tmp_path / "none", ratios=(1, 0, 0))
    assert card["storage"] == "files" and card["channels"] == 1
    assert np.array_equal(pixels(tmp_path / "none", named(tmp_path / "none", "1.png")), face(1, 64)[:40])


def test_files_keep_their_bytes_where_nothing_is_done_to_them(tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / "raw" / "ab"[number % 2] / f"{number}.jpg", face(number, 200, 3), quality=80)
    card = run("folder", tmp_path / "raw", tmp_path / "out", ratios=(1, 0, 0))
    assert card["storage"] == "files" and card["side"] == 200
    row = named(tmp_path / "out", "3.jpg")
    assert (tmp_path / "out" / row["image"]).read_bytes() == (tmp_path / "raw" / "b" / "3.jpg").read_bytes()
    card = run("folder", tmp_path / "raw", tmp_path / "packed", ratios=(1, 0, 0), storage="packed", side=32, channels=1)
    assert card["channels"] == 1 and pixels(tmp_path / "packed", named(tmp_path / "packed", "3.jpg")).shape == (32, 32)


def test_detectors_that_cannot_be_used_are_named(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"nowhere\.onnx: no such detector"):
        open_detector(tmp_path / "nowhere.onnx", 0.7)
    for name in ("broken.onnx", "cascade.xml"):
        (tmp_path / name).write_bytes(b"no model")
        with pytest.raises(ConfigError, match=rf"{name}: (is no|OpenCV)"):
            open_detector(tmp_path / name, 0.7)
    with pytest.raises(ConfigError, match="align detector needs the file"):
        run("folder", raw, tmp_path / "out", align="detector")
    with pytest.raises(ConfigError, match="looks for no faces"):
        run("folder", raw, tmp_path / "out", detector_weights=tmp_path / "broken.onnx")


def test_orientation_of_a_camera_is_carried_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for number in range(6):
        path = tmp_path / "raw" / "ab"[number % 2] / f"{number}.png"
        save(path, face(number, 60)[:40], **({"exif": exif} if number == 1 else {}))
    run("folder", tmp_path / "raw", tmp_path / "out", ratios=(1, 0, 0), storage="files")
    found = pixels(tmp_path / "out", named(tmp_path / "out", "1.png"))
    assert np.array_equal(found, np.rot90(face(1, 60)[:40], -1))
    assert len(index(tmp_path / "out").filter(pl.col("width") == 40)) == 1
