from __future__ import annotations

import pytest
import torch

from domains.medical.acmil import ABMIL, ACMIL, PoolingMIL
from domains.medical.augment import Augmentation, DrawnChanges
from domains.medical.losses import bag_losses
from domains.medical.medusa import MEDUSA
from domains.medical.segmentation import LungSegmenter, lung_loss

SIZES = [700, 1, 2500]
BAGS = {
    "gated": lambda: ACMIL(32, 3, 16, branches=4, gate_dim=8),
    "multi-head": lambda: ACMIL(32, 3, 16, attention="multi_head", branches=3, heads=4, dropout=0.0),
    "abmil": lambda: ABMIL(32, 3, 16, gate_dim=8, standardize=True),
    "mean": lambda: PoolingMIL(32, 3, 16),
    "max": lambda: PoolingMIL(32, 3, 16, pooling="max"),
}

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact():
    """Products in full precision, as on a CPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def assert_devices_agree(network, loss_of, atol=1e-5, rtol=1e-3):
    """Compare losses and the gradients of all parameters."""
    results = []
    for device in ("cpu", "cuda"):
        network = network.to(device)
        network.zero_grad()
        loss = loss_of(network, device)
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        results.append([loss.detach(), *gradients])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu.cpu(), atol=atol, rtol=rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", BAGS)
def test_gpu_equals_cpu(name, dtype):
    torch.manual_seed(0)
    network, x = BAGS[name]().train(), torch.randn(sum(SIZES), 32).to(dtype)
    if network.standardize:
        network.measure(x.float().mean(0), x.float().std(0))
    labels = torch.tensor([0, 2, 1])
    draws = None
    if isinstance(network, ACMIL) and network.masking is not None:  # masked is what the same draws choose
        groups = (3, 4) if name == "multi-head" else (4,)
        draws = [torch.rand(*groups, network.masking.candidates(size)) for size in SIZES]
    if name == "multi-head":
        torch.nn.init.normal_(network.attention.queries)

    def loss_of(net, device):
        given = None if draws is None else [draw.to(device) for draw in draws]
        losses = bag_losses(net.pool(x.to(device), SIZES, draws=given), labels.to(device))
        return torch.stack([loss.sum() for loss in losses.values()]).sum()

    assert_devices_agree(network, loss_of)


@pytest.mark.parametrize("name", BAGS)
def test_attention_on_a_gpu_equals_that_on_a_cpu(name):
    torch.manual_seed(0)
    network, x = BAGS[name]().eval(), torch.randn(sum(SIZES), 32)
    with torch.no_grad():
        one, other = network.pool(x, SIZES), network.cuda().pool(x.cuda(), SIZES)
    torch.testing.assert_close(other.logits.cpu(), one.logits, atol=1e-5, rtol=1e-4)
    for a, b in zip(one.attention(), other.attention(), strict=True):
        torch.testing.assert_close(b.cpu(), a, atol=1e-6, rtol=1e-4)


def test_gpu_equals_cpu_for_medusa():
    torch.manual_seed(0)
    network = MEDUSA(3, "medusa_tiny").train()
    image, gray = torch.rand(4, 1, 28, 28), torch.randn(4, 1, 28, 28)
    labels, mask = torch.tensor([0, 1, 2, 1]), (torch.rand(4, 1, 28, 28) > 0.5).float()

    def loss_of(net, device):
        logits, body = net.with_body(image.to(device), gray.to(device))
        found = lung_loss(net.body.segment(body), mask.to(device))
        return torch.nn.functional.cross_entropy(logits, labels.to(device)) + found

    # batch statistics of few numbers multiply what rounding differs by
    assert_devices_agree(network, loss_of, atol=1e-3, rtol=1e-2)


def test_gpu_equals_cpu_for_lungs():
    torch.manual_seed(0)
    network, gray = LungSegmenter(4, 3).train(), torch.randn(4, 1, 44, 44)
    mask = (torch.rand(4, 1, 44, 44) > 0.5).float()
    assert_devices_agree(network, lambda net, device: lung_loss(net(gray.to(device)), mask.to(device)), atol=1e-4)


def test_random_changes_on_a_gpu_are_those_of_a_cpu():
    image, rows = torch.rand(16, 1, 40, 40), torch.arange(16)
    found = []
    for device in ("cpu", "cuda"):
        changes = DrawnChanges(Augmentation(), 3, 5, rows.to(device))
        found.append((changes.image(image.to(device)), changes.mask((image > 0.5).float().to(device))))
    torch.testing.assert_close(found[1][0].cpu(), found[0][0], atol=1e-4, rtol=1e-4)
    assert (found[1][1].cpu() == found[0][1]).float().mean() > 0.999, "a nearest neighbour may be another by rounding"
