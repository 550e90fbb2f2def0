"""Attention between two streams in windows, attention that corrects distributions, and what is kept of weights."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.attention import ReliabilityAttention, WindowCrossAttention, record
from domains.common.attention.window import relative_position_index
from domains.common.attention.window_cross import from_windows, to_windows
from domains.common.derived import Derived


@settings(max_examples=25, deadline=None)
@given(
    window=st.integers(1, 5),
    down=st.integers(1, 3),
    across=st.integers(1, 3),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_windows_come_back(window, down, across, batch, seed):
    torch.manual_seed(seed)
    x = torch.randn(batch, down * window, across * window, 3)
    windows = to_windows(x, window)
    assert windows.shape == (batch, down * across, window**2, 3)
    assert torch.equal(windows[0, 0], x[0, :window, :window].reshape(-1, 3))
    assert torch.equal(from_windows(windows, *x.shape[1:3]), x)


class TestWindowCrossAttention:
    @staticmethod
    def make(window=3):
        torch.manual_seed(0)
        block = WindowCrossAttention(dim=8, heads=2, window=window)
        torch.nn.init.normal_(block.relative_position_bias_table)
        return block, torch.randn(2, 4, window**2, 8), torch.randn(2, window**2, 8)

    def test_the_equation(self):
        block, windows, query = self.make()
        key, value = block.key_value(windows).chunk(2, -1)
        bias = block.relative_position_bias_table[relative_position_index(3)]  # (9, 9, heads)
        heads = []
        for h, part in enumerate((slice(0, 4), slice(4, 8))):
            scores = query[:, None, :, part] @ key[..., part].mT / 2 + bias[..., h]
            heads.append(scores.softmax(-1) @ value[..., part])
        torch.testing.assert_close(block(windows, query), block.out(torch.cat(heads, -1)))

    def test_fused_equals_recorded(self):
        block, windows, query = self.make()
        with torch.no_grad():
            fused = block.eval()(windows, query)
            with record(block) as maps:
                explicit = block(windows, query)
        torch.testing.assert_close(fused, explicit, atol=1e-5, rtol=1e-5)
        assert maps[""][0].shape == (8, 2, 9, 9)
        torch.testing.assert_close(maps[""][0].sum(-1), torch.ones(8, 2, 9))

    def test_gradient_reaches_every_parameter(self):
        block, windows, query = self.make()
        query.requires_grad_()
        (block(windows, query) * torch.randn_like(windows)).sum().backward()
        assert query.grad.abs().sum() > 0
        assert [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    def test_windows_do_not_see_each_other(self):
        block, windows, query = self.make()
        torch.testing.assert_close(block(windows, query)[:, 1:2], block(windows[:, 1:2], query))

    def test_a_changed_table_is_seen_at_inference(self):
        block, windows, query = self.make()
        with torch.no_grad():
            before = block(windows, query)
            block.relative_position_bias_table.mul_(-1)
            after = block(windows, query)
        torch.testing.assert_close(after, block(windows, query).detach(), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(before, after)

    def test_impossible_heads(self):
        with pytest.raises(ValueError, match="does not divide"):
            WindowCrossAttention(8, 3, 2)


class TestReliabilityAttention:
    @staticmethod
    def make(scope="batch", **options):
        torch.manual_seed(0)
        return ReliabilityAttention(dim=6, n_classes=4, anchors=3, heads=2, scope=scope, **options)

    @pytest.mark.parametrize("scope", ["batch", "sample"])
    def test_fused_equals_recorded(self, scope):
        block, x = self.make(scope).eval(), torch.randn(5, 6)
        fused = block(x)
        with record(block) as maps:
            torch.testing.assert_close(block(x), fused, atol=1e-6, rtol=1e-5)
        assert maps[""][0].shape == ((1, 2, 5, 5) if scope == "batch" else (5, 2, 1, 1))
        torch.testing.assert_close(fused.sum(-1), torch.ones(5))

    def test_gradient_reaches_every_parameter(self):
        block = self.make()
        (block(torch.randn(5, 6)) * torch.randn(5, 4)).sum().backward()
        names = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 1e-9]
        # a constant in all keys changes no weight of a softmax
        assert set(names) <= {"key.bias", "inner_key.bias"}

    def test_samples_alone_are_what_a_batch_of_one_is(self):
        block, x = self.make("batch"), torch.randn(5, 6)
        alone = torch.cat([block(row[None]) for row in x])
        block.scope = "sample"
        torch.testing.assert_close(block(x), alone, atol=1e-6, rtol=1e-5)

    def test_auto_is_batch_in_training_and_sample_in_evaluation(self):
        block, x = self.make("auto"), torch.randn(5, 6)
        for mode, scope in ((True, "batch"), (False, "sample")):
            other = copy.deepcopy(block).train(mode)
            other.scope = scope
            assert torch.equal(block.train(mode)(x), other(x))

    def test_impossible_options(self):
        with pytest.raises(ValueError, match="does not divide"):
            ReliabilityAttention(6, 4, heads=3)
        with pytest.raises(ValueError, match="choose auto"):
            ReliabilityAttention(6, 4, scope="all")  # type: ignore[arg-type]


def test_derived_tensors_are_kept_until_a_source_changes():
    made, weight, kept = [], torch.ones(2), Derived()

    def make():
        made.append(1)
        return (weight * 2,)

    assert kept((weight,), make)[0] is kept((weight,), make)[0]
    weight.add_(1)
    assert kept((weight,), make)[0].tolist() == [4.0, 4.0]
    assert len(made) == 2
    with torch.inference_mode():
        source = torch.ones(2)  # counts no changes
        kept((source,), make)
        kept((source,), make)
    assert len(made) == 4
    assert copy.deepcopy(kept)((weight,), make)[0].tolist() == [4.0, 4.0]
    assert len(made) == 5
