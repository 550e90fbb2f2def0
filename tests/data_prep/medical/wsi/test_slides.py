"""From slides and labels to prepared bags in one command, and new slides in the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import timm
import torch

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, RejectsExceededError
from data_prep.medical.apply import apply
from data_prep.medical.wsi.features.encoders import EncoderSpec, load_encoder
from data_prep.medical.wsi.features.layouts import find_features, read_features
from data_prep.medical.wsi.prepare import encode_slides, prepare
from data_prep.medical.wsi.slides.reader import open_slide
from tests.data.medical.make_slides import draw_tissue, truncate, write_slide
from tests.data_prep.helpers import tree

NAMES = ("A.1", "B.2", "C.3", "D.4", "E.5", "F.6")
OPTIONS: dict[str, Any] = {
    **{"encoder": "test_resnet", "weights": "random", "image_size": 64, "batch_size": 16, "threads": 2},
    **{"patch_size": 64, "preset": "biopsy", "a_t": 0.02, "ratios": (0.34, 0.33, 0.33)},
    **{"executor": "serial", "progress": False},
}


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        picture = draw_tissue(512, 512, seed=number, pieces=1)
        write_slide(tmp_path / "slides" / f"{name}.tif", picture, downsamples=(1, 2), tile=64)
    return tmp_path / "slides"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    rows = [f"p{number},{name}.tif,{'tumor' if number % 2 else 'normal'}" for number, name in enumerate(NAMES)]
    path.write_text("\n".join(["case_id,slide_id,label", *rows]) + "\n")
    return path


def run(slides: Path, out: Path, table: Path, **options: Any) -> dict[str, Any]:
    return prepare("slides", slides, out, table=table, **{**OPTIONS, **options})


def test_one_command_from_slides_to_bags(tmp_path: Path, slides: Path, table: Path) -> None:
    card = run(slides, tmp_path / "out", table)
    assert card["kind"] == "bags" and card["classes"] == ["normal", "tumor"] and card["feature_dim"] == 96
    assert card["encoder"] == "test_resnet" and card["mpp"] == 0.5
    rows = pl.concat(
        [pl.read_parquet(tmp_path / "out" / split / "part-00000.parquet") for split in ("train", "valid", "test")]
    )
    assert sorted(rows["name"].to_list()) == list(NAMES)
    encoder = load_encoder(EncoderSpec("test_resnet", "random", image_size=64), "cpu")
    for row in rows.iter_rows(named=True):
        with h5py.File(tmp_path / "out" / row["file"]) as file, open_slide(slides / f"{row['name']}.tif") as slide:
            coords = file[row["coords"]][()]
            patches = np.stack([slide.read_patch(x, y, 64, 64) for x, y in coords.tolist()])
            np.testing.assert_allclose(file[row["dataset"]][()], encoder(patches), rtol=2e-3, atol=2e-3)
        assert (row["patches"], row["size_level0"], row["width"]) == (len(coords), 64, 512)
    # The work is kept, and the same command finds everything done.
    assert sorted(path.name for path in (tmp_path / "out-work").iterdir()) == ["features", "patches"]
    before = tree(tmp_path)
    assert run(slides, tmp_path / "out", table) == card
    assert tree(tmp_path) == before


def test_predict_encodes_new_slides_as_the_preparation_did(tmp_path: Path, slides: Path, table: Path) -> None:
    run(slides, tmp_path / "out", table, dtype="float32", normalisation="lunit", default_mpp=0.5)
    wanted = read_features(find_features(tmp_path / "out" / "bags" / "C.3.h5")[0])
    (tmp_path / "new").mkdir()
    (slides / "C.3.tif").rename(tmp_path / "new" / "C.3.tif")
    card = apply(tmp_path / "out", tmp_path / "new", tmp_path / "predict", executor="serial", progress=False)
    (row,) = pl.read_parquet(tmp_path / "predict" / "predict" / "part-00000.parquet").iter_rows(named=True)
    assert row["name"] == "C.3" and card["splits"]["predict"]["rows"] == 1
    with h5py.File(tmp_path / "predict" / row["file"]) as file:
        np.testing.assert_array_equal(file[row["dataset"]][()], wanted[0])
        np.testing.assert_array_equal(file[row["coords"]][()], wanted[1])


def test_a_default_resolution_is_remembered_for_new_slides(tmp_path: Path, slides: Path, table: Path) -> None:
    for number, name in enumerate(NAMES[:2]):
        picture = draw_tissue(512, 512, seed=number, pieces=1)
        write_slide(slides / f"{name}.tif", picture, downsamples=(1, 2), tile=64, mpp=None)
    with pytest.raises(RejectsExceededError, match=r"2 of 6 slides have no features: A.1.tif: .*--default-mpp"):
        run(slides, tmp_path / "out", table)
    assert not (tmp_path / "out").exists()
    card = run(slides, tmp_path / "out", table, default_mpp=0.4)
    assert card["counts"]["slides"] == 6
    preparation = card["preparation"]["slides"]
    assert preparation["patching"]["default_mpp"] == 0.4
    folder = encode_slides(preparation, [slides / "A.1.tif"], tmp_path / "new", executor="serial", progress=False)
    found = read_features(find_features(folder)[0])[0]
    assert np.array_equal(found, read_features(find_features(tmp_path / "out" / "bags" / "A.1.h5")[0])[0])


def test_weights_have_to_be_those_of_the_training_data(tmp_path: Path, slides: Path, table: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    card = run(slides, tmp_path / "out", table, weights=str(weights))
    preparation = card["preparation"]["slides"]
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"weights.pth: the weights of encoder test_resnet, .* put the file"):
        encode_slides(preparation, slides, tmp_path / "new", executor="serial", progress=False)
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    with pytest.raises(CorruptRecordError, match=r"weights.pth: weights: not the file any more"):
        encode_slides(preparation, slides, tmp_path / "new", executor="serial", progress=False)
    weights.write_bytes(content)
    folder = encode_slides(preparation, slides, tmp_path / "new", executor="serial", progress=False)
    made = {path.name: digest for path, digest in ((Path(name), value) for name, value in tree(folder).items())}
    for name in NAMES:
        assert made[f"{name}.h5"] == tree(tmp_path / "out-work" / "features")[f"features/{name}.h5"]


def test_patches_of_another_program_cannot_be_repeated(tmp_path: Path, slides: Path) -> None:
    preparation = {"patching": None, "features": {"name": "test_resnet"}}
    with pytest.raises(ConfigError, match=r"were made by another program"):
        encode_slides(preparation, slides, tmp_path / "new")


def test_failed_slides_are_told_with_the_reason_and_repaired(tmp_path: Path, slides: Path, table: Path) -> None:
    whole = (slides / "B.2.tif").read_bytes()
    truncate(slides / "B.2.tif", 0.5)
    write_slide(slides / "C.3.tif", np.full((512, 512, 3), 244, np.uint8), downsamples=(1, 2), tile=64)
    with pytest.raises(RejectsExceededError, match=r"2 of 6 slides have no features: B.2.tif: .*; C.3.tif: "):
        run(slides, tmp_path / "out", table)
    assert not (tmp_path / "out").exists()
    (slides / "B.2.tif").write_bytes(whole)
    card = run(slides, tmp_path / "out", table, max_rejects=0.2)
    assert card["counts"]["slides"] == 5
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert rejects["excerpt"].to_list() == ["C.3"] and rejects["reason"].to_list() == ["slide without features"]


def test_slides_without_any_patch_stop_the_command_at_once(tmp_path: Path, slides: Path, table: Path) -> None:
    for _ in range(2):
        with pytest.raises(RejectsExceededError, match=r"^6 of 6 slides have no patches: .*; nothing is left: repair"):
            run(slides, tmp_path / "out", table, a_t=99.0, max_rejects=1.0)
    assert [path.name for path in (tmp_path / "out-work").iterdir()] == ["patches"] and not (tmp_path / "out").exists()


def test_only_slides_of_the_table_are_read(
    tmp_path: Path, slides: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slides / "unlabelled.tif").write_bytes(b"this would fail")
    run(slides, tmp_path / "out", table)
    assert "1 slides are not in" in capsys.readouterr().err
    assert "unlabelled" not in json.dumps(pl.read_parquet(tmp_path / "out-work/patches/slides.parquet").to_dicts())


def test_mistakes_in_the_table_show_before_hours_of_work(tmp_path: Path, slides: Path, table: Path) -> None:
    out = tmp_path / "out"
    (slides / "D.4.tif").unlink()
    (slides / "E.5.tif").unlink()
    with pytest.raises(RejectsExceededError, match=r"labels.csv: 2 of its 6 slides are not among the files: D.4, E.5;"):
        run(slides, out, table)
    table.write_text("case_id,slide_id,label\np,other,1\nq,another,0\n")
    with pytest.raises(ConfigError, match=r"names none of the 4 slides: it has 'another', they are called like 'A.1'"):
        run(slides, out, table)
    with pytest.raises(DatasetNotFoundError, match=r"absent.csv"):
        run(slides, out, tmp_path / "absent.csv")
    assert not out.exists() and not (tmp_path / "out-work").exists()


@pytest.mark.shared
def test_real_slides_go_the_whole_way(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("patient,slide,label\np1,cmu_small_region,normal\np2,tcga-cr-7395-01a-01-ts1,tumor\n")
    options = {"patch_size": 256, "ratios": (1, 0, 0), "a_t": 1.0, "max_rejects": 0.0}
    with pytest.raises(
        RejectsExceededError, match=r"tcga-cr-7395-01a-01-ts1.svs: .*looked at openslide.mpp-x, .*--def"
    ):
        run(shared / "wsi", tmp_path / "out", table, **options)
    card = run(shared / "wsi", tmp_path / "out", table, **options, default_mpp=0.5)
    assert card["counts"]["slides"] == 2 and card["counts"]["patches"] > 100
    assert "broken" not in capsys.readouterr().out
