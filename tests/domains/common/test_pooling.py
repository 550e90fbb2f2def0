"""Pooling of packed bags: GatedAttentionPooling(...) and LearnedQueryPooling(...)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.attention import (
    BranchLinear,
    GatedAttentionPooling,
    InstanceMasking,
    LearnedQueryPooling,
    diversity_loss,
    record,
)
from domains.common.attention.multi_branch import MASKED, split_bags

POOLINGS = {
    "gated": lambda: GatedAttentionPooling(8, 6, branches=3),
    "one branch": lambda: GatedAttentionPooling(8, 6),
    "learned queries": lambda: spread(LearnedQueryPooling(8, 3, heads=2)),
}


def spread(block):
    """Queries that differ as trained ones do (fresh ones are all but zero)."""
    torch.nn.init.normal_(block.queries)
    return block


def plain_gated(block, h):
    v, u = block.gate(h).chunk(2, -1)
    scores = block.score(v.tanh() * u.sigmoid()).T
    weights = scores.softmax(-1)
    return weights @ h, weights[None], scores[None]


def plain_learned(block, h):
    """Keys and values as the paper writes them."""
    c = block.dim // block.heads
    branches, weights, scores = [], [], []
    query = block.query(block.queries)
    for k in range(block.branches):
        keys = F.linear(h, block.key.weight[k], block.key.bias[k]).view(-1, block.heads, c)
        s = torch.einsum("hc,nhc->hn", query[k].view(block.heads, c), keys) / c**0.5
        w = s.softmax(-1)
        branches.append(w @ h)
        weights.append(w)
        scores.append(s)
    return torch.stack(branches), torch.stack(weights, 1), torch.stack(scores, 1)


@pytest.mark.parametrize("name", POOLINGS)
@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_bags_are_pooled_alone_as_in_any_batch(name, sizes, seed):
    torch.manual_seed(seed)
    block = POOLINGS[name]()
    plain = plain_gated if isinstance(block, GatedAttentionPooling) else plain_learned
    h = torch.randn(sum(sizes), 8)
    packed = block(h, sizes)
    for i, bag in enumerate(split_bags(h, sizes)):
        alone = block(bag)
        branches, weights, scores = plain(block, bag)
        for found, wanted in (
            (packed.branches[i], branches), (packed.weights[i], weights), (packed.logits[i], scores),
            (alone.branches[0], branches), (alone.weights[0], weights), (alone.logits[0], scores),
        ):  # fmt: skip
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", POOLINGS)
def test_bags_are_sets(name):
    block, h, order = POOLINGS[name](), torch.randn(7, 8), torch.randperm(7)
    torch.testing.assert_close(block(h[order]).branches, block(h).branches, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(block(h[order]).weights[0], block(h).weights[0][..., order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", POOLINGS)
def test_recorder_sees_each_bag(name):
    block = POOLINGS[name]()
    with record(block) as maps:
        pooled = block(torch.randn(9, 8), [4, 5])
    assert [tuple(found.shape) for found in maps[""]] == [(pooled.weights[0].shape[:2].numel(), n) for n in (4, 5)]
    torch.testing.assert_close(maps[""][1].sum(-1), torch.ones(len(maps[""][1])))


@pytest.mark.parametrize("name", POOLINGS)
def test_gradients_are_those_of_the_plain_form(name):
    block, h = POOLINGS[name](), torch.randn(6, 8, requires_grad=True)
    plain = plain_gated if isinstance(block, GatedAttentionPooling) else plain_learned
    probe = torch.randn_like(block(h).branches)
    parameters = [h, *(p for n, p in block.named_parameters() if not n.startswith("out"))]

    def gradients(branches, weights):
        return torch.autograd.grad((branches * probe).sum() + diversity_loss(weights), parameters)

    ours = block(h)
    for found, wanted in zip(gradients(ours.branches, ours.weights[0]), gradients(*plain(block, h)[:2]), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 12),
    top=st.integers(0, 15),
    probability=st.floats(0, 1),
    scaled=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_masking_takes_its_share_of_the_largest(rows, length, top, probability, scaled, seed):
    torch.manual_seed(seed)
    logits = torch.randn(rows, length)
    candidates = min(top, length // 4) if scaled else min(top, length)
    for reading in ("exact", "bernoulli"):
        mask = InstanceMasking(top, probability, reading, scaled).mask(logits)
        largest = torch.zeros_like(mask).scatter_(1, logits.topk(candidates, -1).indices, value=True)
        assert not (mask & ~largest).any()
        if reading == "exact":
            assert (mask.sum(1) == int(candidates * probability)).all()
    always = InstanceMasking(top, 1.0, "bernoulli", scaled).mask(logits)
    assert (always.sum(1) == candidates).all()


def test_masking_follows_the_draws_it_is_given():
    logits = torch.tensor([[5.0, 1.0, 4.0, 3.0, 2.0]])
    draws = torch.tensor([[0.9, 0.1, 0.5, 0.2]])  # for the logits 5, 4, 3, 2
    assert InstanceMasking(4, 0.5).mask(logits, draws).tolist() == [[False, False, True, False, True]]
    bernoulli = InstanceMasking(4, 0.45, "bernoulli").mask(logits, draws)
    assert bernoulli.tolist() == [[False, False, True, False, True]]


@pytest.mark.parametrize("name", POOLINGS)
def test_masked_instances_weigh_nothing_and_a_bag_without_any_left_is_even(name):
    block = POOLINGS[name]()
    pooled = block(torch.randn(20, 8), [15, 5], masking=InstanceMasking(10, 0.6))
    for weights, logits, count in zip(pooled.weights, pooled.logits, (6, 3), strict=True):
        assert ((logits == MASKED) == (weights == 0)).all()
        assert ((weights == 0).sum(-1) == count).all()
    even = block(torch.randn(4, 8), masking=InstanceMasking(10, 1.0))
    torch.testing.assert_close(even.weights[0], torch.full_like(even.weights[0], 0.25))


def test_diversity_is_the_mean_cosine_of_pairs():
    weights = torch.rand(2, 4, 7).softmax(-1)
    pairs = [
        F.cosine_similarity(weights[:, i], weights[:, j], dim=-1).mean() for i in range(4) for j in range(i + 1, 4)
    ]
    torch.testing.assert_close(diversity_loss(weights), torch.stack(pairs).mean())
    assert diversity_loss(weights[:, :1]) == 0
    torch.testing.assert_close(diversity_loss(weights[:, :1].expand(2, 3, 7)), torch.tensor(1.0))


def test_errors_name_what_is_wrong():
    for sizes in ([3, 0, 4], [3, 3], []):
        with pytest.raises(ValueError, match="each needs at least one"):
            split_bags(torch.randn(7, 2), sizes)
    with pytest.raises(ValueError, match="does not divide"):
        LearnedQueryPooling(9, 2, heads=2)
    for wrong in ({"top": -1}, {"probability": 1.5}, {"reading": "maybe"}):
        with pytest.raises(ValueError, match="masking of top"):
            InstanceMasking(**wrong)


def test_branch_linear_is_a_linear_map_of_each_branch():
    block, x = BranchLinear(3, 5, 2), torch.randn(4, 3, 5)
    for k in range(3):
        torch.testing.assert_close(block(x)[:, k], F.linear(x[:, k], block.weight[k], block.bias[k]))
