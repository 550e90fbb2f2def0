from __future__ import annotations

import json

import polars as pl
import pytest
import torch

from domains.common.errors import ConfigError, PreparedDataError
from domains.seqrec.data import SequenceData
from tests.domains.seqrec.helpers import random_histories, training_batches, write_prepared

N = 40
HISTORIES = random_histories(50, N, 14, seed=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("prepared"), HISTORIES, N, parts=3)


def unpacked(batch):
    """Sequences of a batch of any arrangement, with the slot of each item."""
    found = {}
    for row, slots, owners in zip(batch["items"], batch["slot"], batch["segment"], strict=True):
        for item, slot, owner in zip(row.tolist(), slots.tolist(), owners.tolist(), strict=True):
            if item < N:
                found.setdefault(owner, []).append((slot, item))
    return [found[owner] for owner in sorted(found)]


@pytest.mark.parametrize("arrangement", ["packed", "padded"])
def test_training_batches_are_the_training_sequences(root, arrangement):
    data = SequenceData(str(root), batch_size=16, max_len=6, arrangement=arrangement)
    got = []
    for batch in training_batches(data):
        flat, targets = batch["items"].flatten(), batch["target"].tolist()
        assert flat[batch["at"]].tolist() == [item for sequence in unpacked(batch) for _, item in sequence]
        for sequence in unpacked(batch):
            slots, items = zip(*sequence, strict=True)
            assert slots == tuple(range(6 - len(items), 6))
            following, targets = targets[: len(items)], targets[len(items) :]
            assert list(items[1:]) == following[:-1]
            got.append((*items, following[-1]))
        heads = dict(zip(batch["head"].tolist(), batch["count"].tolist(), strict=True))
        assert heads == {i: flat[batch["at"]].tolist().count(i) for i in set(flat[batch["at"]].tolist())}
    training = [h[:-2] if len(h) >= 3 else h for h in HISTORIES]
    assert sorted(got) == sorted(tuple(t[-6:]) for t in training if len(t) >= 2)


@pytest.mark.parametrize("arrangement", ["packed", "padded"])
@pytest.mark.parametrize(("split", "held"), [("valid", 2), ("test", 1)])
@pytest.mark.parametrize("mask", ["recent", "all", "none"])
def test_ranking_batches_end_before_their_target(root, arrangement, split, held, mask):
    data = SequenceData(str(root), batch_size=16, max_len=6, arrangement=arrangement, mask_seen=mask)
    counts = pl.read_parquet(root / "items.parquet")["count"]
    for batch in data.loader(split):
        for i, (user, sequence) in enumerate(zip(batch["user"].tolist(), unpacked(batch), strict=True)):
            history = HISTORIES[user]
            known = history[: len(history) - held]
            assert [item for _, item in sequence] == known[-6:]
            assert batch["items"].flatten()[batch["last"][i]] == known[-1]
            assert batch["target"][i] == history[len(history) - held]
            assert batch["length"][i] == len(known)
            assert batch["target_count"][i] == counts[int(batch["target"][i])]
            recent = history[:-2][-6:] + history[len(history) - 2 : len(history) - held]
            want = {"recent": set(recent), "all": set(known), "none": set()}[mask]
            assert set(batch["seen"][i].tolist()) - {N} == want


def test_predictions_continue_everything_that_is_known(root):
    data = SequenceData(str(root), batch_size=16, max_len=6)
    users = [user for batch in data.loader("predict") for user in batch["user"].tolist()]
    assert users == list(range(len(HISTORIES)))
    batch = next(iter(data.loader("predict")))
    assert "target" not in batch
    assert [items[-1][1] for items in unpacked(batch)] == [h[-1] for h in HISTORIES[:16]]


def test_order_and_batches_do_not_depend_on_parts(root, tmp_path):
    other = write_prepared(tmp_path, HISTORIES, N, parts=1)
    for ours, theirs in zip(
        training_batches(SequenceData(str(root), batch_size=16)),
        training_batches(SequenceData(str(other), batch_size=16)),
        strict=True,
    ):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_damaged_directories_are_named(tmp_path):
    with pytest.raises(PreparedDataError, match="heptad seqrec prep"):
        SequenceData(str(tmp_path / "nowhere"))
    root = write_prepared(tmp_path / "data", HISTORIES, N)
    part = root / "sequences" / "part-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PreparedDataError, match="part-00001"):
        SequenceData(str(root)).loader("train")
    part.write_bytes(whole)
    card = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**card, "n_items": 5}))
    with pytest.raises(PreparedDataError, match=r"outside 0\.\.4"):
        SequenceData(str(root)).loader("train")
    (root / "dataset.json").write_text(json.dumps({**card, "splits": {}}))
    with pytest.raises(PreparedDataError, match="no split 'train'"):
        SequenceData(str(root)).loader("train")
    with pytest.raises(ConfigError, match="max_len"):
        SequenceData(str(root), max_len=1)
