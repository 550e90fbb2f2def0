"""Properties that hold for any log: the k-core is the k-core, no split looks into the future, order is time order."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import PrepError
from data_prep.seqrec import events, group, stream
from data_prep.seqrec.core import k_core
from data_prep.seqrec.planted import write_planted_log
from data_prep.seqrec.split import SplitRule, repeated, split_rows
from data_prep.seqrec.times import to_micros
from data_prep.seqrec.vocabulary import encode
from tests.data_prep.seqrec.helpers import generic, histories, parts, rows, write_csv

QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), max_size=120)
BASE = 1_400_000_000


def brute_force_core(pairs: list[tuple[Any, ...]], k: int) -> list[tuple[Any, ...]]:
    """Remove one offender after another until there is none."""
    left = list(pairs)
    while True:
        users, items = Counter(pair[0] for pair in left), Counter(pair[1] for pair in left)
        bad = next((pair for pair in left if users[pair[0]] < k or items[pair[1]] < k), None)
        if bad is None:
            return left
        side = 0 if users[bad[0]] < k else 1
        left = [pair for pair in left if pair[side] != bad[side]]


@settings(max_examples=80, deadline=None)
@given(PAIRS, st.integers(0, 5), st.integers(1, 4))
def test_k_core_is_that_of_brute_force(pairs: list[tuple[int, int]], k: int, n_buckets: int) -> None:
    bounds = [13 * index // n_buckets for index in range(n_buckets + 1)]
    with tempfile.TemporaryDirectory() as name:
        buckets = []
        for index in range(n_buckets):
            mine = sorted(pair for pair in pairs if bounds[index] <= pair[0] < bounds[index + 1])
            buckets.append(Path(name) / str(index))
            buckets[-1].mkdir()
            for column, side in (("users", 0), ("items", 1)):
                np.save(buckets[-1] / f"{column}.npy", np.array([pair[side] for pair in mine], np.int32))
        core = k_core(buckets, bounds, 10, k, Path(name) / "left")
    wanted = brute_force_core(pairs, k)
    assert core.users.tolist() == [sum(pair[0] == user for pair in wanted) for user in range(13)]
    assert core.items.tolist() == [sum(pair[1] == item for pair in wanted) for item in range(10)]


LOGS = st.lists(
    st.tuples(st.sampled_from("abcdefg"), st.sampled_from("uvwxyz"), st.integers(0, 15)), min_size=1, max_size=80
)


@QUICK
@given(LOGS, st.integers(0, 3), st.sampled_from([5, 1 << 19]))
def test_prepared_sequences_are_those_of_a_plain_program(log: list[tuple[str, str, int]], k: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "CHUNK_EVENTS", size)
        patch.setattr(group, "BUCKET_EVENTS", size)
        patch.setattr(stream, "BLOCK", max(size, 64))
        path = write_csv(Path(name) / "log.csv", log, pad=False)
        distinct = list(dict.fromkeys(log))
        wanted: dict[str, list[str]] = {}
        for user, item, _ in sorted(brute_force_core(distinct, k), key=lambda event: event[2]):
            wanted.setdefault(user, []).append(item)
        try:
            card = generic(path, Path(name) / "out", core=k, time_unit="s")
        except PrepError:
            assert all(len(items) != 2 and len(items) < 4 for items in wanted.values())
            return
        assert histories(Path(name) / "out") == wanted
        assert card["counts"]["exact_duplicates"] == len(log) - len(distinct)
        found = {split: rows(Path(name) / "out", split) for split in ("valid", "test")}
        users = sorted(user for user, items in wanted.items() if len(items) > 2)
        for back, split in ((2, "valid"), (1, "test")):
            assert found[split] == [(user, len(wanted[user]) - 2, len(wanted[user]) - back) for user in users]
        assert sum(pl.read_parquet(Path(name) / "out" / "items.parquet")["count"]) == card["counts"]["train_events"]


@QUICK
@given(LOGS, st.sampled_from(["last", "first", "all"]), st.sampled_from([5, 1 << 19]), st.data())
def test_time_split_never_trains_on_the_future(
    log: list[tuple[str, str, int]], targets: str, size: int, data: st.DataObject
) -> None:
    shares = data.draw(st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.4, 0.6, 0.0)]))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "CHUNK_EVENTS", size)
        patch.setattr(group, "BUCKET_EVENTS", size)
        path = write_csv(Path(name) / "log.csv", log, pad=False)
        out = Path(name) / "out"
        try:
            card = generic(path, out, split="time", ratios=shares, targets=targets, time_unit="s")
        except PrepError as error:
            assert "no user has two training events" in str(error)
            return
        times = histories(out, "times")
        bounds = [value if value is not None else float("inf") for value in card["split_rule"]["thresholds"]]
        trained = [t for user, end, _ in rows(out, "train") for t in times[user][:end]]
        assert max(trained) < bounds[0] <= bounds[1]
        for split, low, high in (("valid", bounds[0], bounds[1]), ("test", bounds[1], float("inf"))):
            wanted = []
            for user in sorted(times):
                mine = [at for at, time in enumerate(times[user]) if low <= time < high and at > 0]
                mine = mine[-1:] if targets == "last" else mine[:1] if targets == "first" else mine
                wanted += [(user, sum(time < bounds[0] for time in times[user]), at) for at in mine]
            assert rows(out, split) == wanted


def test_planted_log_is_what_it_says(tmp_path: Path) -> None:
    planted = write_planted_log(tmp_path, users=600, items=300, seed=1)
    assert write_planted_log(tmp_path / "again", users=600, items=300, seed=1).hit_rate == planted.hit_rate
    assert (tmp_path / "again" / "interactions.csv").read_bytes() == planted.path.read_bytes()
    card = generic(planted.path, tmp_path / "out")
    assert card["counts"]["repeats"] == 0 and card["n_users"] == 600 and card["n_items"] <= 300
    assert 0.4 < planted.ndcg[10] < planted.hit_rate[10] < planted.hit_rate[20] < 1
    # Transitions counted in the training part already rank far better than popularity does.
    items = parts(tmp_path / "out", "sequences")["items"].to_list()
    counts = np.ones((card["n_items"], card["n_items"])) * 1e-3
    for row in items:
        np.add.at(counts, (row[:-3], row[1:-2]), 1)
    hits, popular = [], []
    for row in items:
        scores = counts[row[-2]].copy()
        frequency = counts.sum(axis=0)
        scores[row[:-1]] = frequency[row[:-1]] = -1
        hits.append((scores > scores[row[-1]]).sum() < 10)
        popular.append((frequency > frequency[row[-1]]).sum() < 10)
    assert np.mean(popular) + 0.2 < np.mean(hits) < planted.hit_rate[10]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_leave_one_out_covers_each_event_once(lengths: list[int]) -> None:
    found, ends = split_rows(SplitRule("leave-one-out"), np.array(lengths), None)
    for sequence, length in enumerate(lengths):
        targets = [int(table.end[table.sequence == sequence][0]) for name, table in found.items()
                   if name != "train" and (table.sequence == sequence).any()]  # fmt: skip
        assert [*range(int(ends[sequence])), *targets] == list(range(length))
    assert set(found["train"].sequence.tolist()) == {i for i, length in enumerate(lengths) if length == 2 or length > 3}


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_repeats_are_found(pairs: list[tuple[int, int]]) -> None:
    seen: set[tuple[int, int]] = set()
    wanted = []
    for pair in pairs:
        wanted.append(pair in seen)
        seen.add(pair)
    users, items = (np.array([pair[side] for pair in pairs], np.int32) for side in (0, 1))
    assert repeated(users, items).tolist() == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=30))
def test_codes_of_any_texts(texts: list[str]) -> None:
    tokens = pl.Series(texts, dtype=pl.String)
    codes, first = encode(tokens)
    assert tokens.gather(first).gather(codes).to_list() == texts
    assert len(first) == len(set(texts))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-5_000_000_000, 7_000_000_000), max_size=20), st.sampled_from(["s", "ms", "us"]))
def test_times_survive_any_way_of_writing_them(seconds: list[int], unit: str) -> None:
    factor = {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    numbers = [second * factor for second in seconds]
    wanted = [second * 10**6 for second in seconds]
    for column in (pl.Series(numbers, dtype=pl.Int64), pl.Series(map(str, numbers), dtype=pl.String)):
        found, reasons = to_micros(column, unit, exact=True)
        assert found.to_list() == wanted and reasons is None
    written = pl.Series(wanted, dtype=pl.Int64).cast(pl.Datetime("us"))
    assert to_micros(written, "s", exact=False)[0].to_list() == wanted
    text = written.dt.to_string("%Y-%m-%d %H:%M:%S")
    assert to_micros(text, "s", exact=False)[0].to_list() == wanted
    assert to_micros(text.str.replace(" ", "T") + "+01:30", "s", exact=False)[0].to_list() == [
        value - 5400 * 10**6 for value in wanted
    ]
