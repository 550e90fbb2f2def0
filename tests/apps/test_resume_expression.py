"""Training on faces that is stopped and continued, or done by two processes, is the training of one."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from torch import nn

from domains.common.files import read_tensors
from tests.apps.expression_helpers import fit, fit_words
from tests.apps.helpers import (
    TWO_PROCESSES,
    assert_killed_equals_uninterrupted,
    assert_same_weights,
    losses,
    run_several,
)
from tests.apps.several import still
from tests.domains.expression.face_helpers import prepare_planted

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

# everything that is drawn at random: dropout, augmentation, the images of each class
RUNS = {
    "balanced": ("--data.per_class", "32", "--ema", "0.9"),
    "plain": ("--model.balancing", "false", "--model.schedule", "cosine", "--model.dropout", "0.3"),
}
# samples that do not depend on each other
APART = ("--model.head_norm", "false", "--model.attn_scope", "sample", "--model.dropout", "0.0")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return prepare_planted(tmp_path_factory.mktemp("faces"))


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in the same order in every run, as under OMP_NUM_THREADS=1."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RUNS)
def test_killed_in_mid_epoch_equals_uninterrupted(name, faces, tmp_path, monkeypatch):
    def train(run, *more):
        fit(faces, run, *RUNS[name], *more)

    assert_killed_equals_uninterrupted(train, tmp_path, monkeypatch, 3)


def test_stopped_by_a_limit_and_continued_step_by_step_equals_uninterrupted(faces, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--model.trust_steps", "8", "--data.per_class", "32")
    fit(faces, whole, *options)
    steps = len(losses(whole))
    start = ()
    for limit in (1, steps // 2 - 1, steps // 2 + 2, steps):  # inside, and across the border of the epochs
        fit(faces, parts, *options, *start, "--trainer.max_steps", limit)
        start = ("--ckpt_path", parts / "checkpoints" / "last.ckpt")
    assert losses(whole) == losses(parts)
    assert_same_weights(whole, parts)


def trainings(faces):
    """Name -> options; the last batch has one row, so that one process has none."""
    rows = sum(len(pl.read_parquet(path)) for path in (faces / "train").glob("*.parquet"))
    one = next(size for size in range(8, rows) if rows % size == 1)
    return {
        "all": (*APART, "--data.batch_size", one, "--trainer.max_epochs", "1"),
        "weighted": (*APART, "--model.balanced_loss", "true", "--data.batch_size", one, "--trainer.max_epochs", "1"),
        "drawn": (*APART, "--data.per_class", "25", "--trainer.max_epochs", "1"),
    }


def test_two_processes_equal_one(faces, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    commands = [
        ("expression", "fit", *fit_words(faces, two / name, *options, *TWO_PROCESSES))
        for name, options in trainings(faces).items()
    ]
    run_several(tmp_path, *commands, ("expression", "test", "--run", two / "all"), still=True)
    with monkeypatch.context() as patch:
        patch.setattr(nn.BatchNorm2d, "forward", still)
        for name, options in trainings(faces).items():
            fit(faces, one / name, *options)
    for name in trainings(faces):
        a, b = losses(one / name), losses(two / name)
        assert a.keys() == b.keys(), name
        assert max(abs(a[step] - b[step]) for step in a) < 1e-4, name
        ours, theirs = (read_tensors(folder / name / "model" / "model.safetensors") for folder in (one, two))
        gaps = torch.cat([(theirs[key].double() - tensor.double()).abs().flatten() for key, tensor in ours.items()])
        assert gaps.mean() < 1e-5, name
    names = pl.read_parquet(faces / "test" / "part-00000.parquet")["name"]
    assert pl.read_parquet(two / "all" / "predictions.parquet")["name"].equals(names)
