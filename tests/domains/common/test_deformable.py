"""Deformable, group and window attention: the fast forms equal the formula; what the blocks promise of padding."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.attention import (
    GroupSelfAttention,
    MultiHeadAttention,
    MultiScaleDeformableAttention,
    ShiftedWindowAttention,
    record,
)
from domains.common.attention import deformable as module
from domains.common.attention.deformable import sample_gather, sample_grid
from domains.common.attention.window import relative_position_index

SIZES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)


def make_points(sizes, *, batch=2, queries=5, heads=2, points=3, width=4, reach=2.5, dtype=torch.float64):
    tokens = sum(h * w for h, w in sizes)
    shape = (batch, queries, heads, len(sizes), points)
    extent = torch.tensor(sizes, dtype=dtype)[:, :, None]
    y, x = (torch.rand(shape, dtype=dtype) * (extent[:, i] + 2 * reach) - reach - 0.5 for i in (0, 1))
    weights = torch.rand(shape, dtype=dtype).flatten(-2).softmax(-1).view(shape)
    return [torch.randn(batch, tokens, heads, width, dtype=dtype), x, y, weights]


@settings(max_examples=80, deadline=None)
@given(sizes=SIZES, points=st.integers(1, 5), seed=st.integers(0, 10**6), whole=st.booleans(), chunk=st.integers(1, 9))
def test_gather_equals_grid_sample_with_its_gradients(sizes, points, seed, whole, chunk):
    torch.manual_seed(seed)
    value, x, y, weights = make_points(sizes, points=points)
    if whole:  # at whole numbers both must take the derivative to the same side
        x, y = x.round(), y.round()
    leaves = [t.requires_grad_() for t in (value, x, y, weights)]
    before, module.CHUNK = module.CHUNK, chunk
    try:
        outs = [form(leaves[0], sizes, *leaves[1:]) for form in (sample_grid, sample_gather)]
        with torch.no_grad():
            torch.testing.assert_close(sample_gather(leaves[0], sizes, *leaves[1:]), outs[0], atol=1e-12, rtol=1e-12)
    finally:
        module.CHUNK = before
    torch.testing.assert_close(outs[1], outs[0], atol=1e-12, rtol=1e-12)
    probe = torch.randn_like(outs[0])
    grads = [torch.autograd.grad((out * probe).sum(), leaves) for out in outs]
    inside = torch.ones_like(x, dtype=torch.bool)
    if whole:  # one whole pixel outside is the edge itself: zero on both sides, and rounding says which
        extent = torch.tensor(sizes, dtype=torch.float64)[:, :, None]
        inside = (x > -1) & (y > -1) & (x < extent[:, 1]) & (y < extent[:, 0])
        near = torch.ones_like(x) * 1e-9
        leaves[1], leaves[2] = ((t.detach() + near).requires_grad_() for t in (x, y))
        outs = [form(leaves[0], sizes, *leaves[1:]) for form in (sample_grid, sample_gather)]
        grads[0] = torch.autograd.grad((outs[0] * probe).sum(), leaves)
    for i, (a, b) in enumerate(zip(*grads, strict=True)):
        keep = inside if i in (1, 2) else torch.ones_like(a, dtype=torch.bool)
        torch.testing.assert_close(a[keep], b[keep], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", [sample_grid, sample_gather])
def test_gradients_are_those_of_differences(form):
    sizes = [(3, 4), (2, 1), (1, 5)]
    inputs = [t.requires_grad_() for t in make_points(sizes, batch=1, queries=2, points=2, width=2)]
    assert torch.autograd.gradcheck(lambda value, *rest: form(value, sizes, *rest), inputs, eps=1e-7, atol=1e-5)


def test_points_far_outside_see_nothing_and_strange_ones_break_nothing():
    sizes = [(3, 4), (2, 2)]
    value, x, y, weights = make_points(sizes, dtype=torch.float32)
    for far in (-1e9, 1e9, float("inf"), -float("inf")):
        assert (sample_gather(value, sizes, torch.full_like(x, far), y, weights) == 0).all()
    assert sample_gather(value, sizes, torch.full_like(x, float("nan")), y, weights).isnan().all()


def test_more_rows_than_float32_counts_take_the_plain_form(monkeypatch):
    sizes = [(3, 4), (2, 2)]
    inputs = make_points(sizes)
    want = sample_gather(inputs[0], sizes, *inputs[1:])
    monkeypatch.setattr(module, "EXACT", 5)
    monkeypatch.setattr(module, "_table", None)
    torch.testing.assert_close(sample_gather(inputs[0], sizes, *inputs[1:]), want)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_compiled_arithmetic_equals_eager():
    sizes = [(5, 4), (2, 1)]
    inputs = make_points(sizes, dtype=torch.float32)
    want = sample_grid(inputs[0], sizes, *inputs[1:])
    torch.testing.assert_close(sample_gather(inputs[0], sizes, *inputs[1:], compiled=True), want)


class TestMultiScaleDeformableAttention:
    SIZES = ((6, 5), (3, 3))

    def make(self, **options):
        torch.manual_seed(0)
        block = MultiScaleDeformableAttention(dim=32, heads=2, levels=2, points=4, **options)
        for name in ("sampling_offsets", "attention_weights"):
            torch.nn.init.normal_(getattr(block, name).weight, std=0.3)
        return block

    def inputs(self):
        return torch.randn(2, 7, 32), torch.rand(2, 7, 2, 2), torch.randn(2, 39, 32)

    def test_backends_agree(self):
        query, references, memory = self.inputs()
        padding = torch.rand(2, 39) < 0.3
        outs = []
        for backend in ("grid_sample", "gather", "auto"):
            with torch.no_grad():
                block = self.make(backend=backend)
                outs.append(block(query, references, memory, self.SIZES, padding=padding))
        for out in outs[1:]:
            torch.testing.assert_close(out, outs[0], atol=1e-6, rtol=1e-5)

    def test_equals_the_equation(self):
        block, (query, references, memory) = self.make(), self.inputs()
        value = block.value_proj(memory).view(2, 39, 2, 16)
        offsets = block.sampling_offsets(query).view(2, 7, 2, 2, 4, 2)
        weights = block.attention_weights(query).view(2, 7, 2, 8).softmax(-1).view(2, 7, 2, 2, 4)
        extent = torch.tensor([(w, h) for h, w in self.SIZES])[:, None]
        place = (references[:, :, None, :, None] + offsets / extent) * extent - 0.5
        want = block.output_proj(sample_grid(value, self.SIZES, *place.unbind(-1), weights))
        torch.testing.assert_close(block(query, references, memory, self.SIZES), want, atol=1e-6, rtol=1e-5)

    def test_padding_is_not_seen(self):
        block, (query, references, memory) = self.make(), self.inputs()
        padding = torch.zeros(2, 39, dtype=torch.bool)
        padding[:, 5::7] = True
        changed = memory.masked_fill(padding[..., None], 99.0)
        with torch.no_grad():
            outs = [block(query, references, m, self.SIZES, padding=padding) for m in (memory, changed)]
        torch.testing.assert_close(*outs)

    def test_recorded_weights_are_a_distribution(self):
        block = self.make()
        with record(block) as maps:
            block(*self.inputs(), self.SIZES)
        assert maps[""][0].shape == (2, 2, 7, 8)
        torch.testing.assert_close(maps[""][0].sum(-1), torch.ones(2, 2, 7))

    def test_gradient_reaches_every_parameter(self):
        block = self.make(backend="gather")
        block(*self.inputs(), self.SIZES).square().sum().backward()
        assert [n for n, p in block.named_parameters() if not p.grad.abs().sum() > 0] == []

    def test_half_precision_places_points_in_full(self):
        block, inputs = self.make(), self.inputs()
        with torch.no_grad():
            want = block(*inputs, self.SIZES)
            with torch.autocast("cpu", torch.bfloat16):
                got = block(*inputs, self.SIZES)
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() < 0.05 * want.norm()

    def test_start_and_errors(self):
        block = MultiScaleDeformableAttention(dim=32, heads=8, levels=2, points=4)
        bias = block.sampling_offsets.bias.view(8, 2, 4, 2)
        torch.testing.assert_close(bias[0, :, :, 0], torch.arange(1.0, 5).expand(2, 4))
        torch.testing.assert_close(bias[1, 0, 3], torch.tensor([4.0, 4.0]))
        assert (MultiScaleDeformableAttention(dim=32, points=3).sampling_offsets.bias == 0).all()
        with pytest.raises(ValueError, match="does not divide"):
            MultiScaleDeformableAttention(dim=32, heads=5)
        with pytest.raises(ValueError, match="are not the sizes"):
            block(torch.randn(1, 3, 32), torch.rand(1, 3, 2, 2), torch.randn(1, 30, 32), [(5, 5), (2, 2)])


class TestGroupSelfAttention:
    def test_equals_attention_within_and_across(self):
        block, x = GroupSelfAttention(dim=8, heads=2), torch.randn(2, 4, 3, 8)
        plain = MultiHeadAttention(8, 2)
        plain.load_state_dict(block.within.state_dict())
        want = torch.stack([torch.stack([plain(x[b, n : n + 1])[0] for n in range(4)]) for b in range(2)])
        want = block.within_norm(x + want)
        plain.load_state_dict(block.across.state_dict())
        across = torch.stack([torch.stack([plain(want[b, :, t][None])[0] for t in range(3)], 1) for b in range(2)])
        torch.testing.assert_close(block(x), block.across_norm(want + across))

    def test_order_of_instances_does_not_matter(self):
        block, x, order = GroupSelfAttention(dim=8, heads=2), torch.randn(1, 6, 3, 8), torch.randperm(6)
        torch.testing.assert_close(block(x[:, order]), block(x)[:, order])

    def test_padding_of_instances_changes_nothing(self):
        block, x = GroupSelfAttention(dim=8, heads=2), torch.randn(2, 4, 3, 8)
        padded = torch.cat([x, torch.full((2, 3, 3, 8), 9.0)], 1)
        mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 2 + [False] * 5])
        out = block(padded, mask=mask)
        torch.testing.assert_close(out[:1, :4], block(x[:1]))
        torch.testing.assert_close(out[1:, :2], block(x[1:, :2]))

    def test_recorder_gets_both(self):
        block = GroupSelfAttention(dim=8, heads=2)
        x = torch.randn(2, 4, 3, 8)
        with record(block) as maps:
            recorded = block(x)
        torch.testing.assert_close(recorded, block(x))
        assert maps["within"][0].shape == (8, 2, 3, 3)
        assert maps["across"][0].shape == (6, 2, 4, 4)


class TestShiftedWindowAttention:
    @pytest.mark.parametrize("shift", [0, 2])
    def test_any_size_keeps_its_shape_and_recording_changes_nothing(self, shift):
        block = ShiftedWindowAttention(dim=8, heads=2, window=4, shift=shift)
        for size in ((4, 4), (7, 9), (1, 3), (8, 12)):
            x = torch.randn(2, *size, 8)
            with record(block) as maps:
                recorded = block(x)
            assert recorded.shape == x.shape
            with torch.no_grad():
                torch.testing.assert_close(block(x), recorded)
            weights = maps[""][0]
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))

    def test_windows_do_not_see_each_other(self):
        block, x = ShiftedWindowAttention(dim=8, heads=2, window=4), torch.randn(1, 8, 8, 8)
        changed = x.clone()
        changed[:, 4:] = 0
        torch.testing.assert_close(block(x)[:, :4], block(changed)[:, :4])

    def test_what_the_shift_joins_stays_apart(self):
        block = ShiftedWindowAttention(dim=8, heads=2, window=4, shift=2)
        x = torch.randn(1, 8, 8, 8)
        changed = x.clone()
        changed[:, :2] += 5  # rolled into the window of the last rows
        torch.testing.assert_close(block(x)[:, 6:], block(changed)[:, 6:])

    def test_index_counts_relative_positions(self):
        index = relative_position_index(2)
        assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]

    def test_errors(self):
        with pytest.raises(ValueError, match="does not divide"):
            ShiftedWindowAttention(dim=8, heads=3)
