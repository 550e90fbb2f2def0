"""Convolutional attention: the equation, its merged forms, and the short Fourier transforms behind one of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from domains.common.attention import fourier, record
from domains.common.attention.convolutional import ConvolutionalAttention, DynamicConvolutionalAttention

KERNELS = st.lists(st.sampled_from([1, 3, 5, 7, 9]), min_size=1, max_size=4)
SLIDES = st.sampled_from(["rows", "features"])


def make(rows=9, dim=16, heads=4, kernels=(3, 5, 7), **options):
    block = DynamicConvolutionalAttention(rows, dim, heads, kernels, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    if options.get("mixing") == "sum":
        for name in "qkv":
            nn.init.uniform_(getattr(block, f"eta_{name}"), 0.2, 1.0)
    return block


def by_the_equation(block, x, heads):
    """Equations 3, 4, 6 and 7, position by position."""
    given = x.mT if block.slide == "rows" else x  # (N, channels, positions)
    found = []
    for name in "qkv":
        eta, total = getattr(block, f"eta_{name}").softmax(0), 0.0
        for share, branch in zip(eta, getattr(block, name), strict=True):
            half = branch.weight.shape[2] // 2
            out = torch.zeros_like(given) + branch.bias[:, None]
            for position in range(given.shape[2]):
                for j in range(-half, half + 1):
                    if 0 <= position + j < given.shape[2]:
                        out[:, :, position] += given[:, :, position + j] @ branch.weight[:, :, half + j].T
            total = total + share * out
        found.append(total.mT if block.slide == "rows" else total)
    parts = []
    for q, k, v in zip(*(t.chunk(heads, dim=-1) for t in found), strict=True):
        parts.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
    out = torch.cat(parts, dim=-1)
    if block.slide == "rows":
        return out @ block.proj.weight.T + block.proj.bias
    return block.proj.weight @ out + block.proj.bias[:, None]


@pytest.mark.parametrize("slide", ["rows", "features"])
@pytest.mark.parametrize("path", ["merged", "branches"])
def test_the_equation(slide, path):
    torch.manual_seed(0)
    block, x = make(slide=slide, path=path), torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x), by_the_equation(block, x, 4))


@settings(max_examples=40, deadline=None)
@given(
    kernels=KERNELS,
    slide=SLIDES,
    rows=st.integers(1, 12),
    mixing=st.sampled_from(["softmax", "sum", "free"]),
    centring=st.sampled_from(["same", "shifted"]),
    per_head=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_merged_equals_branches(kernels, slide, rows, mixing, centring, per_head, seed):
    torch.manual_seed(seed)
    block = make(rows, 8, 2, kernels, slide=slide, mixing=mixing, centring=centring, mixing_per_head=per_head)
    x = torch.randn(2, rows, 8, dtype=torch.float64)
    probe, outputs = torch.randn_like(x), []
    for path in ("merged", "branches"):
        block.path = path
        out = block(x)
        outputs.append([out, *torch.autograd.grad((out * probe).sum(), list(block.parameters()))])
    for merged, branches in zip(*outputs, strict=True):
        torch.testing.assert_close(merged, branches, atol=1e-9, rtol=1e-9)
    if block.mergeable:
        torch.testing.assert_close(block.reparameterised()(x), outputs[0][0], atol=1e-9, rtol=1e-9)
    else:
        with pytest.raises(ValueError, match="keep the branches"):
            block.reparameterised()


def test_reparameterised_is_near_in_single_precision_and_smaller():
    torch.manual_seed(0)
    block = DynamicConvolutionalAttention(81, 544, 8, (7, 7, 7), slide="features", path="branches").eval()
    x = torch.randn(2, 81, 544)
    one = block.reparameterised()
    assert isinstance(one, ConvolutionalAttention) and not one.training
    with torch.no_grad():
        torch.testing.assert_close(one(x), block(x), atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in one.parameters()) < 0.4 * sum(p.numel() for p in block.parameters())


def test_zero_logits_are_the_plain_mean():
    block = DynamicConvolutionalAttention(5, 8, 2, (3, 5))
    assert block.eta("q").tolist() == [0.5, 0.5]
    assert DynamicConvolutionalAttention(5, 8, 2, (3, 5), mixing="sum").eta("k").tolist() == [0.5, 0.5]
    assert DynamicConvolutionalAttention(5, 8, 2, (3, 5), mixing="free").eta("v").tolist() == [0.5, 0.5]


def test_heads_that_mix_by_themselves_differ():
    torch.manual_seed(0)
    block, x = make(slide="features", mixing_per_head=True), torch.randn(1, 9, 16, dtype=torch.float64)
    q = block.aggregate(x)[0].detach().clone()
    with torch.no_grad():
        block.eta_q[:, 1] += torch.tensor([1.0, 0.0, -1.0])
    changed = (block.aggregate(x)[0] - q).abs().sum((0, 1)).view(4, 4).sum(1) > 0
    assert changed.tolist() == [False, True, False, False]


def test_recorded_weights_are_distributions_over_rows():
    torch.manual_seed(0)
    for slide in ("rows", "features"):
        block, x = make(slide=slide), torch.randn(2, 9, 16, dtype=torch.float64)
        plain = block(x)
        with record(block) as maps:
            torch.testing.assert_close(block(x), plain)
        assert maps[""][0].shape == (2, 4, 9, 9)
        torch.testing.assert_close(maps[""][0].sum(-1), torch.ones(2, 4, 9, dtype=torch.float64))
        one = block.reparameterised()
        with record(one) as merged:
            one(x)
        torch.testing.assert_close(merged[""][0], maps[""][0])


def test_dropout_acts_on_queries_keys_and_values_in_training_alone():
    torch.manual_seed(0)
    block, x = make(dropout=0.5), torch.randn(1, 9, 16, dtype=torch.float64)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_impossible_options():
    for options, message in (
        ({"heads": 3}, "does not divide"),
        ({"kernels": (4,)}, "odd sizes"),
        ({"kernels": ()}, "one or more"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.sampled_from([5, 7, 8, 9, 15]),
    positions=st.integers(1, 120),
    channels=st.integers(1, 6),
    batch=st.integers(1, 3),
    biased=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_fourier_convolution_equals_the_direct_one(kernel, positions, channels, batch, biased, seed):
    torch.manual_seed(seed)
    x, weight = torch.randn(batch, channels, positions), torch.randn(2 * channels, channels, kernel)
    bias, before = torch.randn(2 * channels) if biased else None, seed % kernel
    want = F.conv1d(
        F.pad(x.double(), (before, kernel - 1 - before)), weight.double(), None if bias is None else bias.double()
    )
    got = fourier.convolve(x, fourier.transform_filters(weight), bias, kernel, before)
    assert got.shape == want.shape
    assert (got - want).norm() < 2e-6 * want.norm() + 1e-6


class TestFourierPath:
    def make(self, **options):
        torch.manual_seed(0)
        block = ConvolutionalAttention(64, 160, 8, slide="features", **options).eval()
        return block, torch.randn(2, 64, 160)

    @pytest.mark.parametrize("centring", ["same", "shifted"])
    def test_without_gradients_it_is_taken_and_changes_nothing(self, centring):
        block, x = self.make(centring=centring)
        want = block(x)
        assert block._transformed is None
        with torch.no_grad():
            torch.testing.assert_close(block(x), want.detach(), atol=1e-5, rtol=1e-5)
        assert block._transformed is not None

    def test_changed_weights_are_seen(self):
        block, x = self.make()
        with torch.no_grad():
            before = block(x)
            block.qkv.weight.mul_(2.0)
            after = block(x)
            other = copy.deepcopy(block)
            other.load_state_dict(ConvolutionalAttention(64, 160, 8, slide="features").state_dict())
            third = other(x)
        torch.testing.assert_close(after, block(x).detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(third, other(x).detach(), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(before, after) and not torch.allclose(third, after)

    def test_small_or_double_or_short_inputs_take_the_direct_form(self):
        weight = torch.randn(192, 64, 7)
        assert fourier.suits(torch.randn(1, 64, 160), weight)
        assert not fourier.suits(torch.randn(1, 64, 100), weight)
        assert not fourier.suits(torch.randn(1, 64, 160, dtype=torch.float64), weight.double())
        assert not fourier.suits(torch.randn(1, 8, 160), torch.randn(24, 8, 7))
        assert not fourier.suits(torch.randn(1, 64, 160), weight[..., :3])
        assert not fourier.suits(torch.randn(1, 64, 160, requires_grad=True), weight)
