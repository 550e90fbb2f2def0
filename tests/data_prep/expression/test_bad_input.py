"""Dirt of real data sets: one line for each, and nothing is dropped in silence."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from data_prep.common.errors import (
    ConfigError,
    CorruptRecordError,
    DatasetNotFoundError,
    LabelError,
    LeakError,
    PrepError,
    RejectsExceededError,
)
from tests.data.expression import make
from tests.data_prep.expression.helpers import index, labels, named, pixels, reasons, run


def folder_of(raw: Path, count: int = 12, size: int = 40) -> Path:
    for number in range(count):
        make.save(raw / ("happy", "sad")[number % 2] / f"{number:02d}.png", make.face(number, size, 3))
    return raw


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    raw = folder_of(tmp_path / "raw")
    grey = make.face(50, 40)
    sad = raw / "sad"
    make.save(sad / "grey.png", grey)
    Image.fromarray(grey).convert("CMYK").save(sad / "cmyk.jpg", quality=98)
    Image.fromarray(grey.astype(np.uint16) * 257).save(sad / "deep.png")
    clear = Image.fromarray(make.face(51, 40, 3))
    clear.putalpha(Image.fromarray(np.full((40, 40), 255, np.uint8)))
    clear.save(sad / "clear.png")
    (sad / "empty.png").write_bytes(b"")
    (sad / "text.jpg").write_text("no picture")
    whole = (raw / "happy" / "00.png").read_bytes()
    (sad / "cut.png").write_bytes(whole[: len(whole) // 2])
    make.save(sad / "flat.png", np.full((40, 40), 9, np.uint8))
    card = run("folder", raw, tmp_path / "out", max_rejects=0.3, ratios=(1, 0, 0), duplicates="report")
    assert reasons(tmp_path / "out") == {
        "empty.png": "the image file is empty (0 bytes)",
        "text.jpg": "the file is no image, or a damaged one",
        "cut.png": "the file ends inside the image",
    }
    remarks = reasons(tmp_path / "out", "remarks")
    assert remarks["cmyk.jpg"] == "stored as CMYK" and remarks["clear.png"] == "stored as RGBA"
    assert remarks["deep.png"].startswith("stored as I") and remarks["flat.png"] == "all pixels have one value"
    assert card["channels"] == 3 and card["counts"]["images"] == 20
    for name in ("grey.png", "deep.png"):
        found = pixels(tmp_path / "out", named(tmp_path / "out", name))
        assert np.array_equal(found, np.repeat(grey[..., None], 3, axis=2)), name


def test_too_many_rejects_end_it(tmp_path: Path) -> None:
    raw = folder_of(tmp_path / "raw")
    (raw / "sad" / "99.png").write_bytes(b"")
    with pytest.raises(RejectsExceededError, match=r"99\.png: record 0.*empty.*1 of 13 records.*correct the file"):
        run("folder", raw, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def write_table(path: Path, *rows: str, head: str = "image,emotion,subject,split") -> dict[str, Any]:
    path.write_text("\n".join([head, *rows]) + "\n")
    return {"table": path}


class TestTables:
    def rows(self, raw: Path) -> list[str]:
        folder_of(raw, 20)
        return [
            f"{n:02d}.png,{'Happy' if n % 2 else 'sad'},p{n // 2},{'train' if n < 14 else 'test'}" for n in range(20)
        ]

    def test_rows_and_images_that_do_not_meet(self, tmp_path: Path) -> None:
        rows = self.rows(tmp_path / "raw")
        rows += ["gone.png,sad,p1,train", ",sad,p1,train", "00.png,sad,p0,train", "02.png,,p1,train"]
        options = write_table(tmp_path / "t.csv", *rows[:19], *rows[20:], "03.png,fear,p1,train")
        card = run("folder", tmp_path / "raw", tmp_path / "out", max_rejects=0.5, valid_share=0.3, **options)
        table = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
        assert dict(table.select("excerpt", "reason").iter_rows()) == {
            "gone.png": "the image file is not there",
            "": "no image is named",
            "02.png": "no label",
            "03.png": "the rows of this image have several labels",
        }
        remarks = reasons(tmp_path / "out", "remarks")
        assert remarks["19.png"] == "no row of the table names this image"
        assert card["counts"]["images_without_row"] == 1 and card["counts"]["rows_listed_twice"] == 2

    def test_one_image_in_two_splits(self, tmp_path: Path) -> None:
        rows = [*self.rows(tmp_path / "raw"), "00.png,sad,p0,test"]
        with pytest.raises(LeakError, match=r"t\.csv: row 20: image '00\.png' is of test, and of train in row 0"):
            run("folder", tmp_path / "raw", tmp_path / "out", **write_table(tmp_path / "t.csv", *rows))

    def test_one_subject_in_two_splits(self, tmp_path: Path) -> None:
        rows = [row.replace(",p9,", ",p0,") for row in self.rows(tmp_path / "raw")]
        options = write_table(tmp_path / "t.csv", *rows)
        with pytest.raises(LeakError, match=r"subject 'p0' is in train .* and in test"):
            run("folder", tmp_path / "raw", tmp_path / "out", **options)
        card = run("folder", tmp_path / "raw", tmp_path / "out", **options, split_by="image")
        assert not card["group"]["kept_apart"]

    def test_columns(self, tmp_path: Path) -> None:
        rows = self.rows(tmp_path / "raw")
        with pytest.raises(ConfigError, match=r"has no column 'label' \(or emotion, expression, class\), only image"):
            run(
                "folder",
                tmp_path / "raw",
                tmp_path / "out",
                **write_table(tmp_path / "t.csv", *rows, head="image,a,b,c"),
            )
        with pytest.raises(ConfigError, match=r"is in no folder of a class.*--table .*t\.csv"):
            (tmp_path / "raw" / "t.csv").write_text("image,label\n")
            make.save(tmp_path / "raw" / "stray.png", make.face(1))
            run("folder", tmp_path / "raw", tmp_path / "out")

    def test_files_that_are_no_tables(self, tmp_path: Path) -> None:
        folder_of(tmp_path / "raw")
        (tmp_path / "t.csv").write_bytes(b"image,label\n\xff\xfe\x00,happy\n")
        with pytest.raises(CorruptRecordError, match="not UTF-8 text"):
            run("folder", tmp_path / "raw", tmp_path / "out", table=tmp_path / "t.csv")
        (tmp_path / "t.csv").write_bytes(b"")
        with pytest.raises(PrepError, match=r"t\.csv"):
            run("folder", tmp_path / "raw", tmp_path / "out", table=tmp_path / "t.csv")


class TestFER2013:
    def test_rows_that_are_damaged(self, tmp_path: Path) -> None:
        rows: list[tuple[object, str, np.ndarray]] = list(make.fer_rows(8))
        rows[3] = (9, "Training", rows[3][2])
        rows[4] = ("happy", "Training", rows[4][2])
        rows[5] = (1, "Somewhere", rows[5][2])
        path = make.pixel_csv(tmp_path / "raw" / "fer2013.csv", rows)
        lines = path.read_text().splitlines()
        lines[8] = lines[8].replace(" ", " x ", 1)
        lines[9] = lines[9].replace(" ", " 256 ", 1)
        lines[10] = lines[10].rsplit(" ", 3)[0] + ",Training"
        lines[11] = "1,Training"
        path.write_text("\n".join(lines)[:-900])  # and the file is cut in its last row
        run("fer2013", path, tmp_path / "out", max_rejects=0.1)
        found = {
            (row["record"]): row["reason"] for row in pl.read_parquet(tmp_path / "out" / "rejects.parquet").to_dicts()
        }
        assert found[3] == found[4] == "the label is outside 0 to 6" and found[10] == "2 cells instead of 3"
        assert found[5] == "is none of Training, PublicTest, PrivateTest"
        assert "not a row of whole numbers" in found[7] and found[8] == "a pixel is 256; values are 0 to 255"
        assert "no square image" in found[9] and found[167] == "2 cells instead of 3"

    def test_copies_across_splits_and_labels_that_disagree(self, tmp_path: Path) -> None:
        rows = make.fer_rows()
        rows[30] = (rows[2][0], rows[30][1], rows[2][2])  # valid, same label as in train
        rows[60] = ((rows[3][0] + 1) % 7, rows[60][1], rows[3][2])  # test, another label
        rows[5] = (rows[5][0], rows[5][1], rows[4][2])  # within train, another label
        path = make.pixel_csv(tmp_path / "raw" / "fer2013.csv", rows)
        card = run("fer2013", path, tmp_path / "report")
        summary = card["duplicates"]
        assert summary["exact"]["images_across"] == {
            "train-valid": {"train": 1, "valid": 1},
            "train-test": {"train": 1, "test": 1},
        }
        assert summary["exact"]["repeats_within"]["train"] == 1 and summary["dropped"] == {}
        assert summary["groups_with_several_labels"] == 2
        table = pl.read_parquet(tmp_path / "report" / "duplicates.parquet")
        assert {"first_label", "second_label", "same_subject"} <= set(table.columns)
        card = run("fer2013", path, tmp_path / "drop", duplicates="drop")
        assert card["duplicates"]["dropped"] == {"train": 2} and card["splits"]["test"]["rows"] == 28
        card = run("fer2013", path, tmp_path / "agree", conflicts="drop")
        assert card["counts"]["conflicting_labels_dropped"] == 3 and card["splits"]["train"]["rows"] == 25
        with pytest.raises(LeakError, match=r"exact duplicates.*--duplicates drop"):
            run("fer2013", path, tmp_path / "refuse", duplicates="refuse")

    def test_files_that_are_no_such_table(self, tmp_path: Path) -> None:
        for content in (b"", b"emotion,pixels,Usage\n", b"a,b\n1,2\n", b"\0" * 5000):
            path = tmp_path / "raw" / "fer2013.csv"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            with pytest.raises(PrepError, match="raw"):
                run("fer2013", path.parent, tmp_path / "out")
        (tmp_path / "raw" / "fer2013.csv").write_text("pixels\n1 2 3 4\n")
        with pytest.raises(ConfigError, match="has no column 'emotion': images without labels"):
            run("fer2013", tmp_path / "raw", tmp_path / "out")


class TestFERPlus:
    def test_images_whose_order_is_lost_are_refused(self, tmp_path: Path) -> None:
        rows = make.fer_rows(2)
        make.make_ferplus(tmp_path / "raw", rows)
        for number, (_, _, given) in enumerate(rows):
            make.save(tmp_path / "raw" / "train" / "anger" / f"Training_{number}.jpg", given)
        with pytest.raises(ConfigError, match=r"42 images with other names.*whose place in fer2013.csv is lost"):
            run("ferplus", tmp_path / "raw", tmp_path / "out")

    def test_a_table_with_rows_missing_or_moved_is_refused(self, tmp_path: Path) -> None:
        rows = make.fer_rows(20)
        cases = {
            "missing": (rows[:9] + rows[10:], "419 rows, and fer2013new.csv has 420"),
            "splits": (rows[::-1], "row 0 is of 'PrivateTest', and of another split"),
            # within one split, only the labels tell
            "moved": (
                rows[1:140] + rows[:1] + rows[140:],
                "from about row 0 on, labels do not fit the votes .* but those 1 rows further on",
            ),
        }
        for name, (given, message) in cases.items():
            make.make_ferplus(tmp_path / name, rows)
            make.pixel_csv(tmp_path / name / "fer2013.csv", given)
            with pytest.raises(ConfigError, match=message):
                run("ferplus", tmp_path / name, tmp_path / "out")

    def test_votes_out_of_order_or_unreadable(self, tmp_path: Path) -> None:
        rows = make.fer_rows(8)
        make.make_fer2013(tmp_path / "raw", 8)
        path = make.make_ferplus(tmp_path / "raw", rows, {7: ["x"] * 10})  # type: ignore[dict-item]
        run("ferplus", tmp_path / "raw", tmp_path / "out", max_rejects=0.1)
        found = pl.read_parquet(tmp_path / "out" / "rejects.parquet").to_dicts()
        assert [(row["record"], row["reason"]) for row in found] == [(7, "the votes are not ten whole numbers")]
        lines = path.read_text().splitlines()
        lines[10], lines[11] = lines[11], lines[10]
        path.write_text("\n".join(lines))
        with pytest.raises(CorruptRecordError, match=r"row 10: image fer0000009.png stands behind fer0000010.png"):
            run("ferplus", tmp_path / "raw", tmp_path / "other")

    def test_an_image_that_is_missing_is_named(self, tmp_path: Path) -> None:
        rows = make.fer_rows(3)
        make.make_ferplus(tmp_path / "raw", rows)
        make.make_ferplus_images(tmp_path / "raw", rows)
        (tmp_path / "raw" / "FER2013Train" / "fer0000004.png").unlink()
        run("ferplus", tmp_path / "raw", tmp_path / "out", max_rejects=0.1)
        table = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
        assert table["excerpt"].to_list() == ["fer0000004.png"]


def test_raf_db_lists_with_dirt(tmp_path: Path) -> None:
    raw = make.make_raf_db(tmp_path / "raw", each=10)
    path = raw / "EmoLabel" / "list_patition_label.txt"
    extra = "train_00001.jpg 3\ntrain_09999.jpg 1\ntrain_00002.jpg\ntrain_00003.jpg 8\nother_1.jpg 2\n"
    path.write_text(path.read_text() + extra)
    run("raf-db", raw, tmp_path / "out", max_rejects=0.1)
    table = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert table["record"].to_list() == [140, 141, 142, 143, 144]
    assert table["reason"].to_list() == [
        "the image is listed twice, with the labels 1 and 3",
        "the image file is not there",
        "the label is outside 1 to 7",
        "the label is outside 1 to 7",
        "the name begins neither with train nor with test",
    ]


def test_ckplus_emotions_that_are_no_numbers(tmp_path: Path) -> None:
    raw = make.make_ckplus(tmp_path / "raw")
    one, two, three = sorted((raw / "Emotion").rglob("*.txt"))[:3]
    one.write_text("happy")
    two.write_text("  1.2000000e+01\n")
    for frame in (raw / "cohn-kanade-images" / "S006" / "001").iterdir():
        frame.unlink()
    card = run("ck+", raw, tmp_path / "out", max_rejects=0.1)
    found = reasons(tmp_path / "out")
    assert found[one.name] == found[two.name] == "the emotion is no whole number of 0 to 7"
    assert found[three.name] == "the sequence has no images" and card["counts"]["labelled_sequences"] == 21


def test_affwild2_annotations_that_do_not_fit(tmp_path: Path) -> None:
    raw = make.make_affwild2(tmp_path / "raw")
    path = raw / "EXPR_Recognition_Challenge" / "Train_Set" / "0-30-1280x720.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "8", "x", *lines[3:], "", ""]))
    for frame in (raw / "cropped_aligned" / "5-30-1280x720").iterdir():
        frame.unlink()
    (raw / "cropped_aligned" / "5-30-1280x720").rmdir()
    run("aff-wild2", raw, tmp_path / "out", valid_share=0.3, max_rejects=0.1)
    table = pl.read_parquet(tmp_path / "out" / "rejects.parquet").to_dicts()
    assert [(row["record"], row["reason"]) for row in table if row["source"].startswith("0-30")] == [
        (0, "the label is outside -1 to 7"),
        (1, "the label is outside -1 to 7"),
    ]
    assert reasons(tmp_path / "out")["5-30-1280x720.txt"] == "the folder of its frames is not there"
    # codes mean what the first line says
    path.write_text("\n".join(["Anger,Neutral,Disgust,Fear,Happiness,Sadness,Surprise,Other", *["0"] * 20]))
    card = run("aff-wild2", raw, tmp_path / "other", valid_share=0.3, max_rejects=0.1)
    assert labels(tmp_path / "other", card)["0-30-1280x720/00001.jpg"] == "anger"
    path.write_text("valence,arousal\n0.1,0.2\n")
    with pytest.raises(ConfigError, match=r"line 1 is 'valence,arousal' instead of the names of the classes"):
        run("aff-wild2", raw, tmp_path / "va")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("raf-db", "neither EmoLabel/list_patition_label.txt"),
        ("fer2013", "holds no image"),
        ("ferplus", "0 files fer2013new.csv"),
        ("ck+", "neither .*_emotion.txt"),
        ("jaffe", r"no image called as KA\.AN1\.39\.tiff"),
        ("ferg-db", "no folder as in aia/aia_anger"),
        ("aff-wild2", "no annotations as in EXPR"),
        ("folder", "holds no image; looked for"),
    ],
)
def test_empty_folders_say_what_was_looked_for(tmp_path: Path, dataset: str, message: str) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(DatasetNotFoundError, match=message) as caught:
        run(dataset, tmp_path / "raw", tmp_path / "out")
    assert "\n" not in str(caught.value) and str(tmp_path / "raw") in str(caught.value)


def test_files_of_other_names_are_told(tmp_path: Path) -> None:
    make.make_jaffe(tmp_path / "raw", each=3)
    make.save(tmp_path / "raw" / "notes.png", make.face(1))
    run("jaffe", tmp_path / "raw", tmp_path / "out", ratios=(0.6, 0.2, 0.2))
    assert re.match("the name does not say subject", reasons(tmp_path / "out")["notes.png"])
    with pytest.raises(
        LabelError, match="all training images are of the class 'anger'; nothing can be learned from that"
    ):
        for number in range(5):
            make.save(tmp_path / "one" / "anger" / f"{number}.png", make.face(number))
        run("folder", tmp_path / "one", tmp_path / "other")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_hostile_files_never_execute(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(mark))
    raw = folder_of(tmp_path / "raw")
    for name in ("sad/bomb.png", "sad/bomb.tif", "bomb.csv", "fer2013.csv", "fer2013new.csv", "bomb.onnx", "bomb.xml"):
        (raw / name).write_bytes(bomb)
    run("folder", raw, tmp_path / "out", max_rejects=0.5)
    assert set(reasons(tmp_path / "out")) == {"bomb.png", "bomb.tif"}
    for options in (
        {"table": raw / "bomb.csv"},
        {"align": "detector", "detector_weights": raw / "bomb.onnx"},
        {"align": "detector", "detector_weights": raw / "bomb.xml"},
    ):
        with pytest.raises(PrepError, match="bomb"):
            run("folder", raw, tmp_path / "other", **options)
    for dataset in ("fer2013", "ferplus"):
        with pytest.raises(PrepError, match="raw"):
            run(dataset, raw, tmp_path / "other", max_rejects=0.0)
    assert not mark.exists()


def test_near_copies_are_dropped_at_drawn_borders(tmp_path: Path) -> None:
    raw = folder_of(tmp_path / "raw", 24, 64)
    for number in range(0, 24, 2):
        picture = Image.fromarray(make.face(number, 64, 3))
        picture.resize((60, 60)).save(raw / "happy" / f"copy{number}.jpg", quality=85)
    card = run("folder", raw, tmp_path / "out", align="center", side=48, ratios=(0.5, 0.2, 0.3))
    summary = card["duplicates"]
    assert sum(summary["near_pairs"].values()) >= 12 and summary["dropped"].get("train", 0) > 0
    frame = index(tmp_path / "out")
    split = dict(frame.select("name", "split").iter_rows())
    for number in range(0, 24, 2):
        both = [split.get(f"{number:02d}.png"), split.get(f"copy{number}.jpg")]
        assert None in both or both[0] == both[1]


def test_an_aligned_image_that_is_missing_is_no_original(tmp_path: Path) -> None:
    raw = make.make_raf_db(tmp_path / "raw", faces=True)
    (raw / "Image" / "aligned" / "train_00005_aligned.jpg").unlink()
    (raw / "Image" / "original" / "train_00006.jpg").unlink()
    make.save(raw / "Image" / "aligned" / "train_00007_aligned.png", make.face(3, 100, 3))
    run("raf-db", raw, tmp_path / "aligned", max_rejects=0.1)
    found = pl.read_parquet(tmp_path / "aligned" / "rejects.parquet")
    assert dict(found.select("excerpt", "reason").iter_rows()) == {
        "train_00005.jpg 5": "the aligned image is not there, the original alone; --align given cuts the faces of the "
        "originals",
        "train_00007.jpg 7": "2 image files have this name",
    }
    run("raf-db", raw, tmp_path / "original", max_rejects=0.1, align="center")
    found = pl.read_parquet(tmp_path / "original" / "rejects.parquet")
    assert found["excerpt"].to_list() == ["train_00006.jpg 6"]
    assert found["reason"][0].startswith("the original is not there, the aligned image alone; --align none")


class TestOneClass:
    def test_a_training_split_of_one_class_is_refused(self, tmp_path: Path) -> None:
        for number in range(12):
            place = "train/happy" if number < 8 else ("test/happy", "test/sad")[number % 2]
            make.save(tmp_path / "raw" / place / f"{number}.png", make.face(number))
        message = r"all training images are of the class 'happiness'; .* other splits have sadness: mend the split"
        with pytest.raises(LabelError, match=message):
            run("folder", tmp_path / "raw", tmp_path / "out")
        assert not (tmp_path / "out" / "dataset.json").exists()

    def test_a_taxonomy_that_leaves_one_class_is_refused(self, tmp_path: Path) -> None:
        for number in range(12):
            make.save(tmp_path / "raw" / ("happy", "bored")[number % 2] / f"{number}.png", make.face(number))
        with pytest.raises(LabelError, match=r"'happiness'; .*: bored lie outside the taxonomy: choose another one"):
            run("folder", tmp_path / "raw", tmp_path / "out", taxonomy="basic7", ratios=(1, 0, 0))


class TestHints:
    def test_a_table_that_lies_beside_the_images(self, tmp_path: Path) -> None:
        for number in range(6):
            make.save(tmp_path / "d" / "images" / f"{number}.png", make.face(number))
        (tmp_path / "d" / "legend.csv").write_text("user.id,image,emotion\n628,0.png,anger\n")
        with pytest.raises(
            ConfigError, match=r"one folder, 'images', and a table .* give it with --table .*legend\.csv"
        ):
            run("folder", tmp_path / "d", tmp_path / "out")
        with pytest.raises(ConfigError, match=r"in no folder of a class.*such as --table .*legend\.csv"):
            run("folder", tmp_path / "d" / "images", tmp_path / "out")

    def test_a_table_that_is_not_read_is_told(self, tmp_path: Path) -> None:
        folder_of(tmp_path / "raw")
        (tmp_path / "raw" / "legend.csv").write_text("image,emotion\n0.png,anger\n")
        (tmp_path / "raw" / "notes.csv").write_text("day,weather\n1,rain\n")
        run("folder", tmp_path / "raw", tmp_path / "out")
        assert list(reasons(tmp_path / "out", "remarks")) == ["legend.csv"]

    def test_packed_files(self, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "faces.zip").write_bytes(b"PK")
        with pytest.raises(DatasetNotFoundError, match=r"faces\.zip: is a packed file; unpack it"):
            run("folder", tmp_path / "raw" / "faces.zip", tmp_path / "out")
        with pytest.raises(DatasetNotFoundError, match=r"holds no image; .*; unpack .*faces\.zip first"):
            run("folder", tmp_path / "raw", tmp_path / "out")


def test_two_tables_of_one_kind(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        make.make_fer2013(tmp_path / "raw" / folder)
    with pytest.raises(DatasetNotFoundError, match=r"2 tables with pixels, such as .*a.fer2013\.csv and .*; give one"):
        run("fer2013", tmp_path / "raw", tmp_path / "out")


def test_folders_that_are_no_classes_of_the_data_set(tmp_path: Path) -> None:
    folder_of(tmp_path / "raw")
    make.save(tmp_path / "raw" / "images" / "0.png", make.face(99))
    with pytest.raises(DatasetNotFoundError, match=r"'images' is none of anger, disgust"):
        run("fer2013", tmp_path / "raw", tmp_path / "out")
    make.make_ck48(tmp_path / "ck")
    make.save(tmp_path / "ck" / "images" / "S010_004_00000099.png", make.face(99))
    run("ck+", tmp_path / "ck", tmp_path / "out", ratios=(0.6, 0.2, 0.2), max_rejects=0.1)
    assert reasons(tmp_path / "out") == {"S010_004_00000099.png": "the folder is called after no class"}


def test_a_data_set_that_is_there_twice(tmp_path: Path) -> None:
    make.make_ckplus(tmp_path / "raw", subjects=3)
    (tmp_path / "raw" / "copy").mkdir()
    source = next((tmp_path / "raw").rglob("S005_001_00000007.png"))
    (tmp_path / "raw" / "copy" / source.name).write_bytes(source.read_bytes())
    with pytest.raises(ConfigError, match=r"image 'S005_001_00000007\.png' is there twice"):
        run("ck+", tmp_path / "raw", tmp_path / "out")


def test_a_video_that_is_annotated_twice(tmp_path: Path) -> None:
    raw = make.make_affwild2(tmp_path / "raw")
    one = next(path for path in raw.rglob("*.txt") if path.parent.name == "Train_Set")
    (one.parent.parent / "Validation_Set" / one.name).write_bytes(one.read_bytes())
    with pytest.raises(ConfigError, match=r"video '.*' has annotations in .*, too; give one set of EXPR alone"):
        run("aff-wild2", raw, tmp_path / "out")
