"""What a run's folder holds is not lost, and weights are not used for other classes than theirs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch

from data_prep.expression.planted import write_planted_faces
from domains.common.callbacks import BestCheckpoint
from domains.common.hub import published_classes
from tests.apps.expression_helpers import fit, fit_words, here, refusal
from tests.domains.expression.face_helpers import prepare_planted

pytestmark = pytest.mark.filterwarnings("ignore")  # runs inside this process; what libraries warn of is no matter here


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return prepare_planted(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    fit(faces, run, "--trainer.max_epochs", "1")
    return run


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def state(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_an_earlier_training_is_set_aside(faces, run):
    (run / "metrics.json").write_text("{}")
    before = state(run)
    elsewhere = run.parent / "other.ckpt"
    shutil.copy(run / "checkpoints" / "last.ckpt", elsewhere)
    for count, words in ((1, ("--seed_everything", "1")), (2, ("--ckpt_path", elsewhere))):
        fit(faces, run, "--trainer.max_epochs", "2", *words)
        assert not (run / "metrics.json").exists(), "it was of other weights"
        aside = state(run / f"earlier_{count}")
        assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "model/model.safetensors", "fit.yaml"} <= set(aside)
    first = state(run / "earlier_1")
    assert all(before[name] == content for name, content in first.items())
    assert here("test", "--run", run) == 0


def test_a_continued_training_stays_where_it_is(faces, run):
    fit(faces, run, "--trainer.max_epochs", "2", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert not list(run.glob("earlier_*"))


def test_a_refused_training_leaves_the_run_as_it_was(faces, run):
    before = state(run)
    last = run / "checkpoints" / "last.ckpt"
    said = refusal("fit", *fit_words(faces, run, "--ckpt_path", last, "--model.dim", "32"))
    assert "last.ckpt" in said
    assert {name for name in before if name.endswith(".yaml")} <= set(state(run))
    assert all(state(run)[name] == content for name, content in before.items())
    assert here("test", "--run", run) == 0


@pytest.mark.parametrize(("score", "kept"), [(0.9, False), (1.0, True), (1.1, True)])
def test_of_equally_good_epochs_the_last_is_kept(score, kept):
    best = BestCheckpoint(monitor="val/auc", mode="max")
    best.best_model_score, best.kth_best_model_path = torch.tensor(1.0), "best.ckpt"
    best.best_k_models = {"best.ckpt": torch.tensor(1.0)}
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
    assert best.check_monitor_top_k(trainer, torch.tensor(score)) is kept


def renamed(faces: Path, target: Path) -> Path:
    """The same faces, the names of two classes exchanged."""
    shutil.copytree(faces, target)
    card = json.loads((target / "dataset.json").read_text())
    card["classes"][:2] = reversed(card["classes"][:2])
    (target / "dataset.json").write_text(json.dumps(card))
    return target


def test_weights_are_not_used_for_classes_of_another_order(faces, run, tmp_path, capsys):
    other = renamed(faces, tmp_path / "other")
    names = json.loads((faces / "dataset.json").read_text())["classes"]
    for verb in ("test", "predict"):
        said = refusal(verb, "--run", run, "--data.root", other)
        assert f"its classes are {', '.join(names[:2])}" in said
        assert "in the same order" in said
    assert "its classes are" in refusal("test", "--run", run, "--data.root", other, "--init_from", run / "model")
    assert here("fit", *fit_words(other, tmp_path / "from", "--init_from", run / "model")) == 0
    assert "weights of the last layer" in capsys.readouterr().err


def test_a_published_model_knows_its_classes_and_its_options(faces, run, tmp_path):
    names = json.loads((faces / "dataset.json").read_text())["classes"]
    assert published_classes(run / "model") == names == published_classes(run / "checkpoints" / "best.ckpt")
    # without a configuration: what built the network comes with it
    words = ("--data.root", faces, "--init_from", run / "model", "--out", tmp_path / "out")
    assert here("predict", *words, "--trainer.accelerator", "cpu") == 0
    assert here("predict", "--run", run, "--out", tmp_path / "again") == 0
    one, two = (pl.read_parquet(tmp_path / name / "predictions.parquet") for name in ("out", "again"))
    assert one["predicted"].equals(two["predicted"])


def test_without_rows_to_validate_on_the_last_epoch_is_kept(tmp_path):
    faces = prepare_planted(tmp_path, ratios=(0.7, 0.0, 0.3), folds=0)
    said = refusal("fit", *fit_words(faces, tmp_path / "none"))
    assert "split 'valid' has no rows" in said
    fit(faces, tmp_path / "run", "--select", "last", "--trainer.max_epochs", "1")
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


def test_what_could_not_be_read_is_told_by_predict(run, tmp_path, capsys):
    raw = tmp_path / "new"
    made = write_planted_faces(raw, 1, 4, size=24, seed=5)
    broken = next(iter(sorted(made.images.rglob("*.png"))))
    broken.write_bytes(b"")
    assert here("predict", "--run", run, "--raw", made.images, "--max_rejects", "0.9") == 0
    said = capsys.readouterr().err
    assert re.search(rf"1 record was left out.*{re.escape(broken.name)}: .*rejects\.parquet", said)
