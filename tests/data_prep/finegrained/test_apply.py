"""New pictures prepared as the training pictures were; generated data for the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from data_prep.common.errors import DatasetNotFoundError, ManifestError, PrepError, RejectsExceededError
from data_prep.finegrained.apply import apply
from data_prep.finegrained.planted import COLOURS, write_planted_classes, write_planted_identities
from tests.data.finegrained import make
from tests.data_prep.finegrained.helpers import index, regions, rejects, run
from tests.data_prep.helpers import tree

OPTIONS = {"executor": "serial", "progress": False}


def test_classes_without_labels(tmp_path):
    run("folder", make.write_folder(tmp_path / "raw"), tmp_path / "prepared")
    make.picture(tmp_path / "new/holiday/one.jpg", 1, (80, 60))
    make.picture(tmp_path / "new/two.PNG", 2)
    card = apply(tmp_path / "prepared", [tmp_path / "new"], tmp_path / "out", **OPTIONS)
    assert card["classes"] == ["finch", "robin", "wren"] and card["splits"]["predict"]["rows"] == 2
    table = index(tmp_path / "out", "predict")
    assert table["name"].to_list() == ["holiday/one.jpg", "two.PNG"] and "label" not in table.columns
    assert regions(table) == {(0, 0, 80, 60), (0, 0, *make.SIZE)}
    assert apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", **OPTIONS) == card


def test_the_banner_is_cut_off_of_new_pictures_too(tmp_path, capsys):
    run("aircraft", make.write_aircraft(tmp_path / "raw"), tmp_path / "prepared")
    make.picture(tmp_path / "new/plane.jpg", 1, (60, 50))
    apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", **OPTIONS)
    assert regions(index(tmp_path / "out", "predict")) == {(0, 0, 60, 30)}
    assert "the lowest 20 pixels of each picture are cut off" in capsys.readouterr().err


def test_boxes_come_from_a_table_and_their_absence_is_told(tmp_path, capsys):
    run("cub", make.write_cub(tmp_path / "raw"), tmp_path / "prepared", crop="box", margin=0.1)
    for number in range(2):
        make.picture(tmp_path / f"new/{number}.png", number)
    (tmp_path / "new/boxes.csv").write_text("image,left,top,right,bottom\n0.png,10,10,30,20\n")
    apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", **OPTIONS)
    assert regions(index(tmp_path / "out", "predict")) == {(8, 9, 32, 21), (0, 0, *make.SIZE)}
    assert "warning: 1 pictures have no box" in capsys.readouterr().err
    (tmp_path / "new/boxes.csv").write_text("image,left,top,right,bottom\n7.png,10,10,30,20\n")
    with pytest.raises(PrepError, match=r"boxes\.csv: line 2: '7\.png': the image file is not there"):
        apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "again", **OPTIONS)
    text = "image,left,top,right,bottom\n1.png,,,,\n\n0.png,10,10,30,20\n0.png,10,10,30,21\n"
    (tmp_path / "new/boxes.csv").write_text(text)
    with pytest.raises(PrepError, match=r"boxes\.csv: line 5: '0\.png' has another box before"):
        apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "again", **OPTIONS)
    (tmp_path / "new/boxes.csv").write_text(text.rsplit("0.png", 1)[0])
    apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "again", **OPTIONS)
    assert regions(index(tmp_path / "again", "predict")) == {(8, 9, 32, 21), (0, 0, *make.SIZE)}


def test_folders_give_the_roles_of_identities(tmp_path, capsys):
    run("folder", make.write_people(tmp_path / "raw"), tmp_path / "prepared", kind="identities")
    for number, folder in enumerate(("query", "gallery", "gallery/more", "elsewhere")):
        make.picture(tmp_path / "new" / folder / f"{number}.png", number)
    card = apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", **OPTIONS)
    found = dict(index(tmp_path / "out", "predict").select("name", "role").iter_rows())
    assert found == {
        "query/0.png": "query",
        "gallery/1.png": "gallery",
        "gallery/more/2.png": "gallery",
        "elsewhere/3.png": "",
    }
    assert card["evaluation"]["ignore_camera"] and card["counts"]["roles"] == {"": 1, "gallery": 2, "query": 1}
    told = capsys.readouterr().err
    assert "1 of 4 pictures are in neither of the folders query and gallery" in told and "(elsewhere/3.png)" in told
    assert "searched for among all others" not in told


def test_queries_without_a_gallery_are_told(tmp_path, capsys):
    run("folder", make.write_people(tmp_path / "raw"), tmp_path / "prepared", kind="identities")
    for number, folder in enumerate(("query", "elsewhere")):
        make.picture(tmp_path / "new" / folder / f"{number}.png", number)
    capsys.readouterr()
    apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", **OPTIONS)
    told = capsys.readouterr().err
    assert "none in a folder gallery: every picture is searched for among all others" in told
    assert "in neither of" not in told
    (tmp_path / "new/query").rename(tmp_path / "new/more")
    apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "all", **OPTIONS)
    assert "warning" not in capsys.readouterr().err


def test_unusable_pictures(tmp_path):
    run("folder", make.write_folder(tmp_path / "raw"), tmp_path / "prepared")
    make.picture(tmp_path / "new/good.png", 1)
    (tmp_path / "new/bad.png").write_bytes(b"broken")
    with pytest.raises(RejectsExceededError, match=r"--max_rejects 0\.5 predicts the others"):
        apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", **OPTIONS)
    apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", max_rejects=0.5, **OPTIONS)
    assert rejects(tmp_path / "out") == [("bad.png", 0, "the file is no image, or a damaged one")]
    with pytest.raises(DatasetNotFoundError, match="holds no picture"):
        apply(tmp_path / "prepared", tmp_path / "prepared", tmp_path / "none", **OPTIONS)
    (tmp_path / "prepared/dataset.json").write_text('{"format": "heptad/1", "domain": "ctr"}')
    with pytest.raises(ManifestError, match="no preparation of fine-grained data"):
        apply(tmp_path / "prepared", tmp_path / "new", tmp_path / "none", **OPTIONS)


def test_training_reads_the_index(tmp_path):
    from domains.common.indexed import IndexStore, read_index

    card = run("market1501", make.write_market(tmp_path / "raw"), tmp_path / "out")
    columns = ("row", "name", "image", "stored", "label", "left", "top", "right", "bottom", "role", "camera", "extra")
    for split in ("train", "valid", "test"):
        frame = read_index(tmp_path / "out", card, split, columns)
        store = IndexStore(Path(card["image_root"]), frame, split)
        assert store.load(0)["label"].tolist() == frame["label"].to_list()
        assert all(store.path(name).is_file() for name in frame["image"])


class TestPlanted:
    def test_the_mark_alone_tells_the_class(self, tmp_path):
        made = write_planted_classes(tmp_path, classes=4, per_class=3, size=64, seed=3)
        marks = pl.read_csv(made.marks)
        labels = pl.read_csv(made.table)
        assert labels["label"].n_unique() == 4 and len(marks) == 12
        kinds = {"red_disc", "blue_square", "yellow_triangle", "white_cross"}
        assert set(labels["label"]) == kinds
        for image, x, y, _, label in marks.join(labels, on="image").iter_rows():
            pixels = np.asarray(Image.open(tmp_path / image)) / 255
            here = pixels[round(y), round(x)]
            nearest = min(COLOURS, key=lambda name: np.abs(here - COLOURS[name]).sum())
            assert pixels.shape == (64, 64, 3) and label.startswith(nearest)

    def test_both_are_prepared_and_the_seed_decides(self, tmp_path):
        first = write_planted_classes(tmp_path / "a", classes=3, per_class=10, size=48)
        again = write_planted_classes(tmp_path / "b", classes=3, per_class=10, size=48)
        other = write_planted_classes(tmp_path / "c", classes=3, per_class=10, size=48, seed=1)
        assert tree(first.images) == tree(again.images) != tree(other.images)
        card = run("folder", first.images, tmp_path / "classes")
        assert not card["duplicates"]["dropped"] and card["rejects"]["count"] == 0
        people = write_planted_identities(tmp_path / "p", identities=12, cameras=3, per_camera=2)
        card = run("csv", people.table.parent, tmp_path / "people", valid_identities=2)
        assert card["counts"]["identities"] == {"train": 4, "valid": 2, "test": 6}
        assert not card["evaluation"]["ignore_camera"] and card["rejects"]["count"] == 0
