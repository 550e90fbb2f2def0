"""Training on recordings and series that is stopped and continued, or done by two processes, is the training of one."""

from __future__ import annotations

import shutil

import polars as pl
import pytest
import torch

from data_prep.ieeg.series import prepare_series
from domains.common.files import read_tensors
from tests.apps.helpers import (
    TWO_PROCESSES,
    assert_killed_equals_uninterrupted,
    losses,
    run_several,
)
from tests.apps.ieeg_helpers import fit, fit_words, here, refusal, write_pretrained
from tests.data.ieeg.series import write_series
from tests.domains.ieeg.helpers import write_prepared

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

EPOCHS = ("--trainer.max_epochs", "2", "--trainer.limit_val_batches", "4")
FEW = ("--data.epoch_windows", "60")
# everything that is drawn at random: dropout, negatives, the order of windows, adapters
RUNS = {
    "seizure": ("seizure", ("--model.dropout", "0.3", *FEW)),
    "adapters": ("seizure", ("--model.tuning", "lora", "--model.lora_rank", "2", "--ema", "0.9", *FEW)),
    "pretrain": ("pretrain", ("--model.checkpointing", "true", *FEW)),
    "band-energy": ("band-energy", FEW),
    "forecast": ("forecast", ("--model.dropout", "0.3")),
}


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
    recordings = write_prepared(folder / "recordings", seconds=40, channels=(3, 2))
    write_series(folder / "series.csv", rows=500)
    prepare_series("series", folder / "series.csv", folder / "series")
    return {"forecast": folder / "series", **dict.fromkeys(("seizure", "pretrain", "band-energy"), recordings)}


@pytest.mark.parametrize("name", RUNS)
def test_killed_in_mid_epoch_equals_uninterrupted(name, roots, tmp_path, monkeypatch):
    system, options = RUNS[name]
    if "lora" in options:
        options = (*options, "--model.pretrained", write_pretrained(tmp_path / "base"))

    def train(run, *more):
        fit(system, roots[system], run, *options, *EPOCHS, *more)

    assert_killed_equals_uninterrupted(train, tmp_path, monkeypatch, 3)


def test_a_resumed_epoch_of_other_windows_is_refused(roots, tmp_path):
    fit("seizure", roots["seizure"], tmp_path, *FEW, "--trainer.max_steps", "3", "--trainer.limit_val_batches", "0")
    last = ("--ckpt_path", tmp_path / "checkpoints" / "last.ckpt", "--trainer.max_epochs", "2")
    said = refusal("fit", *fit_words("seizure", roots["seizure"], tmp_path, *FEW, *last, "--data.segments", "3"))
    assert "data.segments=4, now it is 3" in said


def trainings(roots):
    """Name -> system, options; the last batch has one row, so that one process has none."""
    none = ("--model.dropout", "0", "--trainer.gradient_clip_val", "0.5")
    return {
        "seizure": ("seizure", (*none, "--data.epoch_windows", "41")),
        "forecast": ("forecast", ("--model.dropout", "0", "--data.batch_size", "58")),
    }


def test_two_processes_equal_one(roots, tmp_path):
    one, two, once = tmp_path / "one", tmp_path / "two", ("--trainer.max_epochs", "1")
    commands = []
    for name, (system, options) in trainings(roots).items():
        more = (*options, *once, *TWO_PROCESSES)
        commands.append(("ieeg", "fit", *fit_words(system, roots[system], two / name, *more)))
        commands.append(("ieeg", "test", "--run", two / name))
    run_several(tmp_path, *commands, ("ieeg", "predict", "--run", two / "seizure"))
    for name, (system, options) in trainings(roots).items():
        fit(system, roots[system], one / name, *options, *once)
        a, b = losses(one / name), losses(two / name)
        assert a.keys() == b.keys(), name
        assert max(abs(a[step] - b[step]) for step in a) < 1e-5, name
        ours, theirs = (read_tensors(folder / name / "model" / "model.safetensors") for folder in (one, two))
        gaps = torch.cat([(theirs[key].double() - tensor.double()).abs().flatten() for key, tensor in ours.items()])
        assert gaps.mean() < 1e-6, name
    # what two processes measured is what one measures with the same weights
    shutil.copytree(two / "seizure", tmp_path / "again")
    assert here("test", "--run", tmp_path / "again", "--trainer.devices", "1", "--trainer.strategy", "auto") == 0
    tables = [pl.read_parquet(folder / "predictions.parquet") for folder in (two / "seizure", tmp_path / "again")]
    same = [table.drop("probability_0", "probability_1") for table in tables]
    assert same[0].equals(same[1])
    assert (tables[0]["probability_1"] - tables[1]["probability_1"]).abs().max() < 1e-6
    events = two / "seizure" / "predict" / "events"
    assert sorted(path.name for path in events.glob("*_events.tsv")) == ["sub-06_events.tsv", "sub-07_events.tsv"]
