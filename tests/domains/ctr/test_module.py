from __future__ import annotations

import pytest
import torch

from domains.common.slicing import sliced_sum
from domains.ctr.autoint import BLOCKS
from domains.ctr.losses import click_loss
from domains.ctr.module import AutoIntModule
from tests.domains.ctr.test_autoint import FIELDS, SLOTS, batch


def module(**options):
    torch.manual_seed(1)
    return AutoIntModule(FIELDS, dim=8, depth=2, width=8, heads=2, **options)


def clicks(rows=300):
    ids, values = batch(rows)
    return {"ids": ids, "values": values, "slot_field": SLOTS, "label": torch.rand(rows).round()}


@pytest.mark.parametrize("update", ["lazy", "dense"])
@pytest.mark.parametrize("variant", BLOCKS)
def test_slicing_changes_neither_loss_nor_gradients(variant, update):
    one = module(variant=variant, deep=[6], table_update=update)
    rows = clicks()
    results = []
    for size in (None, 64):
        one.slice_rows = size
        one.zero_grad()
        loss = one.loss(rows)
        (3 * loss).backward()
        results.append(
            [loss.detach(), *(p.grad.to_dense() if p.grad.is_sparse else p.grad for p in one.net.parameters())]
        )
        with torch.no_grad():
            results[-1].append(one(rows))
    for whole, sliced in zip(*results, strict=True):
        torch.testing.assert_close(sliced, whole, atol=1e-6, rtol=1e-4)


def test_batch_normalised_nets_are_not_sliced():
    assert module(deep=[6], deep_batch_norm=True).slice_rows is None
    assert module(deep=[6]).slice_rows > 0


def test_sliced_sum_without_gradients_and_with_unused_parameters():
    x, used, unused = torch.randn(10, 3), torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))

    def function(part):
        return (part @ used).sum()

    value = sliced_sum(function, [x], [used, unused], 4)
    torch.testing.assert_close(value, function(x))
    value.backward()
    torch.testing.assert_close(used.grad, x.sum(0))
    assert not unused.grad.any()
    with torch.no_grad():
        torch.testing.assert_close(sliced_sum(function, [x], [used], 4), function(x))


def test_penalties_are_those_of_their_programs():
    dense = module(table_update="dense", table_l2=0.5, deep=[6], deep_l2=0.1)
    want = 0.25 * dense.net.table.weight.square().sum() + 0.05 * dense.net.deep.layers[0].weight.square().sum()
    torch.testing.assert_close(dense.penalty(), want)
    lazy = module(table_l2=0.5)
    assert lazy.penalty() == 0.0
    assert [group["weight_decay"] for group in lazy.configure_optimizers().param_groups] == [0.0, 0.5]


def test_gradients_of_lazy_tables_are_clipped_with_the_rest():
    rows = clicks()
    norms = []
    for update in ("lazy", "dense"):
        one = module(table_update=update)
        optimizer = one.configure_optimizers()
        one.loss(rows).backward()
        if update == "dense":
            torch.nn.utils.clip_grad_norm_(one.net.parameters(), 0.01)
        else:
            one.configure_gradient_clipping(optimizer, 0.01, "norm")
        norms.append([p.grad.to_dense() if p.grad.is_sparse else p.grad for p in one.net.parameters()])
    for lazy, dense in zip(*norms, strict=True):
        torch.testing.assert_close(lazy, dense, atol=1e-7, rtol=1e-4)


def test_dense_tensorflow_adam_moves_rows_that_a_batch_does_not_touch():
    one = module(table_update="dense", adam="tensorflow")
    optimizer = one.configure_optimizers()
    ids, values = batch(4)
    rows = {"ids": ids, "values": values, "slot_field": SLOTS, "label": torch.ones(4)}
    one.loss(rows).backward()
    optimizer.step()
    optimizer.zero_grad()
    touched = one.net.table.weight.detach().clone()
    other = {**rows, "ids": ids.clone()}
    other["ids"][:, 2] = 15 - (ids[:, 2] - 7) % 2  # another ad
    click_loss(one(other), rows["label"]).backward()
    optimizer.step()
    untouched = torch.ones(len(touched), dtype=torch.bool)
    untouched[other["ids"].flatten()] = False
    seen = torch.zeros_like(untouched)
    seen[ids.flatten()] = True
    assert (one.net.table.weight[untouched & seen] != touched[untouched & seen]).any()
