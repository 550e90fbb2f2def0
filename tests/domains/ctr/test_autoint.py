from __future__ import annotations

import pytest
import torch

from domains.common.errors import ConfigError
from domains.ctr.autoint import BLOCKS, AutoInt
from domains.ctr.fields import FieldLayout
from domains.ctr.logistic import LogisticRegression

FIELDS = [
    {"name": "age", "kind": "numerical"},
    {"name": "site", "kind": "categorical", "size": 6},
    {"name": "ad", "kind": "categorical", "size": 9},
    {"name": "topics", "kind": "multi", "size": 5},
]
SLOTS = torch.tensor([0, 1, 2, 3, 3, 3])


def batch(rows=16, seed=0):
    torch.manual_seed(seed)
    ids = torch.stack(
        [
            torch.zeros(rows).long(),
            torch.randint(1, 7, (rows,)),
            torch.randint(7, 16, (rows,)),
            *torch.randint(17, 21, (3, rows)),
        ],
        1,
    )
    values = torch.cat([torch.randn(rows, 1), torch.ones(rows, 2), torch.tensor([1.0, 1.0, 0.0]).expand(rows, 3)], 1)
    return ids, values


def network(variant="official", **options):
    torch.manual_seed(1)
    return AutoInt(FIELDS, dim=8, depth=2, width=8, heads=2, variant=variant, **options)


def criteo(**options):
    fields = [{"name": f"I{i}", "kind": "numerical"} for i in range(13)]
    return AutoInt([*fields, *({"name": f"C{i}", "kind": "categorical", "size": 10} for i in range(26))], **options)


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameter_counts_of_the_paper():
    net = criteo()
    assert count(net) - net.table.weight.numel() == 40_513  # the authors' program
    plain = criteo(variant="paper")
    assert count(plain) - plain.table.weight.numel() == 39_361  # table 3: 3.9e4, no biases, no normalisation
    movielens = [{"name": str(i), "kind": "categorical", "size": 5} for i in range(6)] + [FIELDS[3]]
    net = AutoInt(movielens)
    assert count(net) - net.table.weight.numel() == 38_465


@pytest.mark.parametrize("variant", BLOCKS)
def test_gradient_reaches_every_parameter(variant):
    net = network(variant, deep=(6, 4), deep_batch_norm=variant == "official")
    logits = net(*batch(64), SLOTS)
    (logits * torch.randn(64)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("variant", BLOCKS)
def test_a_row_is_scored_alone_as_in_any_batch(variant):
    net = network(variant, deep=(6,)).eval()
    ids, values = batch()
    together = net(ids, values, SLOTS)
    order = torch.randperm(16)
    torch.testing.assert_close(net(ids[3:4], values[3:4], SLOTS), together[3:4], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(net(ids[order], values[order], SLOTS), together[order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", BLOCKS)
def test_padding_and_order_inside_a_bag_change_nothing(variant):
    net = network(variant).eval()
    ids, values = batch()
    padded = torch.cat([ids, torch.full((16, 4), 18)], 1), torch.cat([values, torch.zeros(16, 4)], 1)
    slots = torch.cat([SLOTS, torch.full((4,), 3)])
    torch.testing.assert_close(net(*padded, slots), net(ids, values, SLOTS))
    flipped = [0, 1, 2, 4, 3, 5]
    torch.testing.assert_close(net(ids[:, flipped], values[:, flipped], SLOTS), net(ids, values, SLOTS))


def test_embeddings_are_those_of_equations_2_to_4():
    net = network()
    ids, values = batch()
    values[0, 1] = 0.0  # missing category
    values[1, 3:] = 0.0  # empty bag
    weight = net.table.weight
    embeddings = net.embed(ids, values, SLOTS)
    torch.testing.assert_close(embeddings[:, 0], weight[0] * values[:, :1])
    assert (embeddings[0, 1] == 0).all()
    assert (embeddings[1, 3] == 0).all()
    torch.testing.assert_close(embeddings[2, 3], (weight[ids[2, 3]] + weight[ids[2, 4]]) / 2)
    torch.testing.assert_close(embeddings[2, 2], weight[ids[2, 2]])


def test_numerical_fields_bypass_attention_in_deepctr_torch_alone():
    ids, values = batch()
    changed = values.clone()
    changed[:, 0] += 1
    for variant in BLOCKS:
        net = network(variant).eval()
        a, b = net.interact(net.embed(ids, values, SLOTS)[:, net.attended]), None
        b = net.interact(net.embed(ids, changed, SLOTS)[:, net.attended])
        assert torch.equal(a, b) == (variant == "deepctr_torch")


def test_sparse_gradient_equals_dense():
    ids, values = batch()
    grads = []
    for sparse in (False, True):
        net = network(wide=True, sparse=sparse)
        net(ids, values, SLOTS).sum().backward()
        grads.append([net.table.weight.grad, net.wide.weight.grad])
    for dense, sparse in zip(*grads, strict=True):
        assert sparse.is_sparse
        torch.testing.assert_close(sparse.to_dense(), dense)


def test_compiled_equals_eager():
    net = network(deep=(6,)).eval()
    ids, values = batch()
    want = net(ids, values, SLOTS)
    net.compile_interaction()
    torch.testing.assert_close(net(ids, values, SLOTS), want, atol=1e-5, rtol=1e-5)


def test_depth_zero_needs_another_part():
    assert network(deep=(4,)).output is not None
    with pytest.raises(ConfigError, match="no output"):
        AutoInt(FIELDS, depth=0)
    assert AutoInt(FIELDS, depth=0, wide=True)(*batch(), SLOTS).shape == (16,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 9}, "does not divide width=9"),
        ({"width": [8, 8, 8]}, "lists 3 layers and depth is 2"),
        ({"variant": "recbole", "width": [8, 16]}, "one width"),
    ],
)
def test_contradictory_options(options, message):
    with pytest.raises(ConfigError, match=message):
        AutoInt(FIELDS, **{"depth": 2, "width": 8, "heads": 2, **options})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "at least one field"),
        ([{"name": "a", "kind": "text"}], "kind is 'text'"),
        ([{"name": "a", "kind": "categorical", "size": 0}], "size is 0"),
        ([FIELDS[0], FIELDS[0]], "listed twice"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        FieldLayout(fields)


def test_logistic_regression_is_a_sum_of_weights():
    net = LogisticRegression(FIELDS)
    ids, values = batch()
    want = (net.table.weight[ids].squeeze(-1) * values).sum(1) + net.bias
    torch.testing.assert_close(net(ids, values, SLOTS), want)
