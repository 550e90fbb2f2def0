"""Training on classes and identities that is stopped and continued, or done by two processes, is that of one."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest
import torch

from domains.common.files import read_tensors
from tests.apps.finegrained_helpers import fit, fit_words, here, prepare_classes, prepare_identities, refusal
from tests.apps.helpers import TWO_PROCESSES, assert_killed_equals_uninterrupted, losses, run_several

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

# everything that is drawn at random: crops, flips, erasing, stochastic depth, distractors, identities and their order
RUNS = {
    "classes": ("classes", ("--data.augmentation.erase", "0.5", "--data.batch_size", "4", "--ema", "0.9")),
    "reid": ("reid", ("--data.batch_size", "4", "--model.drop_path", "0.3", "--trainer.max_epochs", "4")),
    "accumulated": ("classes", ("--trainer.accumulate_grad_batches", "2", "--data.batch_size", "4")),
}
EPOCHS = ("--trainer.max_epochs", "2")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in the same order in every run, as under OMP_NUM_THREADS=1."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    return {"classes": prepare_classes(folder / "one"), "reid": prepare_identities(folder / "two")}


@pytest.mark.parametrize("name", RUNS)
def test_killed_in_mid_epoch_equals_uninterrupted(name, roots, tmp_path, monkeypatch):
    system, options = RUNS[name]

    def train(run, *more):
        fit(system, roots[system], run, *EPOCHS, *options, *more)

    assert_killed_equals_uninterrupted(train, tmp_path, monkeypatch, 2 if name == "accumulated" else 3)


def test_other_batches_inside_an_epoch_are_refused(roots, tmp_path):
    options = ("--data.batch_size", "4", "--trainer.limit_val_batches", "0")
    fit("reid", roots["reid"], tmp_path, *options, "--trainer.max_steps", "2")
    last = ("--ckpt_path", tmp_path / "checkpoints" / "last.ckpt")
    said = refusal("fit", *fit_words("reid", roots["reid"], tmp_path, *options, *last, "--data.instances", "0"))
    assert "data.instances=2, now it is 0" in said


# distractors are of each process' own pictures, which one process imitates; the last batch of classes has one picture
TRAININGS = {
    "classes": ("classes", ("--data.batch_size", "9", "--data.drop_last", "false", *EPOCHS)),
    "reid": ("reid", ("--data.batch_size", "8", "--trainer.max_epochs", "4")),
}
ALIKE = ("--model.drop_path", "0", "--trainer.gradient_clip_val", "0.5", "--model.label_smoothing", "0.1")


def test_two_processes_equal_one(roots, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    commands = []
    for name, (system, options) in TRAININGS.items():
        words = fit_words(system, roots[system], two / name, *options, *ALIKE, *TWO_PROCESSES)
        commands.append(("finegrained", "fit", *words))
        commands.append(("finegrained", "test", "--run", two / name))
    assert "sync_dist" not in run_several(tmp_path, *commands)
    for name, (system, options) in TRAININGS.items():
        fit(system, roots[system], one / name, *options, *ALIKE, "--model.pair_shares", "2")
        a, b = losses(one / name), losses(two / name)
        assert a.keys() == b.keys(), name
        assert len(a) > 3, name
        assert max(abs(a[step] - b[step]) for step in a) < 1e-4, name
        ours, theirs = (read_tensors(folder / name / "model" / "model.safetensors") for folder in (one, two))
        # on the whole: where a gradient is nothing but rounding, Adam makes whole steps of it
        gaps = torch.cat([(theirs[key].double() - tensor.double()).abs().flatten() for key, tensor in ours.items()])
        assert gaps.mean() < 1e-5, name
        assert_same_test(two / name, tmp_path / "again")


def assert_same_test(run, again):
    """What two processes measured is what one finds with the same weights."""
    shutil.copytree(run, again)
    assert here("test", "--run", again, "--trainer.devices", "1", "--trainer.strategy", "auto") == 0
    tables = [pl.read_parquet(folder / "predictions.parquet") for folder in (run, again)]
    assert tables[0].schema == tables[1].schema
    assert tables[0]["name"].equals(tables[1]["name"])
    for name in ("embedding", "probability_0", "ap_mean"):
        if name in tables[0].columns:
            values = [table[name].drop_nulls().to_numpy() for table in tables]
            np.testing.assert_allclose(*values, atol=1e-5, err_msg=name)
    shutil.rmtree(again)
