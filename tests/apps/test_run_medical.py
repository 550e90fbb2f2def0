"""Slides and chest X-rays from raw files to diagnoses, heat maps and weights, through the command that users type."""

from __future__ import annotations

import json
import re
import shutil

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from domains.common.classification import choose_threshold
from domains.common.files import read_checkpoint, read_tensors
from domains.common.hub import load_published
from domains.medical.data import BagData
from domains.medical.module import ACMILModule
from tests.apps.helpers import losses
from tests.apps.medical_helpers import fit, here, predictions, refusal

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

SERIAL = ("--executor", "serial", "--progress", "false")
# slides of 60 patches, of which few are masked; best is the surest epoch, not the first that puts all in order
LEARNING = ("--model.standardize", "true", "--model.lr", "0.01", "--model.masked_top", "3")
LEARNING += ("--monitor", "val/log_loss", "--mode", "min", "--trainer.max_epochs", "12")


def attention(folder, name):
    return pl.read_parquet(folder / "attention" / f"{name}.parquet")


class TestSlides:
    """Features with planted lesions to attention, each step by the installed command."""

    @pytest.fixture(scope="class")
    def trained(self, planted_bags, tmp_path_factory):
        folder = tmp_path_factory.mktemp("whole")
        words = ("--raw", planted_bags.features, "--table", planted_bags.table, "--out", folder / "slides")
        assert here("prep", "bags", *words, "--ratios", 0.6, 0.2, 0.2, *SERIAL) == 0
        fit("acmil", folder / "slides", folder / "run", *LEARNING)
        return folder / "run"

    @pytest.fixture(scope="class")
    def tested(self, trained):
        assert here("test", "--run", trained) == 0
        return trained

    def test_a_run_writes_only_into_its_folder(self, trained):
        names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
        assert {"fit.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "model/model.safetensors"} <= names
        assert sorted(path.name for path in trained.parent.iterdir()) == ["run", "slides"]

    def test_test_names_slides_patients_and_sites_as_the_table_does(self, trained, planted_bags, heptad):
        said = heptad("medical", "test", "--run", trained).stdout
        table = predictions(trained)
        wanted = ["row", "label", "name", "patient", "site", "probability_0", "probability_1", "predicted"]
        assert table.columns == wanted
        slides = pl.read_csv(planted_bags.table).rename({"label": "class"})
        joined = table.join(slides, left_on="name", right_on="slide_id", how="inner", validate="1:1")
        assert len(joined) == len(table) > 10
        assert (joined["patient"] == joined["patient_id"]).all()
        assert (joined["site"] == joined["site_right"]).all()
        assert ((joined["class"] == "tumor").cast(int) == joined["label"]).all()
        assert (table["probability_0"] + table["probability_1"] - 1).abs().max() < 1e-6
        metrics = json.loads((trained / "metrics.json").read_text())
        assert metrics["auroc"]["value"] == pytest.approx(roc_auc_score(table["label"], table["probability_1"]))
        assert metrics["auroc"]["value"] > 0.85
        assert metrics["auroc"]["units"] == table["patient"].n_unique() < len(table)
        assert {"patient_auroc", "within_site_auroc", "sensitivity_tumor"} <= metrics.keys()
        assert "auroc" in said
        report = (trained / "report.html").read_text()
        assert "Intervals are resampled over patients." in report
        assert not re.search(r"(?:src|href)=\"(?!data:)", report), "nothing is loaded from elsewhere"

    def test_the_threshold_of_the_validation_decides_in_the_test(self, tested):
        stored = read_checkpoint(tested / "checkpoints" / "best.ckpt")
        threshold = float(stored["state_dict"]["threshold"])
        table = predictions(tested)
        assert ((table["probability_1"] >= np.float32(threshold)).cast(int) == table["predicted"]).all()
        assert f"its threshold {threshold:.4f}" in (tested / "report.html").read_text()
        module = ACMILModule(**stored["hyper_parameters"]).eval()
        module.load_state_dict(stored["state_dict"])
        batches = list(BagData(str(tested.parent / "slides")).val_dataloader())
        with torch.no_grad():
            scores = torch.cat([module(batch).softmax(-1)[:, 1] for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches])
        assert threshold == pytest.approx(choose_threshold(labels.numpy(), scores.numpy()), abs=1e-5)
        assert threshold != 0.5

    def test_attention_of_each_slide_adds_up_and_lies_where_its_patches_are(self, tested, planted_bags):
        names = predictions(tested)["name"].to_list()
        assert sorted(path.name for path in (tested / "attention").iterdir()) == sorted(f"{n}.parquet" for n in names)
        for name in names:
            frame = attention(tested, name)
            with h5py.File(planted_bags.features / f"{name}.h5") as file:
                coords, width = file["coords"][:], file["coords"].attrs["level0_width"]
            np.testing.assert_array_equal(frame.select("x", "y").to_numpy(), coords)
            assert frame["attention"].sum() == pytest.approx(1, abs=1e-5)
            branches = frame.select("branch_0", "branch_1", "branch_2").to_numpy()
            np.testing.assert_allclose(branches.sum(0), 1, atol=1e-5)
            np.testing.assert_allclose(branches.mean(1), frame["attention"], atol=1e-7)
            assert frame.select("size", "width", "height").unique().row(0) == (512, width, width)

    def test_attention_finds_the_planted_lesions(self, tested, planted_bags):
        truth = pl.read_parquet(planted_bags.truth)
        areas = []
        for name in predictions(tested).filter(pl.col("label") == 1)["name"]:
            both = attention(tested, name).join(truth.filter(pl.col("slide") == name), on=["x", "y"], validate="1:1")
            areas.append(roc_auc_score(both["lesion"], both["attention"]))
        assert np.mean(areas) > 0.65

    def test_heat_maps_are_drawn_from_stored_attention(self, tested, tmp_path):
        name = predictions(tested)["name"][0]
        words = ("--attention", tested, "--out", tmp_path, "--slide", name, "--max-side", 256, "--progress", "false")
        assert here("heatmap", *words) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.geojson", f"{name}.png"]

    def test_predict_new_features_as_they_were_tested(self, tested, planted_bags, tmp_path):
        names = predictions(tested)["name"].head(3).to_list()
        (tmp_path / "new").mkdir()
        for name in names:
            shutil.copy(planted_bags.features / f"{name}.h5", tmp_path / "new")
        words = ("--run", tested, "--raw", tmp_path / "new", "--out", tmp_path / "out", "--workers", "1")
        assert here("predict", *words) == 0
        table = predictions(tmp_path / "out")
        assert "label" not in table.columns
        assert table["name"].to_list() == sorted(names)
        both = table.join(predictions(tested), on="name")
        assert (both["probability_1"] - both["probability_1_right"]).abs().max() < 1e-6
        assert (both["predicted"] == both["predicted_right"]).all()
        one = [attention(folder, names[0])["attention"] for folder in (tested, tmp_path / "out")]
        assert (one[0] - one[1]).abs().max() < 1e-6

    def test_features_without_places_are_predicted_and_explained_and_not_drawn(self, tested, planted_bags, tmp_path):
        name = predictions(tested)["name"][0]
        (tmp_path / "new").mkdir()
        with h5py.File(planted_bags.features / f"{name}.h5") as file:
            torch.save(torch.from_numpy(file["features"][:]), tmp_path / "new" / f"{name}.pt")
        words = ("--run", tested, "--raw", tmp_path / "new", "--out", tmp_path / "out", "--workers", "1")
        assert here("predict", *words) == 0
        frame = attention(tmp_path / "out", name)
        assert frame.select("x", "y", "size", "width").unique().rows() == [(-1, -1, 0, 0)]
        assert (frame["attention"] - attention(tested, name)["attention"]).abs().max() < 1e-6
        said = refusal("heatmap", "--attention", tmp_path / "out", "--out", tmp_path / "maps", "--progress", "false")
        assert name in said
        assert not (tmp_path / "maps").exists()

    def test_explain(self, tested):
        assert here("explain", "--run", tested) == 0
        facts = json.loads((tested / "attention.json").read_text())
        assert facts["without_attended"][5] < facts["without_random"][5] - 0.05, "what it attends to decides"
        assert len(pl.read_parquet(tested / "slides.parquet")) == len(predictions(tested))
        assert "What happens without the attended patches" in (tested / "explain.html").read_text()

    @pytest.mark.parametrize("format", ["hub", "torch"])
    def test_export(self, format, trained, tmp_path):
        out = tmp_path / {"hub": "model", "torch": "model.pt2"}[format]
        assert here("export", "--run", trained, "--format", format, "--out", out) == 0
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
        x = torch.randn(70, 16)
        network = load_published(trained / "model").eval()
        again = load_published(out).eval() if format == "hub" else torch.export.load(out).module()
        torch.testing.assert_close(again(x), network(x), atol=1e-5, rtol=1e-5)
        assert network.measured, "the statistics of the training features are a part of the model"


class TestXrays:
    """DICOM and PNG files with lung masks: first the lungs, then the opacities."""

    @pytest.fixture(scope="class")
    def trained(self, planted_xrays, tmp_path_factory):
        folder = tmp_path_factory.mktemp("whole")
        words = ("--raw", planted_xrays.images, "--table", planted_xrays.table, "--masks", planted_xrays.masks)
        options = ("--positive", "opacity", "--ratios", 0.6, 0.2, 0.2, "--out", folder / "xrays")
        assert here("prep", "images", *words, *options, *SERIAL) == 0
        fit("medusa-body", folder / "xrays", folder / "body", "--trainer.max_epochs", "3", "--model.lr", "0.01")
        options = ("--model.body_weights", folder / "body" / "model", "--model.segmentation", "0.1")
        options += ("--data.masks", "true", "--trainer.max_epochs", "2", "--model.lr", "0.001")
        fit("medusa", folder / "xrays", folder / "run", *options)
        assert here("test", "--run", folder / "run") == 0
        return folder / "run"

    def test_lungs_are_found(self, trained):
        body = trained.parent / "body"
        assert here("test", "--run", body) == 0
        table = predictions(body)
        assert set(table.columns) == {"row", "name", "patient", "source", "view", "lung_share", "dice", "iou"}
        metrics = json.loads((body / "metrics.json").read_text())
        assert metrics["dice"]["value"] == pytest.approx(table["dice"].mean(), abs=1e-6)
        assert metrics["dice"]["value"] > 0.6
        assert here("explain", "--run", body) == 0

    def test_test_names_images_sources_and_views(self, trained, planted_xrays):
        table = predictions(trained)
        wanted = {"row", "label", "name", "patient", "source", "view", "probability_0", "probability_1", "predicted"}
        assert set(table.columns) == wanted
        known = pl.read_csv(planted_xrays.table).rename({"label": "class"})
        joined = table.join(known, left_on="name", right_on="image", how="inner", validate="1:1")
        assert len(joined) == len(table) > 10
        for name in ("patient", "source", "view"):
            assert (joined[name] == joined[f"{name}_right"]).all()
        assert ((joined["class"] == "opacity").cast(int) == joined["label"]).all()
        metrics = json.loads((trained / "metrics.json").read_text())
        assert {"auroc", "patient_auroc", "within_source_auroc", "sensitivity_opacity"} <= metrics.keys()
        assert "positive one" in (trained / "report.html").read_text()

    def test_predict_new_images_as_they_were_tested(self, trained, planted_xrays, tmp_path):
        names = predictions(trained)["name"].to_list()
        chosen = [next(name for name in names if name.endswith(kind)) for kind in (".dcm", ".png")]
        (tmp_path / "new").mkdir()
        for name in chosen:
            shutil.copy(planted_xrays.images / name, tmp_path / "new")
        assert here("predict", "--run", trained, "--raw", tmp_path / "new", "--out", tmp_path / "out") == 0
        table = predictions(tmp_path / "out")
        assert "label" not in table.columns
        assert sorted(table["name"]) == sorted(chosen)
        both = table.join(predictions(trained), on="name")
        assert (both["probability_1"] - both["probability_1_right"]).abs().max() < 1e-5

    def test_explain(self, trained):
        assert here("explain", "--run", trained) == 0
        assert (trained / "maps.npz").is_file()
        assert len(pl.read_parquet(trained / "gates.parquet")) == 4 * len(predictions(trained))
        assert "data:image/png;base64," in (trained / "explain.html").read_text()

    def test_exported_network_comes_back(self, trained, tmp_path):
        assert here("export", "--run", trained, "--out", tmp_path / "model") == 0
        published = read_tensors(trained / "model" / "model.safetensors")
        again = load_published(tmp_path / "model").state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in published.items())

    def test_weights_of_a_finished_body_and_network_start_others(self, trained, tmp_path):
        start = ("--init_from", trained / "model", "--trainer.max_steps", "0", "--model.segmentation", "0.1")
        root = trained.parent / "xrays"
        fit("medusa", root, tmp_path / "a", *start, "--data.masks", "true", "--trainer.limit_val_batches", "0")
        body = trained.parent / "body" / "model"
        fit("medusa-body", root, tmp_path / "b", "--init_from", body, "--trainer.max_steps", "0")


@pytest.mark.parametrize(
    ("system", "more"),
    [
        ("acmil", ("--model.branch_attention", "multi_head", "--model.max_instances", "20")),
        ("abmil", ("--model.class_weights", "[1.0, 3.0]", "--model.attention", "false")),
        ("pooling", ("--model.pooling", "mean")),
        ("pooling", ("--model.pooling", "max", "--model.standardize", "true")),
        ("medusa", ("--model.taps", "[]", "--data.balanced", "true")),
        ("medusa", ("--model.gate", "spatial", "--model.class_weights", "[1.0, 3.0]", "--ema", "0.9")),
    ],
)
def test_every_variant_trains_tests_and_predicts(system, more, bags, xrays, tmp_path):
    root = xrays if system.startswith("medusa") else bags
    fit(system, root, tmp_path, *more, "--trainer.max_epochs", "1")
    assert np.isfinite(list(losses(tmp_path).values())).all()
    assert here("test", "--run", tmp_path) == 0
    assert here("predict", "--run", tmp_path) == 0
    tested, predicted = predictions(tmp_path), predictions(tmp_path / "predict")
    assert tested["probability_1"].equals(predicted["probability_1"])
    assert predicted["probability_1"].is_between(0, 1).all()
    if system == "acmil":
        heads = attention(tmp_path / "predict", predicted["name"][0])
        assert heads["attention"].sum() == pytest.approx(1, abs=1e-5)
        assert len(heads) > 20, "all instances are looked at"
    if "--model.attention" in more:
        assert not (tmp_path / "attention").exists()
