from __future__ import annotations

import pytest
import torch

from domains.common.errors import CheckpointMismatchError, ConfigError, UnsafeFileError
from domains.common.loader import Batch
from domains.expression.losses import distribution_loss
from domains.expression.module import ARBExModule
from domains.expression.targets import shares, soft_loss
from domains.expression.weights import start_from
from tests.domains.expression.face_helpers import CLASSES, module


class _Trainer:
    world_size = 1


def batch(rows: int = 6) -> Batch:
    torch.manual_seed(1)
    return {
        "image": torch.randn(rows, 1, 24, 24),
        "label": torch.arange(rows) % 3,
        "row": torch.arange(rows),
        "global_size": torch.tensor(rows),
    }


def losses(net: ARBExModule, given: Batch, trust: float = 0.5) -> dict[str, torch.Tensor]:
    """The losses of a step at some trust, without a trainer."""
    net._trainer, net._total = _Trainer(), 1.0  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ARBExModule, "trust", trust)
        return net._losses(given)


def test_gradient_reaches_every_parameter_of_a_training_step():
    net = module(anchor_margin=5.0).train()
    losses(net, batch())["total"].backward()
    untouched = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untouched == []


def test_without_balancing_the_primary_distribution_alone_is_trained_and_decides():
    net = module(balancing=False, label_smoothing=0.0)
    assert net.prediction == "primary" and net.trust == 0.0
    found = losses(net.eval(), batch(), 0.0)
    p = net(batch()).primary
    torch.testing.assert_close(found["total"], distribution_loss(p, batch()["label"]))
    frozen = {name.split(".")[1] for name, p in net.net.named_parameters() if not p.requires_grad}
    assert frozen == {"anchors", "attention"}
    said = net.predict_step(batch(), 0)
    assert torch.equal(said["corrected_0"], said["primary_0"]) and "confidence_anchors" not in said


def test_trust_ramps_from_nothing_to_everything():
    net = module(trust_steps=10)
    net._total = 10
    for step, wanted in ((0, 0.0), (5, 0.5), (10, 1.0), (30, 1.0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ARBExModule, "global_step", step)
            assert net.trust == wanted


def test_soft_targets_that_are_one_label_are_labels():
    torch.manual_seed(0)
    p, labels, weights = torch.randn(8, 4).softmax(-1), torch.arange(8) % 4, torch.rand(4) + 0.1
    for smoothing in (0.0, 0.2):
        for w in (None, weights):
            ours = soft_loss(p, torch.eye(4)[labels], w, label_smoothing=smoothing)
            torch.testing.assert_close(ours, distribution_loss(p, labels, w, label_smoothing=smoothing))
    torch.testing.assert_close(soft_loss(p, 7 * torch.eye(4)[labels]), distribution_loss(p, labels))
    assert torch.isfinite(soft_loss(torch.eye(4), torch.eye(4).roll(1, 0)))


def test_of_weighted_votes_each_process_counts_by_the_weight_of_its_votes(monkeypatch):
    net, given, weights = module().eval(), batch(), torch.tensor([1.0, 2.0, 5.0])
    net._weights, votes = weights, torch.rand(6, 3) + 0.1
    own = []

    def of_all(self: ARBExModule, value: torch.Tensor) -> torch.Tensor:
        own.append(value)
        return value + 7.0  # of another process

    monkeypatch.setattr(ARBExModule, "_over_processes", of_all)
    found = losses(net, given | {"target": votes}, 0.0)["ce"]
    mass = (shares(votes) @ weights).sum()
    torch.testing.assert_close(own[0], mass)
    wanted = soft_loss(net(given).primary, votes, weights, label_smoothing=0.11) * mass / (mass + 7.0)
    torch.testing.assert_close(found, wanted)


def test_predictions_hold_both_distributions_and_the_confidences():
    net = module().eval()
    found = net.predict_step(batch() | {"name": list("abcdef")}, 0)
    for kind in ("probability", "primary", "corrected", "primary_calibrated", "calibrated"):
        total = sum(found[f"{kind}_{k}"] for k in range(3))
        torch.testing.assert_close(total, torch.ones(6))
    assert torch.equal(found["probability_1"], found["calibrated_1"])
    assert torch.equal(
        module(prediction="primary").eval().predict_step(batch(), 0)["probability_1"], found["primary_calibrated_1"]
    )
    assert found["name"] == list("abcdef")


def test_a_row_of_predictions_alone_as_in_any_batch():
    net, given = module().eval(), batch()
    whole = net.predict_step(given, 0)
    for row in range(6):
        alone = net.predict_step(
            {name: value[row : row + 1] for name, value in given.items() if name != "global_size"}, 0
        )
        for name in ("probability_0", "corrected_2", "confidence_attention"):
            assert (alone[name] - whole[name][row]).abs().max() < 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"gamma": 1.5},
        {"lambdas": [1.0, 2.0]},
        {"label_smoothing": 1.0},
        {"trust_steps": 0},
        {"smoothing_seconds": 0.0},
        {"heads": 3},
        {"anchors": 0},
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        module(**wrong)


def test_hyper_parameters_build_the_module_again():
    net = module(anchors=3, lambdas=[1.0, 0.5, 0.25])
    again = ARBExModule(**net.hparams)
    again.load_state_dict(net.state_dict())
    assert again.net.arguments == net.net.arguments
    assert again.lambdas == (1.0, 0.5, 0.25)
    names = set(net.state_dict())
    assert {"net.balancing.anchors.points", "net.balancing.attention.out.weight"} <= names


def test_files_of_another_kind_and_hostile_ones_never_start_a_network(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises((UnsafeFileError, CheckpointMismatchError)):
        start_from(module().net, tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointMismatchError):
        start_from(module().net, tmp_path / "other.pth")


def test_an_exported_program_gives_what_the_network_gives():
    net = module().eval()
    (image,) = net.example_inputs(3)
    corrected, primary, embedding, calibrated = net.exportable()(image)
    output = net.net(image)
    assert torch.equal(corrected, output.corrected) and torch.equal(primary, output.primary)
    assert embedding.shape == (3, 16) and torch.equal(calibrated, output.calibrated)
    assert len(CLASSES) == corrected.shape[1]


@pytest.mark.gpu
def test_gpu_equals_cpu():
    net, given = module().eval(), batch()
    results = []
    for device in ("cpu", "cuda"):
        net = net.to(device)
        net.zero_grad()
        moved = {name: value.to(device) for name, value in given.items()}
        found = losses(net, moved)
        found["total"].backward()
        grads = [p.grad.cpu().clone() for p in net.parameters() if p.grad is not None]
        results.append([net(moved).corrected.detach().cpu(), found["total"].detach().cpu(), *grads])
    for cpu, gpu in zip(*results, strict=True):
        assert (gpu - cpu).norm() / cpu.norm().clamp(min=1e-6) < 1e-4
