from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.intervals import group_bootstrap, ratio_bootstrap
from domains.seqrec.evaluation import (
    CUTOFFS,
    METRICS,
    evaluate_rankings,
    evaluate_strata,
    report_tables,
    stratum_names,
)
from domains.seqrec.figures import figures
from domains.seqrec.ranking import rank_items


def predictions(users=400, items=60, seed=0, top=20):
    """Rows of a test, from random scores with many ties: some targets seen, some users several times."""
    torch.manual_seed(seed)
    vectors, table = torch.randint(-2, 3, (users, 3)).float(), torch.randint(-2, 3, (items, 3)).float()
    seen, target = torch.randint(items + 1, (users, 4)), torch.randint(items, (users,))
    ranking = rank_items(vectors, table, seen, target, top=top)
    frame = pl.DataFrame(
        {
            "row": np.arange(users),
            "user": np.sort(np.random.default_rng(seed).integers(users // 2 + 1, size=users)),
            "length": np.random.default_rng(seed).integers(1, 70, size=users),
            "target": target.numpy(),
            "target_count": (torch.arange(items).flip(0) // 3)[target].numpy(),
            "seen_target": (seen == target[:, None]).any(1).numpy(),
            "rank": ranking.rank.numpy(),
            "items": ranking.items.int().numpy(),
            "scores": ranking.scores.numpy(),
        }
    )
    return frame, vectors @ table.T, seen


@settings(max_examples=25, deadline=None)
@given(users=st.integers(2, 60), items=st.integers(1, 40), seed=st.integers(0, 999))
def test_metrics_are_those_of_a_full_sort_in_random_order_of_ties(users, items, seed):
    frame, scores, seen = predictions(users, items, seed)
    got = evaluate_rankings(frame, items, replicates=3)
    want = {name: 0.0 for name in METRICS}
    for i, row in enumerate(frame.iter_rows(named=True)):
        left = [j for j in range(items) if j not in seen[i].tolist()]
        if row["target"] not in left:
            continue
        mine = float(scores[i, row["target"]])
        better = sum(float(scores[i, j]) > mine for j in left)
        equal = sum(float(scores[i, j]) == mine for j in left) - 1
        place = better + equal / 2  # the mean over all orders of those that tie
        for k in CUTOFFS:
            if place < k:
                want[f"hr@{k}"] += 1 / users
                want[f"ndcg@{k}"] += 1 / math.log2(place + 2) / users
                want[f"mrr@{k}"] += 1 / (place + 1) / users
    for name, value in want.items():
        assert got[name].value == pytest.approx(value, abs=1e-12), name
    for k in CUTOFFS:
        lists = [[j for j in row[:k] if j < items] for row in frame["items"].to_list()]
        shown = [j for row in lists for j in row]
        assert got[f"coverage@{k}"].value == pytest.approx(len(set(shown)) / items)
        if shown:
            assert got[f"popularity@{k}"].value == pytest.approx(np.mean([j < items / 10 for j in shown]))
    assert got["hr_ceiling"].value == pytest.approx(np.isfinite(frame["rank"].to_numpy()).mean())


def test_a_seen_target_and_a_score_that_is_no_number_are_no_hits():
    table = torch.randn(4, 2)  # a catalogue smaller than every cutoff
    seen = torch.tensor([[0, 4], [1, 2], [4, 4]])
    users = torch.randn(3, 2)
    users[2] = torch.nan
    rank = rank_items(users, table, seen, torch.tensor([0, 3, 2]), top=3).rank
    assert rank.isinf().tolist() == [True, False, True]


def test_users_are_drawn_whole():
    frame, _, _ = predictions()
    twice = pl.concat([frame, frame.with_columns(row=pl.col("row") + len(frame))])
    one, two = evaluate_rankings(frame, 60, replicates=100), evaluate_rankings(twice, 60, replicates=100)
    assert one["hr@10"].units == frame["user"].n_unique()
    for name, estimate in one.items():
        assert two[name].value == pytest.approx(estimate.value), name
        assert two[name].low == pytest.approx(estimate.low), name
        assert estimate.low >= 0 and estimate.high <= 1, name
        assert estimate.low <= estimate.value + 1e-12 and estimate.value <= estimate.high + 1e-12, name


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 40), groups=st.integers(1, 10), seed=st.integers(0, 99))
def test_one_matrix_product_gives_the_intervals_of_single_metrics(rows, groups, seed):
    rng = np.random.default_rng(seed)
    owner, above, below = rng.integers(groups, size=rows), rng.normal(size=rows), rng.integers(0, 3, size=rows) * 1.0
    metric = lambda weights: weights @ above / (weights @ below) if weights @ below else float("nan")  # noqa: E731
    options = {"groups": owner, "replicates": 40, "seed": seed}
    one = group_bootstrap({"m": metric}, rows, **options)["m"]
    other = ratio_bootstrap({"m": (above, below)}, rows, **options)["m"]
    assert one.units == other.units
    for name in ("value", "low", "high"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9, nan_ok=True)


def test_strata_add_up_to_the_whole():
    frame, _, _ = predictions(1000)
    strata = evaluate_strata(frame)
    whole = evaluate_rankings(frame, 60, replicates=2)
    for by in ("length", "target_count"):
        mine = strata.filter(pl.col("by") == by)
        assert mine["targets"].sum() == 1000
        for metric in ("ndcg", "hr"):
            mean = (mine[metric] * mine["targets"]).sum() / 1000
            assert mean == pytest.approx(whole[f"{metric}@10"].value)
            assert (mine[f"{metric}_low"] <= mine[f"{metric}_high"]).all()
    first = frame.filter(pl.col("length") < 5)
    assert strata.row(0)[:3] == ("length", "1-4", len(first))
    assert stratum_names((0, 1, 5)) == ["0", "1-4", "5+"]


def test_pictures_and_tables_of_the_report():
    frame, _, _ = predictions()
    metrics = evaluate_rankings(frame, 60, replicates=20)
    assert [picture.title for picture in figures(frame, metrics)] == [
        "Hit rate by cutoff",
        "NDCG@10 by length of the history",
        "NDCG@10 by frequency of the wanted item",
        "Place of the wanted item",
        "Popularity of recommendations",
    ]
    tables = report_tables(frame, metrics)
    assert list(tables) == ["By length of the history", "By frequency of the wanted item"]
    one, _, _ = predictions(users=1, items=1, seed=3)
    assert len(figures(one, evaluate_rankings(one, 1))) == 5, "a single user, a single item"
