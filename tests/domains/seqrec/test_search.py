from __future__ import annotations

import sys

import pytest
import torch

from domains.common.errors import MissingExtraError
from domains.seqrec.ranking import rank_items
from domains.seqrec.search import ApproximateSearch

faiss = pytest.importorskip("faiss")


def clustered(items=3000, users=200, dim=16):
    torch.manual_seed(0)
    centres = torch.randn(60, dim)
    table = centres[torch.randint(60, (items,))] + 0.7 * torch.randn(items, dim)
    return table, centres[torch.randint(60, (users,))] + 0.7 * torch.randn(users, dim)


def test_recall_beside_exact_search_with_seen_items_left_out():
    table, users = clustered()
    best = rank_items(users, table, torch.full((200, 0), 3000), top=30).items
    seen = torch.cat([best[:, :7], torch.full((200, 2), 3000)], dim=1)  # the best ones are the seen ones
    want = rank_items(users, table, seen, top=20)
    got = ApproximateSearch(table).top(users, seen, 20)
    recall = torch.tensor(
        [len(set(a) & set(b)) / 20 for a, b in zip(got.items.tolist(), want.items.tolist(), strict=True)]
    )
    assert recall.mean() > 0.98
    assert not (got.items[:, :, None] == seen[:, None, :7]).any()
    scores = (users[:, None] * table[got.items]).sum(-1)
    torch.testing.assert_close(got.scores, scores, atol=1e-4, rtol=1e-4)
    assert (got.scores.diff(dim=1) <= 0).all()


def test_small_catalogues_are_padded_like_exact_search():
    table, users = clustered(items=12, users=5)
    seen = torch.tensor([[0, 1, 2, 12]] * 5)
    got, want = ApproximateSearch(table).top(users, seen, 20), rank_items(users, table, seen, top=20)
    assert got.items.shape == want.items.shape == (5, 12)
    assert torch.equal(got.items, want.items)
    assert (got.items[:, 9:] == 12).all()
    assert (got.scores[:, 9:] == -torch.inf).all()


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"heptad\[faiss\]"):
        ApproximateSearch(torch.randn(3, 2))
