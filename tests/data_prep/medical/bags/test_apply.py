"""New slides for prediction, in the way of the training data."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep.common.errors import ConfigError, DatasetNotFoundError, ManifestError, RejectsExceededError
from data_prep.medical.apply import apply as apply_data
from data_prep.medical.wsi.bags.mil_csv import prepare as prepare_csv
from tests.data_prep.helpers import tree
from tests.data_prep.medical.bags.helpers import damage, index, rejects, run, values, write_native, write_table
from tests.data_prep.medical.bags.test_mil_csv import ROWS, write

NEW = ["p20_1.a", "p20_2.a", "x"]


def apply(preparation: Path, raw: Any, out: Path, **options: Any) -> dict[str, Any]:
    return apply_data(preparation, raw, out, **{"executor": "serial", "progress": False, **options})


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    run(write_native(tmp_path / "features"), tmp_path / "bags", write_table(tmp_path / "t.csv"))
    return tmp_path / "bags"


def test_new_features_become_rows_to_predict(tmp_path: Path, prepared: Path) -> None:
    raw = write_native(tmp_path / "new", NEW)
    card = apply(prepared, raw, tmp_path / "out")
    assert list(card["splits"]) == ["predict"] and card["splits"]["predict"]["rows"] == 3
    assert (card["kind"], card["classes"], card["feature_dim"]) == ("bags", ["normal", "tumor"], 4)
    rows = index(tmp_path / "out", "predict")
    assert rows["name"].to_list() == NEW and "label" not in rows.columns and "split" not in rows.columns
    for row in rows.iter_rows(named=True):  # where they lie: nothing is copied
        assert row["file"] == str(raw / f"{row['name']}.h5") and row["patient"] == row["name"]
        with h5py.File(tmp_path / "out" / row["file"]) as file:
            assert np.array_equal(file[row["dataset"]][()], values(row["name"]))
    assert apply(prepared, [raw], tmp_path / "out") == card
    with pytest.raises(ConfigError, match="other options or other files"):
        apply(prepared, write_native(tmp_path / "newer", NEW[:1]), tmp_path / "out")
    with pytest.raises(DatasetNotFoundError, match="no feature file"):
        (tmp_path / "empty").mkdir()
        apply(prepared, tmp_path / "empty", tmp_path / "none")


def test_patients_are_found_as_in_training(tmp_path: Path) -> None:
    rows = [(f"p{i:02d}_{k}.a", i % 2) for i in range(10) for k in range(2)]
    table = write_table(tmp_path / "t.csv", rows, "slide_id,label")
    raw = write_native(tmp_path / "features", [row[0] for row in rows])
    run(raw, tmp_path / "bags", table, patient_pattern=r"p\d\d")
    apply(tmp_path / "bags", write_native(tmp_path / "new", NEW), tmp_path / "out")
    assert index(tmp_path / "out", "predict")["patient"].to_list() == ["p20", "p20", "x"]


def test_features_of_another_encoder_are_refused(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 5 features per patch, .* has 4: of another encoder; .* with vit"):
        apply(prepared, write_native(tmp_path / "wide", NEW, dim=5), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"features of encoder 'uni', .* has 'vit'"):
        apply(prepared, write_native(tmp_path / "uni", NEW, encoder="uni"), tmp_path / "out")


def test_bad_slides_are_left_out_as_far_as_allowed(tmp_path: Path, prepared: Path, capsys: Any) -> None:
    raw = write_native(tmp_path / "new", NEW)
    damage(raw / "x.h5", np.zeros((0, 4), np.float32), np.zeros((0, 2), np.int64))
    (raw / "cut.h5").write_bytes(b"\x89HDF")
    with pytest.raises(RejectsExceededError, match="2 of 4 records are unusable"):
        apply(prepared, raw, tmp_path / "out")
    apply(prepared, raw, tmp_path / "out", max_rejects=0.5)
    assert index(tmp_path / "out", "predict")["name"].to_list() == NEW[:2]
    assert {item["excerpt"] for item in rejects(tmp_path / "out")} == {"x", "cut"}
    assert "left out: x (x.h5): no patches" in capsys.readouterr().err


def test_slides_need_to_know_how_features_were_made(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.svs").write_bytes(b"a slide")
    with pytest.raises(ConfigError, match=r"these are slides, and .* does not tell how its features were made"):
        apply(prepared, tmp_path / "slides", tmp_path / "out")


def test_slides_are_encoded_as_those_of_the_preparation(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (prepared / "dataset.json").read_text()
    (prepared / "dataset.json").write_text(card.replace('"slides": null', '"slides": {"features": {"name": "vit"}}'))
    seen: list[Any] = []

    def encode_slides(preparation: Any, raw: list[Path], out: Path, **options: Any) -> Path:
        seen.append((preparation, [path.name for path in raw], options["max_rejects"]))
        # An earlier prediction has left the features of another slide.
        return write_native(out / "features", ["earlier", *(path.stem for path in raw)])

    module = types.ModuleType("data_prep.medical.wsi.prepare")
    module.encode_slides = encode_slides  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "data_prep.medical.wsi.prepare", module)
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.1.svs", "a.2.tif"):
        (folder / name).write_bytes(b"a slide")
    apply(prepared, folder, tmp_path / "out")
    assert index(tmp_path / "out", "predict")["name"].to_list() == ["a.1", "a.2"]
    apply(prepared, folder / "a.2.tif", tmp_path / "one", max_rejects=0.5)
    assert index(tmp_path / "one", "predict")["name"].to_list() == ["a.2"]
    how = {"features": {"name": "vit"}}
    assert seen == [(how, ["a.1.svs", "a.2.tif"], 0.01), (how, ["a.2.tif"], 0.5)]


def test_instances_are_gathered_with_or_without_labels(tmp_path: Path) -> None:
    options = {"ratios": (0.5, 0.25, 0.25), "executor": "serial", "progress": False}
    prepare_csv("mil-csv", write(tmp_path / "set.csv"), tmp_path / "bags", **options)
    with_labels = apply(tmp_path / "bags", write(tmp_path / "new.csv", ROWS[:14]), tmp_path / "one")
    apply(tmp_path / "bags", write(tmp_path / "new2.csv", [row[1:] for row in ROWS[:14]]), tmp_path / "two")
    assert with_labels["splits"]["predict"]["rows"] == 12
    assert index(tmp_path / "one", "predict").equals(index(tmp_path / "two", "predict"))
    assert tree(tmp_path / "one" / "bags") == tree(tmp_path / "two" / "bags")
    with pytest.raises(ConfigError, match="3 columns of features, the model was trained on 2"):
        apply(tmp_path / "bags", write(tmp_path / "wide.csv", [(*row, 1) for row in ROWS]), tmp_path / "no")


def test_columns_by_number_mean_the_same_without_the_label(tmp_path: Path) -> None:
    rows = [(row[1], row[2], row[0], f"note {row[1]}", row[3]) for row in ROWS]
    options = {"label_column": "2", "bag_column": "0", "leave_out": ["3"], "ratios": (0.5, 0.25, 0.25)}
    prepare_csv(
        "mil-csv", write(tmp_path / "s.csv", rows), tmp_path / "bags", **options, executor="serial", progress=False
    )
    apply(tmp_path / "bags", write(tmp_path / "new.csv", [(*row[:2], *row[3:]) for row in rows]), tmp_path / "out")
    with h5py.File(tmp_path / "out" / "bags" / "bags.h5") as file:
        assert file["000005/features"][()].tolist() == [[5.5, 0], [5.5, -10], [5.5, -20]]


def test_a_directory_of_another_domain_is_refused(tmp_path: Path, prepared: Path) -> None:
    card = (prepared / "dataset.json").read_text()
    (prepared / "dataset.json").write_text(card.replace('"medical"', '"ctr"'))
    with pytest.raises(ManifestError, match="no preparation of bags or X-rays"):
        apply(prepared, tmp_path, tmp_path / "out")


def test_x_rays_go_to_their_own_reader(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def apply_images(*arguments: Any, **options: Any) -> dict[str, Any]:
        seen.append((arguments, options))
        return {"kind": "images"}

    module = types.ModuleType("data_prep.medical.xray.apply")
    module.apply_images = apply_images  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "data_prep.medical.xray.apply", module)
    card = (prepared / "dataset.json").read_text()
    (prepared / "dataset.json").write_text(card.replace('"kind": "bags"', '"kind": "images"', 1))
    assert apply(prepared, tmp_path / "x.png", tmp_path / "out", max_rejects=0.2) == {"kind": "images"}
    (arguments, options), *_ = seen
    assert arguments == (prepared, [tmp_path / "x.png"], tmp_path / "out") and options["max_rejects"] == 0.2
