"""The wavelet transform against an independent library."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.ieeg.wavelet import WaveletEncoder, coefficient_sizes, levels, wavelet_transform


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(14, 700), seed=st.integers(0, 1000))
def test_transform_equals_pywavelets(samples, seed):
    x = np.random.default_rng(seed).normal(size=(2, samples))
    theirs = pywt.wavedec(x, "db4", mode="periodic", level=levels(samples))
    ours = wavelet_transform(torch.from_numpy(x))
    assert [part.shape[-1] for part in theirs] == coefficient_sizes(samples)
    np.testing.assert_allclose(ours.numpy(), np.concatenate(theirs, axis=-1), atol=1e-9)


@pytest.mark.parametrize(("samples", "width"), [(2560, 2610), (777, 818), (500, 538), (128, 154), (7, 7), (13, 13)])
def test_published_widths(samples, width):
    assert sum(coefficient_sizes(samples)) == width
    assert wavelet_transform(torch.randn(3, samples)).shape == (3, width)


def test_chunks_change_nothing():
    x = torch.randn(700, 4, 640)
    torch.testing.assert_close(wavelet_transform(x)[123], wavelet_transform(x[123]))


def test_no_gradient_flows_into_the_signal_and_all_into_the_map():
    encoder, x = WaveletEncoder(64, 8), torch.randn(2, 64, requires_grad=True)
    encoder(x).sum().backward()
    assert x.grad is None
    assert encoder.norm.weight.grad.abs().sum() > 0


def test_half_precision_transforms_in_float32():
    encoder = WaveletEncoder(64, 8).bfloat16()
    x = torch.randn(3, 64) * 50
    assert encoder(x).dtype == torch.bfloat16
