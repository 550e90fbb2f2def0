from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.attention import (
    FieldAttention,
    InjectionGate,
    InjectionHead,
    LQueryAttention,
    LQueryBlock,
    MultiHeadAttention,
    MultiQueryAttention,
    attend,
    causal_mask,
    key_padding_mask,
    record,
)
from domains.common.attention.injection import pooling_matrix, resize_map
from domains.ctr.autoint import BLOCKS

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 8))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10**6), masked=st.booleans(), biased=st.booleans())
def test_fused_equals_explicit(shape, seed, masked, biased):
    batch, heads, queries, keys, width = shape
    torch.manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, n, width, requires_grad=True) for n in (queries, keys, keys))
    mask = torch.rand(batch, 1, queries, keys) < 0.6 if masked else None
    bias = torch.randn(heads, queries, keys) if biased else None
    scale = 0.7 if seed % 2 else None
    fused, nothing = attend(q, k, v, mask=mask, bias=bias, scale=scale)
    explicit, weights = attend(q, k, v, mask=mask, bias=bias, scale=scale, need_weights=True)
    assert nothing is None
    torch.testing.assert_close(fused, explicit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights @ v, explicit, atol=1e-5, rtol=1e-5)
    probe = torch.randn_like(fused)
    for a, b in zip(
        torch.autograd.grad((fused * probe).sum(), (q, k, v)),
        torch.autograd.grad((explicit * probe).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("need_weights", [False, True])
def test_query_without_any_key_gets_zeros_and_clean_gradients(need_weights):
    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    out, weights = attend(q, k, v, mask=mask, need_weights=need_weights)
    assert (out[:, :, 2] == 0).all()
    assert weights is None or (weights[:, :, 2] == 0).all()
    out.sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (q, k, v))


def test_large_scores_do_not_overflow():
    q = torch.full((1, 1, 3, 4), 80.0)
    for need_weights in (False, True):
        out, _ = attend(q, q, torch.ones(1, 1, 3, 4), need_weights=need_weights)
        torch.testing.assert_close(out, torch.ones(1, 1, 3, 4))


def test_bias_learns():
    bias = torch.zeros(1, 3, 3, requires_grad=True)
    out, _ = attend(*(torch.randn(1, 1, 3, 4) for _ in range(3)), bias=bias)
    out.square().sum().backward()
    assert bias.grad.abs().sum() > 0


def test_dropout_needs_no_weights_and_keeps_the_mean():
    torch.manual_seed(0)
    v = torch.ones(1, 1, 64, 8)
    out, _ = attend(torch.zeros_like(v), torch.zeros_like(v), v, dropout=0.5)
    assert 0.8 < out.mean() < 1.2


@settings(max_examples=20, deadline=None)
@given(position=st.integers(0, 5), seed=st.integers(0, 1000))
def test_causal_block_ignores_the_future(position, seed):
    torch.manual_seed(seed)
    block = MultiHeadAttention(8, 2, causal=True).eval()
    x = torch.randn(2, 6, 8)
    changed = x.clone()
    changed[:, position + 1 :] = torch.randn(2, 5 - position, 8)
    torch.testing.assert_close(block(x)[:, : position + 1], block(changed)[:, : position + 1])


def test_causal_mask_composes_with_padding():
    block = MultiHeadAttention(8, 2, causal=True).eval()
    x = torch.randn(2, 5, 8)
    padded = torch.cat([x, torch.full((2, 3, 8), 1e3)], dim=1)
    mask = key_padding_mask(torch.tensor([5, 5]), 8)
    torch.testing.assert_close(block(padded, mask=mask)[:, :5], block(x))
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_padding_changes_nothing():
    block = MultiHeadAttention(8, 2).eval()
    x = torch.randn(2, 5, 8)
    mask = key_padding_mask(torch.tensor([3, 5]), 5)
    changed = x.clone()
    changed[0, 3:] = 7.0
    torch.testing.assert_close(block(x, mask=mask)[0, :3], block(changed, mask=mask)[0, :3])


def test_cross_attention_and_its_errors():
    block = MultiHeadAttention(8, 2, context_dim=6)
    assert block(torch.randn(2, 3, 8), torch.randn(2, 7, 6)).shape == (2, 3, 8)
    with pytest.raises(ValueError, match="does not divide"):
        MultiHeadAttention(8, 3)
    with pytest.raises(ValueError, match="takes no context"):
        MultiHeadAttention(8, 2, causal=True)(torch.randn(1, 2, 8), torch.randn(1, 2, 8))
    with pytest.raises(ValueError, match="does not divide"):
        FieldAttention(8, 9, 2)


def blocks():
    yield "multihead", MultiHeadAttention(8, 2)
    for variant, options in BLOCKS.items():
        yield f"field-{variant}", FieldAttention(8, 8, 2, **options)
        yield f"field-{variant}-wider", FieldAttention(8, 12, 3, **options)


@pytest.mark.parametrize(("name", "block"), list(blocks()), ids=lambda value: value if isinstance(value, str) else "")
class TestEveryBlock:
    def test_fused_equals_recorded(self, name, block):
        x = torch.randn(4, 6, 8)
        fused = block.eval()(x)
        with record(block) as maps:
            explicit = block(x)
        torch.testing.assert_close(fused, explicit, atol=1e-5, rtol=1e-5)
        weights = maps[""][0]
        assert weights.shape == (4, block.heads, 6, 6)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, block.heads, 6))
        assert block._sink is None

    def test_gradient_reaches_every_parameter(self, name, block):
        block.zero_grad()
        (
            block(torch.randn(16, 6, 8)) * torch.randn(16, 6, block.out.out_features if block.out else block.width)
        ).sum().backward()
        assert [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    def test_fields_are_a_set(self, name, block):
        x = torch.randn(3, 6, 8)
        order = torch.randperm(6)
        torch.testing.assert_close(block(x)[:, order], block(x[:, order]), atol=1e-5, rtol=1e-5)

    def test_batch_is_independent(self, name, block):
        x = torch.randn(5, 6, 8)
        torch.testing.assert_close(block(x)[1:3], block(x[1:3]), atol=1e-6, rtol=1e-5)


def test_recorder_names_what_it_does_not_know():
    with (
        pytest.raises(KeyError, match="no recordable attention block named 'x'"),
        record(MultiHeadAttention(8, 2), "x"),
    ):
        raise AssertionError("not reached")


def sequence_blocks():
    yield "l-query-1", LQueryAttention(8, 2, window=1)
    yield "l-query-3", LQueryAttention(8, 2, window=3)
    yield "l-query-block", LQueryBlock(8, 2, window=3)
    yield "multi-query", MultiQueryAttention(8, 2, 2, windows=(1, 3), weights=(0.3, 0.7))


@pytest.mark.parametrize(
    ("name", "block"), list(sequence_blocks()), ids=lambda value: value if isinstance(value, str) else ""
)
class TestEverySequenceBlock:
    @staticmethod
    def rows(lengths=(6, 4, 1)):
        keep = torch.arange(6) >= 6 - torch.tensor(lengths)[:, None]
        return torch.randn(len(lengths), 6, 8) * keep[..., None], keep

    def test_fused_equals_recorded(self, name, block):
        x, keep = self.rows()
        fused = block.eval()(x, keep)
        with record(block) as maps:
            explicit = block(x, keep)
        torch.testing.assert_close(fused[keep], explicit[keep], atol=1e-5, rtol=1e-5)
        for weights in (found[0] for found in maps.values()):
            assert weights.shape == (3, 2, 6, 6)
            assert (weights.triu(1) == 0).all()
            assert (weights[1, :, :, :2] == 0).all(), "padding is no key"
            torch.testing.assert_close(weights.sum(-1), keep[:, None].float().expand(-1, 2, -1), atol=1e-5, rtol=0)

    def test_gradient_reaches_every_parameter(self, name, block):
        block.zero_grad()
        x, keep = self.rows((6, 6, 5))
        (block(x, keep) * torch.randn(3, 6, 8)).sum().backward()
        assert [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    def test_causal_and_padding_proof(self, name, block):
        x, keep = self.rows((6, 3))
        changed = x.clone()
        changed[:, 5] = torch.randn(2, 8)
        before, after = block.eval()(x, keep), block(changed, keep)
        torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=1e-5)
        alone = block(x[1:, 3:], keep[1:, 3:])
        torch.testing.assert_close(alone[0], before[1, 3:], atol=1e-5, rtol=1e-5)

    def test_sequences_that_share_a_row_do_not_meet(self, name, block):
        x = torch.randn(1, 6, 8)
        keep, segment = torch.ones(1, 6, dtype=torch.bool), torch.tensor([[0, 0, 0, 0, 1, 1]])
        together = block.eval()(x, keep, segment)
        for part in (slice(0, 4), slice(4, 6)):
            alone = block(x[:, part], keep[:, part])
            torch.testing.assert_close(together[:, part], alone, atol=1e-5, rtol=1e-5)


def test_l_query_errors():
    with pytest.raises(ValueError, match="does not divide"):
        LQueryAttention(8, 3)
    with pytest.raises(ValueError, match="at least the latest"):
        LQueryAttention(8, 2, window=0)


@pytest.mark.parametrize(("kind", "start", "gates"), [("channel", 1.0, 8), ("sigmoid", 0.5, 8), ("spatial", 1.0, 1)])
def test_injected_gates_are_recorded_and_start_as_promised(kind, start, gates):
    head = InjectionHead(channels=8, body_channels=4, hidden=6, gate=kind).eval()
    features, body = torch.randn(2, 8, 7, 5), torch.randn(2, 4, 28, 28)
    with record(head) as maps:
        out = head(features, body)
    assert maps["gate"][0].shape == (2, gates, 7, 5)
    assert (maps["gate"][0] == start).all()
    torch.testing.assert_close(out, start * features)
    assert InjectionGate(6, 8)(torch.randn(1, 6, 3, 3)).shape == (1, 8, 3, 3)


def test_injected_gates_stay_below_their_ceiling():
    for ceiling in (1.0, 2.0):
        gate = InjectionGate(6, 8, ceiling)
        torch.nn.init.normal_(gate.weight)
        gates = gate(torch.randn(2, 6, 9, 9))
        assert gates.min() > 0
        assert gates.max() < ceiling


@pytest.mark.parametrize(("height", "width"), [(15, 15), (9, 16), (1, 3), (16, 16)])
def test_pooling_by_matrices_equals_adaptive_pooling(height, width):
    maps = torch.randn(2, 3, 16, 16)
    by_matrix = pooling_matrix(maps, -2, height) @ maps @ pooling_matrix(maps, -1, width).T
    torch.testing.assert_close(by_matrix, resize_map(maps, height, width))


def test_maps_that_grow_in_any_direction_are_interpolated():
    ramp = torch.arange(4.0).expand(1, 1, 8, 4)
    assert resize_map(ramp, 4, 8)[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
