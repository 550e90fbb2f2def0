from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

from domains.common.attention import record
from domains.common.figures import plain
from domains.seqrec.data import SequenceData
from domains.seqrec.drivers import Histories, by_distance, observed_counts, past_items, score_drops
from domains.seqrec.explain import choose_users, explain
from domains.seqrec.learned import learned_transitions
from domains.seqrec.losses import distillation_loss
from domains.seqrec.module import MQSATEDModule, SASRecModule, TransitionModule
from tests.domains.seqrec.helpers import random_histories, write_prepared

ITEMS, LONGEST = 30, 9
SYSTEMS = {
    "mqsa-ted": lambda: MQSATEDModule(ITEMS, max_len=LONGEST, dim=8, depth=2, heads=2),
    "sasrec": lambda: SASRecModule(ITEMS, max_len=LONGEST, dim=8),
    "transitions": lambda: TransitionModule(ITEMS, max_len=LONGEST, dim=8),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    histories = random_histories(40, ITEMS, 12, seed=3)
    root = write_prepared(tmp_path_factory.mktemp("explain") / "log", histories, ITEMS)
    tokens = [f"${i}, é\n" if i % 2 else f"item-{i}" for i in range(ITEMS)]
    pl.read_parquet(root / "items.parquet").with_columns(token=pl.Series(tokens)).write_parquet(root / "items.parquet")
    return SequenceData(str(root), max_len=LONGEST, batch_size=16)


def module(name):
    torch.manual_seed(0)
    made = SYSTEMS[name]().eval().requires_grad_(False)
    for parameter in made.net.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def padded(data):
    return SequenceData(str(data.root), max_len=LONGEST, arrangement="padded", batch_size=100)


@pytest.mark.parametrize("name", SYSTEMS)
def test_drop_is_the_score_lost_by_a_history_without_the_item(name, data):
    net = module(name).net
    past = Histories(np.array([3, 7, 1, 4, 4, 9, 2]), np.array([4, 1, 2]))
    wanted = torch.tensor([5, 6, 8])
    sequences = [[3, 7, 1, 4], [4], [9, 2]]
    whole = [net(torch.tensor([s]))[0] for s in sequences]
    users = torch.cat([net.represent(torch.tensor([s]))[:, -1] for s in sequences])
    got = score_drops(net, past, wanted, users)
    want = []
    for user, sequence in enumerate(sequences):
        for i in range(len(sequence)):
            rest = sequence[:i] + sequence[i + 1 :]
            item = int(wanted[user])
            want.append(float(whole[user][item] - net(torch.tensor([rest]))[0, item]) if rest else np.nan)
    np.testing.assert_allclose(got, want, atol=1e-5)
    if name == "transitions":
        assert np.flatnonzero(np.nan_to_num(np.abs(got)) > 1e-6).tolist() == [3, 6], "only the newest item counts"


def test_slices_of_shortened_histories_change_nothing(data, monkeypatch):
    made, batch = module("mqsa-ted"), next(iter(padded(data).test_dataloader()))
    whole = past_items(made, batch, data.transitions)
    monkeypatch.setattr("domains.seqrec.drivers.TOKENS", 5)
    sliced = past_items(made, batch, data.transitions)
    assert (whole["drop"] - sliced["drop"]).abs().max() < 1e-5


def test_attention_of_each_branch_is_that_of_the_newest_position(data):
    made, batch = module("mqsa-ted"), next(iter(padded(data).test_dataloader()))
    past = past_items(made, batch, data.transitions)
    sums = past.group_by("row").agg(pl.col("attention_short", "attention_long").sum())
    assert (sums["attention_short"] - 1).abs().max() < 1e-5
    assert (sums["attention_long"] - 1).abs().max() < 1e-5
    row = past.filter(pl.col("row") == 0).sort("distance", descending=True)
    with record(made.net) as maps:
        made.net.represent(torch.from_numpy(row["item"].to_numpy().copy())[None])
    for branch, name in enumerate(("attention_short", "attention_long")):
        want = torch.stack([maps[f"attention.branches.{branch}.{i}.attention"][0].mean(1)[0, -1] for i in range(2)])
        np.testing.assert_allclose(row[name].to_numpy(), want.mean(0).numpy(), atol=1e-6)
    means = by_distance(past)
    assert means["distance"].to_list() == list(range(1, LONGEST + 1))
    assert means["users"][0] == past["row"].n_unique()


def test_observed_counts_are_those_of_the_matrix(data):
    matrix = data.transitions
    head, tail = (grid.ravel() for grid in np.meshgrid(np.arange(ITEMS), np.arange(ITEMS), indexing="ij"))
    dense = np.zeros((ITEMS, ITEMS), dtype=np.int64)
    np.add.at(dense, (np.repeat(np.arange(ITEMS), np.diff(matrix.start)), matrix.tail), matrix.count.astype(np.int64))
    assert np.array_equal(observed_counts(matrix, head, tail), dense.ravel())


@pytest.mark.parametrize("teacher", ["row_max", "row_sum"])
def test_agreement_is_the_distillation_loss(data, teacher, monkeypatch):
    torch.manual_seed(1)
    made = MQSATEDModule(ITEMS, max_len=LONGEST, dim=8, teacher=teacher).eval()
    table, agreement = learned_transitions(made, data.transitions, 1000)
    rows = data.transitions.rows(np.flatnonzero(np.diff(data.transitions.start)))
    with torch.no_grad():
        loss = distillation_loss(made.net.embed(rows.head[None])[0][0], made.net.table(), rows, 0.1, teacher)
    assert agreement.summary["cross_entropy"] == pytest.approx(float(loss) / len(rows.head), rel=1e-5)
    assert agreement.summary["entropy"] <= agreement.summary["cross_entropy"]
    assert len(agreement.teacher) == len(agreement.student) == len(rows.tail)
    assert (
        table["count"] == observed_counts(data.transitions, table["head_id"].to_numpy(), table["tail_id"].to_numpy())
    ).all()
    monkeypatch.setattr("domains.seqrec.learned.SCORES", 1)
    again = learned_transitions(made, data.transitions, 1000)
    assert again[0].equals(table)
    assert again[1].summary == pytest.approx(agreement.summary)


@pytest.mark.parametrize(
    ("name", "arrangement"), [("mqsa-ted", "packed"), ("sasrec", "padded"), ("transitions", "packed")]
)
def test_explain_writes_files_and_pictures(name, arrangement, data, tmp_path):
    chosen = SequenceData(str(data.root), max_len=LONGEST, arrangement=arrangement, batch_size=7)
    pictures = explain(module(name), chosen, tmp_path, users=20)
    drivers = pl.read_parquet(tmp_path / "drivers.parquet")
    branches = [column for column in drivers.columns if column.startswith("attention_")]
    assert branches == {
        "mqsa-ted": ["attention_short", "attention_long"], "sasrec": ["attention_short"], "transitions": []
    }[name]  # fmt: skip
    assert drivers["user"].str.starts_with("user-").all()
    assert set(drivers["item"]) <= set(data.item_tokens)
    content = json.loads((tmp_path / "drivers.json").read_text())
    assert content["users"][0]["past"][0]["distance"] == 1
    assert pl.read_csv(tmp_path / "transitions.csv")["head"].is_in(data.item_tokens.implode()).all()
    assert 0 <= json.loads((tmp_path / "transitions.json").read_text())["first_choice"] <= 1
    assert {"What drives recommendations, by place in the history", "Successors of frequent items"} <= {
        picture.title for picture in pictures
    }
    for picture in pictures:
        picture.figure.savefig(tmp_path / "picture.png")  # names with dollar signs and line ends are drawn as they are
    assert chosen.arrangement == arrangement


def test_chosen_users_show_a_hit_a_miss_and_a_long_history():
    lengths, ranks = [5, 6, 7, 40], [0.0, 500.0, np.inf, 3.0]
    frame = pl.concat(
        pl.DataFrame({"row": [i] * n, "rank": [r] * n, "drop": [0.1] * n})
        for i, (n, r) in enumerate(zip(lengths, ranks, strict=True))
    )
    assert choose_users(frame) == {0: "A hit", 1: "A miss", 3: "A long history"}


def test_labels():
    assert plain("a$b\n") == r"a\$b?"
    assert len(plain("x" * 50)) == 28
