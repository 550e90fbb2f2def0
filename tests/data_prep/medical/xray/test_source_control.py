"""The control: source as the label within one class; refused where that alone shows confounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, LabelError, ManifestError
from data_prep.common.manifest import read_manifest
from data_prep.medical.xray.planted import Planted, write_planted_xrays
from data_prep.medical.xray.source_control import source_control
from tests.data.medical.make_xrays import ListLine, chest, covidx, folders, medmnist, png
from tests.data_prep.helpers import tree
from tests.data_prep.medical.xray.helpers import index, run


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return write_planted_xrays(tmp_path_factory.mktemp("planted"), patients=60, size=48, seed=3)


@pytest.fixture(scope="module")
def prepared(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    run("images", planted.images, out, table=planted.table, masks=planted.masks, positive="opacity")
    return out


def test_labels_are_sources_of_one_class(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = source_control(prepared, tmp_path / "out", within="opacity")
    assert card["classes"] == ["north", "south"] and card["kind"] == "images"
    one, other = index(prepared), index(tmp_path / "out")
    wanted = one.filter(pl.col("label") == 1)
    assert sorted(other["name"]) == sorted(wanted["name"])
    assert [card["classes"][code] for code in other["label"]] == other["source"].to_list()
    splits = other.group_by("patient").agg(pl.col("split").n_unique())["split"]
    assert splits.to_list() == [1] * len(splits)
    for split in ("train", "valid", "test"):
        assert set(index(tmp_path / "out", split)["label"]) == {0, 1}
    told = capsys.readouterr().out
    assert "split  source" in told and "control: source (north, south) within 'opacity'" in told
    assert f"heptad medical fit --config CONFIG_OF_YOUR_MODEL --data.root {tmp_path / 'out'}" in told


def test_images_are_links_and_stay_when_the_first_directory_goes(prepared: Path, tmp_path: Path) -> None:
    source_control(prepared, tmp_path / "out")
    for name, image, mask in index(tmp_path / "out").select("name", "image", "mask").iter_rows():
        where = index(prepared).filter(pl.col("name") == name)
        for column, file in (("image", image), ("mask", mask)):
            assert (tmp_path / "out" / file).samefile(prepared / where[column].item())


def test_the_same_again_is_found_and_other_options_are_refused(prepared: Path, tmp_path: Path) -> None:
    source_control(prepared, tmp_path / "out")
    before = tree(tmp_path / "out")
    source_control(prepared, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    source_control(prepared, tmp_path / "again")
    assert tree(tmp_path / "again") == before
    with pytest.raises(ConfigError, match="other options"):
        source_control(prepared, tmp_path / "out", seed=1)


def test_the_view_can_be_the_label(prepared: Path, tmp_path: Path) -> None:
    card = source_control(prepared, tmp_path / "out", by="view")
    assert card["classes"] == ["AP", "PA"]


def test_covidx_draws_anew_because_its_test_list_has_one_source_for_each_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("cohen", "actmed", "fig1")
    train = [ListLine(f"n{n}", f"n{n}.png", "negative", names[n % 3]) for n in range(36)]
    train += [ListLine(f"p{n}", f"p{n}.png", "positive", "sirm") for n in range(12)]
    test = [ListLine(f"r{n}", f"r{n}.png", "negative", "rsna") for n in range(4)]
    test += [ListLine(f"i{n}", f"i{n}.png", "positive", "ricord") for n in range(4)]
    run("covidx", covidx(tmp_path / "raw", train, test), tmp_path / "prepared")
    card = source_control(tmp_path / "prepared", tmp_path / "out")
    told = capsys.readouterr().out
    assert "in test, the source alone tells the label" in told
    assert card["command"]["within"] == "negative" and card["split_rule"]["kind"] == "drawn"
    assert card["classes"] == ["actmed", "cohen", "fig1"]  # rsna has too few patients
    with pytest.raises(LabelError, match="class 'positive' has fewer than two sources"):
        source_control(tmp_path / "prepared", tmp_path / "other", within="positive")


def test_one_source_for_each_class_is_refused(tmp_path: Path) -> None:
    lines = ["image,label,source"]
    for number in range(40):
        png(tmp_path / "raw" / f"{number}.png", chest(number, bits=8))
        lines.append(f"{number}.png,{'ab'[number % 2]},{('north', 'south')[number % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    run("images", tmp_path / "raw", tmp_path / "prepared", table=tmp_path / "t.csv")
    with pytest.raises(LabelError, match=r"a: north; b: south\)\. That alone shows confounding"):
        source_control(tmp_path / "prepared", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refusals(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(ConfigError, match="within 'x'"):
        source_control(prepared, tmp_path / "out", within="x")
    run("medmnist", medmnist(tmp_path / "x.npz"), tmp_path / "mnist")
    with pytest.raises(LabelError, match="no image has a source"):
        source_control(tmp_path / "mnist", tmp_path / "out")
    run("images", folders(tmp_path / "raw"), tmp_path / "damaged")
    part = tmp_path / "damaged" / "train" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9] + b"123456789")
    with pytest.raises(ManifestError, match="missing or not the file"):
        source_control(tmp_path / "damaged", tmp_path / "out")
    (tmp_path / "bags").mkdir()
    (tmp_path / "bags" / "dataset.json").write_text('{"format": "heptad/1", "kind": "bags"}')
    with pytest.raises(ConfigError, match="holds no labelled X-rays"):
        source_control(tmp_path / "bags", tmp_path / "out")


def test_planted_xrays_have_their_lesions_in_the_lungs(planted: Planted) -> None:
    import cv2

    table = pl.read_csv(planted.table)
    lesions = pl.read_csv(planted.lesions)
    sick = set(table.filter(pl.col("label") == "opacity")["image"].str.split(".").list.first())
    assert set(lesions["image"]) == sick and 20 < len(sick) < 100
    for name, x, y in lesions.select("image", "x", "y").iter_rows():
        assert cv2.imread(str(planted.masks / f"{name}.png"), 0)[int(y), int(x)] == 255
    assert set(table["source"]) == {"north", "south"} and set(table["view"]) == {"AP", "PA"}
    again = write_planted_xrays(planted.images.parent.with_name("again"), patients=60, size=48, seed=3)
    assert tree(again.images.parent) == tree(planted.images.parent)
    shares = table.group_by("source").agg((pl.col("label") == "opacity").mean()).sort("source")["label"]
    assert shares[0] > shares[1] + 0.1
    assert np.isfinite(lesions["radius"].to_numpy()).all()


def test_the_manifest_keeps_what_new_images_need(prepared: Path, tmp_path: Path) -> None:
    card = source_control(prepared, tmp_path / "out")
    assert card["preparation"] == read_manifest(prepared)["preparation"]
