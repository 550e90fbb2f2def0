from __future__ import annotations

import pytest
import torch

from domains.ctr.autoint import BLOCKS, AutoInt
from domains.ctr.losses import click_loss

FIELDS = [{"name": f"n{i}", "kind": "numerical"} for i in range(3)]
FIELDS += [{"name": f"c{i}", "kind": "categorical", "size": 50} for i in range(8)]


@pytest.mark.gpu
@pytest.mark.parametrize("variant", BLOCKS)
def test_gpu_equals_cpu(variant):
    torch.manual_seed(0)
    net = AutoInt(FIELDS, dim=8, depth=2, width=16, heads=2, variant=variant, deep=(8,), sparse=True)
    offsets = torch.tensor(net.layout.offsets)
    ids = offsets + torch.cat([torch.zeros(64, 3).long(), torch.randint(50, (64, 8))], 1)
    values, labels = torch.cat([torch.randn(64, 3), torch.ones(64, 8)], 1), torch.rand(64).round()
    results = []
    for device in ("cpu", "cuda"):
        net = net.to(device)
        net.zero_grad()
        loss = click_loss(net(ids.to(device), values.to(device)), labels.to(device))
        loss.backward()
        results.append([loss.detach(), *(p.grad.to_dense() if p.grad.is_sparse else p.grad for p in net.parameters())])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-5, rtol=1e-4)
