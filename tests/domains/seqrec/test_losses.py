from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.seqrec import losses
from domains.seqrec.losses import distillation_loss, next_item_loss, summed_log_partition
from domains.seqrec.sampled import Sample, draw_sample, gbce_loss, sampled_distillation_loss, sampled_next_item_loss
from tests.domains.seqrec.helpers import dense_teacher, matrix, random_histories

N, D = 40, 8


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(losses, "SLICE_ELEMENTS", 17 * N)


def vectors(*shape, scale=1.0):
    return (torch.randn(*shape) * scale).requires_grad_()


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("scale", [0.3, 60.0])
def test_partition_and_its_gradients(null, scale, small_slices):
    torch.manual_seed(0)
    rows, table, weight = vectors(70, D, scale=scale), vectors(N, D), torch.rand(70)
    scores = rows @ table.T
    if null:
        scores = torch.cat([scores, torch.zeros(70, 1)], 1)
    want = (scores.logsumexp(1) * weight).sum()
    got = summed_log_partition(rows, table, weight, null=null)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(3 * got, (rows, table)), torch.autograd.grad(3 * want, (rows, table)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_partition_of_no_rows():
    rows, table = vectors(0, D), vectors(N, D)
    summed_log_partition(rows, table, torch.ones(0), null=True).backward()
    assert not table.grad.any()


def test_next_item_loss_is_cross_entropy_with_a_padding_class():
    users, table, target = vectors(9, D), vectors(N, D), torch.randint(N, (9,))
    padded = torch.cat([table, torch.zeros(1, D)])
    want = torch.nn.functional.cross_entropy(users @ padded.T, target, reduction="sum")
    torch.testing.assert_close(next_item_loss(users, table, target), want)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), tau=st.sampled_from([0.05, 0.1, 0.5]), teacher=st.sampled_from(["row_max", "row_sum"]))
def test_distillation_is_that_of_dense_rows_with_repetitions(seed, tau, teacher):
    torch.manual_seed(seed)
    sequences = random_histories(12, N, 9, seed)
    counts = torch.zeros(N, N)
    for sequence in sequences:
        for a, b in itertools.pairwise(sequence):
            counts[a, b] += 1
    inputs = np.asarray([item for sequence in sequences for item in sequence[:-1]], dtype=np.int64)
    table = vectors(N, D, scale=0.15)
    rows = matrix(sequences, N).rows(inputs)
    got = distillation_loss(table[rows.head] * D**0.5, table, rows, tau, teacher)
    student = torch.log_softmax(table[inputs] * D**0.5 @ table.T / tau, dim=1)  # the official floor of 1e-24 left out
    want = -(dense_teacher(counts[inputs], tau, teacher) * student).sum()
    if not len(inputs):
        return
    torch.testing.assert_close(got, want, atol=2e-3, rtol=2e-5)
    ours, theirs = (torch.autograd.grad(loss, table)[0] for loss in (got, want))
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize("span", [1, 3])
def test_transitions_are_counted_inside_sequences(span):
    sequences = random_histories(30, 7, 12, 5)
    counts = np.zeros((7, 7))
    for sequence in sequences:
        for distance in range(1, span + 1):
            for a, b in zip(sequence[:-distance], sequence[distance:], strict=True):
                counts[a, b] += 1
    got = np.zeros_like(counts)
    found = matrix(sequences, 7, span)
    for i in range(7):
        edges = slice(found.start[i], found.start[i + 1])
        got[i, found.tail[edges]] = found.count[edges]
    assert (got == counts).all()
    with pytest.raises(ValueError, match="at least one step"):
        matrix(sequences, 7, 0)


class TestSampled:
    def everything(self):
        return Sample(torch.arange(N), torch.zeros(N))

    def test_sample_of_all_items_gives_the_full_losses(self):
        torch.manual_seed(0)
        users, table, target = vectors(9, D), vectors(N, D, scale=0.5), torch.randint(N, (9,))
        full = next_item_loss(users, table, target)
        sampled = sampled_next_item_loss(users, table[target], target, table, self.everything(), N)
        torch.testing.assert_close(sampled, full, atol=1e-4, rtol=1e-5)
        sequences = random_histories(12, N, 9)
        rows = matrix(sequences, N).rows(np.concatenate(sequences)[:30])
        heads = table[rows.head] * D**0.5
        for teacher in ("row_max", "row_sum"):
            full = distillation_loss(heads, table, rows, 0.1, teacher)
            sampled = sampled_distillation_loss(
                heads, table[rows.tail], rows, table, self.everything(), N, 0.1, teacher
            )
            torch.testing.assert_close(sampled, full, atol=1e-2, rtol=1e-4)
            ours, theirs = (torch.autograd.grad(loss, table, retain_graph=True)[0] for loss in (sampled, full))
            assert (ours - theirs).norm() <= 1e-3 * theirs.norm()

    @pytest.mark.parametrize("sampling", ["uniform", "log_uniform"])
    def test_estimates_come_close_with_many_draws(self, sampling):
        torch.manual_seed(0)
        users, table, target = vectors(50, D), vectors(N, D, scale=0.3), torch.randint(N, (50,))
        full = next_item_loss(users, table, target)
        sample = draw_sample(N, 20_000, sampling, 1, torch.device("cpu"))
        sampled = sampled_next_item_loss(users, table[target], target, table[sample.ids], sample, N)
        assert abs(float((sampled / full).detach()) - 1) < 0.01

    @pytest.mark.parametrize("sampling", ["uniform", "log_uniform"])
    def test_weights_say_how_many_items_each_stands_for(self, sampling):
        sample = draw_sample(1000, 200_000, sampling, 0, torch.device("cpu"))
        assert abs(float(sample.log_weight.exp().sum()) / 1000 - 1) < 0.02
        again = draw_sample(1000, 200_000, sampling, 0, torch.device("cpu"))
        assert torch.equal(sample.ids, again.ids)

    def test_gbce_is_that_of_its_paper(self):
        torch.manual_seed(0)
        users, table, target = vectors(6, D), vectors(1000, D), torch.randint(1000, (6,))
        sample = draw_sample(1000, 16, "uniform", 3, torch.device("cpu"))
        got = gbce_loss(users, table[target], target, table[sample.ids], sample, 1000, 0.75)
        drawn = torch.repeat_interleave(sample.ids, (sample.log_weight.exp() * 16 / 1000).round().long())
        assert len(drawn) == 16
        rate = 16 / 999
        beta = rate * (0.75 * (1 - 1 / rate) + 1 / rate)
        want = 0.0
        for user, item in zip(users, target, strict=True):
            negatives = drawn[drawn != item]
            terms = beta * torch.nn.functional.logsigmoid(user @ table[item])
            want -= (terms + torch.nn.functional.logsigmoid(-(table[negatives] @ user)).sum()) / 17
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
