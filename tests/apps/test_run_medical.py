"""Slides and chest X-rays from raw files to diagnoses, heat maps and weights, through the command that users type."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil

import h5py
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from apps.common.export import export_onnx, export_torch
from apps.medical import DOMAIN
from domains.common.classification import choose_threshold
from domains.common.files import read_checkpoint, read_tensors
from domains.common.hub import load_published
from domains.medical.acmil import ACMIL
from domains.medical.data import BagData
from domains.medical.medusa_module import MEDUSAModule
from domains.medical.module import ABMILModule, ACMILModule, PoolingModule
from domains.medical.segmentation import MEDUSABodyModule
from domains.medical.weights import to_official
from tests.apps.helpers import QUIET, losses
from tests.apps.medical_helpers import fit, fit_words, here, refusal

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

SERIAL = ("--executor", "serial", "--progress", "false")
# slides of 60 patches, of which few are masked; best is the surest epoch, not the first that puts all in order
LEARNING = ("--model.standardize", "true", "--model.lr", "0.01", "--model.masked_top", "3")
LEARNING += ("--monitor", "val/log_loss", "--mode", "min", "--trainer.max_epochs", "12")


def predictions(folder):
    return pl.read_parquet(folder / "predictions.parquet")


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


MODULES = {
    "gated": lambda: ACMILModule(["a", "b"], 12, dim=16, gate_dim=8),
    "multi-head": lambda: ACMILModule(["a", "b"], 12, dim=16, branch_attention="multi_head", heads=4),
    "abmil": lambda: ABMILModule(["a", "b"], 12, dim=16),
    "mean": lambda: PoolingModule(["a", "b"], 12, dim=16, standardize=True),
    "medusa": lambda: MEDUSAModule(["a", "b"], 28, 28, "medusa_tiny"),
    "body": lambda: MEDUSABodyModule(28, 4, 3),
}


# each takes seconds; in ONNX only what covers the operations of the others
@pytest.mark.parametrize(
    ("name", "write"),
    [*((name, export_torch) for name in MODULES), ("gated", export_onnx), ("medusa", export_onnx)],
)
def test_export(name, write, tmp_path):
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    path = tmp_path / ("model.pt2" if write is export_torch else "model.onnx")
    write(module, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    if write is export_torch:
        inputs = module.example_inputs(rows=2000 if name in ("gated", "multi-head") else 7)
        torch.testing.assert_close(torch.export.load(path).module()(*inputs), module.net(*inputs), atol=1e-5, rtol=1e-5)


def smaller(config, root, body):
    """What makes a shipped configuration fit the planted data, and seconds."""
    words = ["--data.root", root]
    model = config.get("model", {})
    if config["system"] == "medusa":
        side = 64 if model.get("configuration") == "medusa_resnet50" else 28
        words += ["--data.side", side, "--data.gray_side", 32]
        if model.get("body_weights"):
            words += ["--model.body_weights", body]
    if config["system"] == "medusa-body":
        words += ["--data.gray_side", 32]
    if model.get("configuration") == "medusa_resnet50":  # a gigabyte of checkpoints proves nothing
        words += ["--trainer.enable_checkpointing", "false", "--data.batch_size", 4]
    return words


@pytest.fixture(scope="module")
def lungs(xrays, tmp_path_factory):
    """A body as that of the demo, not trained."""
    run = tmp_path_factory.mktemp("lungs")
    fit("medusa-body", xrays, run, "--model.width", "8", "--trainer.max_epochs", "1")
    return run / "model"


@pytest.mark.parametrize("name", DOMAIN.shipped_configs())
def test_every_shipped_config_runs_a_step(name, bags, xrays, lungs, tmp_path):
    config = yaml.safe_load(DOMAIN.shipped_configs()[name].read_text())
    root = xrays if config["system"].startswith("medusa") else bags
    steps = ("--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "1")
    words = (*smaller(config, root, lungs), "--run", tmp_path / "run", *QUIET, *steps)
    assert here("fit", "--config", name, *words) == 0
    saved = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    assert saved["system"] == config["system"] in DOMAIN.systems
    assert np.isfinite(losses(tmp_path / "run")[0])


class TestOptions:
    def test_last_epoch_is_kept_where_it_is_asked_for(self, bags, tmp_path):
        options = ("--select", "last", "--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0")
        fit("abmil", bags, tmp_path, *options)
        best, last = (read_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
        assert best["epoch"] == last["epoch"] == 1
        assert all(torch.equal(best["state_dict"][name], tensor) for name, tensor in last["state_dict"].items())

    def test_runs_are_summarised(self, bags, tmp_path, capsys):
        for seed in (1, 2):
            run = tmp_path / str(seed)
            fit("pooling", bags, run, "--seed_everything", seed, "--trainer.max_epochs", "1")
            assert here("test", "--run", run) == 0
        capsys.readouterr()
        assert here("summary", tmp_path / "1", tmp_path / "2", "--out", tmp_path / "summary.json") == 0
        said = capsys.readouterr().out
        assert "note:" not in said, "seeds are all that differs"
        content = json.loads((tmp_path / "summary.json").read_text())
        metrics = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in "12"]
        assert content["metrics"]["auroc"]["values"] == [found["auroc"]["value"] for found in metrics]

    def test_folds_are_trained_tested_and_pooled(self, bags, tmp_path):
        index = pl.read_parquet(bags / "all" / "part-00000.parquet").sort("patient")
        owner = dict(zip(index["patient"].unique(maintain_order=True), range(40), strict=True))
        part = index["patient"].replace_strict(owner) % 4 // 2
        for fold in (0, 1):
            sides = [index.filter(part != fold)["name"], [], index.filter(part == fold)["name"]]
            lines = [",".join(names) for names in itertools.zip_longest(*sides, fillvalue="")]
            (tmp_path / f"splits_{fold}.csv").write_text("\n".join(["train,val,test", *lines]) + "\n")
        words = ("--config", "abmil_musk1", "--data-root", bags, "--splits", tmp_path, "--run", tmp_path / "run")
        options = ("--fit", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "replicates=20")
        assert here("cross-validate", *words, *options, "--replicates", 20) == 0
        table = predictions(tmp_path / "run")
        assert sorted(table["name"]) == sorted(index["name"])
        assert table.group_by("patient").agg(pl.col("fold").n_unique())["fold"].max() == 1


@pytest.fixture(scope="module")
def finished(bags, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished")
    fit("acmil", bags, run, "--trainer.max_epochs", "1")
    return run


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--model.lr", "0"), "model.lr must be above 0"),
            (("--model.max_instances", "0"), "model.max_instances is 0; give at least 1, or none"),
            (("--model.class_weights", "[1.0]"), "model.class_weights has 1 numbers for 2 classes"),
            (("--model.branches", "0"), "branches=0"),
            (("--model.branch_attention", "multi_head", "--model.heads", "3"), "does not divide"),
            (("--model.mask_probability", "1.5"), "probability=1.5"),
            (("--data.batch_size", "0"), "must be at least 1"),
            (("--data.cache_mb", "-1"), "data.cache_mb is -1"),
            (("--monitor", "val/auc"), "validation measures val/auroc"),
            (("--data.root", "nowhere"), "heptad medical prep"),
        ],
    )
    def test_bad_options_are_one_line(self, words, message, bags, tmp_path):
        assert message in refusal("fit", *fit_words("acmil", bags, tmp_path / "run", *words))
        assert not (tmp_path / "run").exists()

    def test_the_other_kind_of_data_is_named(self, bags, xrays, tmp_path):
        said = refusal("fit", *fit_words("acmil", xrays, tmp_path))
        assert "holds X-rays, this system needs kind 'bags'; choose --system or --data.root" in said
        assert "holds slides" in refusal("fit", *fit_words("medusa", bags, tmp_path))

    @pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
    def test_damaged_feature_files_are_named(self, damage, bags, tmp_path):
        root = tmp_path / "slides"
        shutil.copytree(bags, root)
        name = pl.read_parquet(root / "train" / "part-00000.parquet")["file"][5]
        (root / name).write_bytes(damage((root / name).read_bytes()))
        said = refusal("fit", *fit_words("acmil", root, tmp_path / "run"))
        assert str(root / name) in said
        assert "prepare the data again" in said

    def test_a_split_file_that_divides_a_patient_is_refused(self, bags, finished, tmp_path):
        index = pl.read_parquet(bags / "all" / "part-00000.parquet")
        several = index.group_by("patient").agg("name").filter(pl.col("name").list.len() > 1).sort("patient")
        leaking = [several["name"][0][0], several["name"][1][0], several["name"][0][1]]
        path = tmp_path / "splits_0.csv"
        path.write_text("train,val,test\n" + ",".join(leaking) + "\n")
        said = refusal("fit", *fit_words("acmil", bags, tmp_path / "run", "--data.splits", path))
        assert f"patient {several['patient'][0]!r} is on several sides (1 such patients)" in said
        path.write_text("train,val,test\n" + ",".join([*leaking[:2], several["name"][2][0]]) + "\n")
        assert here("test", "--run", finished, "--data.splits", path) == 0
        assert predictions(finished)["name"].to_list() == [several["name"][2][0]]

    def test_new_features_of_another_width_are_refused(self, finished, tmp_path):
        with h5py.File(tmp_path / "s.h5", "w") as file:
            file["features"], file["coords"] = np.zeros((5, 9), np.float32), np.zeros((5, 2), np.int64)
        said = refusal("predict", "--run", finished, "--raw", tmp_path / "s.h5", "--workers", "1")
        assert "s.h5" in said
        assert "has 9 features per patch" in said

    def test_hostile_checkpoint_never_executes(self, bags, xrays, tmp_path):
        torch.save({"state_dict": {}, "hyper_parameters": Hostile(tmp_path / "executed")}, tmp_path / "bad.ckpt")
        for verb, name in (("fit", "ckpt_path"), ("test", "ckpt_path"), ("predict", "init_from")):
            said = refusal(verb, "--data.root", bags, f"--{name}", tmp_path / "bad.ckpt", "--run", tmp_path / "run")
            assert "was not executed" in said
        for name in ("body_weights", "backbone_weights"):
            words = (f"--model.{name}", tmp_path / "bad.ckpt", "--model.channels", 3)
            assert "was not executed" in refusal("fit", *fit_words("medusa", xrays, tmp_path / "run", *words))
        assert not (tmp_path / "executed").exists()


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_official_weights_beside_a_hostile_object_are_imported_and_nothing_executed(bags, tmp_path):
    torch.manual_seed(0)
    network = ACMIL(16, 2, 8, branches=3, gate_dim=6).eval()
    content = {"model": to_official(network), "epoch": 3, "config": Hostile(tmp_path / "executed")}
    torch.save(content, tmp_path / "checkpoint-best.pth")
    (tmp_path / "options.json").write_text('{"n_masked_patch": 5}')
    words = ("official", "--weights", tmp_path / "checkpoint-best.pth", "--options", tmp_path / "options.json")
    assert here("import-weights", *words, "--out", tmp_path / "model") == 0
    assert not (tmp_path / "executed").exists()
    again = load_published(tmp_path / "model").eval()
    assert again.masking.top == 5
    x = torch.randn(30, 16)
    assert torch.equal(again(x), network(x))
    shape = ("--model.dim", 8, "--model.branches", 3, "--model.gate_dim", 6)
    words = ("--init_from", tmp_path / "model", "--data.root", bags, "--run", tmp_path / "run", *QUIET, *shape)
    assert here("test", *words) == 0
    table, batch = predictions(tmp_path / "run"), next(iter(BagData(str(bags)).test_dataloader()))
    with torch.no_grad():
        wanted = network(batch["x"]).softmax(-1)[0, 1]
    assert table["probability_1"][0] == pytest.approx(float(wanted), abs=1e-6)
