"""Options, configurations, exports and refusals of the medical domain, through the command that users type."""

from __future__ import annotations

import itertools
import json
import os
import shutil

import h5py
import numpy as np
import polars as pl
import pytest
import torch
import yaml

from apps.common.export import export_onnx, export_torch
from apps.medical import DOMAIN
from domains.common.files import read_checkpoint
from domains.common.hub import load_published
from domains.medical.acmil import ACMIL
from domains.medical.data import BagData
from domains.medical.medusa_module import MEDUSAModule
from domains.medical.module import ABMILModule, ACMILModule, PoolingModule
from domains.medical.segmentation import MEDUSABodyModule
from domains.medical.weights import to_official
from tests.apps.helpers import QUIET, losses
from tests.apps.medical_helpers import fit, fit_words, here, predictions, refusal

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = {
    "gated": lambda: ACMILModule(["a", "b"], 12, dim=16, gate_dim=8),
    "multi-head": lambda: ACMILModule(["a", "b"], 12, dim=16, branch_attention="multi_head", heads=4),
    "abmil": lambda: ABMILModule(["a", "b"], 12, dim=16),
    "mean": lambda: PoolingModule(["a", "b"], 12, dim=16, standardize=True),
    "medusa": lambda: MEDUSAModule(["a", "b"], 28, 28, "medusa_tiny"),
    "body": lambda: MEDUSABodyModule(28, 4, 3),
}


# each takes seconds, that of all of MEDUSA most; in ONNX only what covers the operations of the others
@pytest.mark.parametrize(
    ("name", "write"),
    [
        *((name, export_torch) for name in MODULES if name != "medusa"),
        ("gated", export_onnx),
        pytest.param("medusa", export_torch, marks=pytest.mark.slow),
        pytest.param("medusa", export_onnx, marks=pytest.mark.slow),
    ],
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
    steps = ("--trainer.max_steps", "1", "--trainer.val_check_interval", "1")
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

    def test_a_run_without_a_best_epoch_says_how_to_use_it(self, bags, tmp_path, capsys):
        fit("abmil", bags, tmp_path, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")
        assert not (tmp_path / "model").exists()
        last = tmp_path / "checkpoints" / "last.ckpt"
        assert f"use --ckpt_path {last}" in capsys.readouterr().out
        assert here("test", "--run", tmp_path, "--ckpt_path", last) == 0

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
