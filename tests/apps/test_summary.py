from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from apps.common import seeds
from apps.ctr import DOMAIN
from apps.medical import crossvalidate as command
from domains.common.errors import ConfigError, HeptadError
from domains.medical.evaluation import evaluate_diagnosis


def finished(folder, seed=0, data="data", system="autoint", lr=0.001, **metrics):
    """What a test leaves behind."""
    folder.mkdir(parents=True)
    found = {
        name: {"value": value, "low": None, "high": None, "units": 9, "level": 0.95} for name, value in metrics.items()
    }
    (folder / "metrics.json").write_text(json.dumps(found))
    config = {"system": system, "seed_everything": seed, "model": {"lr": lr}, "data": {"root": data, "splits": None}}
    (folder / "test.yaml").write_text(yaml.safe_dump(config | {"run": str(folder)}))
    return folder


class TestSummary:
    def test_mean_deviation_and_range(self, tmp_path, capsys):
        runs = [finished(tmp_path / str(s), s, auc=auc, loss=None) for s, auc in enumerate((0.8, 0.9, 0.85))]
        seeds.main(DOMAIN, "summary", [*map(str, runs), "--out", str(tmp_path / "s.json")])
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("auc"))
        assert line.split() == ["auc", "0.8500", "0.0500", "0.8000", "0.9000", "3"]
        content = json.loads((tmp_path / "s.json").read_text())
        assert content["metrics"]["auc"]["values"] == [0.8, 0.9, 0.85]
        assert content["metrics"]["loss"]["runs"] == 0, "undefined metrics have no mean"
        assert content["metrics"]["loss"]["mean"] is None
        seeds.main(DOMAIN, "summary", [*map(str, runs), "--out", str(tmp_path / "s.csv")])
        table = pl.read_csv(tmp_path / "s.csv")
        assert table.columns == ["metric", "runs", "mean", "sd", "min", "max"]
        assert table["sd"][0] == pytest.approx(np.std([0.8, 0.9, 0.85], ddof=1))

    def test_what_differs_is_told(self, tmp_path, capsys):
        one, two = finished(tmp_path / "a", 1, auc=0.5), finished(tmp_path / "b", 1, lr=0.1, auc=0.6)
        seeds.main(DOMAIN, "summary", [str(one), str(two)])
        out = capsys.readouterr().out
        assert "note: the runs differ in model.lr: 0.001, 0.1" in out
        assert "note: the seeds are 1, 1: runs of one seed tell nothing about the deviation" in out

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"auc": 0.5, "loss": 1.0}, "have different metrics \\(loss in one only\\)"),
            ({"auc": 0.5, "system": "logistic-regression"}, "is of system autoint, .* of logistic-regression"),
            ({"auc": 0.5, "data": "elsewhere"}, "tested on different data \\(data, elsewhere\\)"),
        ],
    )
    def test_runs_that_do_not_belong_together_are_refused(self, tmp_path, other, message):
        one, two = finished(tmp_path / "a", auc=0.5), finished(tmp_path / "b", **other)
        with pytest.raises(ConfigError, match=message):
            seeds.main(DOMAIN, "summary", [str(one), str(two)])

    def test_folds_are_tested_on_different_rows(self, tmp_path, capsys):
        runs = [finished(tmp_path / name, data=name, auc=0.5) for name in "ab"]
        seeds.main(DOMAIN, "summary", [*map(str, runs), "--folds"])
        assert "0.5000" in capsys.readouterr().out

    def test_copies_of_the_same_data_are_the_same(self, tmp_path):
        roots = []
        for name in ("here", "there"):
            (tmp_path / name).mkdir()
            card = {"splits": {"test": {"parts": [{"sha256": "00ff"}]}}}
            (tmp_path / name / "dataset.json").write_text(json.dumps(card))
            roots.append(finished(tmp_path / "runs" / name, len(name), data=str(tmp_path / name), auc=0.5))
        assert seeds.check_comparable([seeds.read_run(root) for root in roots]) == []

    def test_what_was_not_tested_is_named(self, tmp_path):
        run = finished(tmp_path / "a", auc=0.5)
        with pytest.raises(ConfigError, match="not found; test the run first"):
            seeds.main(DOMAIN, "summary", [str(run), str(tmp_path / "b")])
        (run / "metrics.json").write_text("{")
        with pytest.raises(ConfigError, match="cannot be read"):
            seeds.read_run(run)
        with pytest.raises(ConfigError, match="two or more"):
            seeds.check_comparable([seeds.Run(run, {}, {})])
        with pytest.raises(ConfigError, match="named twice"):
            seeds.check_comparable([seeds.Run(run, {}, {})] * 2)
        with pytest.raises(ConfigError, match=r"name a \.csv or a \.json"):
            seeds.main(DOMAIN, "summary", [str(run), str(run), "--out", "table.txt"])


SLIDES = 60


class Program:
    """Stands for `heptad medical fit` and `test`: writes what they leave, and may be interrupted."""

    def __init__(self):
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.words: list[list[str]] = []
        self.stop_at = ""

    def __call__(self, words):
        self.words.append(words)
        pairs = [word for word in words[2:] if "=" not in word]
        verb, options = words[1], dict(zip(pairs[::2], pairs[1::2], strict=True))
        run = Path(options["--run"])
        self.calls.append((f"{verb} {run.name}", options))
        if self.calls[-1][0] == self.stop_at:
            (run / "checkpoints").mkdir(parents=True)
            (run / "checkpoints" / "last.ckpt").touch()
            return 130
        if verb == "fit":
            (run / "model").mkdir(parents=True, exist_ok=True)
            (run / "model" / "config.json").write_text("{}")
            (run / "splits").write_text(options["--data.splits"])
            return 0
        names = pl.read_csv((run / "splits").read_text())["test"].drop_nulls().to_list()
        places = np.array([int(name.removeprefix("slide-")) for name in names])
        p = np.where(places % 2 == 1, 0.7, 0.3) + 0.25 * np.sin(places)
        frame = pl.DataFrame(
            {
                "row": np.arange(len(names)),
                "name": names,
                "patient": [f"P{place // 2}" for place in places],
                "label": (places // 2 % 2 == 1).astype(int),
                "probability_0": (1 - p).astype(np.float32),
                "probability_1": p.astype(np.float32),
                "predicted": (p >= 0.5).astype(int),
            }
        )
        frame.write_parquet(run / "predictions.parquet")
        metrics = evaluate_diagnosis(frame, ["benign", "tumour"], replicates=5)
        (run / "metrics.json").write_text(json.dumps({name: e.to_dict() for name, e in metrics.items()}))
        return 0


class TestCrossValidation:
    @pytest.fixture
    def program(self, monkeypatch):
        program = Program()
        monkeypatch.setattr(command.cli, "main", program)
        return program

    @pytest.fixture
    def ready(self, tmp_path):
        """Options of a cross-validation in three folds, patients of two slides."""
        data, splits = tmp_path / "data", tmp_path / "splits"
        data.mkdir()
        splits.mkdir()
        card = {"format": "heptad/1", "domain": "medical", "name": "slides", "classes": ["benign", "tumour"]}
        card |= {"splits": {"train": {"rows": SLIDES, "parts": []}}, "group": {"name": "patient", "kept_apart": True}}
        (data / "dataset.json").write_text(json.dumps(card))
        for k in range(3):
            names = [f"slide-{i}" for i in range(SLIDES)]
            columns = {"train": [], "val": [], "test": []}
            for i, name in enumerate(names):
                columns[("test", "val", "train")[(i // 2 + k) % 3]].append(name)
            table = pl.concat([pl.DataFrame({c: v}) for c, v in columns.items()], how="horizontal")
            table.with_row_index("").write_csv(splits / f"splits_{k}.csv")
            (splits / f"splits_{k}_bool.csv").touch()
            (splits / f"splits_{k}_descriptor.csv").touch()
        config = tmp_path / "my.yaml"
        config.write_text("# mine\nsystem: acmil\n")
        return {"config": str(config), "data_root": data, "splits": splits, "run": tmp_path / "run", "replicates": 20}

    def test_every_row_is_predicted_by_a_model_that_did_not_see_it(self, program, ready, capsys):
        done = command.crossvalidate(**ready, fit=["trainer.max_epochs=2"])
        assert done == {"folds": 3, "rows": SLIDES, "patients": SLIDES // 2, "run": str(ready["run"])}
        assert [name for name, _ in program.calls] == [f"{verb} fold-{k}" for k in range(3) for verb in ("fit", "test")]
        assert program.words[0][-1] == "--trainer.max_epochs=2"
        pooled = pl.read_parquet(ready["run"] / "predictions.parquet")
        assert sorted(pooled["fold"].unique()) == [0, 1, 2]
        metrics = json.loads((ready["run"] / "metrics.json").read_text())
        assert metrics["auroc"]["units"] == SLIDES // 2, "intervals are over patients"
        assert "patient_sensitivity_tumour" in metrics
        report = (ready["run"] / "report.html").read_text()
        assert "3 models, each tested on rows that it was neither trained nor chosen on" in report
        assert "Over folds" in report
        assert f"report: {ready['run']}" in capsys.readouterr().out

    def test_started_again_it_continues(self, program, ready):
        program.stop_at = "fit fold-1"
        with pytest.raises(HeptadError, match="ended with exit code 130; run the same command again to continue"):
            command.crossvalidate(**ready)
        assert not (ready["run"] / "metrics.json").exists()
        program.stop_at, program.calls = "", []
        command.crossvalidate(**ready)
        names = [name for name, _ in program.calls]
        assert names == ["fit fold-1", "test fold-1", "fit fold-2", "test fold-2"], "the first fold is kept"
        assert program.calls[0][1]["--ckpt_path"].endswith("fold-1/checkpoints/last.ckpt")
        program.calls = []
        command.crossvalidate(**ready)
        assert program.calls == []

    def test_other_options_need_another_folder(self, program, ready):
        command.crossvalidate(**ready)
        with pytest.raises(ConfigError, match="was begun with another fit; give what it was begun with"):
            command.crossvalidate(**ready, fit=["model.lr=0.1"])
        Path(ready["config"]).write_text("# other\nsystem: acmil\n")
        (ready["splits"] / "splits_2.csv").write_text("changed")
        with pytest.raises(ConfigError, match="another config and fold 2"):
            command.crossvalidate(**ready)

    def test_rows_in_several_test_folds_stay_one_patient(self, program, ready):
        (ready["splits"] / "splits_2.csv").write_text((ready["splits"] / "splits_1.csv").read_text())
        done = command.crossvalidate(**ready)
        assert done["patients"] == SLIDES // 3
        report = (ready["run"] / "report.html").read_text()
        assert "20 rows are in no test fold." in report
        assert "20 rows are in several and count each time" in report

    @pytest.mark.parametrize("word", ["trainer.max_epochs", "--run=x", "data.splits=other.csv"])
    def test_options_of_fit_that_cannot_be(self, program, ready, word):
        with pytest.raises(ConfigError, match="--fit"):
            command.crossvalidate(**ready, fit=[word])

    def test_without_folds(self, program, ready, tmp_path):
        with pytest.raises(ConfigError, match=r"no splits_0\.csv"):
            command.crossvalidate(**ready | {"splits": tmp_path})
