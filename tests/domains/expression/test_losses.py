"""Losses of ARBEx: what they are on paper, and that nothing takes them out of the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.errors import ConfigError
from domains.expression.balancing import ReliabilityBalancing
from domains.expression.losses import anchor_loss, arbex_losses, center_loss, class_weights, distribution_loss


def test_class_weights_are_of_all_classes():
    assert class_weights(torch.tensor([2, 0, 6])).tolist() == pytest.approx([8 / 6, 0.0, 8 / 18])


@pytest.mark.parametrize("smoothing", [0.0, 0.11])
def test_distribution_loss_is_cross_entropy_of_torch(smoothing):
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(9, 5), torch.randint(0, 5, (9,)), torch.rand(5) + 0.1
    want = torch.nn.functional.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    torch.testing.assert_close(distribution_loss(logits.softmax(-1), labels, weights, label_smoothing=smoothing), want)


@settings(max_examples=25, deadline=None)
@given(classes=st.integers(2, 5), count=st.integers(1, 4), dim=st.integers(1, 6), seed=st.integers(0, 999))
def test_anchor_losses_pair_by_pair(classes, count, dim, seed):
    torch.manual_seed(seed)
    points = torch.randn(classes, count, dim, dtype=torch.float64)
    official = hinge = torch.zeros((), dtype=torch.float64)
    for i in range(classes):
        for j in range(classes):
            apart = (points[i] - points[j]).norm()
            official = official - apart**2 / count**2 / dim**0.5
            if i != j:
                hinge = hinge + (0.7 * dim**0.5 - apart / count**0.5).clamp(min=0) ** 2 / classes**2 / dim**0.5
    torch.testing.assert_close(anchor_loss(points), official)
    torch.testing.assert_close(anchor_loss(points, "hinge", margin=0.7), hinge)


def test_the_hinge_is_bounded_and_ends_when_anchors_are_apart():
    points = torch.eye(4)[:, None] * 100
    assert anchor_loss(points, "hinge") == 0.0
    assert anchor_loss(points) < -1000
    with pytest.raises(ConfigError, match="choose official or hinge"):
        anchor_loss(points, "square")  # type: ignore[arg-type]


def test_center_loss_takes_the_nearest_anchor_of_the_own_class():
    net = ReliabilityBalancing(4, 2, (3,), anchors=2).eval()
    output = net(torch.randn(3, 4))
    labels = torch.tensor([0, 1, 1])
    want = [output.confidence[i, 0] * output.distances[i, y].min() / 2 for i, y in enumerate(labels.tolist())]
    torch.testing.assert_close(center_loss(output, labels), torch.stack(want).mean())
    torch.testing.assert_close(center_loss(output, labels, reduction="sum"), torch.stack(want).sum())


@pytest.mark.parametrize("kind", ["official", "hinge"])
def test_anchors_receive_gradient(kind):
    torch.manual_seed(0)
    net = ReliabilityBalancing(8, 3, (5,), anchors=2)
    output = net(torch.randn(6, 8), trust=0.5)
    losses = arbex_losses(output, torch.arange(6) % 3, net.anchors.points, trust=0.5, kind=kind, label_smoothing=0.11)
    grads = [
        torch.autograd.grad(losses[name], net.anchors.points, retain_graph=True)[0] for name in ("ce", "mu", "center")
    ]
    assert all((grad.flatten(1).norm(dim=1) > 0).any() for grad in grads)
    total = losses["ce"] + 0.5 * (0.01 * losses["mu"] + losses["center"])
    torch.testing.assert_close(losses["total"], total)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("trust", [0.0, 0.5, 1.0])
def test_extreme_cases_are_finite(scale, trust):
    """Distributions that underflow to 0, and embeddings that are an anchor."""
    torch.manual_seed(0)
    net = ReliabilityBalancing(8, 4, (5,), anchors=2).eval()
    with torch.no_grad():
        net.head.net[-1].bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]) * scale)
        net.anchors.points.mul_(scale)
    embedding = net.anchors.points.detach()[:, 0].clone().requires_grad_()
    output = net(embedding, trust=trust)
    losses = arbex_losses(output, torch.tensor([0, 1, 2, 3]), net.anchors.points, trust=trust, label_smoothing=0.1)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert embedding.grad is not None and embedding.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_a_batch_of_classes_that_count_nothing_is_no_nan():
    p = torch.full((2, 3), 1 / 3)
    assert distribution_loss(p, torch.tensor([1, 1]), torch.tensor([1.0, 0.0, 1.0])) == 0.0
