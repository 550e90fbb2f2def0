"""Faces from raw pictures to expressions, through the command that users type."""

from __future__ import annotations

import json
import re
import shutil

import cv2
import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
import yaml

from apps.common.export import export_onnx, export_torch
from apps.expression import DOMAIN
from apps.expression.demo import demo
from data_prep.expression.planted import _draw_subject, draw_face, write_planted_faces
from data_prep.expression.taxonomy import BASIC7
from domains.common.files import read_checkpoint
from domains.common.hub import load_published
from domains.expression.balancing import ARBExOutput
from domains.expression.calibration import scaled_distribution
from domains.expression.module import ARBExModule
from tests.apps.expression_helpers import fit, here, predictions, refusal
from tests.apps.helpers import QUIET, losses

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

SERIAL = ("--executor", "serial", "--progress", "false")
CLASSES = ("neutral", "happiness", "surprise")
LEARNING = ("--model.image_size", "32", "--model.hidden", "[]", "--model.lr", "0.003", "--model.schedule", "cosine")
LEARNING += ("--trainer.max_epochs", "16", "--data.per_class", "60", "--data.augment", "false", "--model.dim", "64")
LEARNING += ("--model.dropout", "0.0", "--model.warmup", "1", "--trainer.gradient_clip_val", "1.0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    made = write_planted_faces(folder / "raw", 30, 8, size=32, classes=CLASSES, noise=0.0, seed=1)
    words = ("--raw", made.images, "--table", made.table, "--ratios", "0.6,0.15,0.25", "--folds", 3)
    assert here("prep", "folder", *words, "--out", folder / "faces", *SERIAL) == 0
    fit(folder / "faces", folder / "run", *LEARNING)
    assert here("test", "--run", folder / "run") == 0
    return folder / "run"


class TestRun:
    def test_a_run_writes_only_into_its_folder(self, trained):
        names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
        assert {"fit.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "model/model.safetensors"} <= names
        assert sorted(path.name for path in trained.parent.iterdir()) == ["faces", "raw", "run"]

    def test_test_measures_both_distributions_and_tells_subjects(self, trained):
        metrics = json.loads((trained / "metrics.json").read_text())
        table = predictions(trained)
        for name in ("primary", "corrected"):
            decided = table.select(f"{name}_{k}" for k in range(3)).to_numpy().argmax(1)
            assert metrics[f"accuracy_{name}"]["value"] == pytest.approx((decided == table["label"].to_numpy()).mean())
        assert metrics["accuracy_corrected"]["value"] > 0.6, "faces were learned"
        assert metrics["accuracy"]["units"] == table["subject"].n_unique() < len(table)
        assert {"macro_f1_all_classes", "sensitivity_happiness", "ece_primary", "accuracy_gain"} <= metrics.keys()
        report = (trained / "report.html").read_text()
        for heading in ("Calibration before balancing", "Balance of the classes", "What the correction changed"):
            assert heading in report
        assert "Intervals are resampled over subjects." in report
        weights = read_checkpoint(trained / "checkpoints" / "best.ckpt")["state_dict"]
        temperature = float(weights["net.balancing.corrected_scaling.temperature"])
        assert temperature != 1.0 and f"{temperature:.3f} of the corrected distribution" in report
        assert not re.search(r"(?:src|href)=\"(?!data:)", report), "nothing is loaded from elsewhere"

    def test_last_and_best_epoch_can_both_be_tested(self, trained, tmp_path):
        shutil.copytree(trained, tmp_path / "run")
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        weights = read_checkpoint(last)["state_dict"]
        weights["net.balancing.corrected_scaling.temperature"].fill_(0.9)  # so that it differs from the best epoch
        torch.save(read_checkpoint(last) | {"state_dict": weights}, last)
        assert here("test", "--run", tmp_path / "run", "--ckpt_path", last) == 0
        table = predictions(tmp_path / "run")
        corrected, told = (
            table.select(f"{name}_{k}" for k in range(3)).to_numpy() for name in ("corrected", "calibrated")
        )
        np.testing.assert_allclose(told, scaled_distribution(corrected, 0.9), atol=1e-5)

    def test_explain(self, trained):
        assert here("explain", "--run", trained) == 0
        assert (trained / "maps.npz").is_file() and (trained / "distances.parquet").is_file()
        text = (trained / "explain.html").read_text()
        assert "Faces and anchors" in text
        assert f"among the first {len(predictions(trained))} of the test split" in text, "it says how cases were chosen"

    def test_predict_new_pictures_as_they_were_tested(self, trained, tmp_path):
        raw = trained.parent / "raw" / "images"
        names = predictions(trained)["name"].to_list()[:5]
        for number, name in enumerate(names):
            (tmp_path / "new").mkdir(exist_ok=True)
            shutil.copy(next(raw.rglob(name.split("/")[-1])), tmp_path / "new" / f"{number}.png")
        assert here("predict", "--run", trained, "--raw", tmp_path / "new", "--out", tmp_path / "out") == 0
        found, tested = predictions(tmp_path / "out"), predictions(trained)
        assert "label" not in found.columns and "smoothed_0" not in found.columns
        for k in range(3):
            np.testing.assert_allclose(found[f"corrected_{k}"], tested[f"corrected_{k}"][:5], atol=1e-5)
        written = pl.read_csv(tmp_path / "out" / "predictions.csv")
        assert set(written["predicted"]) <= set(CLASSES)
        assert written["probability_surprise"].is_between(0, 1).all()

    def test_predict_a_video_with_times_and_smoothing(self, trained, tmp_path):
        rng = np.random.default_rng(0)
        subject = _draw_subject(rng)
        writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 32))
        for number in range(40):
            name = "happiness" if number < 20 else "surprise"
            writer.write(cv2.cvtColor(draw_face(rng, subject, name, 32), cv2.COLOR_RGB2BGR))
        writer.release()
        words = ("--run", trained, "--raw", tmp_path / "film.avi", "--out", tmp_path / "out", "--every", 2)
        assert here("predict", *words, "--model.smoothing_seconds", 0.4) == 0
        table = pl.read_csv(tmp_path / "out" / "predictions.csv")
        assert table["frame"].to_list() == list(range(0, 40, 2))
        np.testing.assert_allclose(table["time_s"], np.arange(0, 40, 2) / 10, atol=0.02)
        plain, smooth = (
            table.select(f"{kind}_{n}" for n in CLASSES).to_numpy() for kind in ("probability", "smoothed")
        )
        np.testing.assert_allclose(smooth.sum(1), 1, atol=1e-4)
        assert np.abs(np.diff(smooth, axis=0)).mean() < np.abs(np.diff(plain, axis=0)).mean()

    @pytest.mark.parametrize("format", ["hub", "torch", "onnx"])
    def test_export(self, format, trained, tmp_path):
        out = tmp_path / {"hub": "model", "torch": "model.pt2", "onnx": "model.onnx"}[format]
        assert here("export", "--run", trained, "--format", format, "--out", out) == 0
        image = torch.randn(5, 1, 32, 32)
        with torch.no_grad():
            wanted = ordered(load_published(trained / "model").eval()(image))
            if format == "hub":
                found = ordered(load_published(out).eval()(image))
            elif format == "torch":
                found = torch.export.load(out).module()(image)
            else:
                session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
                given = {session.get_inputs()[0].name: image.numpy()}
                found = [torch.from_numpy(output) for output in session.run(None, given)]
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    def test_anchors_and_corrector_are_in_the_checkpoint(self, trained):
        names = read_checkpoint(trained / "checkpoints" / "best.ckpt")["state_dict"]
        assert {"net.balancing.anchors.points", "net.balancing.attention.value.weight"} <= names.keys()


def ordered(output: ARBExOutput) -> list[torch.Tensor]:
    """What an exported program gives of it."""
    return [output.corrected, output.primary, output.embedding, output.calibrated]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_the_whole_network_is_exported_with_frozen_backbones(format, tmp_path):
    torch.manual_seed(0)
    whole = ARBExModule(list(BASIC7), backbone="poster", anchors=10)
    whole.net.eval()
    export, name = {"torch": (export_torch, "model.pt2"), "onnx": (export_onnx, "model.onnx")}[format]
    export(whole, tmp_path / name)  # it compares the program with the network, in batches of 1 and 5
    assert (tmp_path / name).stat().st_size > 4 * 40e6


@pytest.mark.parametrize(
    "more",
    [
        ("--model.balancing", "false", "--data.fold", "1"),
        (
            "--model.balanced_loss",
            "true",
            "--ema",
            "0.9",
            "--model.anchor_loss",
            "official",
            "--model.attn_scope",
            "batch",
        ),
        ("--trainer.precision", "bf16-mixed", "--data.per_class", "20", "--model.prediction", "primary"),
    ],
    ids=["plain", "weighted", "mixed"],
)
def test_every_variant_trains_tests_and_predicts(more, trained, tmp_path):
    fit(trained.parent / "faces", tmp_path, *more, "--trainer.max_epochs", "1")
    assert np.isfinite(list(losses(tmp_path).values())).all()
    assert here("test", "--run", tmp_path) == 0
    assert ("1 of 3, of 240 rows; see folds/splits_1.csv" in (tmp_path / "report.html").read_text()) == ("1" in more)
    assert here("predict", "--run", tmp_path) == 0
    tested, predicted = predictions(tmp_path), predictions(tmp_path / "predict")
    assert tested["probability_1"].equals(predicted["probability_1"])


@pytest.mark.parametrize("name", DOMAIN.shipped_configs())
def test_every_shipped_config_runs_a_step(name, trained, tmp_path):
    config = yaml.safe_load(DOMAIN.shipped_configs()[name].read_text())
    words = ["--data.root", trained.parent / "faces", "--run", tmp_path / "run", *QUIET, "--data.batch_size", 6]
    words += ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "1"]
    words += ["--trainer.enable_checkpointing", "false"]  # a gigabyte of checkpoints proves nothing
    if config["model"]["backbone"] == "poster":
        words += ["--model.image_size", 112, "--model.dim", 64, "--model.depth", 1, "--trainer.precision", "32"]
        words += ["--model.freeze_backbones", "false"]  # their weights are no part of the project
    assert here("fit", "--config", name, *words) == 0
    saved = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    assert saved["system"] == config["system"] in DOMAIN.systems
    assert np.isfinite(losses(tmp_path / "run")[0])


def test_frozen_backbones_without_weights_are_refused(trained, tmp_path):
    words = ["--config", "raf_db", "--data.root", trained.parent / "faces", "--run", tmp_path, *QUIET]
    words += ["--model.image_size", 112, "--model.dim", 64, "--model.depth", 1, "--trainer.precision", "32"]
    said = refusal("fit", *words)
    for part in ("IR50", "MobileFaceNet", "ir50.pth", "mobilefacenet_model_best.pth.tar", "freeze_backbones false"):
        assert part in said
    assert not (tmp_path / "checkpoints").exists(), "nothing was trained"


def test_wrong_options_end_in_one_line(trained, tmp_path):
    root = trained.parent / "faces"
    words = ("--data.root", root, "--run", tmp_path)
    assert "no such fold; it has folds 0 to 2" in refusal("fit", *words, "--data.fold", 7, "--model.backbone", "small")
    assert "image_size 20" in refusal("fit", *words, "--model.backbone", "small", "--model.image_size", 20)
    said = refusal("fit", *words, "--model.backbone", "small", "--model.pretrained", "[nowhere.pth]", *QUIET)
    assert "nowhere.pth" in said
    missing = refusal("predict", "--run", trained, "--raw", tmp_path / "nothing", "--out", tmp_path / "out")
    assert "nothing" in missing


@pytest.mark.slow
def test_demo(tmp_path):
    demo(tmp_path)
    report = (tmp_path / "report.html").read_text()
    assert "ARBEx" in report and "plain head" in report
    metrics = json.loads((tmp_path / "arbex" / "metrics.json").read_text())
    assert metrics["accuracy"]["value"] > 2 / len(BASIC7)
