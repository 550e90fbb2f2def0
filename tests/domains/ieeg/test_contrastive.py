"""The generative objective: which tokens are negatives, and what counts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.ieeg import contrastive
from domains.ieeg.contrastive import contrastive_logits, contrastive_loss, draw_negatives


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), seed=st.integers(0, 1000))
def test_negatives_are_other_real_tokens(shape, seed):
    torch.manual_seed(seed)
    real = torch.rand(shape) < 0.7
    real.view(-1)[:2] = True
    negatives = draw_negatives(real, 50)
    own = torch.arange(real.numel()).view(shape)
    assert real.flatten()[negatives][real].all()
    if real.sum() > 1:
        assert (negatives != own[..., None])[real].all()


def test_every_other_token_is_drawn_evenly():
    real = torch.ones(1, 2, 3, dtype=torch.bool)
    counts = torch.bincount(draw_negatives(real, 6000)[0, 1, 1], minlength=6)
    assert counts[4] == 0
    assert (counts[[0, 1, 2, 3, 5]] - 1200).abs().max() < 150


def test_one_window_alone_can_be_trained_on():
    real = torch.ones(1, 3, 2, dtype=torch.bool)
    tokens, predicted = torch.randn(1, 3, 2, 8), torch.randn(1, 3, 2, 8, requires_grad=True)
    loss = contrastive_loss(contrastive_logits(predicted, tokens, draw_negatives(real, 4)))
    loss.backward()
    assert predicted.grad[:, :2].abs().sum() > 0
    assert (predicted.grad[:, 2] == 0).all(), "nothing follows the last segment"


def test_gradient_flows_into_the_true_token_and_not_into_negatives():
    tokens = torch.randn(1, 3, 1, 8, requires_grad=True)
    predicted = torch.randn(1, 3, 1, 8)
    negatives = torch.zeros(1, 3, 1, 5, dtype=torch.long)  # always the first token
    contrastive_loss(contrastive_logits(predicted, tokens, negatives)).backward()
    assert (tokens.grad[:, 0] == 0).all()
    assert tokens.grad[:, 1:].abs().sum() > 0


def test_a_stuck_channel_is_no_negative_of_itself():
    tokens = torch.randn(1, 1, 2, 8).expand(1, 3, 2, 8).clone()
    negatives = torch.tensor([0, 1, 2, 3]).expand(1, 3, 2, 4)
    logits = contrastive_logits(torch.randn(1, 3, 2, 8), tokens, negatives)
    assert (
        (logits[0, :, 0, 1:] == torch.tensor([-math.inf, 0, -math.inf, 0]))
        .logical_or(logits[0, :, 0, 1:].isfinite())
        .all()
    )
    assert logits[0, :, 0, 1].eq(-math.inf).all()
    assert logits[0, :, 0, 2].isfinite().all()


def test_chunks_change_nothing(monkeypatch):
    predicted, tokens = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 3, 8)
    negatives = draw_negatives(torch.ones(2, 4, 3, dtype=torch.bool), 5)
    whole = contrastive_logits(predicted, tokens, negatives)
    monkeypatch.setattr(contrastive, "CHUNK", 1)
    torch.testing.assert_close(contrastive_logits(predicted, tokens, negatives), whole)


def test_loss_is_a_cross_entropy_over_real_tokens():
    logits = torch.randn(2, 3, 4, 6)
    real = torch.rand(2, 3, 4) < 0.5
    want = F.cross_entropy(logits[real], torch.zeros(int(real.sum()), dtype=torch.long))
    assert contrastive_loss(logits, real).item() == pytest.approx(want.item(), rel=1e-6)
