"""Classes and identities from raw pictures to reports, neighbours and exported networks, by the installed command."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import onnxruntime
import polars as pl
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from apps.finegrained import DOMAIN
from data_prep.finegrained.planted import write_planted_identities
from domains.common.files import read_tensors
from domains.common.hub import load_published
from tests.apps.finegrained_helpers import (
    SERIAL,
    fit,
    fit_words,
    here,
    predictions,
    prepare_classes,
    prepare_identities,
    refusal,
)
from tests.apps.helpers import QUIET, losses

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return prepare_classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    return prepare_identities(tmp_path_factory.mktemp("identities"))


class TestClasses:
    @pytest.fixture(scope="class")
    def tested(self, classes, tmp_path_factory):
        run = tmp_path_factory.mktemp("run") / "run"
        fit("classes", classes, run, "--trainer.max_epochs", "2")
        assert here("test", "--run", run) == 0
        return run

    def test_the_report_names_the_protocol_and_every_picture_has_its_probabilities(self, tested, classes):
        table = predictions(tested)
        each = table.select(f"probability_{k}" for k in range(4)).to_numpy()
        np.testing.assert_allclose(each.sum(1), 1, atol=1e-5)
        assert (each.argmax(1) == table["predicted"].to_numpy()).all()
        assert (table["name"].str.split("/").list.first() == table["class"]).all()
        metrics = json.loads((tested / "metrics.json").read_text())
        right = (table["predicted"] == table["label"]).mean()
        assert metrics["accuracy"]["value"] == pytest.approx(right)
        assert metrics["accuracy"]["units"] == len(table)
        alone = (table["predicted_glca"] == table["label"]).mean()
        assert metrics["accuracy_glca"]["value"] == pytest.approx(alone)
        report = (tested / "report.html").read_text()
        assert "the sum of the probabilities" in report
        assert not re.search(r"(?:src|href)=\"(?!data:)", report), "nothing is loaded from elsewhere"

    def test_explain_writes_where_the_network_looks(self, tested):
        assert here("explain", "--run", tested) == 0
        maps = np.load(tested / "rollout.npz")
        assert maps["rollout"].shape == maps["selected"].shape == (len(predictions(tested)), 4, 4)
        assert (maps["selected"].sum((1, 2)) == 1).all(), "a tenth of sixteen patches, and one at least"
        first = maps["rollout"].reshape(len(maps["row"]), -1)
        assert (first.argmax(1) == maps["selected"].reshape(len(first), -1).argmax(1)).all()
        table = pl.read_parquet(tested / "attention.parquet")
        assert table["attention_selected"].is_between(0, 1).all()

    def test_predict_new_pictures_as_they_were_tested(self, tested, classes, tmp_path):
        known = predictions(tested)
        (tmp_path / "new").mkdir()
        for name in known["name"].head(3):
            shutil.copy(classes.parent / "raw" / "images" / name, tmp_path / "new" / name.replace("/", "_"))
        words = ("--run", tested, "--raw", tmp_path / "new", "--out", tmp_path / "out", "--workers", "1")
        assert here("predict", *words, "--model.embeddings", "true") == 0
        table = predictions(tmp_path / "out").with_columns(pl.col("name").str.replace(r"_(\d+\.png)$", "/$1"))
        assert "label" not in table.columns
        both = table.join(known, on="name", how="inner")
        assert len(both) == 3
        assert (both["probability_1"] - both["probability_1_right"]).abs().max() < 1e-5
        assert np.linalg.norm(table["embedding"].to_numpy(), axis=1) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("format", ["hub", "torch", "onnx"])
    def test_export_takes_pictures_as_they_are(self, format, tested, tmp_path):
        out = tmp_path / {"hub": "model", "torch": "model.pt2", "onnx": "model.onnx"}[format]
        assert here("export", "--run", tested, "--format", format, "--out", out) == 0
        if format == "hub":
            again = load_published(out).state_dict()
            published = read_tensors(tested / "model" / "model.safetensors")
            assert all(torch.equal(again[name], tensor) for name, tensor in published.items())
        if format == "torch":
            found = torch.export.load(out).module()(torch.rand(3, 3, 32, 32))
            torch.testing.assert_close(found.sum(1), torch.ones(3))
        if format == "onnx":
            model = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
            assert [(entry.name, entry.shape[0]) for entry in model.get_outputs()] == [("probabilities", "batch")]
            told = {name: json.loads(text) for name, text in model.get_modelmeta().custom_metadata_map.items()}
            assert told["classes"] == json.loads((tested / "model" / "config.json").read_text())["classes"]
            assert told["input"]["image_size"] == [32, 32]

    def test_a_backbone_of_published_size_without_weights_is_warned_of(self, classes, tmp_path, capsys):
        words = ["--system", "classes", *QUIET, "--data.root", classes, "--run", tmp_path, "--data.workers", "1"]
        words += ["--data.image_size", "[32, 32]", "--data.batch_size", "4", "--trainer.max_steps", "1"]
        words += ["--trainer.limit_val_batches", "0", "--select", "last", "--model.backbone", "deit_tiny_patch16_224"]
        assert here("fit", *map(str, words)) == 0
        said = capsys.readouterr().out
        assert "warning: deit_tiny_patch16_224 starts from random numbers" in said
        assert "--model.pretrained (timm publishes deit_tiny_patch16_224.fb_in1k" in said
        fit("classes", classes, tmp_path / "own", "--trainer.max_steps", "1")
        assert "warning: vit" not in capsys.readouterr().out

    def test_the_plain_backbone_is_a_baseline(self, classes, tmp_path):
        fit(
            "classes",
            classes,
            tmp_path,
            "--model.branches",
            "sa",
            "--model.pairwise",
            "false",
            "--trainer.max_epochs",
            "1",
        )
        assert here("test", "--run", tmp_path) == 0
        assert "predicted_glca" not in predictions(tmp_path).columns
        assert "branches sa" in refusal("explain", "--run", tmp_path)

    def test_a_backbone_of_timm_starts_it(self, classes, tmp_path):
        options = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": (32, 32)}
        weights = timm.create_model("vit_tiny_patch16_224", pretrained=False, **options).state_dict()
        save_file(weights, tmp_path / "timm.safetensors")
        still = ("--model.lr", "1e-12", "--trainer.max_epochs", "1", "--model.weight_decay", "0")
        fit("classes", classes, tmp_path / "run", "--model.pretrained", tmp_path / "timm.safetensors", *still)
        found = read_tensors(tmp_path / "run" / "model" / "model.safetensors")
        torch.testing.assert_close(found["trunk.blocks.1.mlp.fc1.weight"], weights["blocks.1.mlp.fc1.weight"])
        torch.testing.assert_close(found["glca.mlp.fc1.weight"], weights["blocks.1.mlp.fc1.weight"])
        # a start of its own is not loaded over
        fit("classes", classes, tmp_path / "next", "--init_from", tmp_path / "run" / "model", "--model.pretrained",
            tmp_path / "gone.safetensors", "--trainer.max_steps", "1")  # fmt: skip
        words = fit_words("classes", classes, tmp_path / "none", "--model.pretrained", tmp_path / "gone.safetensors")
        assert "gone.safetensors" in refusal("fit", *words)


class TestIdentities:
    @pytest.fixture(scope="class")
    def tested(self, identities, tmp_path_factory):
        run = tmp_path_factory.mktemp("run") / "run"
        fit("reid", identities, run, "--trainer.max_epochs", "3")
        assert here("test", "--run", run, "--model.reranking", "true", "--model.k1", "6", "--model.k2", "3") == 0
        return run

    def test_metrics_are_means_of_queries_with_intervals_over_identities(self, tested):
        table = predictions(tested)
        queries = table.filter(pl.col("role") == 1)
        assert len(queries) == 24
        assert table.filter(pl.col("role") == 2)["ap_mean"].is_null().all()
        metrics = json.loads((tested / "metrics.json").read_text())
        assert metrics["mAP"]["value"] == pytest.approx(queries["ap_mean"].mean())
        assert metrics["rank1"]["value"] == pytest.approx((queries["first_rank"] == 1).mean())
        assert metrics["mAP"]["units"] == queries["identity"].n_unique() == 8
        assert {"mINP", "rank5", "rank10", "mAP_trapezoid", "reranked_mAP", "reranked_rank1"} <= metrics.keys()
        assert "left out" in (tested / "report.html").read_text()
        assert {"1", "2", "3"} == set(table["camera_name"]) != set(table["camera"].cast(pl.String))

    def test_cameras_are_ignored_where_asked(self, tested, tmp_path):
        shutil.copytree(tested, tmp_path / "again")
        words = ("--run", tmp_path / "again", "--model.reranking", "false", "--data.ignore_camera", "true")
        assert here("test", *words) == 0
        assert "Cameras are ignored" in (tmp_path / "again" / "report.html").read_text()
        usual, easier = (predictions(run).filter(pl.col("role") == 1) for run in (tested, tmp_path / "again"))
        assert (easier["matches"] > usual["matches"]).all()

    def test_a_part_of_the_queries_and_no_gallery_is_refused(self, tested, identities, tmp_path):
        said = refusal("test", "--run", tested, "--trainer.limit_test_batches", "1")
        assert "trainer.limit_test_batches leaves" in said
        words = fit_words("reid", identities, tmp_path, "--trainer.limit_val_batches", "1")
        assert "trainer.limit_val_batches leaves" in refusal("fit", *words)

    def test_a_validation_of_few_is_warned_of_once(self, identities, tmp_path, capsys):
        fit("reid", identities, tmp_path, "--trainer.max_epochs", "2", "--trainer.val_check_interval", "1")
        said = capsys.readouterr().out
        assert said.count("identities choose the epoch") == 1
        assert "of 3 identities choose the epoch" in said
        table = pl.read_csv(tmp_path / "log" / "version_0" / "metrics.csv")
        margins = table["val/margin"].drop_nulls()
        best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
        stored = [state for state in best["callbacks"].values() if "best_model_score" in state]
        assert stored[0]["monitor"] == "val/margin"
        assert float(stored[0]["best_model_score"]) == pytest.approx(margins.max(), abs=1e-5)
        fit("reid", identities, tmp_path / "last", "--trainer.max_epochs", "1", "--select", "last")
        assert "choose the epoch" not in capsys.readouterr().out

    def test_neighbours_leave_out_the_own_camera_and_agree_with_the_scores(self, tested):
        table = predictions(tested)
        by_row = {row["row"]: row for row in table.iter_rows(named=True)}
        for query in table.filter(pl.col("role") == 1).iter_rows(named=True):
            found = [by_row[row] for row in query["neighbours"]]
            assert all(one["role"] == 2 for one in found)
            assert not any(one["label"] == query["label"] and one["camera"] == query["camera"] for one in found)
            right = [one["label"] == query["label"] for one in found]
            assert (right.index(True) + 1 if any(right) else 11) == min(query["first_rank"], 11)
            distance = np.linalg.norm(np.subtract(query["embedding"], found[0]["embedding"]))
            assert query["neighbour_distances"][0] == pytest.approx(distance, abs=1e-6)

    def test_predict_writes_features_and_neighbours(self, tested, identities, tmp_path):
        raw = identities.parent / "raw" / "images"
        for role, names in {
            "query": ["0000/0000_c1_000.png"],
            "gallery": ["0000/0000_c2_000.png", "0001/0001_c1_000.png"],
        }.items():
            (tmp_path / "new" / role).mkdir(parents=True)
            for name in names:
                shutil.copy(raw / name, tmp_path / "new" / role)
        words = ("--run", tested, "--raw", tmp_path / "new", "--out", tmp_path / "out", "--workers", "1")
        assert here("predict", *words) == 0
        found = pl.read_parquet(tmp_path / "out" / "neighbours.parquet")
        assert found.columns == ["query", "rank", "neighbour", "distance"]
        assert found["query"].unique().to_list() == ["query/0000_c1_000.png"]
        assert sorted(found["neighbour"]) == ["gallery/0000_c2_000.png", "gallery/0001_c1_000.png"]
        assert found["distance"].is_sorted()
        assert predictions(tmp_path / "out")["embedding"].to_numpy().shape == (3, 48)

    def test_explain_and_export(self, tested, tmp_path):
        assert here("explain", "--run", tested) == 0
        assert np.load(tested / "rollout.npz")["selected"].shape[1:] == (4, 2)
        assert here("export", "--run", tested, "--format", "torch", "--out", tmp_path / "m.pt2") == 0
        found = torch.export.load(tmp_path / "m.pt2").module()(torch.rand(5, 3, 32, 16))
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5))

    def test_one_camera_alone_is_told_and_still_measured(self, tmp_path):
        made = write_planted_identities(tmp_path / "raw", identities=8, cameras=1, per_camera=4, size=(40, 20))
        words = ("--raw", tmp_path / "raw", "--table", made.table, "--valid_identities", 2, *SERIAL)
        assert here("prep", "csv", *words, "--out", tmp_path / "data") == 0
        fit("reid", tmp_path / "data", tmp_path / "run", "--data.batch_size", "4", "--trainer.max_epochs", "1")
        assert here("test", "--run", tmp_path / "run") == 0
        assert "Cameras are ignored" in (tmp_path / "run" / "report.html").read_text()

    def test_classes_are_no_identities(self, classes, tmp_path):
        assert "needs kind 'identities'" in refusal("fit", *fit_words("reid", classes, tmp_path))


@pytest.mark.parametrize("name", sorted(DOMAIN.shipped_configs()))
def test_every_shipped_config_runs_a_step(name, classes, identities, tmp_path):
    config = yaml.safe_load(DOMAIN.shipped_configs()[name].read_text())
    identity = config["system"] == "reid"
    size = "[32, 16]" if identity else "[48, 48]"  # patches of 6, 8 and 16 fill it
    words = ["--data.root", identities if identity else classes, "--data.image_size", size, "--data.resize", "null"]
    words += ["--data.batch_size", "8", "--trainer.precision", "32-true", "--trainer.max_steps", "1", "--run", tmp_path]
    words += ["--data.instances", "2"] if identity else []
    if "backbone_options" not in config["model"]:
        small = "{embed_dim: 24, depth: 2, num_heads: 3}"
        words += ["--model.backbone_options", small]
    words += ["--trainer.val_check_interval", "1"]
    assert here("fit", "--config", name, *words, *QUIET) == 0
    saved = yaml.safe_load((tmp_path / "fit.yaml").read_text())
    assert saved["system"] == config["system"] in DOMAIN.systems
    assert np.isfinite(losses(tmp_path)[0])


@pytest.mark.parametrize(
    ("system", "more"),
    [
        ("classes", ("--model.distractor", "pwca", "--model.inference", "glca", "--model.optimizer", "adam")),
        (
            "classes",
            ("--model.checkpointing", "true", "--model.layer_decay", "0.7", "--trainer.precision", "bf16-mixed"),
        ),
        ("reid", ("--model.margin", "0.3", "--data.instances", "0", "--model.optimizer", "sgd")),
        ("reid", ("--model.ap", "trapezoid", "--model.search", "exact", "--model.label_smoothing", "0.1")),
    ],
)
def test_every_variant_trains_and_tests(system, more, classes, identities, tmp_path):
    fit(system, classes if system == "classes" else identities, tmp_path, *more, "--trainer.max_epochs", "1")
    assert np.isfinite(list(losses(tmp_path).values())).all()
    assert here("test", "--run", tmp_path) == 0
