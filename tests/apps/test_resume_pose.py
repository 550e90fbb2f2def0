"""Training on images of persons and on sequences that is stopped and continued, or done by two processes, is one's."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest
import torch

from domains.common.files import read_tensors
from tests.apps.helpers import (
    TWO_PROCESSES,
    assert_killed_equals_uninterrupted,
    losses,
    run_several,
)
from tests.apps.pose_helpers import fit, fit_words, here, prepare_coco, prepare_human36m, refusal

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

# everything that is drawn at random: flips, crops and sizes, dropout, stochastic depth, mirrors, the order of rows
RUNS = {
    "people": ("people", ("--model.dropout", "0.2", "--data.batch_size", "2", "--trainer.max_epochs", "3")),
    "accumulated": ("people", ("--trainer.accumulate_grad_batches", "2", "--data.batch_size", "1", "--ema", "0.9")),
    "lift": ("lift", ("--data.mirror", "random", "--data.batch_size", "24")),
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
    return {"people": prepare_coco(folder / "coco", train=12), "lift": prepare_human36m(folder / "human36m")}


@pytest.mark.parametrize("name", RUNS)
def test_killed_in_mid_epoch_equals_uninterrupted(name, roots, tmp_path, monkeypatch):
    system, options = RUNS[name]

    def train(run, *more):
        fit(system, roots[system], run, *EPOCHS, *options, "--trainer.limit_val_batches", "1", *more)

    assert_killed_equals_uninterrupted(train, tmp_path, monkeypatch, 3)


def test_other_windows_inside_an_epoch_are_refused(roots, tmp_path):
    options = ("--data.batch_size", "24", "--trainer.limit_val_batches", "0")
    fit("lift", roots["lift"], tmp_path, *options, "--trainer.max_steps", "2")
    last = ("--ckpt_path", tmp_path / "checkpoints" / "last.ckpt", "--trainer.max_epochs", "2")
    words = fit_words("lift", roots["lift"], tmp_path, *options, *last, "--data.mirror", "none")
    assert "data.mirror=both, now it is none" in refusal("fit", *words)


# without crops: where a joint lies on the border of a crop, the loss has no derivative, and rounding decides
TRAININGS = {
    "people": ("people", ("--data.batch_size", "7", "--data.augmentation.crop", "0", *EPOCHS)),
    "lift": ("lift", ("--model.dropout", "0", "--model.drop_path", "0", "--data.batch_size", "487")),
}


def test_two_processes_equal_one(roots, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    commands = []
    for name, (system, options) in TRAININGS.items():
        more = ("--trainer.max_epochs", "1", *options, "--trainer.gradient_clip_val", "0.5", *TWO_PROCESSES)
        commands.append(("pose", "fit", *fit_words(system, roots[system], two / name, *more)))
        commands.append(("pose", "test", "--run", two / name))
        commands.append(("pose", "predict", "--run", two / name))
    said = run_several(tmp_path, *commands)
    assert "sync_dist" not in said
    for name, (system, options) in TRAININGS.items():
        more = ("--trainer.max_epochs", "1", *options, "--trainer.gradient_clip_val", "0.5")
        fit(system, roots[system], one / name, *more)
        a, b = losses(one / name), losses(two / name)
        assert a.keys() == b.keys(), name
        assert len(a) > 1, name
        assert max(abs(a[step] - b[step]) / max(1.0, a[step]) for step in a) < 1e-5, name
        ours, theirs = (read_tensors(folder / name / "model" / "model.safetensors") for folder in (one, two))
        # on the whole: where a gradient is nothing but rounding, Adam makes whole steps of it
        gaps = torch.cat([(theirs[key].double() - tensor.double()).abs().flatten() for key, tensor in ours.items()])
        assert gaps.mean() < 1e-6, name
        assert_same_test(two / name, tmp_path / "again")


def assert_same_test(run, again):
    """What two processes measured and predicted is what one finds with the same weights."""
    shutil.copytree(run, again)
    single = ("--trainer.devices", "1", "--trainer.strategy", "auto")
    for verb, folder in (("test", ""), ("predict", "predict")):
        assert here(verb, "--run", again, *single) == 0
        tables = [pl.read_parquet(top / folder / "predictions.parquet") for top in (run, again)]
        assert tables[0].schema == tables[1].schema
        for name, kind in tables[0].schema.items():
            columns = [table[name] for table in tables]
            if kind.is_float() or (isinstance(kind, pl.List) and kind.inner.is_float()):
                values = [column.explode().drop_nulls().to_numpy() for column in columns]
                np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-3, err_msg=name)
            else:
                assert columns[0].equals(columns[1]), name
    shutil.rmtree(again)
