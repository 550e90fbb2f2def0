"""Losses: batch-hard triplets against a double loop, weighting by uncertainty, groups of parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.errors import ConfigError
from domains.finegrained.dcal import DCAL
from domains.finegrained.heads import BNNeck, BranchOutput
from domains.finegrained.losses import branch_loss, hardest_pairs, triplet_loss, uncertainty_weighted
from domains.finegrained.optimisation import parameter_groups


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 9), far=st.sampled_from([0.0, 1e3]))
def test_hardest_pairs_equal_a_double_loop(seed, count, far):
    generator = torch.Generator().manual_seed(seed)
    features = (torch.randn(count, 4, generator=generator) + far).requires_grad_()
    labels = torch.randint(3, (count,), generator=generator)
    labels[:2] = torch.tensor([0, 1])
    pairs = hardest_pairs(features.detach(), labels)
    exact = features.detach().double()
    for i in range(count):
        apart = [float((exact[i] - exact[j]).norm()) for j in range(count)]
        assert float(pairs.positive[i]) == pytest.approx(
            max(apart[j] for j in range(count) if labels[j] == labels[i]), rel=1e-4, abs=2e-6
        )
        assert float(pairs.negative[i]) == pytest.approx(
            min(apart[j] for j in range(count) if labels[j] != labels[i]), rel=1e-4, abs=2e-6
        )
    triplet_loss(features, labels).backward()
    assert features.grad.isfinite().all()


def test_triplet_margins():
    features, labels = torch.tensor([[0.0], [1.0], [3.0], [3.5]]), torch.tensor([0, 0, 1, 1])
    assert float(triplet_loss(features, labels, 0.3)) == 0.0
    assert float(triplet_loss(features, labels, 3.0)) == pytest.approx((1.0 + 2.0 + 1.5 + 1.0) / 4)
    soft = torch.tensor([1 - 3.0, 1 - 2.0, 0.5 - 2.0, 0.5 - 2.5]).exp().log1p().mean()
    torch.testing.assert_close(triplet_loss(features, labels), soft)
    with pytest.raises(ConfigError, match="one identity only"):
        triplet_loss(features, torch.zeros(4, dtype=torch.int64))


def test_uncertainty_weighting():
    w = torch.tensor([0.0, 1.0, -1.0], requires_grad=True)
    losses = [torch.tensor(2.0), torch.tensor(3.0), torch.tensor(4.0)]
    total = uncertainty_weighted(losses, w)
    expected = 0.5 * (2 + 3 * torch.tensor(-1.0).exp() + 4 * torch.tensor(1.0).exp())
    torch.testing.assert_close(total, expected)
    total.backward()
    torch.testing.assert_close(w.grad, 0.5 * (1 - (-w.detach()).exp() * torch.tensor([2.0, 3.0, 4.0])))
    assert float(uncertainty_weighted(losses[:1], torch.zeros(1))) == 1.0


def test_branch_loss_is_cross_entropy_and_triplet():
    features, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    branch = BranchOutput(features, torch.randn(4, 2))
    entropy = torch.nn.functional.cross_entropy(branch.logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(branch_loss(branch, labels, smoothing=0.1), entropy)
    both = branch_loss(branch, labels, smoothing=0.1, triplet=0.5, margin=0.3)
    torch.testing.assert_close(both, entropy + 0.5 * triplet_loss(features, labels, 0.3))
    torch.testing.assert_close(branch_loss(branch, labels, smoothing=0.1, share=1 / 8), entropy / 2)


def test_neck_has_no_shift():
    neck = BNNeck(4, 3)
    neck(torch.randn(8, 4)).square().sum().backward()
    assert neck.bottleneck.bias.grad is None
    assert neck.classifier.bias is None
    assert neck.bottleneck.weight.grad is not None


def small():
    options = {"embed_dim": 24, "depth": 3, "num_heads": 3}
    return DCAL("vit_tiny_patch16_224", 5, (32, 32), "reid", backbone_options=options)


def test_groups_hold_every_learned_parameter_once():
    net = small()
    groups = parameter_groups(net, lr=0.01, weight_decay=0.05, layer_decay=0.5, bias_lr=2.0)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in net.parameters() if p.requires_grad}
    named = {id(p): name for name, p in net.named_parameters()}
    found = {named[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found["trunk.pos_embed"] == (0.01 * 0.5**4, 0.0)
    assert found["trunk.cls_token"] == (0.01 * 0.5**4, 0.0)
    assert found["trunk.patch_embed.proj.weight"] == (0.01 * 0.5**4, 0.05)
    assert found["trunk.blocks.0.attn.qkv.weight"] == (0.01 * 0.5**3, 0.05)
    assert found["trunk.blocks.2.attn.qkv.bias"] == (2 * 0.01 * 0.5, 0.0)
    assert found["glca.attn.qkv.weight"] == found["head.classifier.weight"] == (0.01, 0.05)
    assert found["trunk.blocks.2.norm1.weight"] == (0.01 * 0.5, 0.0)
    assert found["uncertainty_w"] == (0.01, 0.0)
    torch.optim.AdamW(groups)


def test_groups_without_decay_of_layers_are_two():
    groups = parameter_groups(small(), lr=0.01, weight_decay=0.05)
    assert sorted({(group["lr"], group["weight_decay"]) for group in groups}) == [(0.01, 0.0), (0.01, 0.05)]
    assert len(groups) == 2
    with pytest.raises(ConfigError, match=r"lie in \(0, 1\]"):
        parameter_groups(small(), lr=0.01, weight_decay=0.05, layer_decay=0.0)
