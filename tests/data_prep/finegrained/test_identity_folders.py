"""Folders of identities of one's own: cameras and identities of names, validation, queries."""

from __future__ import annotations

import polars as pl
import pytest

from data_prep.common.errors import ConfigError, LabelError
from tests.data.finegrained import make
from tests.data_prep.finegrained.helpers import check_open_set, index, rejects, rows, run


class TestFolder:
    def test_drawn_split_with_cameras_of_names(self, tmp_path):
        raw = make.write_people(tmp_path / "raw", identities=10)
        card = run("folder", raw, tmp_path / "out", camera_pattern=r"cam(\d+)_", valid_identities=1)
        check_open_set(tmp_path / "out", card)
        assert card["counts"]["identities"] == {"train": 4, "valid": 1, "test": 5}
        assert card["counts"]["images"] == {
            "test_gallery": 10,
            "test_query": 10,
            "train": 16,
            "valid_gallery": 2,
            "valid_query": 2,
        }
        assert card["split_rule"]["open_set"] and card["split_rule"]["queries"] == "drawn"

    def test_without_cameras_the_scorer_is_told_to_ignore_them(self, tmp_path, capsys):
        raw = make.write_people(tmp_path / "raw")
        card = run("folder", raw, tmp_path / "out", kind="identities")
        assert card["evaluation"]["ignore_camera"] and card["evaluation"]["why"] == "the cameras are not known"
        assert set(index(tmp_path / "out")["camera"]) == {-1} and card["cameras"] == []
        assert "cameras are ignored in the test (the cameras are not known)" in capsys.readouterr().err

    def test_validation_without_cameras_has_half_of_the_pictures_as_queries(self, tmp_path, capsys):
        raw = make.write_people(tmp_path / "raw", identities=40, cameras=1, count=4)
        card = run("folder", raw, tmp_path / "out", kind="identities")
        check_open_set(tmp_path / "out", card)
        assert card["counts"]["identities"] == {"train": 16, "valid": 4, "test": 20}
        images = card["counts"]["images"]
        assert (images["valid_query"], images["valid_gallery"]) == (8, 8)
        assert (images["test_query"], images["test_gallery"]) == (20, 60)
        assert card["split_rule"]["valid_identities_of_train"] == 4
        assert card["split_rule"]["valid_queries"] == "half of the pictures of each identity"
        told = capsys.readouterr().err
        assert "4 of 20 training identities are held out for validation; published results are of" in told
        assert "warning: validation has 4 identities and 8 queries" in told
        asked = run("folder", raw, tmp_path / "asked", kind="identities", queries=1, valid_identities=5)
        assert asked["counts"]["images"]["valid_query"] == 5 and asked["counts"]["identities"]["valid"] == 5
        assert asked["split_rule"]["valid_queries"] == "1 of each identity and camera"

    def test_folders_of_cameras_are_no_identities(self, tmp_path, capsys):
        for identity in range(6):
            for camera in "AB":
                for number in range(2):
                    path = tmp_path / "raw" / f"p{identity}" / f"cam{camera}" / f"{number}.png"
                    make.picture(path, 100 * identity + 10 * number + ord(camera))
        card = run("folder", tmp_path / "raw", tmp_path / "out", camera_pattern="/cam([AB])/")
        assert card["identities"] and set(card["identities"]) < {f"p{at}" for at in range(6)}
        assert card["cameras"] == ["A", "B"]
        assert "the outermost folder is the identity, as 'p5' of p5/camB (6 identities); --class_level 2 makes 12" in (
            capsys.readouterr().err
        )
        deeper = run("folder", tmp_path / "raw", tmp_path / "deeper", kind="identities", class_level=2)
        assert deeper["identities"][0].count("/") == 1

    def test_numbers_of_pictures_taken_for_cameras_are_told(self, tmp_path, capsys):
        raw = make.write_people(tmp_path / "raw", cameras=1, count=6)
        run("folder", raw, tmp_path / "out", camera_pattern=r"_(\d+)\.png")
        told = capsys.readouterr().err
        assert "warning: test has 15 queries and only 3 pictures of the same identities in the gallery" in told
        assert "a camera of its own (on average 6.0 cameras for 6.0 pictures)" in told
        run(
            "folder",
            make.write_people(tmp_path / "fine", cameras=2, count=3),
            tmp_path / "two",
            camera_pattern=r"m(\d)_",
        )
        told = capsys.readouterr().err
        assert "a camera of its own" not in told and "and only" not in told

    def test_one_camera_for_all_is_told_with_the_reason(self, tmp_path):
        raw = make.write_people(tmp_path / "raw", cameras=1, count=4)
        card = run("folder", raw, tmp_path / "out", camera_pattern=r"cam(\d+)_")
        assert card["evaluation"]["why"] == "no identity is seen by two cameras (1 in all)"
        assert card["counts"]["queries_without_match"]["test"] == 0

    def test_identities_of_one_camera_are_told_with_counts(self, tmp_path, capsys):
        raw = make.write_people(tmp_path / "raw", identities=4)
        for number in range(2):
            make.picture(raw / "alone" / f"cam1_{number}.png", 900 + number)
        make.picture(raw / "once" / "cam2_0.png", 950)
        card = run("folder", raw, tmp_path / "out", camera_pattern=r"cam(\d+)_")
        assert card["counts"]["identities_with_one_camera"] == 2 and card["counts"]["identities_with_one_image"] == 1
        told = capsys.readouterr().err
        assert "2 identities seen by one camera only: their queries would have no match" in told
        assert "1 identities with one picture" in told
        queries = index(tmp_path / "out").filter(pl.col("role") == "query")
        assert not set(queries["identity"]) & {"alone", "once"}

    def test_train_query_gallery_folders(self, tmp_path):
        seed = 0
        for split, people in (("train", "ab"), ("query", "cd"), ("gallery", "cd")):
            for person in people:
                for number in range(2):
                    seed += 1
                    make.picture(tmp_path / "raw" / split / person / f"{number}.png", seed)
        card = run("folder", tmp_path / "raw", tmp_path / "out", kind="identities")
        assert card["counts"]["images"] == {"test_gallery": 4, "test_query": 4, "train": 4}
        with pytest.raises(ConfigError, match="has queries or a gallery: identities, not classes"):
            run("folder", tmp_path / "raw", tmp_path / "other")
        (tmp_path / "raw/gallery").rename(tmp_path / "gone")
        with pytest.raises(ConfigError, match="no picture is left in the gallery"):
            run("folder", tmp_path / "raw", tmp_path / "other", kind="identities")

    def test_beside_queries_test_is_the_gallery(self, tmp_path):
        for split, people in (("train", "ab"), ("query", "cdefgh"), ("test", "cdefgh")):
            for at, person in enumerate(people):
                for number in range(2):
                    seed = 100 * at + 10 * number + len(split)
                    make.picture(tmp_path / "raw" / split / person / f"{number}.png", seed)
        card = run("folder", tmp_path / "raw", tmp_path / "out", kind="identities")
        assert card["counts"]["images"] == {"test_gallery": 12, "test_query": 12, "train": 4}
        for name, role in index(tmp_path / "out", "test").select("name", "role").iter_rows():
            assert role == {"query": "query", "test": "gallery"}[name.split("/")[0]]

    def test_cameras_are_counted_by_number(self, tmp_path):
        for person in range(4):
            for camera in ("10", "2", "yard"):
                make.picture(tmp_path / "raw" / f"p{person}" / f"cam{camera}.png", 10 * person + len(camera))
        card = run("folder", tmp_path / "raw", tmp_path / "out", camera_pattern=r"cam(\w+)\.")
        assert card["cameras"] == ["2", "10", "yard"]
        for name, camera in index(tmp_path / "out").select("name", "camera").iter_rows():
            assert name.endswith(f"cam{card['cameras'][camera]}.png")

    def test_patterns_on_flat_folders(self, tmp_path):
        for person in range(4):
            for camera in "AB":
                make.picture(tmp_path / "raw" / f"{person:03d}-{camera}.png", 10 * person + ord(camera))
        make.picture(tmp_path / "raw" / "notes.png", 1)
        options = {"identity_pattern": r"(\d{3})-", "camera_pattern": "-([A-Z])", "max_rejects": 0.5}
        card = run("folder", tmp_path / "raw", tmp_path / "out", **options)
        assert card["cameras"] == ["A", "B"] and rows(card) == {"train": 4, "valid": 0, "test": 4}
        assert rejects(tmp_path / "out") == [("(folder)", 8, "identity_pattern finds nothing in the path")]

    def test_nobody_can_be_found(self, tmp_path):
        raw = tmp_path / "raw"
        for split, people in (("train", "ab"), ("test", "cd")):
            for at, person in enumerate(people):
                make.picture(raw / split / person / "0.png", 100 * at + ord(person))
        with pytest.raises(
            LabelError, match=r"no query of the test has a match .* \(2 identities, 0 queries, 0 cameras\)"
        ):
            run("folder", raw, tmp_path / "out", kind="identities")
