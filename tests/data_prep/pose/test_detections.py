"""Keypoints of other programs as input for lifting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.common.errors import ConfigError, CorruptRecordError, PrepError, RejectsExceededError
from data_prep.pose.detections import read_detections
from tests.data.pose.make_people import write_json

K = 4


def entry(image: int | str, score: float = 0.5, **values: Any) -> dict[str, Any]:
    points = [number for joint in range(K) for number in (10.0 + joint, 20.0 + 100 * score, 0.9)]
    return {"image_id": image, "category_id": 1, "keypoints": points, "score": score, **values}


def test_frames_in_order_and_the_best_person_of_each(tmp_path: Path) -> None:
    path = write_json(tmp_path / "found.json", [entry(7), entry(3, 0.2), entry(3, 0.8), entry(4, 0.1), entry(4, 0.6)])
    found, rejects = read_detections(path, "dog-4", K)
    assert not rejects and found.layout == "dog-4" and found.frames == (3, 4, 7)
    assert found.score.tolist() == [0.8, 0.2, 0.6, 0.1, 0.5] and found.tracks() == []
    names, points = found.sequence()
    assert names == [3, 4, 5, 6, 7] and points.shape == (5, K, 3)
    assert np.isnan(points[2:4]).all() and points[0, 0, 1] == 100.0 and points[4, 0, 1] == 70.0


def test_tracks_and_names_of_frames(tmp_path: Path) -> None:
    entries = [entry(f"f{at}.jpg", track_id=5) for at in (10, 9)] + [entry("f10.jpg", 0.9, idx=2)]
    found, _ = read_detections(write_json(tmp_path / "found.json", entries), "dog-4", K)
    assert found.frames == ("f9.jpg", "f10.jpg") and found.tracks() == [5, 2]
    names, points = found.sequence(5)
    assert names == ["f9.jpg", "f10.jpg"] and points[1, 0, 1] == 70.0
    with pytest.raises(ConfigError, match=r"track 3: there is no detection of it; the tracks are \[5, 2\]"):
        found.sequence(3)


def test_other_categories_are_counted(tmp_path: Path) -> None:
    path = write_json(tmp_path / "found.json", [entry(1), entry(1, category_id=0)])
    assert read_detections(path, "dog-4", K)[0].left_out == 1


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"keypoints": [1.0, 2.0]}, "keypoints", "2 numbers, where 4 keypoints have 12"),
        ({"keypoints": [1.0] * 8}, "keypoints", "x, y and confidence are needed of each"),
        ({"keypoints": [float("nan")] * 12}, "keypoints", "no possible number"),
        ({"keypoints": [0.0] * 12}, "keypoints", "all are 0"),
        ({"keypoints": "x"}, "keypoints", "expected `array`"),
        ({"score": None}, "score", "is missing"),
        ({"track_id": -2}, "track_id", "is negative"),
        ({"image_id": 1.5}, "image_id", "expected `int | str`"),
        ({}, "keypoints", "repeats a detection"),
    ],
)
def test_detections_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], field: str, reason: str) -> None:
    path = write_json(tmp_path / "found.json", [entry(1), entry(1) | changes])
    found, rejects = read_detections(path, "dog-4", K, max_rejects=0.5)
    assert len(found.score) == 1 and len(rejects) == 1
    assert rejects[0].record == 1 and rejects[0].field == field and reason in rejects[0].reason
    with pytest.raises(RejectsExceededError, match=f"record 1: {field}: .*1 of 2 detections cannot be used"):
        read_detections(path, "dog-4", K)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"[{", "is cut short"),
        (b"{}", "expected `array`, got `object`; is this a list of detections"),
        (b"[", "is cut short"),
        (b"[]", "there is no detection"),
        (b"keypoints", "is no JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_are_no_detections(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "found.json"
    path.write_bytes(data)
    with pytest.raises(CorruptRecordError) as error:
        read_detections(path, "dog-4", K)
    assert message in str(error.value) and str(path) in str(error.value)


def test_the_layout_is_never_guessed(tmp_path: Path) -> None:
    path = write_json(tmp_path / "found.json", [entry(1)])
    with pytest.raises(ConfigError, match="4 keypoints do not say which joints they are; name their layout"):
        read_detections(path, "", K)


def test_shares_are_no_pixels(tmp_path: Path) -> None:
    path = write_json(tmp_path / "found.json", [entry(1, keypoints=[0.5] * 12)])
    with pytest.raises(ConfigError, match="these are shares of the image, not pixels"):
        read_detections(path, "dog-4", K)


def test_ids_that_are_no_frames(tmp_path: Path) -> None:
    found, _ = read_detections(write_json(tmp_path / "found.json", [entry(1), entry(10**12)]), "dog-4", K)
    with pytest.raises(ConfigError, match="are no frames of one video"):
        found.sequence()
    mixed = write_json(tmp_path / "mixed.json", [entry(1), entry("a")])
    with pytest.raises(ConfigError, match="some images have a number, others a name"):
        read_detections(mixed, "dog-4", K)


def test_every_cut_gives_one_line(tmp_path: Path) -> None:
    data = json.dumps([entry(1), entry(2)]).encode()
    for length in range(len(data) - 1):
        (tmp_path / "found.json").write_bytes(data[:length])
        with pytest.raises(PrepError):
            read_detections(tmp_path / "found.json", "dog-4", K)
