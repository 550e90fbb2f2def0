"""Metrics of tests, nearest pictures, and tables of the report."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from domains.common.errors import ConfigError, PreparedDataError
from domains.common.figures import WARNINGS
from domains.finegrained import search
from domains.finegrained.evaluation import evaluate_classes, evaluate_retrieval, report_tables
from domains.finegrained.figures import figures
from domains.finegrained.reid_metrics import Identified, NoTrueMatchError
from domains.finegrained.reranking import Reranking
from domains.finegrained.retrieval import add_neighbours, find_sides, list_neighbours, mean_margin, score_queries
from domains.finegrained.search import nearest, nearest_counted


def classes_table(rows=60, count=7, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(count), rows)
    labels = rng.integers(0, count, rows)
    names = np.array([f"bird {k}" for k in range(count)])
    predicted = probabilities.argmax(1)
    columns = {f"probability_{k}": probabilities[:, k] for k in range(count)}
    return pl.DataFrame(
        {"row": np.arange(rows), "label": labels, "class": names[labels], "predicted": predicted, **columns}
        | {"predicted_class": names[predicted], "path": "gone.png", "left": 0, "top": 0, "right": 1, "bottom": 1}
    )


def people_table(seed=0, people=6, cameras=2, each=2):
    rng = np.random.default_rng(seed)
    label, camera, at = (axis.ravel() for axis in np.meshgrid(range(people), range(cameras), range(each)))
    centres = rng.normal(size=(people, 5))
    features = centres[label] + rng.normal(size=(len(label), 5))
    return pl.DataFrame(
        {
            "row": np.arange(len(label)),
            "name": [f"{i}.png" for i in range(len(label))],
            "label": label,
            "identity": [f"01{k:02d}" for k in label],  # as data write them: neither is its code
            "camera": camera,
            "camera_name": [f"c{k + 1}" for k in camera],
            "role": np.where(at == 0, 1, 2),
            "embedding": features.astype(np.float32),
            **{"path": "gone.png", "left": 0, "top": 0, "right": 1, "bottom": 1},
        }
    )


def test_classes_are_measured_as_others_measure_them():
    table = classes_table()
    metrics = evaluate_classes(table, [f"bird {k}" for k in range(7)], replicates=50)
    assert metrics["accuracy"].value == pytest.approx(accuracy_score(table["label"], table["predicted"]))
    probabilities = table.select(f"probability_{k}" for k in range(7)).to_numpy()
    best = np.argsort(-probabilities, 1)[:, :5]
    assert metrics["top5_accuracy"].value == pytest.approx((best == table["label"].to_numpy()[:, None]).any(1).mean())
    assert metrics["accuracy"].units == 60
    tables = report_tables(table, metrics)
    assert "nothing was learned" in tables[WARNINGS][0]["warning"]
    assert sum(row["pictures"] for row in tables["Weakest classes"]) == 60
    assert len(figures(table, metrics)) == 5
    with pytest.raises(PreparedDataError, match="no labels"):
        evaluate_classes(table.drop("label"), ["a"] * 7)


def test_intervals_of_retrieval_are_over_identities():
    table, said = score_queries(people_table())
    assert said == ""
    metrics = evaluate_retrieval(table, replicates=200)
    assert metrics["mAP"].units == 6
    assert metrics["mAP"].low < metrics["mAP"].value < metrics["mAP"].high
    assert metrics["mAP"].value > metrics["mAP_trapezoid"].value
    other = evaluate_retrieval(table, trapezoid=True, replicates=5)
    assert other["mAP"].value == metrics["mAP_trapezoid"].value
    again, _ = score_queries(people_table(), reranking=Reranking(4, 2))
    assert "reranked_mAP" in evaluate_retrieval(again, replicates=5)
    found = add_neighbours(again)
    assert [one.title for one in figures(found, metrics)][2:] == ["Worst queries", "Middling queries", "Best queries"]


def test_queries_without_a_match_are_named_and_left_out():
    table = people_table().filter(~((pl.col("label") == 3) & (pl.col("role") == 2)))
    scored, said = score_queries(table)
    assert "2 of 12 queries (6.png, 18.png)" in said
    assert "identity 0103: query 1 by camera c1, 1 by camera c2, gallery none" in said
    assert "ignore_camera" not in said, "it would not help"
    metrics = evaluate_retrieval(scored, replicates=5)
    assert metrics["mAP"].units == 5
    tables = report_tables(scored, metrics)
    assert "2 of 12 queries" in tables[WARNINGS][0]["warning"]
    missing = tables["Queries without a true match in the gallery"]
    assert missing[0] == {"name": "6.png", "identity": "0103", "camera": "c1"}
    assert [row["identity"] for row in missing] == ["0103", "0103"]


def test_tests_that_say_little_are_warned_of():
    table, _ = score_queries(people_table(people=4, each=3, cameras=2))

    def warnings(table):
        found = report_tables(table, {}).get(WARNINGS, [])
        return " ".join(row["warning"] for row in found)

    assert "4 identities" in warnings(table)
    assert "fewer than" not in warnings(table)
    many, _ = score_queries(people_table(people=12, each=3, cameras=2))
    assert warnings(many) == "", "two true matches, twice as large a gallery"
    fewer = many.filter((pl.col("role") == 1) | (pl.col("row") % 3 == 1)).vstack(many.filter(pl.col("row") % 3 == 0))
    scored, _ = score_queries(fewer.drop("matches", "first_rank", "ap_mean", "ap_trapezoid", "inp"))
    assert "the gallery has 24 pictures, fewer than the 48 queries" in warnings(scored)
    assert "1.00 true matches" in warnings(scored)


def test_margin_goes_on_where_every_match_is_first():
    table = people_table(cameras=2)
    centres = np.eye(6)[table["label"].to_numpy()]
    margins = []
    for share in (0.1, 0.05):
        mixed = centres + share * np.roll(centres, 1, axis=1) * (table["row"].to_numpy() % 2)[:, None]
        features = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        sides = find_sides(table.with_columns(embedding=pl.Series(features.astype(np.float32))))
        margins.append(mean_margin(sides))
        wanted = []
        for row in table.filter(pl.col("role") == 1).iter_rows(named=True):
            others = [r for r in table.filter(pl.col("role") == 2).iter_rows(named=True)]
            apart = {r["row"]: np.linalg.norm(features[row["row"]] - features[r["row"]]) for r in others}
            true = [apart[r["row"]] for r in others if r["label"] == row["label"] and r["camera"] != row["camera"]]
            wanted.append(min(apart[r["row"]] for r in others if r["label"] != row["label"]) - np.mean(true))
        assert margins[-1] == pytest.approx(np.mean(wanted), abs=1e-6)
        assert (
            score_queries(table.with_columns(embedding=pl.Series(features.astype(np.float32))))[0]["ap_mean"]
            .drop_nulls()
            .min()
            == 1
        )
    assert margins[0] < margins[1] < 2
    alone = find_sides(table.filter(pl.col("label") == 0))
    assert mean_margin(alone) < 0, "nobody else is there to be taken for"


def test_a_single_camera_says_what_to_do():
    table = people_table(cameras=1)
    with pytest.raises(NoTrueMatchError, match="ignore_camera"):
        score_queries(table)
    scored, _ = score_queries(table, ignore_camera=True)
    assert scored["ap_mean"].drop_nulls().is_between(0, 1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans(), st.sampled_from(["exact", "faiss"]))
def test_nearest_pictures_are_those_of_a_plain_loop(seed, count, ignore, search):
    if search == "faiss":
        pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(seed)
    query, gallery = (torch.randn(n, 4, generator=generator) for n in (5, 14))
    who = [
        Identified(torch.randint(-1, 3, (n,), generator=generator), torch.randint(0, 2, (n,), generator=generator))
        for n in (5, 14)
    ]
    if (who[1].identities == -1).all():
        return
    found = nearest_counted((query, who[0]), (gallery, who[1]), count, ignore_camera=ignore, search=search)
    for i in range(5):
        kept = [
            j
            for j in range(14)
            if who[1].identities[j] != -1
            and (ignore or who[1].identities[j] != who[0].identities[i] or who[1].cameras[j] != who[0].cameras[i])
        ]
        wanted = sorted(kept, key=lambda j: float((query[i] - gallery[j]).norm()))[:count]
        mine = [j for j in found.places[i].tolist() if j >= 0]
        assert mine == wanted
    assert nearest(query, gallery, 3, search).distance.diff(dim=1).ge(0).all()


def test_distractors_and_copies_in_lists_of_neighbours(monkeypatch):
    """Distractors count as in Market-1501, however many they are; copies have distance 0, in the gallery's order."""
    query = Identified(torch.tensor([1]), torch.tensor([0]))
    gallery = Identified(torch.tensor([1, 1, 1] + [9] * 500), torch.tensor([0, 1, 1] + [0] * 500))
    features = torch.cat([torch.tensor([[0.3], [0.3], [0.3]]), torch.linspace(1, 2, 500)[:, None]])
    asked = []
    monkeypatch.setattr(search, "nearest", lambda *given: asked.append(given[2]) or nearest(*given))
    found = nearest_counted((torch.tensor([[0.3]]), query), (features, gallery), 4, ignore_camera=False, search="exact")
    assert asked == [5], "one picture by the own camera can fall away, whatever the distractors"
    assert found.places.tolist() == [[1, 2, 3, 4]]
    assert found.distance[0, :2].tolist() == [0, 0]
    nothing = Identified(torch.tensor([-1]), torch.tensor([0]))
    empty = nearest_counted((torch.ones(1, 1), query), (torch.ones(1, 1), nothing), 4, ignore_camera=False)
    assert empty.places.shape == (1, 0)


def test_pictures_without_roles_are_searched_among_each_other():
    table = people_table().with_columns(role=pl.lit(0)).drop("label")
    found = list_neighbours(add_neighbours(table, labelled=False))
    assert found.group_by("query").len()["len"].unique().to_list() == [10]
    assert (found["query"] != found["neighbour"]).all()
    with pytest.raises(ConfigError, match="choose auto"):
        nearest(torch.zeros(1, 2), torch.zeros(1, 2), 1, "best")
