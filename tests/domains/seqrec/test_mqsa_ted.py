from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.attention.multi_query import window_means
from domains.common.errors import ConfigError
from domains.seqrec.mqsa_ted import MQSATED, SASRec, TransitionModel
from domains.seqrec.packing import pack, ragged_ranges
from tests.domains.seqrec.helpers import arranged

N, T = 30, 12


def network(**options):
    torch.manual_seed(3)
    return MQSATED(N, **{"dim": 16, "max_len": T, **options}).eval()


def networks():
    torch.manual_seed(3)
    sizes = {"n_items": N, "dim": 16, "max_len": T}
    return [MQSATED(**sizes, heads=2, depth=2), SASRec(**sizes), TransitionModel(**sizes)]


SEQUENCES = st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=T), min_size=1, max_size=9)


def test_parameter_count_is_the_paper_s():
    # V d + T d + 2 [blocks (5 (d^2 + d) + 4 d) + 2 d], 820,032 for Beauty
    assert sum(p.numel() for p in MQSATED(12_101).parameters()) == 820_032
    assert sum(p.numel() for p in MQSATED(23, dim=16, max_len=8).parameters()) == 3_408
    assert sum(p.numel() for p in SASRec(12_101, depth=1).parameters()) == 820_032 - 5 * (64**2 + 64) - 6 * 64


@pytest.mark.parametrize("net", networks(), ids=lambda net: type(net).__name__)
class TestEveryNetwork:
    def test_gradient_reaches_every_parameter(self, net):
        net.zero_grad()
        torch.manual_seed(0)
        (net.represent(torch.randint(N, (8, T))) * torch.randn(8, T, 16)).sum().backward()
        assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    @settings(max_examples=25, deadline=None)
    @given(sequences=SEQUENCES)
    def test_packed_equals_padding(self, net, sequences):
        net.eval()
        packed, padded = (arranged(sequences, N, T, packed=flag)[0] for flag in (True, False))
        assert packed.items.numel() <= padded.items.numel()
        with torch.no_grad():
            ours, theirs = (
                net.represent(one.items, one.slot, one.segment).flatten(0, 1)[one.at] for one in (packed, padded)
            )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    @settings(max_examples=15, deadline=None)
    @given(sequences=SEQUENCES)
    def test_user_alone_as_in_any_batch(self, net, sequences):
        net.eval()
        rows = torch.full((len(sequences), T), N)
        for row, sequence in zip(rows, sequences, strict=True):
            row[T - len(sequence) :] = torch.tensor(sequence)
        with torch.no_grad():
            together = net(rows)
            alone = [net(torch.tensor([sequence]))[0] for sequence in sequences]  # not even padded
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)

    @settings(max_examples=15, deadline=None)
    @given(position=st.integers(0, T - 2), seed=st.integers(0, 99))
    def test_the_future_does_not_matter(self, net, position, seed):
        net.eval()
        torch.manual_seed(seed)
        items = torch.randint(N, (2, T))
        changed = items.clone()
        changed[:, position + 1 :] = torch.randint(N, (2, T - position - 1))
        with torch.no_grad():
            ours, theirs = net.represent(items), net.represent(changed)
        torch.testing.assert_close(ours[:, : position + 1], theirs[:, : position + 1], atol=1e-6, rtol=1e-5)

    def test_built_again_from_its_arguments(self, net):
        again = type(net)(**net.arguments)
        assert again.arguments == net.arguments
        again.load_state_dict(net.state_dict())


@settings(max_examples=40, deadline=None)
@given(sequences=SEQUENCES, window=st.integers(1, 5))
def test_window_means_are_those_of_each_sequence(sequences, window):
    layout, _ = arranged(sequences, N, T, packed=True)
    torch.manual_seed(0)
    keep = layout.items != N
    x = torch.randn(*layout.items.shape, 4) * keep[..., None]
    got = window_means(x, keep, window, layout.segment).flatten(0, 1)[layout.at]
    flat, want = x.flatten(0, 1)[layout.at], []
    for start, stop in zip(np.cumsum([0, *map(len, sequences)]), np.cumsum([len(s) for s in sequences]), strict=False):
        want += [flat[max(start, t - window + 1) : t + 1].mean(0) for t in range(start, stop)]
    torch.testing.assert_close(got, torch.stack(want), atol=1e-6, rtol=1e-5)


def test_long_queries_average_the_latest_items():
    items = torch.randint(N, (3, T))
    for window in (1, 3):
        net = network(window=window)
        for part in (net.attention.branches, net.attention.norms):
            part[1].load_state_dict(part[0].state_dict())
        short, long = net.branches(items)
        assert torch.allclose(short, long) == (window == 1)


@pytest.mark.parametrize(("alpha", "branch"), [(1.0, 0), (0.0, 1)])
def test_one_branch_alone(alpha, branch):
    net = network(alpha=alpha)
    items = torch.randint(N, (3, T))
    torch.testing.assert_close(net.represent(items), net.branches(items)[branch])


def test_combination_is_that_of_equation_8():
    net = network(alpha=0.3)
    items = torch.randint(N, (3, T))
    short, long = net.branches(items)
    torch.testing.assert_close(net.represent(items), 0.3 * short + 0.7 * long)


def test_arguments_out_of_range():
    ranges = {
        "alpha": [1.5],
        "window": [0],
        "heads": [3, 0],
        "max_len": [0],
        "dropout": [1.0],
        "dim": [0],
        "depth": [0],
    }
    for wrong in ({name: value} for name, values in ranges.items() for value in values):
        with pytest.raises(ConfigError, match=r"alpha|window|heads|max_len|dropout|dim|depth"):
            network(**wrong)
    with pytest.raises(ConfigError, match="keep the latest"):
        network()(torch.zeros(1, T + 1, dtype=torch.long))


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=40))
def test_packing_places_everything_once(lengths):
    sizes = np.asarray(lengths)
    starts, rows = pack(sizes, 20)
    places = ragged_ranges(starts, sizes)
    assert len(set(places.tolist())) == sizes.sum()
    assert all(place < rows * 20 for place in places.tolist())
    assert all(start // 20 == (start + size - 1) // 20 for start, size in zip(starts, sizes, strict=True) if size)
    assert rows <= max(1, 2 * -(-int(sizes.sum()) // 20) + (sizes == 0).sum())
