from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from domains.common.errors import CheckpointMismatchError
from domains.medical.acmil import ABMIL, ACMIL, PoolingMIL
from domains.medical.losses import bag_losses
from domains.medical.weights import from_official, to_official


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def networks():
    yield "gated", ACMIL(12, 3, 16, branches=4, gate_dim=8)
    yield "multi-head", ACMIL(12, 3, 16, attention="multi_head", branches=3, heads=4, dropout=0.0)
    yield "abmil", ABMIL(12, 3, 16, gate_dim=8)
    yield "mean", PoolingMIL(12, 3, 16)
    yield "max", PoolingMIL(12, 3, 16, pooling="max")


NETWORKS = dict(networks())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"feature_dim": 384, "dim": 128}, 84_369),
        ({"feature_dim": 1024, "dim": 512}, 662_417),
        ({"feature_dim": 384, "dim": 128, "attention": "multi_head"}, 416_140),
        ({"feature_dim": 1024, "dim": 512, "attention": "multi_head"}, 6_317_580),
    ],
)
def test_parameter_count_of_the_official_code(options, wanted):
    assert count(ACMIL(n_classes=2, **options)) == wanted


@pytest.mark.parametrize(("feature_dim", "dim", "millions"), [(384, 128, 84.0), (512, 256, 201.5)])
def test_multiply_accumulates_of_the_paper(feature_dim, dim, millions):
    network = ABMIL(feature_dim, 2, dim).eval()
    x = torch.randn(1024, feature_dim)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.attention.scorer()(network.instances(x))
    assert counter.get_total_flops() / 2e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_a_bag_gets_alone_as_in_any_batch(name, sizes, seed):
    torch.manual_seed(seed)
    network = NETWORKS[name].eval()
    x = torch.randn(sum(sizes), 12)
    packed = network(x, sizes)
    alone = torch.cat([network(bag) for bag in x.split(sizes)])
    torch.testing.assert_close(packed, alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_order_and_padding_by_other_bags_change_nothing(name):
    network, x, order = NETWORKS[name].eval(), torch.randn(9, 12), torch.randperm(9)
    torch.testing.assert_close(network(x[order]), network(x), atol=1e-6, rtol=1e-5)
    beside = torch.full((30, 12), 1e3)
    torch.testing.assert_close(network(torch.cat([beside, x]), [30, 9])[1:], network(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    network = NETWORKS[name].train()
    network.zero_grad()
    if name == "multi-head":
        torch.nn.init.normal_(network.attention.queries)
    output = network.pool(torch.randn(60, 12), [25, 35])
    torch.stack([loss.sum() for loss in bag_losses(output, torch.tensor([0, 2])).values()]).sum().backward()
    # what adds one number to all scores of a branch changes no attention: its gradient is there, and zero but for noise
    shifts = ("attention.score.bias", "attention.key.bias")
    missing = [n for n, p in network.named_parameters() if p.grad is None]
    still = [n for n, p in network.named_parameters() if n not in shifts and not p.grad.abs().sum() > 0]
    assert (missing, still) == ([], [])


@pytest.mark.parametrize("name", ["gated", "multi-head", "abmil"])
def test_blocks_of_inference_change_nothing(name):
    network, x = NETWORKS[name].eval(), torch.randn(2500, 12)
    with torch.no_grad():
        blocked = network.pool(x, [700, 1800])
    whole = network.pool(x.clone().requires_grad_(), [700, 1800])  # never in blocks
    torch.testing.assert_close(blocked.logits, whole.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blocked.weights[1], whole.weights[1], atol=1e-6, rtol=1e-4)


def test_attention_of_a_bag_adds_up_and_masking_is_of_training_only():
    network, x = NETWORKS["gated"], torch.randn(40, 12)
    output = network.eval().pool(x)
    torch.testing.assert_close(output.attention()[0].sum(), torch.tensor(1.0))
    assert output.branch_attention()[0].shape == (4, 40)
    assert (output.weights[0] > 0).all()
    masked = network.train().pool(x).weights[0]
    assert ((masked == 0).sum(-1) == 6).all()


def test_one_branch_without_masking_is_abmil():
    torch.manual_seed(1)
    one = ACMIL(12, 2, 16, branches=1, masked_top=0, gate_dim=8)
    torch.manual_seed(1)
    other = ABMIL(12, 2, 16, gate_dim=8)
    x = torch.randn(9, 12)
    assert torch.equal(one(x), other(x))
    assert set(bag_losses(one.pool(x), torch.tensor([1]))) == {"slide"}


def test_features_are_standardised_and_constant_ones_are_nothing():
    network = PoolingMIL(3, 2, 4, standardize=True)
    assert not network.measured
    network.measure(torch.tensor([1.0, 5.0, 0.0]), torch.tensor([2.0, 0.0, 1.0]))
    assert network.measured
    x = torch.tensor([[3.0, 5.0, 1.0]])
    plain = PoolingMIL(3, 2, 4)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("feature_")})
    torch.testing.assert_close(network(x), plain(torch.tensor([[1.0, 0.0, 1.0]])))


def test_losses_of_equal_branches():
    network = NETWORKS["gated"].eval()
    losses = bag_losses(network.pool(torch.randn(5, 12)), torch.tensor([1]), torch.tensor([1.0, 2.0, 1.0]))
    plain = bag_losses(network.pool(torch.randn(5, 12)), torch.tensor([1]))
    assert {name: loss.shape for name, loss in losses.items()} == dict.fromkeys(plain, torch.Size([1]))
    assert 0 < losses["diversity"] <= 1


def official_names(attention, branches):
    names = {"dimreduction.fc1.weight", "Slide_classifier.fc.weight", "Slide_classifier.fc.bias"}
    names |= {f"classifier.{k}.fc.{part}" for k in range(branches) for part in ("weight", "bias")}
    if attention == "gated":
        blocks = ("attention_V.0", "attention_U.0", "attention_weights")
        return names | {f"attention.{block}.{part}" for block in blocks for part in ("weight", "bias")}
    layers = ("q_proj", "k_proj", "v_proj", "out_proj", "layer_norm")
    names |= {f"sub_attention.{k}.{x}.{part}" for k in range(branches) for x in layers for part in ("weight", "bias")}
    return names | {"q"} | {f"bag_attention.{x}.{part}" for x in layers[2:] for part in ("weight", "bias")}


@pytest.mark.parametrize("attention", ["gated", "multi_head"])
@pytest.mark.parametrize("branches", [1, 3])
def test_official_weights_come_back(attention, branches):
    net = ACMIL(12, 3, 16, attention=attention, branches=branches, gate_dim=8)
    named = to_official(net)
    assert named.keys() == official_names(attention, branches)
    again = from_official({f"module.{name}": tensor for name, tensor in named.items()})
    assert again.arguments | {"gate_dim": 8} == net.arguments | {"gate_dim": 8}
    x = torch.randn(9, 12)
    assert torch.equal(again.eval()(x), net.eval()(x))
    assert all(torch.equal(tensor, to_official(again)[name]) for name, tensor in named.items())


def test_weights_that_do_not_fit_are_named():
    named = to_official(ACMIL(12, 3, 16, gate_dim=8))
    del named["classifier.4.fc.bias"]
    with pytest.raises(CheckpointMismatchError, match=r"missing: classifier\.4\.fc\.bias"):
        from_official(named)
    with pytest.raises(CheckpointMismatchError, match="missing: dimreduction"):
        from_official({"fc.weight": torch.ones(2, 2)})


def test_start_is_that_of_the_official_code():
    torch.manual_seed(0)
    net = ACMIL(100, 2, 64, attention="multi_head", branches=4)
    assert float(net.attention.queries.detach().std()) == pytest.approx(1e-6, rel=0.2)
    for weight, inputs in ((net.reduce.weight, 100), (net.attention.key.weight, 64), (net.branch_classifier.bias, 64)):
        assert weight.abs().max() <= 1 / math.sqrt(inputs)
        assert float(weight.detach().std()) == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.4)


def test_options_out_of_range_are_named():
    with pytest.raises(ValueError, match="branches=0"):
        ACMIL(4, 2, branches=0)
    with pytest.raises(ValueError, match="does not divide"):
        ACMIL(4, 2, 20, attention="multi_head")
    with pytest.raises(ValueError, match="pooling='sum'"):
        PoolingMIL(4, 2, pooling="sum")
