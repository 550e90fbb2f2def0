"""Rollout of one row, global-local and pair-wise cross-attention: exact identities of the formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.attention import (
    GlobalLocalCrossAttention,
    PairwiseCrossAttention,
    attention_map,
    record,
    rollout_matrix,
    rollout_row,
    select_tokens,
)
from domains.common.attention import rollout as module


def layers(depth, batch, heads, length, width, *, size=1.0, dtype=torch.float64):
    return [[size * torch.randn(batch, heads, length, width, dtype=dtype) for _ in range(depth)] for _ in range(2)]


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(2, 17), st.integers(1, 6)),
    seed=st.integers(0, 10**6),
    block=st.integers(1, 400),
    size=st.sampled_from([1.0, 30.0]),
    fusion=st.sampled_from(["mean", "max"]),
)
def test_row_is_the_first_row_of_the_product(shape, seed, block, size, fusion):
    torch.manual_seed(seed)
    queries, keys = layers(*shape, size=size)
    whole = rollout_matrix([attention_map(q, k, fusion=fusion) for q, k in zip(queries, keys, strict=True)])
    before, module.CPU_BLOCK = module.CPU_BLOCK, block
    try:
        row = rollout_row(queries, keys, fusion=fusion)
    finally:
        module.CPU_BLOCK = before
    torch.testing.assert_close(row, whole[:, 0], atol=1e-14, rtol=1e-12)
    if fusion == "mean":
        torch.testing.assert_close(row.sum(1), torch.ones(shape[1], dtype=torch.float64))


def test_row_in_float32_selects_as_float64():
    torch.manual_seed(0)
    queries, keys = layers(12, 2, 3, 197, 16, dtype=torch.float32)
    row = rollout_row(queries, keys)
    exact = rollout_row([q.double() for q in queries], [k.double() for k in keys])
    assert (row - exact).abs().max() < 1e-8
    assert torch.equal(select_tokens(row, 0.1), select_tokens(exact, 0.1))


def test_row_does_not_depend_on_autocast_and_takes_huge_scores():
    queries, keys = layers(3, 1, 2, 9, 4, size=60.0, dtype=torch.float32)
    row = rollout_row(queries, keys)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rollout_row(queries, keys), row)
    assert row.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.integers(0, 3), min_size=2, max_size=30), ratio=st.floats(0.01, 1.0), prefix=st.integers(1, 1)
)
def test_selection_is_by_weight_then_by_place(weights, ratio, prefix):
    row = torch.tensor([weights], dtype=torch.float32)
    patches = weights[prefix:]
    count = max(1, int(ratio * len(patches) + 1e-9))
    expected = sorted(range(len(patches)), key=lambda i: (-patches[i], i))[:count]
    assert select_tokens(row, ratio, prefix=prefix).tolist() == [[0] + [i + prefix for i in expected]]


def test_selection_counts_and_errors():
    assert select_tokens(torch.rand(2, 785), 0.1).shape == (2, 79)
    assert select_tokens(torch.rand(1, 11), 0.3).shape == (1, 4), "0.3 of 10 is 3, whatever floating point says"
    registers = select_tokens(torch.tensor([[0.1, 9.0, 9.0, 0.2, 0.3]]), 0.5, prefix=3)
    assert registers.tolist() == [[0, 4]]
    for ratio in (0.0, 1.1):
        with pytest.raises(ValueError, match="ratio"):
            select_tokens(torch.rand(1, 5), ratio)


def test_pair_with_itself_is_self_attention_and_order_of_the_other_image_is_irrelevant():
    block = PairwiseCrossAttention(12, 3).double()
    x, y = torch.randn(2, 2, 7, 12, dtype=torch.float64)
    _, k, v = block.project(x)
    torch.testing.assert_close(block(x, (k, v)), block(x))
    _, k, v = block.project(y)
    order = torch.randperm(7)
    torch.testing.assert_close(block(x, (k[:, :, order], v[:, :, order])), block(x, (k, v)))


def test_all_tokens_as_queries_is_self_attention():
    local, whole = GlobalLocalCrossAttention(12, 3), PairwiseCrossAttention(12, 3)
    whole.load_state_dict(local.state_dict())
    x = torch.randn(2, 7, 12)
    every = torch.arange(7).expand(2, -1)
    torch.testing.assert_close(local(x, every), whole(x))
    some = torch.tensor([[0, 5, 2], [0, 1, 6]])
    torch.testing.assert_close(local(x, some), torch.stack([whole(x)[i, some[i]] for i in range(2)]))


def calls():
    pair = PairwiseCrossAttention(8, 2, bias=False)
    yield "pairwise", pair, lambda x: pair(x, pair.project(x.flip(0))[1:])
    local = GlobalLocalCrossAttention(8, 2)
    yield "global-local", local, lambda x: local(x, torch.tensor([[0, 3, 1]]).expand(len(x), -1))


@pytest.mark.parametrize(
    ("name", "block", "call"), list(calls()), ids=lambda value: value if isinstance(value, str) else ""
)
class TestBothBlocks:
    def test_fused_equals_recorded(self, name, block, call):
        x = torch.randn(4, 6, 8)
        fused = call(x)
        with record(block) as maps:
            explicit = call(x)
        torch.testing.assert_close(fused, explicit, atol=1e-5, rtol=1e-5)
        weights = maps[""][0]
        assert weights.shape == ((4, 2, 6, 12) if name == "pairwise" else (4, 2, 3, 6))
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))

    def test_gradient_reaches_every_parameter(self, name, block, call):
        block.zero_grad()
        out = call(torch.randn(16, 6, 8))
        (out * torch.randn_like(out)).sum().backward()
        assert [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    def test_heads_must_divide(self, name, block, call):
        with pytest.raises(ValueError, match="does not divide"):
            type(block)(8, 3)
