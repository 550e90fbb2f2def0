from __future__ import annotations

import pytest
import torch

from domains.medical.augment import Augmentation, DrawnChanges
from tests.domains.medical.test_medusa import stir, tiny, views


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
def test_gpu_equals_cpu(deterministic):
    net = stir(tiny())
    image, gray = views(4)
    results = []
    torch.use_deterministic_algorithms(deterministic)
    try:
        for device in ("cpu", "cuda"):
            net = net.to(device)
            net.zero_grad()
            logits, body = net.with_body(image.to(device), gray.to(device))
            (logits.square().sum() + net.body.segment(body).square().mean()).backward()
            results.append([logits.detach(), *(parameter.grad for parameter in net.parameters())])
    finally:
        torch.use_deterministic_algorithms(False)
    for cpu, gpu in zip(*results, strict=True):
        error = (gpu.cpu() - cpu).norm() / cpu.norm().clamp(min=1e-6)
        assert error < 1e-4


@pytest.mark.gpu
def test_gpu_equals_cpu_in_random_changes():
    image, _ = views(4)
    draws = torch.arange(4)
    on_cpu = DrawnChanges(Augmentation(), 1, 2, draws).image(image)
    on_gpu = DrawnChanges(Augmentation(), 1, 2, draws.cuda()).image(image.cuda())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-4, rtol=1e-4)
