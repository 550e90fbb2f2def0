from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from domains.common.optim import LazyAdam


def train(optimizer, table, batches, *, sparse):
    losses = []
    for ids in batches:
        optimizer.zero_grad()
        loss = (F.embedding(ids, table, sparse=sparse) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_dense_gradients_are_those_of_torch(weight_decay):
    start = torch.randn(7, 3)
    batches = [torch.randint(7, (5,)) for _ in range(6)]
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    train(LazyAdam([a], lr=0.1, weight_decay=weight_decay), a, batches, sparse=False)
    train(torch.optim.Adam([b], lr=0.1, weight_decay=weight_decay), b, batches, sparse=False)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", ["torch", "tensorflow"])
def test_lazy_equals_dense_where_every_row_is_touched(form):
    start = torch.randn(7, 3)
    batches = [torch.cat([torch.randperm(7), torch.randint(7, (4,))]) for _ in range(6)]
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    train(LazyAdam([a], lr=0.1, form=form, weight_decay=0.01), a, batches, sparse=True)
    train(LazyAdam([b], lr=0.1, form=form, weight_decay=0.01), b, batches, sparse=False)
    torch.testing.assert_close(a, b)


def test_untouched_rows_and_their_moments_stay():
    table = torch.nn.Parameter(torch.randn(6, 3))
    before = table.detach().clone()
    optimizer = LazyAdam([table], lr=0.1, weight_decay=0.1)
    train(optimizer, table, [torch.tensor([1, 4, 1])] * 3, sparse=True)
    rest = [0, 2, 3, 5]
    assert torch.equal(table[rest], before[rest])
    assert not torch.isclose(table[[1, 4]], before[[1, 4]]).any()
    state = optimizer.state[table]
    assert (state["exp_avg"][rest] == 0).all()
    assert (state["exp_avg_sq"][rest] == 0).all()


def test_first_step_of_the_tensorflow_form():
    value = torch.nn.Parameter(torch.tensor([1.0]))
    value.grad = torch.tensor([1e-7])
    LazyAdam([value], lr=0.001, form="tensorflow").step()
    root = math.sqrt(1 - 0.999)
    want = 1 - 0.001 * root / (1 - 0.9) * (0.1 * 1e-7) / (math.sqrt(0.001) * 1e-7 + 1e-8)
    assert value.item() == pytest.approx(want, abs=1e-7)


def test_state_is_plain_and_resumes_exactly():
    start, batches = torch.randn(7, 3), [torch.randint(7, (5,)) for _ in range(8)]
    a = torch.nn.Parameter(start.clone())
    whole = train(LazyAdam([a], lr=0.1), a, batches, sparse=True)
    b = torch.nn.Parameter(start.clone())
    first = LazyAdam([b], lr=0.1)
    losses = train(first, b, batches[:4], sparse=True)
    second = LazyAdam([b], lr=0.5)
    second.load_state_dict(first.state_dict())
    assert losses + train(second, b, batches[4:], sparse=True) == whole


def test_options_out_of_range_are_refused():
    for wrong in ({"lr": -1.0}, {"eps": -1.0}, {"betas": (1.0, 0.9)}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match="out of range"):
            LazyAdam([torch.zeros(1)], **wrong)
