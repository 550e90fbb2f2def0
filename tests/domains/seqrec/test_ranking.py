from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.seqrec import ranking
from domains.seqrec.ranking import rank_items


@settings(max_examples=40, deadline=None)
@given(
    users=st.integers(1, 150),
    items=st.integers(1, 40),
    seen=st.integers(0, 6),
    seed=st.integers(0, 999),
    ties=st.sampled_from(["mean", "optimistic"]),
)
def test_ranks_are_those_of_a_full_sort(users, items, seen, seed, ties):
    torch.manual_seed(seed)
    vectors = torch.randint(-2, 3, (users, 3)).float()  # whole numbers: many scores are equal
    table = torch.randint(-2, 3, (items, 3)).float()
    masked, target = torch.randint(items + 1, (users, seen)), torch.randint(items, (users,))
    got = rank_items(vectors, table, masked, target, top=5, ties=ties)
    scores = vectors @ table.T
    for user in range(users):
        row = scores[user].clone()
        row[masked[user][masked[user] < items]] = -torch.inf
        wanted = scores[user, target[user]]
        if row[target[user]] == -torch.inf:
            assert got.rank[user] == torch.inf
        else:
            equal = int((row == wanted).sum()) - 1
            assert got.rank[user] == int((row > wanted).sum()) + (equal / 2 if ties == "mean" else 0)
        left = int((row > -torch.inf).sum())
        want = row.sort(descending=True).values[: min(5, items)]
        torch.testing.assert_close(got.scores[user], want)
        assert (got.items[user] < items).sum() == min(5, left)
        assert not set(got.items[user].tolist()) & set(masked[user].tolist()) - {items}


def test_slices_of_users_change_nothing(monkeypatch):
    users, table = torch.randn(200, 4), torch.randn(30, 4)
    seen, target = torch.randint(31, (200, 3)), torch.randint(30, (200,))
    whole = rank_items(users, table, seen, target, top=7)
    monkeypatch.setattr(ranking, "SCORES", 1)
    sliced = rank_items(users, table, seen, target, top=7)
    assert torch.equal(whole.rank, sliced.rank)
    assert torch.equal(whole.items, sliced.items)


@pytest.mark.parametrize("top", [0, 50])
def test_no_users_and_more_than_all_items(top):
    ranked = rank_items(torch.zeros(0, 4), torch.randn(30, 4), torch.zeros(0, 2, dtype=torch.long), top=top)
    assert ranked.items.shape == (0, min(top, 30))
    assert ranked.rank is None
