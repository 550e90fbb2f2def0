"""Temperature scaling: probabilities that are as high as they are right, and no decision changed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from domains.common.files import read_checkpoint
from domains.common.hub import load_published, network_tensors, publish
from domains.expression.arbex import ARBEx
from domains.expression.calibration import (
    LIMITS,
    TemperatureScaling,
    calibration_note,
    fit_temperature,
    scaled_distribution,
)
from domains.expression.data import ExpressionData
from domains.expression.evaluation import TITLES, evaluate_expressions, report_tables
from domains.expression.figures import figures
from domains.expression.weights import from_official, to_official
from tests.domains.expression.face_helpers import CLASSES, module, predictions, prepare_planted

# an in-process training; what Lightning advises of loggers and workers is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")
T_CORRECTED = "net.balancing.corrected_scaling.temperature"
T_PRIMARY = "net.balancing.primary_scaling.temperature"


def drawn(seed: int, rows: int, classes: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from distributions, and these distributions to the power `sharpness`."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet(np.ones(classes), rows)
    labels = (rng.random((rows, 1)) < true.cumsum(1)).argmax(1)
    return labels, scaled_distribution(true, 1 / sharpness)


class TestScaling:
    @given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 8), st.floats(0.3, 3.0))
    def test_fitting_lowers_the_log_loss_and_keeps_decisions(self, seed, rows, classes, sharpness):
        labels, p = drawn(seed, rows, classes, sharpness)
        temperature = fit_temperature(labels, p)
        scaled = scaled_distribution(p, temperature)
        assert LIMITS[0] <= temperature <= LIMITS[1]
        assert (scaled.argmax(1) == p.argmax(1)).all()
        np.testing.assert_allclose(scaled.sum(1), 1)

        def loss(q: np.ndarray) -> float:
            return float(-np.log(q[np.arange(rows), labels].clip(1e-300)).mean())

        least = loss(scaled)
        assert least <= loss(p) + 1e-9
        for other in np.geomspace(*LIMITS, 9):
            assert least <= loss(scaled_distribution(p, other)) + 1e-7

    @pytest.mark.parametrize("sharpness", [0.5, 2.0])
    def test_the_temperature_that_spoilt_the_distribution_is_found(self, sharpness):
        labels, p = drawn(0, 20_000, 5, sharpness)  # more rows than are fitted to
        assert fit_temperature(labels, p) == pytest.approx(sharpness, rel=0.05)

    def test_without_rows_and_without_errors_the_temperature_is_bounded(self):
        assert fit_temperature(np.zeros(0, int), np.zeros((0, 3))) == 1.0
        certain = np.array([[0.6, 0.2, 0.2]] * 4)
        assert fit_temperature(np.zeros(4, int), certain) == pytest.approx(LIMITS[0], rel=1e-6)
        assert fit_temperature(np.ones(4, int), np.array([[1.0, 0.0, 0.0]] * 4)) == pytest.approx(LIMITS[1], rel=1e-6)

    def test_the_network_scales_as_arrays_are_scaled(self):
        _, p = drawn(1, 30, 4, 1.0)
        p[0] = [1.0, 0.0, 0.0, 0.0]
        scaling = TemperatureScaling()
        torch.testing.assert_close(scaling(torch.from_numpy(p).float()), torch.from_numpy(p).float())
        for temperature in (0.25, 1.5):
            scaling.set(temperature)
            found = scaling(torch.from_numpy(p).float()).numpy()
            np.testing.assert_allclose(found, scaled_distribution(p, temperature), atol=1e-6)


class TestNetwork:
    def test_published_weights_keep_it_and_official_ones_have_none(self, tmp_path):
        net = ARBEx(3, backbone="small", image_size=24, dim=16, heads=2, hidden=[8]).eval()
        net.balancing.corrected_scaling.set(0.5)
        publish(tmp_path, net, "card")
        image = torch.randn(4, 1, 24, 24)
        again = load_published(tmp_path).eval()(image)
        torch.testing.assert_close(again.calibrated, net(image).calibrated)
        assert (again.calibrated.amax(1) > again.corrected.amax(1)).all(), "sharper below 1"
        torch.testing.assert_close(again.primary_calibrated, again.primary)

    def test_official_weights_leave_it_out(self):
        net = ARBEx(3, dim=64, depth=1, image_size=112)
        net.balancing.primary_scaling.set(0.5)
        named = to_official(net)
        assert not [name for name in named if "scaling" in name]
        assert float(from_official(named, {"heads": 8}).balancing.primary_scaling.temperature) == 1.0

    def test_predictions_are_calibrated_and_decisions_stay(self):
        net = module().eval()
        torch.manual_seed(1)
        batch = {"image": torch.randn(6, 1, 24, 24), "row": torch.arange(6)}
        before = net.predict_step(batch, 0)
        net._set_temperatures(3.0, 0.4)
        after = net.predict_step(batch, 0)
        assert torch.equal(before["predicted"], after["predicted"])
        corrected = np.stack([before[f"corrected_{k}"].detach().numpy() for k in range(3)], 1)
        for k, wanted in enumerate(scaled_distribution(corrected, 0.4).T):
            np.testing.assert_allclose(after[f"probability_{k}"].detach(), wanted, atol=1e-6)
            assert torch.equal(after[f"corrected_{k}"], before[f"corrected_{k}"])
        plain = module(balancing=False).eval()
        plain._set_temperatures(0.5, 1.0)
        found = plain.predict_step(batch, 0)
        assert torch.equal(found["probability_1"], found["primary_calibrated_1"])
        assert torch.equal(found["calibrated_1"], found["primary_calibrated_1"])


class _Watch(Callback):
    """Keeps what the last validation was fitted to, with the weights of that moment."""

    rows: Any = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.rows = [torch.cat(parts).numpy() for parts in zip(*pl_module._validated, strict=True)]


def trained(faces: Any, folder: Any, net: Any, *callbacks: Callback, epochs: int = 2, **options: Any) -> Trainer:
    """A short training in this process, with its best checkpoint in `folder`."""
    best = ModelCheckpoint(dirpath=folder, filename="best", monitor=None, save_on_train_epoch_end=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[best, *callbacks],
        use_distributed_sampler=False,
        default_root_dir=folder,
        **(quiet | options),
    )
    trainer.fit(net, ExpressionData(faces, batch_size=16, augment=False))
    return trainer


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Iterator[Any]:
    yield prepare_planted(tmp_path_factory.mktemp("faces"))


class TestTraining:
    @pytest.mark.parametrize("averaged", [False, True], ids=["plain", "ema"])
    def test_the_checkpoint_has_the_temperature_of_its_own_validation(self, averaged, faces, tmp_path):
        watch, net = _Watch(), module(image_size=24)
        trained(faces, tmp_path, net, watch, *([EMAWeightAveraging(decay=0.8)] if averaged else []))
        state = read_checkpoint(tmp_path / "best.ckpt")["state_dict"]
        rows, labels, primary, corrected = watch.rows
        order = np.argsort(rows)
        for name, p in ((T_PRIMARY, primary), (T_CORRECTED, corrected)):
            assert float(state[name]) == pytest.approx(fit_temperature(labels[order], p[order]), rel=1e-6)
            assert float(state[name]) == float(net.state_dict()[name]) != 1.0
        tested = module(image_size=24)
        tested.load_state_dict(state)
        data = ExpressionData(faces, batch_size=16)
        assert f"{float(state[T_CORRECTED]):.3f} of the corrected" in tested.protocol(_told(data))
        assert T_CORRECTED.removeprefix("net.") in network_tensors(tmp_path / "best.ckpt")

    def test_without_validation_it_stays_one_and_that_is_said(self, faces, tmp_path, capsys):
        net = module(image_size=24)
        net._set_temperatures(3.0, 3.0)  # as from weights of another training
        trained(faces, tmp_path, net, epochs=1, limit_val_batches=0)
        assert net.temperatures == (1.0, 1.0)
        assert "not calibrated" in capsys.readouterr().out
        assert "not calibrated" in net.protocol(_told(ExpressionData(faces, batch_size=16)))

    def test_it_can_be_left_out_and_a_validation_alone_fits_nothing(self, faces, tmp_path):
        net = module(image_size=24, calibrate=False)
        trainer = trained(faces, tmp_path, net, epochs=1)
        assert net.temperatures == (1.0, 1.0)
        net.calibrate = True
        net._set_temperatures(0.5, 0.5)
        trainer.validate(net, ExpressionData(faces, batch_size=16), verbose=False)
        assert net.temperatures == (0.5, 0.5)


def _told(data: ExpressionData) -> Any:
    """What a protocol is told of data."""
    return SimpleNamespace(card=data.card, fold=None)


class TestReport:
    def test_all_distributions_are_measured_and_drawn(self):
        table = predictions(300)
        metrics = evaluate_expressions(table, CLASSES, replicates=20)
        assert metrics["ece"] == metrics["ece_calibrated"]
        assert metrics["ece_primary"].value != metrics["ece_primary_calibrated"].value
        rows = report_tables(table, metrics)["Before and after balancing"]
        assert [row["distribution"] for row in rows[:-1]] == list(TITLES.values())
        assert rows[-2]["accuracy"] == "the same" != rows[-2]["ece"]
        assert rows[-1]["distribution"].startswith("always ") and rows[-1]["ece"] == "-"
        titles = {picture.title for picture in figures(table, metrics)}
        assert {f"Calibration {title}" for title in TITLES.values()} <= titles

    def test_the_note_tells_temperatures(self):
        assert "0.500 of the primary, 0.250 of the corrected" in calibration_note(0.5, 0.25)
        assert "corrected" not in calibration_note(0.5, None)
        assert "not calibrated" in calibration_note(1.0, None)

    @pytest.mark.parametrize("limit", LIMITS)
    def test_the_note_tells_a_temperature_at_its_limit(self, limit):
        assert "at its limit" not in calibration_note(0.5, 4.9)
        assert "That of the corrected is at its limit (0.2 to 5)" in calibration_note(0.5, limit)
        assert "That of the primary and the corrected is at" in calibration_note(limit, limit)
        fitted = float(torch.tensor(limit))  # as a buffer holds it
        assert "That of the primary is at" in calibration_note(fitted, None)
