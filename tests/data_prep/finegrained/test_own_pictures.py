"""Folders and tables of classes of one's own: splits, odd pictures, duplicates, options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from data_prep.common.errors import (
    ConfigError,
    DatasetNotFoundError,
    LabelError,
    LeakError,
)
from data_prep.finegrained.prepare import prepare
from tests.data.finegrained import make
from tests.data_prep.finegrained.helpers import index, regions, rejects, rows, run


class TestFolder:
    def test_drawn_split_is_stratified_and_hangs_on_the_seed_alone(self, tmp_path):
        raw = make.write_folder(tmp_path / "raw")
        card = run("folder", raw, tmp_path / "out")
        assert {tuple(count.values()) for count in card["counts"]["classes"].values()} == {(8, 1, 1)}
        assert card["classes"] == ["finch", "robin", "wren"]
        other = run("folder", raw, tmp_path / "other", seed=1)
        assert set(index(tmp_path / "other", "test")["name"]) != set(index(tmp_path / "out", "test")["name"])
        assert rows(other) == rows(card)

    def test_splits_of_folders_and_wrapping_folders(self, tmp_path, capsys):
        for split, first in (("train", 0), ("val", 1000), ("test", 2000)):
            for at, name in enumerate("ab"):
                for number in range(3):
                    path = tmp_path / "raw/birds/birds" / split / name / f"{number}.png"
                    make.picture(path, first + 100 * at + number)
        card = run("folder", tmp_path / "raw", tmp_path / "out")
        assert rows(card) == {"train": 6, "valid": 6, "test": 6} and card["classes"] == ["a", "b"]
        assert "folder birds/birds is around all pictures" in capsys.readouterr().err

    def test_folders_in_folders(self, tmp_path, capsys):
        raw = make.write_folder(tmp_path / "raw", ("audi/a3", "audi/a4", "bmw/x1"), 10)
        assert run("folder", raw, tmp_path / "out")["classes"] == ["a3", "a4", "x1"]
        told = capsys.readouterr().err
        assert "pictures lie 2 folders deep: the folder that holds them is the class, as 'x1' of bmw/x1" in told
        assert "(3 classes); --class_level 1 makes 2 classes" in told
        assert run("folder", raw, tmp_path / "makes", class_level=1)["classes"] == ["audi", "bmw"]
        assert "folders deep" not in capsys.readouterr().err
        # one name in two folders is of two classes
        for number in range(10):
            make.picture(raw / "bmw/a3" / f"{number}.png", 8000 + number)
        card = run("folder", raw, tmp_path / "again")
        assert card["classes"] == ["audi/a3", "audi/a4", "bmw/a3", "bmw/x1"]
        with pytest.raises(ConfigError, match=r"class_level 3: is in 2 folders only; move it, or give --class_level 2"):
            run("folder", raw, tmp_path / "none", class_level=3)

    def test_folders_in_folders_below_splits(self, tmp_path):
        raw = make.write_folder(tmp_path / "raw", ("train/audi/a3", "train/bmw/x1", "test/audi/a3", "test/bmw/x1"), 3)
        card = run("folder", raw, tmp_path / "out", valid_share=0.0)
        assert card["classes"] == ["a3", "x1"] and rows(card) == {"train": 6, "valid": 0, "test": 6}

    def test_unequally_deep_folders_are_told(self, tmp_path, capsys):
        raw = make.write_folder(tmp_path / "raw", ("robin", "robin/nest", "wren"), 10)
        card = run("folder", raw, tmp_path / "out")
        assert card["classes"] == ["robin", "wren"] and sum(rows(card).values()) == 30
        told = capsys.readouterr().err
        assert "pictures lie 1 to 2 folders deep: the outermost folder is the class, as 'robin' of robin/nest" in told

    def test_splits_inside_of_classes_are_refused(self, tmp_path):
        raw = make.write_folder(tmp_path / "raw", ("a/train", "a/test", "b/train", "b/test"), 3)
        with pytest.raises(ConfigError, match="split test is inside of a; put splits outside, as in test/a"):
            run("folder", raw, tmp_path / "out")

    def test_one_line_errors(self, tmp_path):
        raw = make.write_folder(tmp_path / "raw", ("a", "b"), 3)
        make.picture(raw / "loose.png", 1)
        with pytest.raises(ConfigError, match=r"loose\.png: is in no folder of a class"):
            run("folder", raw, tmp_path / "out")
        (raw / "loose.png").unlink()
        make.picture(raw / "A" / "0.png", 1)
        with pytest.raises(LabelError, match="class 'a' and 'A' differ in upper and lower case"):
            run("folder", raw, tmp_path / "out")
        with pytest.raises(LabelError, match="all training pictures are of the class 'a'"):
            run("folder", make.write_folder(tmp_path / "one", ("train/a", "test/a"), 3), tmp_path / "out")
        with pytest.raises(DatasetNotFoundError, match="holds no picture"):
            (tmp_path / "empty").mkdir()
            run("folder", tmp_path / "empty", tmp_path / "out")

    def test_scarce_classes_are_told(self, tmp_path, capsys):
        raw = make.write_folder(tmp_path / "raw", ("a", "b"), 10)
        make.picture(raw / "lonely" / "0.png", 1)
        run("folder", raw, tmp_path / "out")
        told = capsys.readouterr().err
        assert "warning: 1 class with one picture: it cannot be trained and tested (lonely)" in told

    def test_unreadable_pictures_are_rejected_odd_ones_written_anew(self, tmp_path):
        raw = make.write_folder(tmp_path / "raw", ("a", "b"), 8)
        (raw / "a/000.png").write_bytes(b"")
        (raw / "a/001.png").write_bytes((raw / "a/002.png").read_bytes()[:200])
        (raw / "a/003.png").write_bytes(b"no picture at all")
        Image.new("RGB", (30, 30), (9, 9, 9)).save(raw / "b/000.png")
        grey = Image.fromarray(make.pixels(77)).convert("L")
        grey.save(raw / "b/001.png")
        grey.convert("CMYK").save(raw / "b/cmyk.jpg")
        Image.fromarray(np.asarray(Image.fromarray(make.pixels(78)).convert("L")).astype(np.uint16) * 257).save(
            raw / "b/deep.png"
        )
        turned = Image.fromarray(make.pixels(79))
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(raw / "b/turned.jpg", exif=exif)
        card = run("folder", raw, tmp_path / "out", max_rejects=0.5)
        reasons = dict((source, reason) for source, _, reason in rejects(tmp_path / "out"))
        assert reasons == {
            "a/000.png": "the image file is empty (0 bytes)",
            "a/001.png": "the file ends inside the image",
            "a/003.png": "the file is no image, or a damaged one",
            "b/000.png": "all pixels have one value",
        }
        table = index(tmp_path / "out")
        stored = table.filter("stored")
        assert set(stored["name"]) == {"b/cmyk.jpg", "b/deep.png", "b/turned.jpg"}
        for image in stored["image"]:
            with Image.open(tmp_path / "out" / image) as found:
                assert found.mode == "RGB"
        assert table.filter(pl.col("name") == "b/turned.jpg").select("width", "height").row(0) == make.SIZE[::-1]
        assert card["counts"]["grey"] == 1
        assert "stored as CMYK: written anew as 8-bit RGB" in card["counts"]["remarks"]

    def test_copies_are_whole(self, tmp_path):
        raw = make.write_folder(tmp_path / "raw", ("a", "b"), 5)
        run("folder", raw, tmp_path / "out", copy_images=True)
        table = index(tmp_path / "out")
        assert table["stored"].all()
        for name, image in table.select("name", "image").iter_rows():
            assert (tmp_path / "out" / image).read_bytes() == (raw / name).read_bytes()


class TestDuplicates:
    def copied(self, tmp_path: Path) -> Path:
        raw = make.write_folder(tmp_path / "raw", ("train/a", "train/b", "test/a", "test/b"), 4)
        (raw / "train/a/copy.png").write_bytes((raw / "test/a/000.png").read_bytes())
        (raw / "train/b/other.png").write_bytes((raw / "test/a/001.png").read_bytes())
        Image.open(raw / "test/b/000.png").resize((96, 80), Image.Resampling.BICUBIC).save(raw / "train/b/near.png")
        return raw

    def test_given_borders_are_reported(self, tmp_path, capsys):
        card = run("folder", self.copied(tmp_path), tmp_path / "out", valid_share=0.0)
        assert card["duplicates"]["exact"]["images_across"] == {"train-test": {"test": 2, "train": 2}}
        assert card["duplicates"]["near_pairs"] == {"train-test": 1} and not card["duplicates"]["dropped"]
        assert card["duplicates"]["groups_with_several_labels"] == 1
        told = capsys.readouterr().err
        assert "2 of test and 2 of train are the same; 1 near pairs train-test" in told
        assert "1 groups of equal pictures are of several classes" in told

    def test_drop_and_refuse(self, tmp_path):
        raw = self.copied(tmp_path)
        card = run("folder", raw, tmp_path / "out", valid_share=0.0, duplicates="drop")
        assert card["duplicates"]["dropped"] == {"train": 3} and rows(card) == {"train": 8, "valid": 0, "test": 8}
        with pytest.raises(LeakError, match=r"are (exact|near) duplicates \(3 such pairs"):
            run("folder", raw, tmp_path / "refused", duplicates="refuse")

    def test_the_part_that_is_used_counts(self, tmp_path):
        raw = make.write_aircraft(tmp_path / "raw")
        top = raw / "fgvc-aircraft-2013b/data/images"
        whole = np.asarray(Image.open(top / "1000000.jpg")).copy()
        for path, tone in ((top / "1000000.png", 255), (top / "3000000.png", 0)):
            whole[-20:] = tone
            Image.fromarray(whole).save(path)
            path.rename(path.with_suffix(".jpg"))
        card = run("aircraft", raw, tmp_path / "out")
        assert card["duplicates"]["exact"]["images_across"] == {"train-test": {"test": 1, "train": 1}}


class TestTable:
    def table(self, tmp_path: Path, text: str) -> Path:
        make.write_folder(tmp_path / "raw", ("a", "b"), 5)
        (tmp_path / "raw" / "labels.csv").write_text(text)
        return tmp_path / "raw"

    def test_boxes_splits_and_rejects(self, tmp_path):
        text = ["image,label,split,x,y,width,height"]
        text += [
            f"{name}/{at:03d}.png,{name},{'train' if at else 'test'},2,3,20,30" for name in "ab" for at in range(5)
        ]
        text += [
            "a/001.png,a,train,,,,",
            "a/099.png,a,train,,,,",
            "b/002.png,,train,,,,",
            "b/003.png,b,dev,,,,",
        ]
        text += ["b/004.png,b,train,1,2,x,4", "../b/004.png,b,train,,,,"]
        raw = self.table(tmp_path, "\n".join(text))
        card = run("csv", raw, tmp_path / "out", crop="box", valid_share=0.0, max_rejects=0.5)
        assert rows(card) == {"train": 8, "valid": 0, "test": 2}
        assert regions(index(tmp_path / "out")) == {(2, 3, 22, 33)}
        assert [(record, reason) for _, record, reason in rejects(tmp_path / "out")] == [
            (10, "the picture is listed before"),
            (11, "the image file is not there"),
            (12, "no label"),
            (13, "the split is none of train, valid, test"),
            (14, "x, y, width, height are no four numbers"),
            (15, "the record has no usable file name"),
        ]

    def test_rejects_name_the_line_of_the_table(self, tmp_path, capsys):
        text = 'image,label,note\na/000.png,a,"two\nlines"\n\na/099.png,a,\n'
        text += "".join(f"{name}/{at:03d}.png,{name},\n" for name in "ab" for at in range(5))
        raw = self.table(tmp_path, text)
        run("csv", raw, tmp_path / "out", max_rejects=0.5)
        found = pl.read_parquet(tmp_path / "out/rejects.parquet").select("source", "record", "field", "reason")
        assert found.rows() == [
            ("labels.csv", 2, "line 5", "the image file is not there"),
            ("labels.csv", 3, "line 6", "the picture is listed before"),
        ]
        assert "line 5: the image file is not there (a/099.png,a,)" in capsys.readouterr().err

    def test_pictures_without_a_box_are_told(self, tmp_path, capsys):
        text = "image,label,x,y,width,height\n" + "".join(
            f"{name}/{at:03d}.png,{name},{'2,3,20,30' if at else ',,,'}\n" for name in "ab" for at in range(5)
        )
        run("csv", self.table(tmp_path, text), tmp_path / "out", crop="box")
        assert regions(index(tmp_path / "out")) == {(2, 3, 22, 33), (0, 0, *make.SIZE)}
        assert "2 pictures have no box and are taken whole (a/000.png, b/000.png)" in capsys.readouterr().err

    def test_paths_of_another_machine(self, tmp_path):
        text = ["image,label", *(f"D:\\\\birds\\\\{name}\\\\{at:03d}.png,{name}" for name in "ab" for at in range(5))]
        raw = self.table(tmp_path, "\n".join(text).replace("\\\\", "\\"))
        assert run("csv", raw, tmp_path / "out")["counts"]["used_pictures"] == 10

    def test_letters_that_another_system_takes_apart(self, tmp_path):
        raw = make.write_folder(tmp_path / "raw", ("e\u0301tourneau", "b"), 5)
        text = "".join(f"{name}/{at:03d}.png,{name}\n" for name in ("\u00e9tourneau", "b") for at in range(5))
        (raw / "labels.csv").write_text(f"image,label\n{text}")
        assert run("csv", raw, tmp_path / "out")["counts"]["used_pictures"] == 10

    def test_a_missing_picture_is_not_taken_for_one_of_the_same_name(self, tmp_path):
        text = "image,label\n" + "".join(f"{name}/{at:03d}.png,{name}\n" for name in "ab" for at in range(5))
        raw = self.table(tmp_path, text)
        (raw / "b/003.png").unlink()
        run("csv", raw, tmp_path / "out", max_rejects=0.5)
        assert rejects(tmp_path / "out") == [("labels.csv", 8, "the image file is not there")]

    def test_groups_stay_together(self, tmp_path):
        text = "image;label;group\n" + "".join(
            f"{name}/{at:03d}.png;{name};{name}{at // 2}\n" for name in "ab" for at in range(5)
        )
        card = run("csv", self.table(tmp_path, text), tmp_path / "out", ratios=(0.5, 0.0, 0.5))
        sides: dict[str, set[str]] = {}
        for name, split in index(tmp_path / "out").select("name", "split").iter_rows():
            sides.setdefault(f"{name[0]}{int(name[2:5]) // 2}", set()).add(split)
        assert all(len(found) == 1 for found in sides.values()) and card["group"]["groups"] == 6

    def test_a_group_in_two_given_splits_is_refused(self, tmp_path):
        text = "image,label,group,split\na/000.png,a,g,train\na/001.png,a,g,test\nb/000.png,b,h,train\n"
        with pytest.raises(LeakError, match=r"group 'g' is in train .* and in test"):
            run("csv", self.table(tmp_path, text), tmp_path / "out")

    def test_one_line_errors(self, tmp_path):
        raw = self.table(tmp_path, "file,label\na/000.png,a\n")
        with pytest.raises(ConfigError, match="has no column 'image', only file, label"):
            run("csv", raw, tmp_path / "out")
        (raw / "other.csv").write_text("image,label\n")
        with pytest.raises(ConfigError, match="holds 2 tables"):
            run("csv", raw, tmp_path / "out")


def test_options_that_do_not_go_together(tmp_path):
    raw = make.write_folder(tmp_path / "raw", ("a", "b"), 4)
    wrong = {
        "level: is no option of folder": {"level": "family"},
        "class_level -1: give 1": {"class_level": -1},
        "class_level: goes without identity_pattern": {
            "class_level": 1,
            "identity_pattern": "(x)",
            "kind": "identities",
        },
        "margin: goes with --crop box": {"margin": 0.1},
        "crop: the data have no boxes": {"crop": "box"},
        "valid_identities: goes with identities": {"valid_identities": 2},
        "valid_share: goes with data that have a split": {"valid_share": 0.1},
        "identity_pattern .*put what is looked for in one pair": {"identity_pattern": "x"},
        "ratios": {"ratios": (0.5, 0.5, 0.5)},
        "ignore_camera: goes with identities": {"ignore_camera": True},
        "duplicates 'maybe': choose auto": {"duplicates": "maybe"},
    }
    for message, options in wrong.items():
        with pytest.raises(ConfigError, match=message):
            run("folder", raw, tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="lies inside the raw folder"):
        run("folder", raw, raw / "out")
    with pytest.raises(ConfigError, match="there are cub, cars"):
        prepare("imagenet", raw, tmp_path / "out", progress=False)  # type: ignore[arg-type]


def test_a_finished_preparation_is_found_changed_files_are_told(tmp_path):
    raw = make.write_folder(tmp_path / "raw", ("a", "b"), 4)
    first = run("folder", raw, tmp_path / "out")
    assert run("folder", raw, tmp_path / "out") == first
    data = (raw / "a/000.png").read_bytes()
    make.picture(raw / "a/000.png", 9)
    with pytest.raises(ConfigError, match="holds prepared data of other options or other files"):
        run("folder", raw, tmp_path / "out")
    (raw / "a/000.png").write_bytes(data)
    assert run("folder", raw, tmp_path / "out") == first
