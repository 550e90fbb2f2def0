"""Each data set in its original layout, as it is prepared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, LabelError
from data_prep.common.manifest import read_manifest
from data_prep.expression import affwild2, ckplus, fer2013, jaffe, raf_db
from data_prep.expression.taxonomy import BASIC7, BASIC8
from tests.data.expression import make
from tests.data_prep.expression.helpers import index, labels, named, pixels, reasons, run


def test_fer2013(tmp_path: Path) -> None:
    rows = make.fer_rows()
    card = run("fer2013", make.make_fer2013(tmp_path / "raw").parent, tmp_path / "out")
    assert (card["domain"], card["kind"], card["channels"], card["side"]) == ("expression", "faces", 1, 48)
    assert card["classes"] == list(fer2013.CLASSES) and card["storage"] == "packed"
    assert {split: entry["rows"] for split, entry in card["splits"].items()} == {"train": 28, "valid": 28, "test": 28}
    for record, (label, usage, given) in enumerate(rows):
        row = named(tmp_path / "out", f"fer2013-{record:07d}")
        assert row["label"] == label and row["split"] == {v: k for k, v in make.FER_USAGE.items()}[usage]
        assert np.array_equal(pixels(tmp_path / "out", row), given)
    whole = np.load(tmp_path / "out" / "train" / "faces-00000.npy")
    assert whole.shape == (28, 48, 48, 1) and whole.dtype == np.uint8
    assert index(tmp_path / "out", "train")["at"].to_list() == list(range(28))
    assert read_manifest(tmp_path / "out") == card


def test_fer2013_variants_are_read_alike(tmp_path: Path) -> None:
    rows = make.fer_rows(2)
    make.pixel_csv(tmp_path / "a" / "icml_face_data.csv", rows, ("emotion", " Usage", " pixels"))
    run("fer2013", tmp_path / "a", tmp_path / "out-a")
    make.pixel_csv(tmp_path / "b" / "fer2013.csv", rows)
    run("fer2013", tmp_path / "b", tmp_path / "out-b")
    assert index(tmp_path / "out-a").equals(index(tmp_path / "out-b"))
    for number, (label, usage, given) in enumerate(rows):
        split = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}[usage]
        make.save(tmp_path / "c" / split / fer2013.CLASSES[label] / f"{number}.png", given)
    card = run("fer2013", tmp_path / "c", tmp_path / "out-c")
    assert card["classes"] == list(fer2013.CLASSES) and card["storage"] == "packed" and card["side"] == 48
    # train.csv of the challenge has no column Usage: its splits are drawn
    make.pixel_csv(tmp_path / "d" / "train.csv", make.fer_rows(6), ("emotion", "pixels"))
    card = run("fer2013", tmp_path / "d", tmp_path / "out-d")
    assert card["split_rule"]["kind"] == "drawn" and card["group"]["kept_apart"] is False


def test_ferplus_by_place_and_by_name(tmp_path: Path) -> None:
    rows = make.fer_rows()
    changed = {
        0: [2, 2, 2, 2, 2, 0, 0, 0, 0, 0],
        1: [0] * 8 + [9, 1],
        2: [0] * 9 + [10],
        3: [4, 3, 3, 0, 0, 0, 0, 0, 0, 0],
    }
    for where in ("place", "name"):
        make.make_ferplus(tmp_path / where, rows, changed, removed=9)
    make.make_fer2013(tmp_path / "place")
    make.make_ferplus_images(tmp_path / "name", rows)
    one = run("ferplus", tmp_path / "place", tmp_path / "out-place")
    other = run("ferplus", tmp_path / "name", tmp_path / "out-name")
    assert one["classes"][:2] == ["neutral", "happiness"] and len(one["classes"]) == 8
    left = {"train_unknown": 3, "train_not_a_face": 1, "train_removed_by_the_authors": 1}
    assert one["counts"]["left_out_by_votes"] == left == other["counts"]["left_out_by_votes"]
    assert one["splits"]["train"]["rows"] == 28 - 5 == other["splits"]["train"]["rows"]
    for name in (f"fer{at:07d}.png" for at in (4, 20, 60)):
        first, second = named(tmp_path / "out-place", name), named(tmp_path / "out-name", name)
        assert np.array_equal(pixels(tmp_path / "out-place", first), pixels(tmp_path / "out-name", second))
        assert first["label"] == second["label"]


def test_ferplus_targets_follow_the_taxonomy(tmp_path: Path) -> None:
    rows = make.fer_rows()
    raw = make.make_fer2013(tmp_path / "raw").parent
    make.make_ferplus(raw, rows, {0: [3, 0, 0, 0, 5, 0, 0, 2, 0, 0]})
    run("ferplus", raw, tmp_path / "native", votes="crossentropy")
    row = named(tmp_path / "native", "fer0000000.png")
    assert row["label"] == 4 and np.allclose(row["target"], [0.375, 0, 0, 0, 0.625, 0, 0, 0])
    card = run("ferplus", raw, tmp_path / "basic", votes="multi_target", taxonomy="basic8")
    row = named(tmp_path / "basic", "fer0000000.png")
    assert card["classes"] == list(BASIC8) and card["targets"]
    assert row["label"] == 1 and np.allclose(row["target"], [0.375, 0.625, 0, 0, 0, 0, 0, 0])


def test_raf_db_aligned(tmp_path: Path) -> None:
    make.make_raf_db(tmp_path / "raw", faces=True)
    make.save(tmp_path / "raw" / "Image" / "aligned" / "train_00099_aligned.jpg", make.face(1, 100, 3))
    card = run("raf-db", tmp_path / "raw", tmp_path / "out")
    assert card["classes"] == list(raf_db.CLASSES) and card["channels"] == 3 and card["side"] == 100
    assert (
        card["splits"]["test"]["rows"] == 28 and card["splits"]["train"]["rows"] + card["splits"]["valid"]["rows"] == 28
    )
    assert labels(tmp_path / "out", card)["train_00005.jpg"] == "sadness"
    assert reasons(tmp_path / "out", "remarks")["train_00099_aligned.jpg"] == "no line of the list names this image"
    assert card["counts"]["images_without_label"] == 1


def test_raf_db_boxes_that_come_with_it(tmp_path: Path) -> None:
    make.make_raf_db(tmp_path / "raw", faces=True)
    run("raf-db", tmp_path / "raw", tmp_path / "cut", align="given", margin=0.0, side=100)
    run("raf-db", tmp_path / "raw", tmp_path / "aligned")
    row = named(tmp_path / "cut", "train_00003.jpg")
    assert row["box"] == [40, 20, 100, 100] and row["faces"] == 1
    wanted = pixels(tmp_path / "aligned", named(tmp_path / "aligned", "train_00003.jpg"))
    found = pixels(tmp_path / "cut", row)
    assert np.abs(found.astype(int) - wanted)[5:-5, 5:-5].mean() < 4  # but for the compression of JPEG


def test_raf_db_folders(tmp_path: Path) -> None:
    for number in range(28):
        split = "train" if number < 21 else "test"
        make.save(
            tmp_path / "raw" / split / str(number % 7 + 1) / f"{split}_{number}_aligned.jpg", make.face(number, 100, 3)
        )
    card = run("raf-db", tmp_path / "raw", tmp_path / "out", valid_share=0.3)
    assert card["classes"] == list(raf_db.CLASSES) and card["splits"]["test"]["rows"] == 7


def test_ckplus_as_published(tmp_path: Path) -> None:
    card = run("ck+", make.make_ckplus(tmp_path / "raw"), tmp_path / "out", folds=4)
    found = index(tmp_path / "out")
    assert card["classes"] == list(ckplus.CLASSES)
    assert len(found) == 12 * 2 * 4 and card["counts"]["sequences_without_label_left_out"] == 12
    one = labels(tmp_path / "out", card)
    assert [one[f"S005_001_{at:08d}.png"] for at in (1, 5, 6, 7)] == ["neutral", "anger", "anger", "anger"]
    assert "S005_001_00000004.png" not in one
    sides = found.group_by("subject").agg(pl.col("split").n_unique())["split"]
    assert set(sides) == {1} and card["group"] == {**card["group"], "kept_apart": True, "groups": 12}
    whole = pl.read_parquet(tmp_path / "out" / "all" / "part-00000.parquet")
    tested: Counter[str] = Counter()
    for fold in range(4):
        table = pl.read_csv(tmp_path / "out" / "folds" / f"splits_{fold}.csv")
        names = {side: set(table[side].drop_nulls()) for side in ("train", "val", "test")}
        assert sum(map(len, names.values())) == len(whole) and set().union(*names.values()) == set(whole["name"])
        subjects = {side: set(whole.filter(pl.col("name").is_in(list(of)))["subject"]) for side, of in names.items()}
        assert not subjects["train"] & subjects["test"] and not subjects["val"] & subjects["test"]
        tested.update(names["test"])
    assert set(tested.values()) == {1} and len(tested) == len(whole)
    for row in whole.head(9).iter_rows(named=True):  # its rows say where the faces are
        assert pixels(tmp_path / "out", row).shape == (64, 64)


def test_ckplus_copies(tmp_path: Path) -> None:
    card = run("ck+", make.make_ck48(tmp_path / "CK+48"), tmp_path / "out", ratios=(0.6, 0.2, 0.2))
    assert card["classes"] == [name for name in ckplus.CLASSES if name != "neutral"]
    assert labels(tmp_path / "out", card)["S012_002_00000015.png"] == "sadness" and card["group"]["groups"] == 10
    rows = [(at % 8, ("Training", "PublicTest", "PrivateTest")[at % 3], make.face(at)) for at in range(48)]
    make.pixel_csv(tmp_path / "csv" / "ckextended.csv", rows)
    card = run("ck+", tmp_path / "csv", tmp_path / "table")
    assert card["classes"] == list(ckplus.EXTENDED) and not card["group"]["kept_apart"]
    assert "names no subjects" in card["group"]["note"] and card["split_rule"]["kind"] == "drawn"


def test_jaffe_and_ferg_db_keep_subjects_apart(tmp_path: Path) -> None:
    card = run("jaffe", make.make_jaffe(tmp_path / "jaffe"), tmp_path / "out", ratios=(0.6, 0.2, 0.2))
    assert card["classes"] == list(jaffe.CODES.values()) and card["group"]["groups"] == 5 and card["channels"] == 1
    assert labels(tmp_path / "out", card)["KL.SU2.22.tiff"] == "surprise"
    card = run("ferg-db", make.make_ferg_db(tmp_path / "ferg"), tmp_path / "drawn", ratios=(0.5, 0.25, 0.25))
    assert card["group"]["name"] == "character" and card["group"]["groups"] == 4 and card["label_map"]["happiness"]
    split = {row["subject"]: row["split"] for row in index(tmp_path / "drawn").iter_rows(named=True)}
    assert Counter(split.values()) == {"train": 2, "valid": 1, "test": 1}


def test_a_split_of_images_is_forced_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = run("jaffe", make.make_jaffe(tmp_path / "raw"), tmp_path / "out", split_by="image")
    assert not card["group"]["kept_apart"] and card["split_rule"]["by"] == "image"
    assert "faces of one subject are on two sides" in capsys.readouterr().err


def test_affwild2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = make.make_affwild2(tmp_path / "raw")
    card = run("aff-wild2", raw, tmp_path / "out", valid_share=0.2)
    counts = card["counts"]
    assert card["classes"] == list(affwild2.CLASSES) and card["group"]["name"] == "video"
    assert (counts["videos"], counts["frames_beyond_annotation"], counts["lines_without_frame"]) == (8, 1, 8 + 1)
    assert counts["frames_without_label"] == 8 * 4 - 2 and counts["images"] == counts["frames"] - 1 - 30
    found = reasons(tmp_path / "out", "remarks")
    assert found["3-30-1280x720"] == "the video ends early: frames up to 12, labels up to 20"
    assert found["0-30-1280x720"] == "1 frames behind the last label"
    row = named(tmp_path / "out", "5-30-1280x720/00002.jpg")
    assert card["classes"][row["label"]] == affwild2.CLASSES[6] and row["frame"] == 1
    frame = index(tmp_path / "out")
    assert set(frame.group_by("subject").agg(pl.col("split").n_unique())["split"]) == {1}
    two = frame.filter(pl.col("source").str.starts_with("1-30"))
    assert two["source"].n_unique() == 2 and two["subject"].n_unique() == 1  # two persons of one video
    assert card["duplicates"]["near"].startswith("not looked for") and "validation set is the split test" in (
        capsys.readouterr().err
    )


def test_affwild2_caps_are_drawn_by_the_seed(tmp_path: Path) -> None:
    raw = make.make_affwild2(tmp_path / "raw")
    options = {"per_video": 7, "per_video_label": 1, "valid_share": 0.2}
    card = run("aff-wild2", raw, tmp_path / "a", **options)
    run("aff-wild2", raw, tmp_path / "b", **options, seed=1)
    one, other = index(tmp_path / "a"), index(tmp_path / "b")
    trained = one.filter(pl.col("split") != "test")
    assert trained.group_by("source").len()["len"].max() == 7
    assert trained.group_by("source", "label").len()["len"].max() == 1
    assert one.filter(pl.col("split") == "test")["source"].value_counts()["count"].to_list() == [16, 16]
    assert set(one["name"]) != set(other["name"]) and card["counts"]["frames_left_out_by_cap"] > 0


class TestTaxonomy:
    def test_other_is_not_contempt(self, tmp_path: Path) -> None:
        raw = make.make_affwild2(tmp_path / "raw")
        card = run("aff-wild2", raw, tmp_path / "out", taxonomy="basic8", valid_share=0.2)
        assert card["classes"] == list(BASIC8) and card["counts"]["labels_left_out"]["other"] > 0
        assert card["counts"]["classes"]["train"]["contempt"] == 0 and "contempt" in card["balance"]["train"]["absent"]

    def test_contempt_is_left_out_of_seven(self, tmp_path: Path) -> None:
        raw = make.make_ck48(tmp_path / "raw")
        card = run("ck+", raw, tmp_path / "out", taxonomy="basic7", ratios=(0.6, 0.2, 0.2))
        assert card["classes"] == list(BASIC7) and card["counts"]["labels_left_out"] == {"contempt": 9}

    def test_spellings_of_one_expression_are_one_class(self, tmp_path: Path) -> None:
        for number, label in enumerate(["HAPPINESS", "happiness", "Happy", "sad"] * 6):
            make.save(tmp_path / "raw" / label / f"{number}.png", make.face(number))
        card = run("folder", tmp_path / "raw", tmp_path / "out")
        assert card["classes"] == ["happiness", "sadness"] and card["label_map"]["HAPPINESS"] == "happiness"

    def test_numbers_are_never_guessed(self, tmp_path: Path) -> None:
        for number in range(12):
            make.save(tmp_path / "raw" / str(number % 3) / f"{number}.png", make.face(number))
        with pytest.raises(LabelError, match=r"no label \('0', '1', '2'\) is a class of basic7"):
            run("folder", tmp_path / "raw", tmp_path / "out", taxonomy="basic7")
        assert run("folder", tmp_path / "raw", tmp_path / "out")["classes"] == ["0", "1", "2"]

    def test_own_words_that_differ_in_case_are_refused(self, tmp_path: Path) -> None:
        for number, label in enumerate(["bored", "Bored", "keen"] * 2):
            make.save(tmp_path / "raw" / label / f"{number}.png", make.face(number))
        with pytest.raises(LabelError, match="differ in case or blanks alone"):
            run("folder", tmp_path / "raw", tmp_path / "out")


def test_options_of_other_data_sets_are_refused(tmp_path: Path) -> None:
    raw = make.make_jaffe(tmp_path / "raw")
    for option in ({"votes": "argmax"}, {"peak_frames": 1}, {"per_video": 3}, {"subject_pattern": "(.)"}):
        with pytest.raises(ConfigError, match=f"{next(iter(option))}: is no option of jaffe"):
            run("jaffe", raw, tmp_path / "out", **option)


@pytest.mark.shared
def test_real_photographs_with_a_table(tmp_path: Path, shared: Path) -> None:
    import zipfile

    with zipfile.ZipFile(shared / "face" / "muxspace_subset.zip") as archive:
        archive.extractall(tmp_path / "raw")
    options = {"table": tmp_path / "raw" / "legend.csv", "subject_pattern": r"(.+)_\d+"}
    card = run("folder", tmp_path / "raw" / "images", tmp_path / "out", **options)
    found = index(tmp_path / "out")
    assert len(found) == card["counts"]["images"] == 390 and card["channels"] == 3 and card["side"] is None
    assert card["classes"] == sorted(BASIC8) and card["group"]["kept_apart"]
    for row in found.head(20).iter_rows(named=True):
        assert pixels(tmp_path / "out", row).shape[:2] == (row["height"], row["width"])
    card = run(
        "folder", tmp_path / "raw" / "images", tmp_path / "small", **options, align="center", side=64, taxonomy="basic7"
    )
    assert card["storage"] == "packed" and card["counts"]["labels_left_out"] == {"contempt": 9}
