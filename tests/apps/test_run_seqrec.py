"""Sequence models from the raw log to recommendations, through the command that users type."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from apps import cli
from apps.common.export import export_onnx, export_torch
from apps.seqrec import DOMAIN
from domains.common.files import read_tensors
from domains.common.hub import network_tensors
from domains.seqrec.data import SequenceData
from domains.seqrec.module import MQSATEDModule, SASRecModule, TransitionModule
from domains.seqrec.popularity import evaluate_popularity
from tests.apps.helpers import QUIET, TWO_PROCESSES, assert_killed_equals_uninterrupted, losses, run_several

SMALL = [*QUIET, "--model.dim", "8", "--data.batch_size", "32"]

# most of these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in the same order in every run, as under OMP_NUM_THREADS=1."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def here(command: str, *words: object) -> int:
    """Run a command inside this process."""
    return cli.main(["seqrec", command, *map(str, words)])


def fit(sequences: Path, run: Path, *more: object) -> None:
    assert here("fit", *SMALL, "--data.root", sequences, "--run", run, *more) == 0


class TestWholeWay:
    """Raw log to recommendations, each step by the installed command."""

    @pytest.fixture(scope="class")
    def trained(self, interactions, tmp_path_factory):
        folder = tmp_path_factory.mktemp("whole")
        columns = ["--user", "user", "--item", "item", "--time", "time"]
        assert here("prep", "generic", "--raw", interactions, *columns, "--out", folder / "log") == 0
        fit(folder / "log", folder / "run", "--trainer.max_epochs", "3", "--model.lr", "0.01", "--model.dropout", "0.1")
        return folder / "run"

    def test_a_run_writes_only_into_its_folder(self, trained):
        names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
        assert {"fit.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "model/model.safetensors"} <= names
        assert sorted(path.name for path in trained.parent.iterdir()) == ["log", "run"]

    def test_test_names_users_and_items_as_the_log_does(self, trained, heptad, interactions):
        heptad("seqrec", "test", "--run", trained)
        metrics = json.loads((trained / "metrics.json").read_text())
        assert metrics["ndcg@10"]["units"] == 240
        assert 0 < metrics["coverage@10"]["value"] <= 1
        table = pl.read_parquet(trained / "predictions.parquet")
        assert set(table.columns) == {
            "row", "user", "user_id", "target", "target_id", "rank", "items", "item_ids", "scores", "length",
            "target_count", "seen_target",
        }  # fmt: skip
        log = pl.read_csv(interactions).sort("time", maintain_order=True)
        last = dict(log.group_by("user", maintain_order=True).last().select("user", "item").iter_rows())
        assert dict(table.select("user", "target").iter_rows()) == last
        taken = {user: set(items) for user, items in log.group_by("user").agg("item").iter_rows()}
        for user, items in table.select("user", "items").iter_rows():
            assert len(items) == 20
            assert not set(items) & taken[user] - {last[user]}
        hits = np.mean([last[user] in items[:10] for user, items in table.select("user", "items").iter_rows()])
        assert hits == pytest.approx(metrics["hr@10"]["value"], abs=0.01)
        report = (trained / "report.html").read_text()
        assert "By length of the history" in report
        assert "Popularity of recommendations" in report
        assert not re.search(r"(?:src|href)=\"(?!data:)", report), "nothing is loaded from elsewhere"

    def test_popularity_is_worse(self, trained):
        data = SequenceData(str(trained.parent / "log"))
        popular = evaluate_popularity(data, replicates=5)
        assert here("test", "--run", trained) == 0
        metrics = json.loads((trained / "metrics.json").read_text())
        assert popular["ndcg@10"].value < metrics["ndcg@10"]["value"]
        assert popular["coverage@10"].value < metrics["coverage@10"]["value"]

    def test_predict_for_users_of_a_new_log(self, trained, heptad, interactions, tmp_path):
        log = pl.read_csv(interactions)
        known = log["item"].unique(maintain_order=True)
        rows = [("neu, é", known[0], 5), ("neu, é", known[1], 6), ("neu, é", "never seen", 7), ("b", known[2], 3)]
        new = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
        new.write_csv(tmp_path / "new.csv")
        heptad("seqrec", "predict", "--run", trained, "--raw", tmp_path / "new.csv")
        table = pl.read_parquet(trained / "predict" / "predictions.parquet")
        assert sorted(table["user"]) == ["b", "neu, é"]
        assert dict(table.select("user", "length").iter_rows()) == {"neu, é": 2, "b": 1}
        assert "target" not in table.columns
        assert all(len(items) == 20 and set(items) <= set(known) for items in table["items"])
        items = dict(table.select("user", "items").iter_rows())
        assert not {known[0], known[1]} & set(items["neu, é"])

    def test_predict_for_everybody_exactly_and_by_neighbours(self, trained, tmp_path):
        pytest.importorskip("faiss")
        options = ("--run", trained, "--out")
        assert here("predict", *options, tmp_path / "exact") == 0
        words = ("--model.search", "faiss", "--model.vectors", "true")
        assert here("predict", *options, tmp_path / "near", *words) == 0
        exact, near = (pl.read_parquet(tmp_path / name / "predictions.parquet") for name in ("exact", "near"))
        assert exact["items"].to_list() == near["items"].to_list()
        vectors = pl.read_parquet(tmp_path / "near" / "item_vectors.parquet")
        scores = near["vector"].to_numpy() @ vectors["vector"].to_numpy().T
        first = near["item_ids"].list.first().to_numpy()
        np.testing.assert_allclose(scores[np.arange(len(first)), first], near["scores"].list.first(), rtol=1e-4)
        assert vectors["item"][int(first[0])] == near["items"][0][0]

    def test_explain(self, trained):
        assert here("explain", "--run", trained) == 0
        drivers = pl.read_parquet(trained / "drivers.parquet")
        assert {"attention_short", "attention_long", "drop", "transitions"} <= set(drivers.columns)
        assert "What drives recommendations" in (trained / "explain.html").read_text()
        assert pl.read_csv(trained / "transitions.csv").height == 1000

    @pytest.mark.parametrize("format", ["hub", "torch"])
    def test_export(self, format, trained, tmp_path):
        out = tmp_path / {"hub": "model", "torch": "model.pt2"}[format]
        assert here("export", "--run", trained, "--format", format, "--out", out) == 0
        assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("write", [export_torch, export_onnx])
@pytest.mark.parametrize("kind", [MQSATEDModule, SASRecModule, TransitionModule])
def test_export(kind, write, tmp_path):
    module = kind(30, max_len=6, dim=8).eval()
    path = tmp_path / ("model.pt2" if write is export_torch else "model.onnx")
    write(module, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    if write is export_torch:
        inputs = module.example_inputs(rows=9, length=6)
        torch.testing.assert_close(torch.export.load(path).module()(*inputs), module.net(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DOMAIN.shipped_configs())
def test_every_shipped_config_runs_a_step(name, sequences, tmp_path):
    run = tmp_path / "run"
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "1")
    steps = ("--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "1")
    words = ("--data.root", sequences, "--data.batch_size", "64", "--run", run, *quiet, *steps)
    assert here("fit", "--config", name, *words) == 0
    saved = yaml.safe_load((run / "fit.yaml").read_text())
    assert saved["system"] in DOMAIN.systems
    assert (run / "checkpoints" / "last.ckpt").exists()


LOSSES = {
    "full": (),
    "sampled": ("--model.loss", "sampled", "--model.negatives", "40"),
    "gbce": ("--model.loss", "gbce", "--model.negatives", "20"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_killed_in_mid_epoch_equals_uninterrupted(loss, sequences, tmp_path, monkeypatch):
    options = (*LOSSES[loss], "--trainer.max_epochs", "3", "--model.dropout", "0.3", "--model.schedule", "cosine")

    def train(run, *more):
        fit(sequences, run, *options, *more)

    assert_killed_equals_uninterrupted(train, tmp_path, monkeypatch, 5)


EPOCHS = ("--trainer.max_epochs", "2")
PLACEMENTS = {
    "replicated": ("--data.batch_size", "25"),
    # the last batch has one user, so that the other process has none
    "sharded": (*LOSSES["sampled"], "--data.batch_size", "239"),
}


def test_two_processes_equal_one(sequences, tmp_path):
    one, two, options = tmp_path / "one", tmp_path / "two", ("--model.dropout", "0", "--model.lr", "0.01")
    commands = []
    for placement, more in PLACEMENTS.items():
        common = ("--data.root", sequences, "--run", two / placement, *SMALL, *options, *more, *EPOCHS)
        commands.append(("seqrec", "fit", *common, "--model.table_placement", placement, *TWO_PROCESSES))
    commands.append(("seqrec", "test", "--run", two / "sharded"))
    commands.append(("seqrec", "predict", "--run", two / "replicated", "--out", two / "predicted"))
    run_several(tmp_path, *commands)
    for placement, more in PLACEMENTS.items():
        fit(sequences, one / placement, *options, *more, *EPOCHS)
        a, b = losses(one / placement), losses(two / placement)
        assert a.keys() == b.keys()
        assert max(abs(a[step] - b[step]) for step in a) < 1e-5, placement
        ours, theirs = (read_tensors(run / placement / "model" / "model.safetensors") for run in (one, two))
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=1e-4)
    both = pl.read_parquet(two / "sharded" / "predictions.parquet")
    alone = ("--trainer.devices", "1", "--trainer.strategy", "auto")
    assert here("explain", "--run", two / "sharded", *alone) == 0
    assert here("test", "--run", two / "sharded", *alone) == 0
    again = pl.read_parquet(two / "sharded" / "predictions.parquet")
    assert again["item_ids"].to_list() == both["item_ids"].to_list()
    assert here("predict", "--run", two / "replicated", "--out", one / "predicted", *alone) == 0
    tables = [pl.read_parquet(run / "predicted" / "predictions.parquet") for run in (one, two)]
    assert tables[0]["item_ids"].to_list() == tables[1]["item_ids"].to_list()
    assert tables[0]["user"].equals(tables[1]["user"])


def test_weights_start_a_run_of_another_loss(sequences, tmp_path):
    fit(sequences, tmp_path / "a", "--trainer.max_epochs", "1")
    start = ("--init_from", tmp_path / "a" / "model", *LOSSES["sampled"], "--trainer.max_epochs", "1")
    fit(sequences, tmp_path / "b", *start, "--trainer.max_steps", "1", "--model.lr", "1e-9")
    before = read_tensors(tmp_path / "a" / "model" / "model.safetensors")
    after = network_tensors(tmp_path / "b" / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(after["items.weight"], before["items.weight"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.lr", "-1"), "model.lr is -1.0; it must be above 0"),
        (("--model.tau", "0"), "model.tau is 0.0; it must be above 0"),
        (("--model.top", "5"), "the metrics look at 20 items"),
        (("--model.heads", "3"), "does not divide"),
        (("--model.heads", "0"), "count from 1"),
        (("--model.alpha", "1.5"), "need 0 <= alpha <= 1"),
        (("--model.dropout", "1"), "must lie in [0, 1)"),
        (("--model.table_placement", "sharded"), "set model.loss to sampled"),
        (("--model.loss", "gbce", "--model.sampling", "log_uniform"), "set model.sampling to uniform"),
        (("--data.max_len", "1"), "at least 2 and 1 are needed"),
        (("--data.batch_size", "0"), "must be at least 1"),
        (("--monitor", "val/auc"), "validation measures val/ndcg@5"),
        (("--data.root", "nowhere"), "heptad seqrec prep"),
    ],
)
def test_bad_options_are_one_line(words, message, sequences, tmp_path, capsys):
    options = [*SMALL, "--data.root", sequences, "--run", tmp_path / "run", *words]
    assert here("fit", *options) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert said[-1].startswith("heptad: ")


def test_another_catalogue_is_refused(sequences, interactions, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(sequences, other)
    card = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**card, "n_items": card["n_items"] + 1}))
    words = ["--data.root", sequences, "--data.predict_root", other, "--run", tmp_path / "run", *SMALL]
    fit(sequences, tmp_path / "run", "--trainer.max_epochs", "1")
    assert here("predict", *words) == 2
    assert "its items are not those of" in capsys.readouterr().err
