from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.loader import BatchLoader, SeededOrder, mix_seed


class Numbers:
    """Rows 0..n-1 in blocks."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.read = []

    def load(self, block):
        self.read.append(block)
        start = sum(self.sizes[:block])
        return {"row": torch.arange(start, start + self.sizes[block])}


def rows(loader):
    return [batch["row"].tolist() for batch in loader]


LOADERS = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 13), min_size=1, max_size=8),
        "batch_size": st.integers(1, 17),
        "seed": st.integers(0, 99),
        "pool_rows": st.integers(1, 40),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
    }
)


def make(options, **more):
    options = {**options, **more}
    return BatchLoader(Numbers(options.pop("sizes")), options.pop("batch_size"), **options)


@settings(max_examples=80, deadline=None)
@given(options=LOADERS, epoch=st.integers(0, 3))
def test_every_row_once_in_an_order_of_seed_and_epoch(options, epoch):
    loader = make(options)
    loader.set_epoch(epoch)
    batches = rows(loader)
    total = sum(options["sizes"])
    kept = total - total % options["batch_size"] if options["drop_last"] else total
    assert len(batches) == len(loader)
    flat = [row for batch in batches for row in batch]
    assert len(flat) == len(set(flat)) == kept
    assert all(len(batch) == options["batch_size"] for batch in batches[:-1])
    again = make(options)
    again.set_epoch(epoch)
    assert rows(again) == batches
    if not options["shuffle"]:
        assert flat == list(range(kept))


@settings(max_examples=80, deadline=None)
@given(options=LOADERS, world=st.integers(1, 4), skip=st.integers(0, 6))
def test_processes_and_resuming_see_the_same_batches(options, world, skip):
    whole = rows(make(options))
    parts = [rows(make(options, rank=rank, world=world, skip=skip)) for rank in range(world)]
    for number, batch in enumerate(whole[skip:]):
        assert sorted(row for part in parts for row in part[number]) == sorted(batch)
        assert parts[0][number] == batch[::world]
    assert all(len(part) == max(0, len(whole) - skip) for part in parts)


def test_resuming_reads_only_what_is_left():
    store = Numbers([10] * 6)
    loader = BatchLoader(store, 10, pool_rows=10, skip=4)
    assert rows(loader) == [list(range(40, 50)), list(range(50, 60))]
    assert store.read == [4, 5]
    assert len(rows(loader)) == 6, "only the resumed pass is shorter"


def test_small_data_is_read_once():
    store = Numbers([5, 5])
    loader = BatchLoader(store, 4, shuffle=True)
    first = rows(loader)
    loader.set_epoch(1)
    assert rows(loader) != first
    assert store.read == [0, 1]


def test_epochs_and_seeds_differ_and_pools_mix():
    orders = {
        tuple(SeededOrder([50], seed, epoch, 10, shuffle=True).rows(0).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    pools = SeededOrder([10] * 10, 0, 0, 30, shuffle=True).pools
    assert sorted(block for pool in pools for block in pool) == list(range(10))
    assert [len(pool) for pool in pools] == [3, 3, 3, 1]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=3), st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
def test_seeds_of_different_tuples_differ(a, b):
    assert 0 <= mix_seed(*a) < 2**63
    assert (mix_seed(*a) == mix_seed(*b)) == (a == b)


def test_memory_is_two_pools_whatever_the_data():
    store = Numbers([10] * 50)
    batches = iter(BatchLoader(store, 10, pool_rows=10, shuffle=True))
    for taken in range(1, 20):
        next(batches)
        assert len(store.read) <= taken + 2


@settings(max_examples=20, deadline=None)
@given(LOADERS, st.integers(1, 4))
def test_threads_change_nothing(options, workers):
    def collate(batch):
        return batch | {"twice": batch["row"] * 2, "name": [str(row) for row in batch["row"].tolist()]}

    expected = list(make(options, collate=collate))
    found = list(make(options, collate=collate, workers=workers))
    assert [batch["row"].tolist() for batch in found] == [batch["row"].tolist() for batch in expected]
    assert [batch["name"] for batch in found] == [batch["name"] for batch in expected]
    assert all(torch.equal(batch["twice"], batch["row"] * 2) for batch in found)


def test_an_error_in_a_thread_reaches_the_model_and_an_epoch_can_be_left_early():
    def collate(batch):
        if 8 in batch["row"]:
            raise ValueError("row 8")
        return batch

    loader = BatchLoader(Numbers([20]), 2, collate=collate, workers=3)
    seen = []
    with pytest.raises(ValueError, match="row 8"):
        seen.extend(batch["row"].tolist() for batch in loader)
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert next(iter(loader))["row"].tolist() == [0, 1]
