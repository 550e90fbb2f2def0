"""Train, resume, test, predict through the real command; each known trap of the trainer has its test here."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest
import torch
import yaml

from apps.common.explain import main as explain
from apps.common.export import export_onnx, export_torch
from apps.common.export import main as export
from apps.common.options import from_run, resolve_configs
from apps.common.run import build
from apps.ctr import DOMAIN
from domains.common.errors import CheckpointMismatchError, ConfigError, HeptadError
from domains.common.files import read_checkpoint, read_tensors
from domains.ctr.module import AutoIntModule, LogisticRegressionModule
from tests.apps.helpers import QUIET, TWO_PROCESSES, assert_same_weights, losses, run_several
from tests.conftest import ROOT

SMALL = [
    *QUIET, "--model.dim", "4", "--model.depth", "1", "--model.width", "8", "--data.batch_size", "64",
]  # fmt: skip


def fit(heptad, prepared, run, *more, **options):
    return heptad("ctr", "fit", *SMALL, "--data.root", prepared, "--run", run, *more, **options)


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """One small finished run; tests copy it before they change it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    command = [sys.executable, "-m", "apps.cli", "ctr", "fit", *SMALL, "--data.root", str(prepared), "--run", str(run)]
    command += ["--trainer.max_epochs", "2"]
    subprocess.run(
        command, check=True, capture_output=True, cwd=run.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    return run


class TestWholeWay:
    def test_a_run_writes_only_into_its_folder(self, trained):
        names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
        assert {"fit.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "log/version_0/metrics.csv"} <= names
        assert {"model/model.safetensors", "model/config.json", "model/README.md"} <= names
        assert [path.name for path in trained.parent.iterdir()] == ["run"]

    def test_test_after_fit_in_the_same_folder(self, trained, heptad, prepared, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(trained, run)
        heptad("ctr", "test", "--run", run)
        heptad("ctr", "validate", "--run", run)
        assert {"fit.yaml", "test.yaml", "validate.yaml"} <= {path.name for path in run.iterdir()}
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["auc"]["low"] <= metrics["auc"]["value"] <= metrics["auc"]["high"]
        assert metrics["gauc"]["units"] > 100
        table = pl.read_parquet(run / "predictions.parquet")
        assert table.columns == ["row", "label", "group", "probability"]
        assert table["row"].is_sorted()
        report = (run / "report.html").read_text()
        assert "data:image/png;base64," in report
        assert not re.search(r"(?:src|href)=\"(?!data:)", report), "nothing is loaded from elsewhere"
        assert list(run.glob(".*")) == []
        last = run / "checkpoints" / "last.ckpt"
        said = fit(heptad, prepared, run, "--trainer.max_epochs", "3", "--ckpt_path", last).stdout
        assert "metrics.json, report.html, predictions.parquet are of earlier weights" in said

    def test_explain(self, trained, heptad, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(trained, run)
        heptad("ctr", "explain", "--run", run)
        attention = json.loads((run / "attention.json").read_text())
        mean = torch.tensor(attention["mean"])
        assert mean.shape == (1, 2, 8, 8)
        torch.testing.assert_close(mean.sum(-1), torch.ones(1, 2, 8), atol=1e-4, rtol=0)
        importance = pl.read_csv(run / "importance.csv")
        assert set(importance["field"]) == set(attention["fields"])
        assert (importance["low"] <= importance["high"]).all()
        assert pl.read_csv(run / "interactions.csv").height == 28
        assert "Strongest interactions" in (run / "explain.html").read_text()

    def test_predict_scores_a_new_raw_log_with_unseen_categories(self, trained, heptad, tmp_path, raw_log):
        run = tmp_path / "run"
        shutil.copytree(trained, run)
        frame = pl.read_csv(raw_log / "clicks.csv", n_rows=50).drop("click").with_columns(site=pl.lit("never seen"))
        frame.head(30).write_csv(tmp_path / "new.csv")
        frame.tail(20).write_csv(tmp_path / "more.csv")
        heptad("ctr", "predict", "--run", run, "--raw", tmp_path / "new.csv", "--raw", tmp_path / "more.csv")
        table = pl.read_parquet(run / "predict" / "predictions.parquet")
        assert table["row"].to_list() == list(range(50))
        assert "label" not in table.columns
        assert table["probability"].is_between(0, 1).all()

    @pytest.mark.parametrize("format", ["hub", "torch", "onnx"])
    def test_export(self, trained, heptad, tmp_path, format):
        out = tmp_path / {"hub": "model", "torch": "model.pt2", "onnx": "model.onnx"}[format]
        heptad("ctr", "export", "--run", trained, "--format", format, "--out", out)
        assert out.exists()
        assert [path.name for path in tmp_path.iterdir()] == [out.name]

    def test_predicting_twice_and_elsewhere(self, trained, heptad, tmp_path, raw_log):
        run = tmp_path / "run"
        shutil.copytree(trained, run)
        frame = pl.read_csv(raw_log / "clicks.csv", n_rows=30)
        for rows in (30, 20):  # another log under the same name
            frame.head(rows).write_csv(tmp_path / "new.csv")
            heptad("ctr", "predict", "--run", run, "--raw", tmp_path / "new.csv", "--workers", 1)
            assert pl.read_parquet(run / "predict" / "predictions.parquet").height == rows
        heptad("ctr", "predict", "--run", run, "--raw", tmp_path / "new.csv", "--out", tmp_path / "there")
        assert pl.read_parquet(tmp_path / "there" / "predictions.parquet").height == 20


class TestExport:
    """Every shape of model, compared with the network by the export itself and here on other sizes."""

    FIELDS: ClassVar = {
        "odd": [("n", "numerical", 1), ("a", "categorical", 4), ("b", "categorical", 5)],
        "even": [("a", "categorical", 4), ("b", "categorical", 5)],
        "bag": [("a", "categorical", 4), ("t", "multi", 6), ("n", "numerical", 1)],
    }

    @pytest.mark.parametrize("shape", FIELDS)
    @pytest.mark.parametrize(
        ("write", "deep"),
        [
            *((export_torch, deep) for deep in ([], [6])),
            (export_onnx, [6]),
            pytest.param(export_onnx, [], marks=pytest.mark.slow),
        ],
    )
    def test_export(self, shape, deep, write, tmp_path):
        fields = [{"name": name, "kind": kind, "size": size} for name, kind, size in self.FIELDS[shape]]
        module = AutoIntModule(fields, dim=4, depth=2, width=4, heads=2, deep=deep).eval()
        path = tmp_path / ("model.pt2" if write is export_torch else "model.onnx")
        write(module, path)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
        if write is export_torch:
            program = torch.export.load(path).module()
            inputs = module.example_inputs(rows=9, length=4)
            torch.testing.assert_close(program(*inputs), module.net(*inputs), atol=1e-5, rtol=1e-5)

    def test_logistic_regression(self, tmp_path):
        fields = [{"name": name, "kind": kind, "size": size} for name, kind, size in self.FIELDS["even"]]
        export_onnx(LogisticRegressionModule(fields).eval(), tmp_path / "model.onnx")

    def test_a_wrong_program_is_not_written(self, tmp_path, monkeypatch):
        fields = [{"name": "a", "kind": "categorical", "size": 4}]
        module = LogisticRegressionModule(fields).eval()
        monkeypatch.setattr("apps.common.export.TOLERANCE", -1.0)
        with pytest.raises(HeptadError, match="not written"):
            export_torch(module, tmp_path / "model.pt2")
        assert not (tmp_path / "model.pt2").exists()
        with pytest.raises(ConfigError, match=r"ending \.pt2"):
            export_torch(module, tmp_path / "model.bin")


class TestTraps:
    def test_what_is_typed_wins_over_the_checkpoint(self, trained, prepared):
        best = str(trained / "checkpoints" / "best.ckpt")
        common = ["--data.root", str(prepared), "--ckpt_path", best, "--trainer.logger", "false"]
        cli = build(DOMAIN, "fit", common, run=False)
        assert cli.model.net.dim == 4, "options of the checkpoint are the defaults"
        assert cli.model.hparams.lr == 1e-3
        cli = build(DOMAIN, "fit", [*common, "--model.lr", "0.5", "--model.dim", "6"], run=False)
        assert cli.model.hparams.lr == 0.5
        assert cli.model.net.dim == 6

    def test_weights_of_another_shape_are_named(self, trained, prepared, heptad):
        best = trained / "checkpoints" / "best.ckpt"
        done = heptad("ctr", "test", "--data.root", prepared, "--ckpt_path", best, "--model.dim", "6", check=False)
        assert done.returncode == 2
        assert "wrong shape: net.table.weight" in done.stderr.splitlines()[-1]
        with pytest.raises(CheckpointMismatchError):
            build(DOMAIN, "test", ["--data.root", str(prepared), "--init_from", str(best)], run=False)

    def test_resuming_keeps_the_old_rate_and_init_from_starts_anew(self, trained, prepared):
        best = str(trained / "checkpoints" / "best.ckpt")
        words = ["--data.root", str(prepared), *SMALL, "--model.lr", "0.25", "--trainer.logger", "false"]
        cli = build(DOMAIN, "fit", [*words, "--init_from", best], run=False)
        assert torch.equal(cli.model.net.table.weight, read_tensors(best)["net.table.weight"])
        assert cli.model.configure_optimizers().param_groups[0]["lr"] == 0.25
        published = build(DOMAIN, "fit", [*words, "--init_from", str(trained / "model")], run=False)
        assert torch.equal(published.model.net.table.weight, cli.model.net.table.weight)

    def test_logger_false_writes_nothing_beside_the_run(self, heptad, prepared, tmp_path):
        fit(heptad, prepared, tmp_path / "run", "--trainer.logger", "false", "--trainer.max_steps", "2")
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_checkpoints_hold_tensors_and_plain_values(self, trained):
        content = read_checkpoint(trained / "checkpoints" / "last.ckpt")
        kinds = {type(value) for value in content["hyper_parameters"].values()}
        assert kinds <= {int, float, str, bool, list, dict, type(None)}
        assert content["ClickData"]["batches"] == 0, "at the end of an epoch the next starts from its beginning"

    def test_hostile_checkpoint_never_executes(self, heptad, prepared, tmp_path):
        class Hostile:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'executed'}",)

        torch.save({"state_dict": {}, "hyper_parameters": Hostile()}, tmp_path / "bad.ckpt")
        for verb, name in (("fit", "ckpt_path"), ("test", "ckpt_path"), ("predict", "init_from")):
            done = heptad("ctr", verb, "--data.root", prepared, f"--{name}", tmp_path / "bad.ckpt", check=False)
            assert done.returncode == 2
            assert "was not executed" in done.stderr
        assert not (tmp_path / "executed").exists()

    def test_argv_stays_for_processes_that_ddp_launches(self, trained, prepared):
        before = list(sys.argv)
        build(DOMAIN, "test", ["--run", str(trained), "--data.root", str(prepared)], run=False)
        assert sys.argv == before

    def test_contradictory_options_are_one_line(self, heptad, prepared, tmp_path):
        for words, message in (
            (("--monitor", "val/foo"), "validation measures val/auc, val/log_loss"),
            (("--model.lr", "-1"), "it must be positive"),
            (("--replicates", "0"), "count from 1"),
        ):
            done = fit(heptad, prepared, tmp_path / "run", *words, check=False)
            assert done.returncode == 2
            assert message in done.stderr.splitlines()[-1]

    def test_every_configuration_counts(self, prepared, tmp_path):
        (tmp_path / "over.yaml").write_text("trainer: {max_epochs: 3}\n")
        words = [
            "--config",
            "demo_logistic_regression",
            "-c",
            str(tmp_path / "over.yaml"),
            "--data.root",
            str(prepared),
        ]
        cli = build(DOMAIN, "fit", resolve_configs(DOMAIN, words), run=False)
        assert isinstance(cli.model, LogisticRegressionModule)
        assert cli.trainer.max_epochs == 3
        cli = build(DOMAIN, "fit", resolve_configs(DOMAIN, ["-c", "demo", "--data.root", str(prepared)]), run=False)
        assert cli.model.net.dim == 16

    def test_our_one_private_override_still_overrides(self):
        from lightning.pytorch.cli import LightningCLI

        from apps.common.run import HeptadCLI

        assert HeptadCLI._parse_ckpt_path is not LightningCLI._parse_ckpt_path

    def test_other_options_inside_an_epoch_are_refused(self, heptad, prepared, tmp_path):
        run = tmp_path / "run"
        fit(heptad, prepared, run, "--save_every", "5", "--trainer.max_steps", "7")
        last = run / "checkpoints" / "last.ckpt"
        done = fit(heptad, prepared, run, "--ckpt_path", last, "--data.batch_size", "32", check=False)
        assert done.returncode == 2
        assert "data.batch_size=64, now it is 32" in done.stderr.splitlines()[-1]


class TestResume:
    DROPOUT = ("--model.dropout", "0.3", "--model.embedding_dropout", "0.2", "--model.lr_patience", "0")

    def test_killed_in_mid_epoch_equals_uninterrupted(self, heptad, prepared, tmp_path):
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        options = (*self.DROPOUT, "--trainer.max_epochs", "3", "--save_every", "5", "--data.batch_size", "16")
        fit(heptad, prepared, whole, *options)
        command = [sys.executable, "-m", "apps.cli", "ctr", "fit", *SMALL, "--data.root", str(prepared)]
        command += ["--run", str(killed), *options, "--trainer.max_epochs", "1000"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        last = killed / "checkpoints" / "last.ckpt"
        try:
            deadline = time.monotonic() + 120
            while not last.exists():
                assert process.poll() is None, "the run ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        stopped = read_checkpoint(last)["global_step"]
        per_epoch = len(losses(whole)) // 3
        assert stopped % per_epoch, "killed inside an epoch"
        assert stopped < 2 * per_epoch
        shutil.rmtree(killed / "log")  # what was logged behind the checkpoint before the kill proves nothing
        fit(heptad, prepared, killed, *options, "--ckpt_path", last)
        a, b = losses(whole), losses(killed)
        assert min(b) == stopped
        assert {step: a[step] for step in b} == b
        assert max(a) == max(b)
        assert_same_weights(whole, killed)

    def test_resumed_at_the_end_of_an_epoch_equals_uninterrupted(self, heptad, prepared, tmp_path):
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        fit(heptad, prepared, whole, *self.DROPOUT, "--trainer.max_epochs", "3")
        fit(heptad, prepared, parts, *self.DROPOUT, "--trainer.max_epochs", "1")
        last = parts / "checkpoints" / "last.ckpt"
        fit(heptad, prepared, parts, *self.DROPOUT, "--trainer.max_epochs", "3", "--ckpt_path", last)
        assert losses(whole) == losses(parts)
        assert_same_weights(whole, parts)


def test_two_processes_equal_one(heptad, prepared, raw_log, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    updates = {
        update: ("--model.table_update", update, "--model.table_l2", "0.001", "--trainer.max_epochs", "1",
                 "--trainer.gradient_clip_val", "0.05", "--model.deep", "[8]", "--data.batch_size", "50")
        for update in ("lazy", "dense")
    }  # fmt: skip
    for update, options in updates.items():
        fit(heptad, prepared, one / update, *options)
    new = tmp_path / "new.csv"
    pl.read_csv(raw_log / "clicks.csv", n_rows=20).write_csv(new)
    predict = ("ctr", "predict", "--run", one / "lazy", "--raw", new, "--out")
    # first: other processes find a new log encoded when they start
    commands: list[tuple[object, ...]] = [(*predict, two / "predicted", *TWO_PROCESSES)]
    for update, options in updates.items():
        words = (*SMALL, "--data.root", prepared, "--run", two / update, *options, *TWO_PROCESSES)
        commands += [("ctr", "fit", *words), ("ctr", "test", "--run", two / update)]
    run_several(tmp_path, *commands)
    for update in updates:
        a, b = losses(one / update), losses(two / update)
        assert a.keys() == b.keys()
        assert max(abs(a[step] - b[step]) for step in a) < 1e-6
        ours, theirs = (read_tensors(run / update / "model" / "model.safetensors") for run in (one, two))
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-6, rtol=1e-5)
        heptad("ctr", "test", "--run", one / update)
        tables = [pl.read_parquet(run / update / "predictions.parquet") for run in (one, two)]
        assert tables[0]["row"].equals(tables[1]["row"])
        assert (tables[0]["probability"] - tables[1]["probability"]).abs().max() < 1e-5
    heptad(*predict, one / "predicted")
    alone, both = (pl.read_parquet(run / "predicted" / "predictions.parquet") for run in (one, two))
    assert both.height == 20
    assert both["row"].equals(alone["row"])
    assert (both["probability"] - alone["probability"]).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore")  # runs inside this process; what libraries warn of is no matter of these tests
class TestShardedTables:
    """Models with sharded tables are the models with whole ones, whatever the number of processes."""

    LAZY = ("--model.table_update", "lazy", "--model.table_l2", "0.001", "--trainer.gradient_clip_val", "0.05")
    OPTIONS = (*SMALL, *LAZY, "--model.deep", "[8]", "--model.wide", "true", "--data.batch_size", "50")
    SHARDED = (*OPTIONS, "--model.table_placement", "sharded")
    TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")

    def test_two_processes_then_one_then_two(self, heptad, prepared, tmp_path):
        whole, run = tmp_path / "whole", tmp_path / "run"
        common = ("--data.root", str(prepared), "--run")
        last = run / "checkpoints" / "last.ckpt"
        resumed = ("--ckpt_path", str(last))
        build(DOMAIN, "fit", [*common, str(whole), *self.OPTIONS, "--trainer.max_epochs", "3"])
        heptad("ctr", "fit", *common, run, *self.SHARDED, *self.TWO, "--trainer.max_epochs", "1")
        first = read_checkpoint(last)
        shapes = [entry["exp_avg"].shape for entry in first["optimizer_states"][0]["state"].values()]
        assert first["state_dict"]["net.table.weight"].shape in shapes, "process 0 wrote all rows"
        build(DOMAIN, "fit", [*common, str(run), *self.SHARDED, *resumed, "--trainer.max_epochs", "2"])
        heptad("ctr", "fit", *common, run, *self.SHARDED, *resumed, *self.TWO, "--trainer.max_epochs", "3")
        self.same_course(whole, run)
        self.usable_alone(run, tmp_path / "model", tmp_path / "model.pt2")

    def same_course(self, whole: Path, run: Path) -> None:
        a, b = losses(whole), losses(run)
        assert a.keys() == b.keys()
        assert max(abs(a[step] - b[step]) for step in a) < 1e-6
        contents = [read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (whole, run)]
        for part in (lambda c: c["state_dict"], lambda c: c["optimizer_states"][0]["state"]):
            torch.testing.assert_close(part(contents[1]), part(contents[0]), atol=1e-6, rtol=1e-4)
        one, other = (json.loads((folder / "model" / "config.json").read_text()) for folder in (whole, run))
        assert one == other, "where rows lay is no part of a published model"

    def usable_alone(self, run: Path, model: Path, program: Path) -> None:
        """Test, predict, explain and export in one process what two trained."""
        alone = ["--run", str(run), "--trainer.devices", "1", "--trainer.strategy", "auto"]
        for verb in ("test", "predict"):
            build(DOMAIN, verb, from_run(DOMAIN, alone))
        columns = [pl.read_parquet(folder / "predictions.parquet")["probability"] for folder in (run, run / "predict")]
        assert columns[0].equals(columns[1])
        explain(DOMAIN, "explain", alone)
        assert pl.read_csv(run / "importance.csv").height == 8
        for form, path in (("hub", model), ("torch", program)):
            export(DOMAIN, "export", [*alone, "--format", form, "--out", str(path)])
        published = (read_tensors(folder / "model.safetensors") for folder in (run / "model", model))
        torch.testing.assert_close(*published, atol=0, rtol=0)

    def test_dense_updates_are_refused(self, prepared):
        words = ["--data.root", str(prepared), *self.SHARDED, "--model.table_update", "dense"]
        with pytest.raises(ConfigError, match="set table_update to lazy"):
            build(DOMAIN, "fit", words, run=False)


def test_averaged_weights_are_what_is_kept(heptad, prepared, tmp_path):
    fit(heptad, prepared, tmp_path / "run", "--ema", "0.9", "--trainer.max_epochs", "1")
    plain = tmp_path / "plain"
    fit(heptad, prepared, plain, "--trainer.max_epochs", "1")
    a, b = (read_tensors(path / "model" / "model.safetensors") for path in (tmp_path / "run", plain))
    assert not torch.equal(a["output.weight"], b["output.weight"])


def test_mixed_precision_trains(heptad, prepared, tmp_path):
    fit(heptad, prepared, tmp_path / "run", "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "1")
    assert all(loss == loss for loss in losses(tmp_path / "run").values())


@pytest.mark.parametrize("name", [name for name in DOMAIN.shipped_configs()])
def test_every_shipped_config_runs_a_step(name, heptad, prepared, tmp_path):
    run = tmp_path / "run"
    heptad(
        "ctr", "fit", "--config", name, "--data.root", prepared, "--run", run, "--trainer.max_steps", "1",
        "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "1", "--data.batch_size", "64",
        "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    saved = yaml.safe_load((run / "fit.yaml").read_text())
    assert saved["system"] in DOMAIN.systems
    assert (run / "checkpoints" / "last.ckpt").exists() or (run / "checkpoints" / "best.ckpt").exists()


def test_stopped_inside_an_epoch_by_a_limit_equals_uninterrupted(heptad, prepared, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--trainer.max_epochs", "2", "--data.batch_size", "64")
    fit(heptad, prepared, whole, *options)
    fit(heptad, prepared, parts, *options, "--trainer.max_steps", "5")
    last = parts / "checkpoints" / "last.ckpt"
    assert 0 < read_checkpoint(last)["global_step"] < len(losses(whole)) // 2
    fit(heptad, prepared, parts, *options, "--ckpt_path", last)
    assert losses(whole) == losses(parts)
    assert_same_weights(whole, parts)
