from __future__ import annotations

import pytest
import torch

from domains.common.attention import MultiVariateParallelAttention
from domains.ieeg.mvpformer import MVPFormerClassifier
from tests.domains.ieeg.test_mvpformer import SMALL, signal


@pytest.mark.gpu
def test_gpu_equals_cpu():
    net, x, results = MVPFormerClassifier(**SMALL), signal(windows=3, channels=5), []
    counts = torch.tensor([5, 1, 3])
    for device in ("cpu", "cuda"):
        net = net.to(device)
        net.zero_grad()
        logits = net(x.to(device), counts.to(device))
        logits.square().sum().backward()
        results.append([logits.detach(), *(parameter.grad for parameter in net.parameters())])
    for cpu, gpu in zip(*results, strict=True):
        assert (gpu.cpu() - cpu).norm() <= 1e-4 * cpu.norm().clamp(min=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_on_a_gpu_equals_tiles(dtype):
    block = MultiVariateParallelAttention(64, 4, 2).to("cuda", dtype)
    torch.nn.init.normal_(block.bias)
    x, time, channel = (torch.randn(*size, device="cuda", dtype=dtype) for size in ((2, 30, 9, 64), (30, 64), (9, 64)))
    counts = torch.tensor([9, 4], device="cuda")
    found = {}
    for backend in ("flex", "tiles"):
        block.backend = backend
        block.zero_grad()
        out = block(x, time, channel, counts=counts)
        (out[0].square().sum() + out[1, :, :4].square().sum()).backward()
        found[backend] = [out[0].detach(), *(parameter.grad for parameter in block.parameters())]
    for flex, tiles in zip(*found.values(), strict=True):
        assert (flex - tiles).norm() <= (1e-3 if dtype == torch.float32 else 5e-2) * tiles.norm()
