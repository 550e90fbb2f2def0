"""Large bags on a CPU go through a network block by block, in training, too: nothing but rounding changes."""

from __future__ import annotations

import pytest
import torch

from domains.common.attention.instance_blocks import BLOCK
from domains.medical.acmil import ABMIL, ACMIL
from domains.medical.losses import bag_losses

SIZES = [700, 2 * BLOCK]
NETWORKS = {
    "gated": lambda: ACMIL(12, 2, 16, branches=3),
    "multi-head": lambda: ACMIL(12, 2, 16, attention="multi_head", branches=3, heads=4, dropout=0.0),
    "abmil, standardised": lambda: ABMIL(12, 2, 16, standardize=True),
}


def build(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    if network.standardize:
        network.measure(torch.full((12,), 0.5), torch.full((12,), 2.0))
    if hasattr(network.attention, "queries"):
        torch.nn.init.normal_(network.attention.queries)
    return network, torch.randn(sum(SIZES), 12)


def train(network, x, draws):
    """Gradients of a step; a bag whose features want a gradient is never cut into blocks."""
    network.zero_grad()
    output = network.pool(x, SIZES, draws=draws)
    torch.stack([loss.sum() for loss in bag_losses(output, torch.tensor([1, 0])).values()]).sum().backward()
    return output, {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_training_in_blocks_changes_nothing(name):
    network, x = build(name)
    draws = [torch.rand(12, 10), torch.rand(12, 10)] if name == "multi-head" else [torch.rand(3, 10)] * 2
    blocked, gradients = train(network, x, draws)
    whole, wanted = train(network, x.clone().requires_grad_(), draws)
    torch.testing.assert_close(blocked.logits, whole.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blocked.weights[1], whole.weights[1], atol=1e-6, rtol=1e-4)
    for parameter, gradient in wanted.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(gradients[parameter], gradient, atol=1e-4 * largest + 1e-7, rtol=0, msg=parameter)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_may_come_in_half_precision(name):
    network, x = build(name)
    network.eval()
    for count in (20, len(x)):
        half = x[:count].half()
        torch.testing.assert_close(network(half), network(half.float()))
    _, gradients = train(network, x.half(), None)
    _, wanted = train(network, x.half().float(), None)
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(gradients[parameter], gradient)


def test_frozen_parts_get_no_gradient():
    network, x = build("gated")
    network.reduce.weight.requires_grad_(False)
    network.attention.requires_grad_(False)
    network.pool(x).logits.sum().backward()
    assert network.reduce.weight.grad is None
    assert network.attention.gate.weight.grad is None
    assert network.classifier.weight.grad is not None
