"""Training on slides and X-rays that is stopped and continued, or done by two processes, is the training of one."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest
import torch
from torch import nn

from domains.common.files import read_tensors
from tests.apps.helpers import (
    TWO_PROCESSES,
    assert_killed_equals_uninterrupted,
    assert_same_weights,
    losses,
    run_several,
)
from tests.apps.medical_helpers import fit, fit_words, here, refusal
from tests.apps.several import still

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

EPOCHS = ("--trainer.max_epochs", "2")
# everything that is drawn at random: dropout and masking, instances, augmentation, the order of classes
RUNS = {
    "gated": ("acmil", ("--model.max_instances", "40", "--model.standardize", "true")),
    "multi-head": ("acmil", ("--model.branch_attention", "multi_head", "--model.dropout", "0.3", "--ema", "0.9")),
    "images": ("medusa", ("--data.masks", "true", "--model.segmentation", "0.2", "--data.balanced", "true")),
    "lungs": ("medusa-body", ("--model.warmup", "1")),
}
# a limit of steps is the end of a cosine: a run that is to go on behind it has a constant rate
CONSTANT = ("--model.lr", "0.001", "--model.min_lr", "0.001", "--model.warmup", "0")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in the same order in every run, as under OMP_NUM_THREADS=1."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def roots(bags, xrays):
    return {"acmil": bags, "medusa": xrays, "medusa-body": xrays}


@pytest.mark.parametrize("name", RUNS)
def test_killed_in_mid_epoch_equals_uninterrupted(name, roots, tmp_path, monkeypatch):
    system, options = RUNS[name]

    def train(run, *more):
        fit(system, roots[system], run, *options, *EPOCHS, *more)

    assert_killed_equals_uninterrupted(train, tmp_path, monkeypatch, 3)


@pytest.mark.parametrize("name", ["gated", "images"])
def test_stopped_by_a_limit_and_continued_step_by_step_equals_uninterrupted(name, roots, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    system, options = RUNS[name]
    options += (*CONSTANT, *EPOCHS)
    options += ("--model.body_lr", "1", "--data.balanced", "false") if system == "medusa" else ()
    fit(system, roots[system], whole, *options)
    steps = len(losses(whole))
    start = ()
    for limit in (1, 2, steps // 2 - 1, steps // 2 + 2, steps):  # inside, and across the border of the epochs
        fit(system, roots[system], parts, *options, *start, "--trainer.max_steps", limit)
        start = ("--ckpt_path", parts / "checkpoints" / "last.ckpt")
    assert losses(whole) == losses(parts)
    assert_same_weights(whole, parts)


def test_another_order_inside_an_epoch_is_refused(xrays, tmp_path):
    fit("medusa", xrays, tmp_path, "--trainer.max_steps", "2")
    last = tmp_path / "checkpoints" / "last.ckpt"
    said = refusal("fit", *fit_words("medusa", xrays, tmp_path, "--ckpt_path", last, "--data.balanced", "true"))
    assert "data.balanced=False, now it is True" in said


def leaves_one(root):
    """A batch size for which the last batch of training has one row."""
    rows = json.loads((root / "dataset.json").read_text())["splits"]["train"]["rows"]
    return ("--data.batch_size", min(size for size in range(4, rows) if rows % size == 1))


BAGS = ("--model.max_instances", "40", "--model.standardize", "true", "--model.class_weights", "[1.0, 2.0]")
BAGS += ("--model.masked_top", "0")  # each process draws its own
IMAGES = ("--data.masks", "true", "--model.segmentation", "0.2", "--trainer.gradient_clip_val", "0.5")
IMAGES += ("--model.lr", "0.00001")  # a deep network multiplies the rounding that differs by its steps
ONCE = ("--trainer.max_epochs", "1")


def trainings(bags, xrays):
    """Name -> system, data, options; the last batch has one row, so that one process has none."""
    some, images = leaves_one(bags), leaves_one(xrays)
    return {
        "bags": ("acmil", bags, (*BAGS, *EPOCHS, *some)),
        "single": ("pooling", bags, (*ONCE, "--data.batch_size", "1")),
        "images": ("medusa", xrays, (*IMAGES, *ONCE, *images)),
        "lungs": ("medusa-body", xrays, (*EPOCHS, *images)),
    }


def run_two(folder, bags, xrays):
    """Train, test and predict in one pair of processes: each start takes seconds."""
    commands = [
        ("medical", "fit", *fit_words(system, root, folder / name, *options, *TWO_PROCESSES))
        for name, (system, root, options) in trainings(bags, xrays).items()
    ]
    commands += [("medical", "test", "--run", folder / name) for name in ("bags", "single")]
    said = run_several(folder.parent, *commands, ("medical", "predict", "--run", folder / "images"), still=True)
    assert "sync_dist" not in said


def test_two_processes_equal_one(bags, xrays, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    run_two(two, bags, xrays)
    with monkeypatch.context() as patch:
        patch.setattr(nn.BatchNorm2d, "forward", still)
        for name, (system, root, options) in trainings(bags, xrays).items():
            fit(system, root, one / name, *options)
    for name in trainings(bags, xrays):
        a, b = losses(one / name), losses(two / name)
        assert a.keys() == b.keys(), name
        assert max(abs(a[step] - b[step]) for step in a) < 1e-5, name
        ours, theirs = (read_tensors(folder / name / "model" / "model.safetensors") for folder in (one, two))
        assert ours.keys() == theirs.keys()
        # on the whole: where a gradient is nothing but rounding (the bias of a softmax), Adam makes whole steps of it
        gaps = torch.cat([(theirs[key] - tensor).double().abs().flatten() for key, tensor in ours.items()])
        assert gaps.mean() < 1e-6, name
    names = pl.read_parquet(xrays / "test" / "part-00000.parquet")["name"]
    assert pl.read_parquet(two / "images" / "predict" / "predictions.parquet")["name"].equals(names)
    for name in ("bags", "single"):
        assert_same_test(two / name, tmp_path / "again")


def assert_same_test(run, again):
    """What two processes measured is what one measures with the same weights."""
    shutil.copytree(run, again)
    assert here("test", "--run", again, "--trainer.devices", "1", "--trainer.strategy", "auto") == 0
    tables = [pl.read_parquet(folder / "predictions.parquet") for folder in (run, again)]
    assert tables[0].drop("probability_0", "probability_1").equals(tables[1].drop("probability_0", "probability_1"))
    assert (tables[0]["probability_1"] - tables[1]["probability_1"]).abs().max() < 1e-6
    for slide in tables[0]["name"]:
        one, other = (pl.read_parquet(folder / "attention" / f"{slide}.parquet") for folder in (run, again))
        assert one.select("x", "y").equals(other.select("x", "y"))
        assert (one["attention"] - other["attention"]).abs().max() < 1e-6
    shutil.rmtree(again)
