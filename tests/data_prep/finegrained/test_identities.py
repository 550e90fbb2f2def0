"""Market-1501, MSMT17, VeRi-776, folders and tables of identities: open set, cameras, queries, junk."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import polars as pl
import pytest

from data_prep.common.errors import (
    ConfigError,
    CorruptRecordError,
    DatasetNotFoundError,
    LeakError,
    RejectsExceededError,
)
from tests.data.finegrained import make
from tests.data_prep.finegrained.helpers import check_open_set, index, rejects, rows, run


class TestMarket:
    def test_roles_cameras_junk_and_background(self, tmp_path):
        card = run("market1501", make.write_market(tmp_path / "raw"), tmp_path / "out", valid_identities=0)
        table = check_open_set(tmp_path / "out", card)
        assert rows(card) == {"train": 27, "valid": 0, "test": 30}
        assert card["identities"] == ["0002", "0004", "0006"] and card["cameras"] == ["1", "2", "3"]
        assert card["counts"]["images"] == {"test_gallery": 18, "test_query": 9, "train": 27}
        test = table.filter(pl.col("split") == "test")
        assert test.filter(pl.col("extra") == "junk")["label"].to_list() == [-1]
        background = test.filter(pl.col("extra") == "distractor")
        assert background["label"].n_unique() == 1 and set(background["role"]) == {"gallery"}
        assert background["label"][0] not in set(table.filter(pl.col("extra") == "")["label"])
        assert "neither right nor wrong" in card["evaluation"]["junk"] and not card["evaluation"]["ignore_camera"]
        assert "always wrong" in card["evaluation"]["distractor"]
        for name, camera in table.select("name", "camera").iter_rows():
            assert f"_c{card['cameras'][camera]}s" in name

    def test_identities_are_held_out_for_validation(self, tmp_path):
        raw = make.write_market(tmp_path / "raw", identities=12)
        card = run("market1501", raw, tmp_path / "out", valid_identities=2, queries=2)
        check_open_set(tmp_path / "out", card)
        assert card["counts"]["identities"] == {"train": 4, "valid": 2, "test": 6}
        # two queries of each of three cameras, of three pictures each
        assert card["counts"]["images"]["valid_query"] == 12 and card["counts"]["images"]["valid_gallery"] == 6
        assert card["counts"]["queries_without_match"] == {"valid": 0, "test": 0}
        with pytest.raises(ConfigError, match=r"valid_identities 6: .* has 6 training identities"):
            run("market1501", raw, tmp_path / "more", valid_identities=6)

    def test_names_of_duke_are_read(self, tmp_path):
        raw = tmp_path / "raw"
        for folder, name in (
            ("bounding_box_train", "0001_c2_f0046182.jpg"),
            ("bounding_box_train", "0003_c1_f0046182.jpg"),
            ("query", "0002_c1_f0044158.jpg"),
            ("bounding_box_test", "0002_c2_f0044190.jpg"),
        ):
            make.picture(raw / folder / name, len(name) + ord(name[3]) + ord(name[6]))
        card = run("market1501", raw, tmp_path / "out")
        assert rows(card) == {"train": 2, "valid": 0, "test": 2} and card["cameras"] == ["1", "2"]

    def test_odd_names_are_rejected(self, tmp_path):
        raw = make.write_market(tmp_path / "raw")
        top = raw / "Market-1501-v15.09.15"
        make.picture(top / "query/IMG_0001.jpg", 1)
        make.picture(top / "bounding_box_train/-1_c1s1_000001_00.jpg", 2)
        make.picture(top / "query/0000_c1s1_000001_00.jpg", 4)
        make.picture(top / "gt_bbox/0001_c1s1_000001_00.jpg", 3)
        with pytest.raises(RejectsExceededError, match="more than max_rejects"):
            run("market1501", raw, tmp_path / "out")
        card = run("market1501", raw, tmp_path / "out", max_rejects=0.1)
        assert {reason for *_, reason in rejects(tmp_path / "out")} == {
            "the name is not as 0002_c1s1_000451_03.jpg",
            "identity -1 outside of the gallery",
            "identity 0000 outside of the gallery",
        }
        assert card["counts"]["pictures_in_other_folders"] == 1

    def test_what_is_missing_is_named_with_what_was_found(self, tmp_path):
        raw = tmp_path / "raw"
        make.picture(raw / "query/0001_c1s1_000001_00.jpg", 1)
        with pytest.raises(DatasetNotFoundError, match=r"folder bounding_box_train; .* found query"):
            run("market1501", raw, tmp_path / "out")

    def test_an_identity_on_both_sides_is_refused(self, tmp_path):
        raw = make.write_market(tmp_path / "raw")
        make.picture(raw / "Market-1501-v15.09.15/bounding_box_train/0001_c1s1_000009_00.jpg", 1)
        with pytest.raises(LeakError, match=r"identity '0001' is in train .* and in test"):
            run("market1501", raw, tmp_path / "out")


class TestMSMT17:
    @pytest.mark.parametrize("version", ["V1", "V2"])
    def test_version_cameras_and_identities_of_both_sides(self, tmp_path, version, capsys):
        card = run("msmt17", make.write_msmt17(tmp_path / "raw", version), tmp_path / "out", valid_identities=0)
        check_open_set(tmp_path / "out", card)
        assert card["dataset_version"] == version and card["name"] == f"msmt17-{version.lower()}"
        assert len(card["counts"]["lists_sha256"]) == 64
        assert rows(card) == {"train": 12, "valid": 0, "test": 12} and card["counts"]["val_list_left_out"] == 4
        assert card["identities"] == [f"train-{number:04d}" for number in range(4)]
        assert card["cameras"] == ["1", "2"]
        for name, camera in index(tmp_path / "out").select("name", "camera").iter_rows():
            assert Path(name).name.split("_")[2] == f"{camera + 1:02d}"
        told = capsys.readouterr().err
        assert f"MSMT17 {version}: its results" in told and "the 4 pictures of list_val.txt are left out" in told
        whole = run("msmt17", tmp_path / "raw", tmp_path / "whole", valid_identities=0, train_on_valid=True)
        assert rows(whole)["train"] == 16

    def test_missing_pictures_are_told_with_their_folders(self, tmp_path):
        raw = make.write_msmt17(tmp_path / "raw")
        with pytest.raises(
            DatasetNotFoundError, match=r"no pictures of MSMT17 in mask_train_v2 and mask_test_v2 \(V2\);"
        ):
            run("msmt17", raw, tmp_path / "out", version="V2")
        for folder in ("train", "test"):
            (raw / "MSMT17_V1" / folder).rename(raw / "MSMT17_V1" / f"old_{folder}")
        with pytest.raises(DatasetNotFoundError, match=r"no pictures of MSMT17 in train and test \(V1\) or mask_train"):
            run("msmt17", raw, tmp_path / "out")

    def test_both_versions_must_be_chosen_from(self, tmp_path):
        raw = make.write_msmt17(tmp_path / "raw")
        make.write_msmt17(tmp_path / "other", "V2")
        (tmp_path / "other/MSMT17_V2/mask_train_v2").rename(raw / "MSMT17_V1/mask_train_v2")
        (tmp_path / "other/MSMT17_V2/mask_test_v2").rename(raw / "MSMT17_V1/mask_test_v2")
        with pytest.raises(ConfigError, match=r"holds pictures of V1 and of V2; choose with --version"):
            run("msmt17", raw, tmp_path / "out")
        card = run("msmt17", raw, tmp_path / "out", version="v2")
        assert card["dataset_version"] == "V2"
        assert all("mask_" in name for name in index(tmp_path / "out")["name"])
        with pytest.raises(ConfigError, match="version 'V3': MSMT17 has V1, V2"):
            run("msmt17", raw, tmp_path / "none", version="V3")

    def test_damaged_lines_and_missing_pictures(self, tmp_path):
        raw = make.write_msmt17(tmp_path / "raw")
        path = raw / "MSMT17_V1/list_gallery.txt"
        path.write_text(path.read_text() + "0000/0000_009_01_x_0.jpg 0\n0001/picture.jpg 1\nnothing\n")
        run("msmt17", raw, tmp_path / "out", max_rejects=0.5)
        found = pl.read_parquet(tmp_path / "out/rejects.parquet").select("source", "field", "reason").rows()
        assert [(source, field) for source, field, _ in found] == [("list_gallery.txt", f"line {n}") for n in (7, 8, 9)]
        assert found[0][2] == "the image file is not there" and "third part" in found[1][2]
        assert found[2][2] == "is not 'path identity'"


class TestVeRi:
    def test_roles_cameras_and_lists(self, tmp_path, capsys):
        card = run("veri776", make.write_veri(tmp_path / "raw"), tmp_path / "out", valid_identities=0)
        check_open_set(tmp_path / "out", card)
        assert card["cameras"] == ["2", "5", "7"] and rows(card) == {"train": 18, "valid": 0, "test": 18}
        assert card["counts"]["images"] == {"test_gallery": 12, "test_query": 6, "train": 18}
        assert "gt_index.txt" not in capsys.readouterr().err

    def test_labels_that_contradict_names_are_rejected(self, tmp_path):
        raw = make.write_veri(tmp_path / "raw")
        path = raw / "VeRi/train_label.xml"
        path.write_bytes(
            path.read_bytes().replace(b'vehicleID="0001" cameraID="c002"', b'vehicleID="0009" cameraID="c002"')
        )
        card = run("veri776", raw, tmp_path / "out", max_rejects=0.5)
        assert card["rejects"]["count"] == 2 and card["counts"]["pictures_not_listed"] == 0
        assert {reason for *_, reason in rejects(tmp_path / "out")} == {
            "the labels say vehicle 0009, camera 2, the name says otherwise"
        }

    def test_lists_of_right_pictures_that_differ_are_told(self, tmp_path, capsys):
        raw = make.write_veri(tmp_path / "raw")
        path = raw / "VeRi/gt_index.txt"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(["1", *lines[1:]]))
        run("veri776", raw, tmp_path / "out")
        assert "1 of 6 queries have other pictures in gt_index.txt" in capsys.readouterr().err
        path.write_text("\n".join(["99", *lines[1:]]))
        with pytest.raises(CorruptRecordError, match=r"gt_index\.txt: line 1: has a number that is none of 1 to 12"):
            run("veri776", raw, tmp_path / "damaged")

    def test_hostile_xml_is_refused(self, tmp_path):
        raw = make.write_veri(tmp_path / "raw")
        path = raw / "VeRi/train_label.xml"
        path.write_text('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;</a>')
        with pytest.raises(CorruptRecordError, match=r"train_label\.xml: header: declares a document type"):
            run("veri776", raw, tmp_path / "out")
        path.write_bytes(b"<Items><Item ")
        with pytest.raises(CorruptRecordError, match=r"train_label\.xml: XML: cannot be read"):
            run("veri776", raw, tmp_path / "out")

    def test_pictures_named_but_missing(self, tmp_path):
        raw = make.write_veri(tmp_path / "raw")
        (raw / "VeRi/image_train/0001_c002_00030000_0.jpg").unlink()
        make.picture(raw / "VeRi/image_train/0011_c002_00030000_0.jpg", 1)
        card = run("veri776", raw, tmp_path / "out", max_rejects=0.5)
        assert rejects(tmp_path / "out") == [("name_train.txt", 0, "the image file is not there")]
        assert card["counts"]["pictures_not_listed"] == 1


class TestTable:
    def test_all_columns(self, tmp_path):
        raw = make.write_people(tmp_path / "raw", identities=4)
        text = ["image,identity,camera,split"]
        for identity in range(4):
            for camera in (1, 2):
                for number in range(2):
                    side = "train" if identity < 2 else "query" if number == 0 else "gallery"
                    text.append(f"p{identity}/cam{camera}_{number}.png,p{identity},north {camera},{side}")
        text += ["p0/cam1_9.png,p0,north 1,train", "p3/cam1_1.png,p3,,gallery"]
        (raw / "people.csv").write_text("\n".join(text))
        card = run("csv", raw, tmp_path / "out", max_rejects=0.5)
        check_open_set(tmp_path / "out", card)
        assert card["kind"] == "identities" and card["cameras"] == ["north 1", "north 2"]
        assert card["split_rule"]["queries"] == "given"
        assert [reason for *_, reason in rejects(tmp_path / "out")] == [
            "the image file is not there",
            "no camera, which other rows have",
        ]

    def test_queries_of_one_camera_are_counted(self, tmp_path, capsys):
        raw = make.write_people(tmp_path / "raw", identities=4)
        text = "image,identity,camera,split\n"
        for identity, camera, number, side in (
            *((identity, camera, 0, "train") for identity in (0, 1) for camera in (1, 2)),
            *((2, 1, 0, "query"), (2, 2, 0, "gallery"), (3, 1, 0, "query"), (3, 1, 1, "gallery")),
        ):
            text += f"p{identity}/cam{camera}_{number}.png,p{identity},{camera},{side}\n"
        (raw / "people.csv").write_text(text)
        card = run("csv", raw, tmp_path / "out")
        assert card["counts"]["queries_without_match"] == {"valid": 0, "test": 1}
        assert "1 queries of test have no match in the gallery" in capsys.readouterr().err


class TestDuplicates:
    def test_a_picture_of_two_identities_is_dropped_from_training(self, tmp_path):
        raw = make.write_people(tmp_path / "raw", identities=8)
        for identity in range(1, 8):
            (raw / f"p{identity}" / "cam1_9.png").write_bytes((raw / "p0/cam1_0.png").read_bytes())
        card = run("folder", raw, tmp_path / "out", camera_pattern=r"cam(\d+)_")
        assert card["duplicates"]["dropped"] == {"train": 4}
        assert card["duplicates"]["groups_with_several_labels"] == 1

    def test_queries_in_the_gallery_are_counted(self, tmp_path, capsys):
        raw = tmp_path / "raw"
        make.write_market(raw)
        top = raw / "Market-1501-v15.09.15"
        query = next(iter(sorted((top / "query").glob("*.jpg"))))
        (top / "bounding_box_test" / re.sub("_c1", "_c2", query.name)).write_bytes(query.read_bytes())
        card = run("market1501", raw, tmp_path / "out")
        assert card["duplicates"]["queries_in_gallery"] == 1
        assert "1 queries are in the gallery as well" in capsys.readouterr().err


def test_options_that_do_not_go_together(tmp_path):
    raw = make.write_people(tmp_path / "raw")
    wrong = {
        "valid_share: goes with classes": {"valid_share": 0.1},
        "go with --kind identities": {"kind": "classes", "camera_pattern": r"cam(\d+)_"},
        "queries 0: give at least 1": {"queries": 0},
        "valid_identities -1": {"valid_identities": -1},
        "validation split already": {"valid_identities": 1, "ratios": (0.5, 0.2, 0.3)},
    }
    for message, options in wrong.items():
        with pytest.raises(ConfigError, match=message):
            run("folder", raw, tmp_path / "out", **{"kind": "identities", **options})


@pytest.mark.shared
def test_faces_of_real_people_without_cameras(tmp_path, shared):
    with zipfile.ZipFile(shared / "finegrained" / "orl_faces.zip") as archive:
        archive.extractall(tmp_path)
    raw = tmp_path / "att_faces"
    card = run("folder", raw, tmp_path / "out", kind="identities", queries=2, valid_identities=0)
    table = check_open_set(tmp_path / "out", card)
    assert card["counts"]["identities"] == {"train": 20, "valid": 0, "test": 20}
    assert card["counts"]["images"] == {"test_gallery": 160, "test_query": 40, "train": 200}
    assert card["evaluation"]["ignore_camera"] and card["rejects"]["count"] == 0
    assert card["counts"]["grey"] == 400 and set(table["width"]) == {92} and set(table["height"]) == {112}
