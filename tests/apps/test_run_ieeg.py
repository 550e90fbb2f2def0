"""Recordings from raw BIDS to seizure reports and annotations, through the command that users type."""

from __future__ import annotations

import json
import os
import re

import mne
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from apps.ieeg import DOMAIN
from data_prep.ieeg.planted_bids import write_planted_bids
from data_prep.ieeg.series import prepare_series
from domains.common.files import read_checkpoint, read_tensors
from domains.common.hub import load_published
from domains.ieeg.mvpformer import GenerativeMVPFormer, MVPFormerClassifier
from domains.ieeg.weights import to_official
from tests.apps.helpers import QUIET, losses
from tests.apps.ieeg_helpers import SIZES, SMALL, fit, fit_words, here, refusal, write_pretrained
from tests.data.ieeg.series import write_series

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

SERIAL = ("--executor", "serial", "--progress", "false")
LEARNING = ("--trainer.max_epochs", "3", "--data.epoch_windows", "400", "--model.encoder_eps", "10000")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return write_planted_bids(folder / "raw", subjects=7, recordings=1, minutes=2.5, channels=6, rate=128.0, seed=1)


@pytest.fixture(scope="module")
def prepared(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "recordings"
    options = ("--rate", "64", "--lowpass", "25", "--ratios", "0.5", "0.2", "0.3", *SERIAL)
    assert here("prep", "bids", "--raw", planted.root, "--out", out, *options) == 0
    return out


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    prepare_series("series", write_series(folder / "series.csv", rows=500), folder / "prepared")
    return folder / "prepared"


class TestSeizures:
    @pytest.fixture(scope="class")
    def trained(self, prepared, tmp_path_factory):
        run = tmp_path_factory.mktemp("run") / "seizure"
        fit("seizure", prepared, run, *LEARNING)
        return run

    @pytest.fixture(scope="class")
    def tested(self, trained):
        assert here("test", "--run", trained) == 0
        return trained

    def test_seizures_of_new_subjects_are_found(self, tested, planted):
        table = pl.read_parquet(tested / "predictions.parquet")
        wanted = ["row", "recording", "subject", "onset", "duration", "annotated", "label"]
        assert table.columns == [*wanted, "probability_0", "probability_1", "predicted"]
        metrics = json.loads((tested / "metrics.json").read_text())
        area = roc_auc_score(table["label"], table["probability_1"])
        assert metrics["auroc"]["value"] == pytest.approx(area, abs=1e-3)
        assert metrics["auroc"]["value"] > 0.85
        assert metrics["auroc"]["units"] == table["subject"].n_unique() >= 2
        threshold = float(read_checkpoint(tested / "checkpoints" / "best.ckpt")["state_dict"]["threshold"])
        positive = table["probability_1"] >= threshold
        assert metrics["cohen_kappa"]["value"] == pytest.approx(cohen_kappa_score(table["label"], positive), abs=1e-6)
        for row in table.filter(pl.col("label") == 1).iter_rows(named=True):
            seizure = planted.seizures[row["recording"]][0]
            assert seizure.onset - 1 <= row["onset"] <= seizure.offset
        report = (tested / "report.html").read_text()
        assert "SzCORE" in report
        assert f"{threshold:.4f} (chosen on the validation split)" in report
        assert not re.search(r"(?:src|href)=\"(?!data:)", report), "nothing is loaded from elsewhere"

    def test_explain_writes_pictures_and_numbers(self, tested, capsys):
        assert here("explain", "--run", tested) == 0
        assert re.search(r"1 s of \d+ channels \(window of 4 segments\) takes \d+ ms on cpu", capsys.readouterr().out)
        table = pl.read_parquet(tested / "explain.parquet")
        assert table.group_by("case").agg(pl.col("attention").sum())["attention"].to_list() == pytest.approx(
            [1.0] * table["case"].n_unique(), abs=1e-4
        )
        assert "Surest detection" in (tested / "explain.html").read_text()

    def test_predict_new_recordings_as_annotations(self, tested, planted, tmp_path):
        name = pl.read_parquet(tested / "predictions.parquet")["recording"][0]
        subject = name.split("_")[0]
        words = ("--raw", planted.root / subject, "--out", tmp_path / "same", "--workers", "1")
        assert here("predict", "--run", tested, *words) == 0
        both = pl.read_parquet(tmp_path / "same" / "predictions.parquet").join(
            pl.read_parquet(tested / "predictions.parquet"), on=["recording", "onset"], validate="1:1"
        )
        assert len(both) == 150
        assert (both["probability_1"] - both["probability_1_right"]).abs().max() < 1e-5
        assert (both["predicted"] == both["predicted_right"]).all()
        sizes = {"subjects": 1, "recordings": 1, "minutes": 2.5, "channels": 6, "rate": 128.0, "seed": 1}
        other = write_planted_bids(tmp_path / "new", **sizes)
        (tmp_path / "out" / "events").mkdir(parents=True)
        for name in ("gone_events.tsv", "gone_annotations.edf", "mine_events.tsv"):  # two of an earlier call
            (tmp_path / "out" / "events" / name).touch()
        assert here("predict", "--run", tested, "--raw", other.root, "--out", tmp_path / "out", "--workers", "1") == 0
        kept = {path.name for path in (tmp_path / "out" / "events").iterdir()}
        assert "mine_events.tsv" in kept and not {"gone_events.tsv", "gone_annotations.edf"} & kept
        table = pl.read_parquet(tmp_path / "out" / "predictions.parquet")
        assert "label" not in table.columns
        assert len(table) == 150
        stem = next(iter(other.seizures))
        events = pl.read_csv(tmp_path / "out" / "events" / f"{stem}_events.tsv", separator="\t", null_values="n/a")
        assert events["recordingDuration"].to_list() == [150.0] * len(events) != []
        notes = mne.read_annotations(tmp_path / "out" / "events" / f"{stem}_annotations.edf")
        assert notes.onset.tolist() == pytest.approx(events["onset"].to_list())
        assert notes.duration.tolist() == pytest.approx(events["duration"].to_list())

    def test_recordings_of_more_channels_than_the_model_reads_are_refused_or_cut(self, tested, tmp_path):
        sizes = {"subjects": 1, "recordings": 1, "minutes": 1.5, "channels": 20, "rate": 128.0, "seed": 2}
        wide = write_planted_bids(tmp_path / "wide", **sizes).root  # one channel is of another kind
        words = ("predict", "--run", tested, "--raw", wide, "--workers", "1", "--out", tmp_path / "out")
        said = refusal(*words)
        assert "has 19 channels, the model reads at most 16" in said
        assert here(*words, "--data.channels", "16") == 0

    def test_predictions_bear_pseudonyms_where_the_preparation_does(self, tested, planted, tmp_path, capsys):
        key = tmp_path / "key.txt"
        key.write_text("a secret of enough letters, kept elsewhere")
        options = ("--rate", "64", "--lowpass", "25", "--anonymise", key, *SERIAL)
        assert here("prep", "bids", "--raw", planted.root, "--out", tmp_path / "hidden", *options) == 0
        words = ("predict", "--run", tested, "--data.root", tmp_path / "hidden", "--workers", "1", "--raw")
        words = (*words, planted.root / "sub-01", "--out", tmp_path / "out", "--anonymise", key)
        assert here(*words) == 0
        names = pl.read_parquet(tmp_path / "out" / "predictions.parquet")["recording"].unique().to_list()
        assert [len(name) for name in names] == [16]
        assert not [path for path in (tmp_path / "out").rglob("*") if "sub-01" in path.name]

    def test_data_prepared_in_another_way_are_refused(self, tested, planted, tmp_path):
        options = ("--rate", "64", "--lowpass", "25", "--reference", "bipolar", *SERIAL)
        assert here("prep", "bids", "--raw", planted.root, "--out", tmp_path / "bipolar", *options) == 0
        said = refusal("test", "--run", tested, "--data.root", tmp_path / "bipolar")
        assert "prepared with --reference bipolar, the model was trained with --reference common-average" in said

    @pytest.mark.parametrize("form", ["hub", "torch"])
    def test_export(self, form, trained, tmp_path):
        out = tmp_path / {"hub": "model", "torch": "model.pt2"}[form]
        assert here("export", "--run", trained, "--format", form, "--out", out) == 0
        x = torch.randn(3, 2, 3, 64) * 50
        network = load_published(trained / "model").eval()
        again = load_published(out).eval() if form == "hub" else torch.export.load(out).module()
        torch.testing.assert_close(again(x), network(x), atol=1e-4, rtol=1e-4)

    def test_adapters_alone_are_trained_from_pretrained_weights(self, prepared, tmp_path):
        few = ("--trainer.max_epochs", "1", "--data.epoch_windows", "24", "--trainer.limit_val_batches", "2")
        fit("pretrain", prepared, tmp_path / "base", *few)
        assert np.isfinite(losses(tmp_path / "base")[0])
        words = ("--model.pretrained", tmp_path / "base" / "model", "--model.tuning", "lora", "--model.lora_rank", "2")
        fit("seizure", prepared, tmp_path / "tuned", *few, *words)
        base, tuned = (read_tensors(tmp_path / run / "model" / "model.safetensors") for run in ("base", "tuned"))
        changed = {name for name, tensor in tuned.items() if name not in base or not torch.equal(tensor, base[name])}
        assert changed == {name for name in tuned if name == "head.weight" or name.endswith((".up", ".down"))}
        assert here("test", "--run", tmp_path / "tuned") == 0
        words = (*words, "--model.relative_index", "from_end")
        said = refusal("fit", *fit_words("seizure", prepared, tmp_path / "other", *words))
        assert "was trained with relative_index distance, model.relative_index is from_end" in said

    def test_the_pretrained_network_is_tested_and_reported(self, prepared, tmp_path):
        fit("pretrain", prepared, tmp_path / "run", "--trainer.max_epochs", "1", "--data.epoch_windows", "48")
        assert here("test", "--run", tmp_path / "run") == 0
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert metrics["accuracy"]["value"] > 1 / 6
        assert "By subject" in (tmp_path / "run" / "report.html").read_text()

    def test_the_baseline_learns_too(self, prepared, tmp_path):
        fit("band-energy", prepared, tmp_path / "run", "--trainer.max_epochs", "4", "--data.seizure_share", "0.5")
        assert here("test", "--run", tmp_path / "run") == 0
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["auroc"]["value"] > 0.85


def test_forecasts_are_trained_tested_and_continued(series, tmp_path):
    fit("forecast", series, tmp_path / "run", "--trainer.max_epochs", "6", "--model.lr", "0.01")
    assert here("test", "--run", tmp_path / "run") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["mse"]["value"] < 0.5 * metrics["mse_last_value"]["value"]
    longer = write_series(tmp_path / "longer.csv", rows=520)
    words = ("--raw", longer, "--out", tmp_path / "out", "--workers", "1")
    assert here("predict", "--run", tmp_path / "run", *words) == 0
    table = pl.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert table["begin"].to_list() == [520]
    forecast = np.array(table["forecast_OT"][0])
    truth = pl.read_csv(write_series(tmp_path / "truth.csv", rows=532))["OT"].to_numpy()[520:]
    assert forecast.shape == (12,)
    assert np.abs(forecast - truth).mean() < 1.5


SHRINK = {
    "seizure": [*SMALL["seizure"], "--data.epoch_windows", "16"],
    "pretrain": [*SMALL["pretrain"], "--data.epoch_windows", "16"],
    "band-energy": [*SMALL["band-energy"], "--data.epoch_windows", "16"],
    "forecast": ["--data.look_back", "48", "--data.horizon", "12"],
}


@pytest.mark.parametrize("name", DOMAIN.shipped_configs())
def test_every_shipped_config_runs_a_step(name, prepared, series, tmp_path):
    config = yaml.safe_load(DOMAIN.shipped_configs()[name].read_text())
    system = config["system"]
    root = series if system == "forecast" else prepared
    # all of the validation split: no F1 is defined where neither a seizure nor a detection is
    steps = ("--trainer.max_steps", "1", "--trainer.val_check_interval", "1")
    precision = ("--trainer.precision", "32") if system == "seizure" else ()
    words = [*SHRINK[system], "--data.root", root, "--run", tmp_path / "run", *QUIET, *steps, *precision]
    if config.get("model", {}).get("tuning", "full") != "full":
        words += ["--model.pretrained", write_pretrained(tmp_path / "base")]
    assert here("fit", "--config", name, *words) == 0
    saved = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    assert saved["system"] == system in DOMAIN.systems
    assert np.isfinite(losses(tmp_path / "run")[0])


def test_official_weights_are_imported_told_and_used(prepared, tmp_path, capsys):
    base = GenerativeMVPFormer(**SIZES, max_channels=16)
    tuned = MVPFormerClassifier(**SIZES, max_channels=16, lora_rank=2)
    torch.save({"state_dict": to_official(base), "epoch": 3}, tmp_path / "base.pt")
    torch.save({n: t for n, t in to_official(tuned).items() if "lora" in n or "head" in n}, tmp_path / "tuned.pt")
    options = {"n_head": 4, "size_input": 64, "base": str(tmp_path / "base.pt")}
    (tmp_path / "options.json").write_text(json.dumps(options))
    words = ("official", "--weights", tmp_path / "tuned.pt", "--options", tmp_path / "options.json")
    assert here("import-weights", *words, "--out", tmp_path / "model") == 0
    said = capsys.readouterr().out
    assert re.search(r"loaded: \d+ tensors", said)
    assert "ignored, unused by the model" in said
    more = ("--model.tuning", "lora", "--model.lora_rank", "2", "--model.relative_index", "from_end")
    words = fit_words("seizure", prepared, tmp_path / "run", "--init_from", tmp_path / "model", *more)
    assert here("test", *words) == 0
    said = refusal("import-weights", "official", "--weights", tmp_path / "tuned.pt", "--out", tmp_path / "other")
    assert "without its base" in said


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_hostile_checkpoint_never_executes(prepared, tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": Hostile(tmp_path / "executed")}, tmp_path / "bad.ckpt")
    for verb, name in (("fit", "ckpt_path"), ("test", "ckpt_path"), ("predict", "init_from")):
        said = refusal(verb, "--data.root", prepared, f"--{name}", tmp_path / "bad.ckpt", "--run", tmp_path / "run")
        assert "was not executed" in said
    words = fit_words("seizure", prepared, tmp_path / "run", "--model.pretrained", tmp_path / "bad.ckpt")
    assert "was not executed" in refusal("fit", *words)
    assert not (tmp_path / "executed").exists()


def test_contradictory_options_are_one_line(prepared, series, tmp_path):
    for system, words, message in (
        ("seizure", ("--model.heads", "3"), "must divide dim"),
        ("seizure", ("--model.max_segments", "2"), "raise it (and train anew), or lower data.segments"),
        ("seizure", ("--model.max_channels", "2"), "lower data.channels"),
        ("seizure", ("--model.smoothing", "2"), "odd number"),
        ("seizure", ("--model.class_weights", "[1.0]"), "one for background and one for seizure"),
        ("seizure", ("--data.root", str(series)), "holds series, this system needs kind 'recordings'"),
        ("seizure", ("--model.encoder_eps", "0"), "encoder_eps"),
        ("seizure", ("--model.tuning", "lora"), "give --model.pretrained DIR"),
        ("seizure", ("--model.tuning", "head"), "give --model.pretrained DIR"),
        ("pretrain", ("--data.segments", "1"), "at least 2"),
        ("pretrain", ("--model.negatives", "0"), "negatives"),
        ("forecast", ("--data.root", str(prepared)), "holds recordings, this system needs kind 'series'"),
    ):
        root = series if system == "forecast" else prepared
        assert message in refusal("fit", *fit_words(system, root, tmp_path / "run", *words)), words
