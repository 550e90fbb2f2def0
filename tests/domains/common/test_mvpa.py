"""MVPA: the tiles equal the formula, whatever the sizes; what the block promises of time, channels and padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from domains.common.attention import MultiVariateParallelAttention, record
from domains.common.attention import mvpa_tiles as tiles

DIM = 16
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 12))
HEADS = st.sampled_from([(4, 4), (4, 2), (4, 1), (2, 1)])
READINGS = st.sampled_from([("from_end", "absolute"), ("distance", "absolute"), ("distance", "signed")])


def make(heads=4, kv_heads=2, **options):
    block = MultiVariateParallelAttention(DIM, heads, kv_heads, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def tokens(segments, channels, batch=2):
    x = torch.randn(batch, segments, channels, DIM, dtype=torch.float64, requires_grad=True)
    time = torch.randn(segments + 2, DIM, dtype=torch.float64, requires_grad=True)
    channel = torch.randn(2 * channels + 3, DIM, dtype=torch.float64, requires_grad=True)
    return x, time, channel


def outputs(block, inputs, probe, backend, **options):
    block.backend = backend
    parameters = [*block.parameters(), *inputs]
    out = block(*inputs, **options)
    grads = torch.autograd.grad((out * probe).sum(), parameters, allow_unused=True)
    return [out.detach() * (probe != 0), *(torch.zeros(1) if g is None else g for g in grads)]


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    heads=HEADS,
    reading=READINGS,
    window=st.integers(0, 12),
    seed=st.integers(0, 10**6),
    padded=st.booleans(),
    last=st.booleans(),
    content=st.sampled_from([True, True, True, False]),
)
def test_tiles_equal_the_formula(shape, heads, reading, window, seed, padded, last, content):
    torch.manual_seed(seed)
    segments, channels = shape
    relative, distance = reading
    block = make(*heads, window=window, relative_index=relative, channel_distance=distance, content=content)
    inputs = tokens(segments, channels)
    counts = torch.randint(1, channels + 1, (2,)) if padded else None
    probe = torch.randn(2, 1 if last else segments, channels, DIM, dtype=torch.float64)
    if padded:
        probe = probe * (torch.arange(channels) < counts[:, None])[:, None, :, None]
    options = {"counts": counts, "last_only": last}
    for ours, formula in zip(
        outputs(block, inputs, probe, "tiles", **options),
        outputs(block, inputs, probe, "explicit", **options),
        strict=True,
    ):
        torch.testing.assert_close(ours, formula, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("segments", "channels"), [(1, 1), (14, 5), (30, 40)])
def test_flex_attention_equals_the_formula(segments, channels):
    block = make()
    inputs = tokens(segments, channels)
    counts = torch.tensor([channels, max(1, channels - 2)])
    with torch.no_grad():
        for last in (False, True):
            block.backend = "flex"
            flex = block(*inputs, counts=counts, last_only=last)
            block.backend = "explicit"
            torch.testing.assert_close(flex, block(*inputs, counts=counts, last_only=last))


def test_parts_and_tiles_change_nothing(monkeypatch):
    block, inputs, probe = make(), tokens(23, 3, batch=5), torch.randn(5, 23, 3, DIM, dtype=torch.float64)
    found = []
    for size, rows in ((1, 1), (1 << 18, 48), (1 << 30, 1000)):
        monkeypatch.setattr(tiles, "CPU_TILE", size)
        monkeypatch.setattr(tiles, "SMALL_ROWS", rows)
        found.append(outputs(block, inputs, probe, "tiles"))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_gradients_are_those_of_differences():
    block, inputs = make(window=2), tokens(5, 2, batch=1)
    block.backend = "tiles"
    assert torch.autograd.gradcheck(lambda *given: block(*given), inputs)


def test_gradient_reaches_every_parameter():
    block, inputs = make(), tokens(14, 3)
    (block(*inputs) * torch.randn(2, 14, 3, DIM)).sum().backward()
    assert [name for name, p in block.named_parameters() if not p.grad.abs().sum() > 0] == []


@settings(max_examples=20, deadline=None)
@given(changed=st.integers(0, 19), seed=st.integers(0, 1000))
def test_the_past_ignores_the_future(changed, seed):
    torch.manual_seed(seed)
    block, (x, time, channel) = make(window=3), tokens(20, 3, batch=1)
    other = x.detach().clone()
    other[:, changed] = torch.randn_like(other[:, changed])
    before, after = block(x, time, channel), block(other, time, channel)
    torch.testing.assert_close(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed:], after[:, changed:])


@pytest.mark.parametrize(("relative", "distance"), [("from_end", "absolute"), ("distance", "signed")])
def test_padding_behind_the_channels_changes_nothing(relative, distance):
    block, (x, time, channel) = make(relative_index=relative, channel_distance=distance), tokens(14, 5)
    padded = torch.cat([x, torch.full((2, 14, 3, DIM), 1e3)], dim=2)
    table = channel if distance == "absolute" else torch.cat([channel[:3] * 0, channel, channel[:3] * 0])
    alone = block(x, time, channel)
    together = block(padded, time, table, counts=torch.tensor([5, 5]))
    torch.testing.assert_close(together[:, :, :5], alone)


def test_rows_of_unlike_channels_in_one_batch_equal_each_alone_as_in_any_batch():
    block, (x, time, channel) = make(), tokens(12, 6, batch=3)
    counts = torch.tensor([6, 2, 1])
    together = block(x, time, channel, counts=counts)
    for i, count in enumerate(counts.tolist()):
        torch.testing.assert_close(together[i, :, :count], block(x[i : i + 1, :, :count], time, channel)[0])


def test_distances_mean_the_same_at_any_size():
    short, long = tokens(6, 3), tokens(6, 3)
    block = make(relative_index="distance")
    x, _, channel = short
    later = torch.cat([long[0], x], dim=1)  # the same segments, with others before them
    mask = torch.zeros(2, 12, 3, dtype=torch.bool)
    mask[:, 6:] = True
    table = torch.randn(30, DIM, dtype=torch.float64)
    torch.testing.assert_close(block(later, table, channel, mask=mask)[:, 6:], block(x, table, channel))
    assert not torch.allclose(
        make(relative_index="from_end")(later, table, channel, mask=mask)[:, 6:],
        make(relative_index="from_end")(x, table, channel),
    )


def test_recorded_weights_are_a_distribution_over_the_past():
    block, inputs = make(), tokens(12, 3)
    fused = block(*inputs)
    with record(block) as maps:
        explicit = block(*inputs)
    torch.testing.assert_close(fused, explicit)
    weights = maps[""][0].view(2, 4, 12, 3, 12, 3)
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, 4, 12, 3, dtype=torch.float64))
    future = torch.ones(12, 12, dtype=torch.bool).triu(1)
    assert (weights.transpose(3, 4)[:, :, future] == 0).all()


def test_dropout_drops_whole_segments_and_channels_and_keeps_the_mean():
    torch.manual_seed(0)
    block, (x, time, channel) = make(dropout=0.4), tokens(30, 20, batch=1)
    block.eval()
    whole = block(x, time, channel)
    block.train()
    kept = block._kept(torch.zeros(1, 1, 30, 20, 1), 0.4)[..., 0]
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert ((kept > 0).any(1, keepdim=True) & (kept > 0).any(0, keepdim=True)).equal(kept > 0)
    mean = torch.stack([block(x, time, channel) for _ in range(100)]).mean(0)
    assert (mean - whole).norm() < 0.4 * whole.norm()
    block.dropout_kind = "elementwise"
    assert not torch.allclose(block(x, time, channel), whole)


def test_dropped_keys_scale_the_others(monkeypatch):
    block, (x, time, channel) = make(dropout=0.5), tokens(4, 2, batch=1)
    draws = iter([torch.tensor([0.0, 0.9, 0.0, 0.0]), torch.tensor([0.0, 0.0])])
    monkeypatch.setattr(torch, "rand", lambda *size, **options: next(draws))
    out = block(x, time, channel)
    block.eval()
    with record(block) as maps:
        block(x, time, channel)
    weights = maps[""][0].clone()
    weights[..., 2:4] = 0  # keys of segment 1
    value = block.key_value(x).chunk(2, -1)[1].view(1, 8, 2, 4).transpose(1, 2).repeat_interleave(2, 1)
    want = block.out(((weights * 2) @ value).transpose(1, 2).reshape(1, 4, 2, DIM))
    torch.testing.assert_close(out, want)


def test_half_precision_stays_near():
    block, inputs = make().float(), [t.detach().float() for t in tokens(14, 6)]
    want = block(*inputs)
    got = block.bfloat16()(*(t.bfloat16() for t in inputs))
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.05 * want.norm()


def test_impossible_options():
    for options, message in (
        ({"heads": 3}, "must divide"),
        ({"kv_heads": 3}, "must divide"),
        ({"channel_distance": "signed"}, "relative_index='distance'"),
        ({"window": -1}, "at least"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    assert math.isclose(make().scale, 0.5)
