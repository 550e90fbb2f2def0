"""The same numbers on an accelerator."""

from __future__ import annotations

import copy

import pytest
import torch

from domains.finegrained.augment import Augmentation, DrawnChanges
from domains.finegrained.dcal import DCAL, embedding
from domains.finegrained.losses import dcal_losses
from domains.finegrained.search import nearest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_gpu_equals_cpu(task):
    torch.manual_seed(0)
    options = {"depth": 4}
    here = DCAL("vit_tiny_patch16_224", 6, (64, 32), task=task, drop_path=0.0, backbone_options=options)
    there = copy.deepcopy(here).cuda()
    images, labels, pairs = torch.randn(8, 3, 64, 32), torch.arange(8) % 4, torch.arange(8).roll(3)
    losses = []
    for net, device in ((here, "cpu"), (there, "cuda")):
        given = [tensor.to(device) for tensor in (images, labels, pairs)]
        found = dcal_losses(net(given[0], given[2]), given[1], net.uncertainty_w, triplet=task == "reid")["total"]
        found.backward()
        losses.append(found.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for one, two in zip(here.parameters(), there.parameters(), strict=True):
        if one.grad is not None:
            assert (one.grad - two.grad.cpu()).norm() <= 2e-3 * one.grad.norm() + 1e-6
    with torch.no_grad():
        one, two = embedding(here.eval()(images)), embedding(there.eval()(images.cuda())).cpu()
    torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)


def test_gpu_equals_cpu_in_random_changes_and_search():
    images = torch.randint(0, 256, (16, 3, 40, 30), dtype=torch.uint8)
    options = Augmentation(pad=3, erase=0.5, brightness=0.2, colour=0.1)
    found = [
        DrawnChanges(options, 1, 2, torch.arange(16, device=device)).apply(images.to(device), (36, 24)).cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)
    query, gallery = torch.randn(5, 8), torch.randn(50, 8)
    one, two = nearest(query, gallery, 4, "exact"), nearest(query.cuda(), gallery.cuda(), 4, "exact")
    assert one.places.equal(two.places)
