from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from domains.seqrec.data import SequenceData
from domains.seqrec.module import MQSATEDModule
from domains.seqrec.ranking import rank_items
from tests.domains.seqrec.helpers import random_histories, training_batches, write_prepared


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["full", "sampled", "gbce"])
def test_gpu_equals_cpu(tmp_path, loss):
    data = SequenceData(str(write_prepared(tmp_path, random_histories(60, 40, 12), 40)), max_len=8)
    batch = training_batches(data)[0]
    torch.manual_seed(0)
    module = MQSATEDModule(40, max_len=8, dim=16, dropout=0.0)
    module.options = replace(module.options, loss=loss)
    results = []
    for device in ("cpu", "cuda"):
        module = module.to(device)
        module.zero_grad()
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        values = module.losses(on_device)
        (values["rec"] + 0.1 * values["kd"]).backward()
        results.append([*(value.detach() for value in values.values()), *(p.grad for p in module.net.parameters())])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, atol=2e-4, rtol=1e-4)


@pytest.mark.gpu
def test_ranks_on_gpu_equal_cpu():
    torch.manual_seed(0)
    users, table = torch.randn(50, 8), torch.randn(200, 8)
    seen, target = torch.randint(201, (50, 9)), torch.randint(200, (50,))
    ours, theirs = (
        rank_items(*(t.to(device) for t in (users, table, seen, target)), top=5) for device in ("cpu", "cuda")
    )
    assert torch.equal(ours.items, theirs.items.cpu())
    assert torch.equal(ours.rank, theirs.rank.cpu())
