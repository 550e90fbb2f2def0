"""The table of persons, its metrics and their intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_prep.pose.detections import read_detections
from domains.pose.evaluation2d import (
    PCK,
    REPLICATES,
    detected_persons,
    evaluate_table,
    split_table,
    with_annotations,
    write_results,
)
from domains.pose.figures2d import best_threshold, figures
from domains.pose.keypoint_ap import AREAS, Annotations, Found, Pooled, evaluate, match_images, summarise

K, SIGMAS, EDGES = 4, [0.05, 0.08, 0.1, 0.06], [[0, 1], [1, 2], [2, 3]]


def scene(images: int = 12, seed: int = 0) -> tuple[Annotations, pl.DataFrame, pl.DataFrame]:
    """Persons of all kinds, per-image detections that find some of them, and the images."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {name: [] for name in ("image", "keypoints", "box", "area", "crowd", "labelled")}
    scores, labels, points = [], [], []
    for image in range(images):
        found = rng.uniform(0, 200, (6, K, 2)).astype(np.float32)
        for person in range(image % 4):
            own = rng.uniform(0, 60, (K, 2)) * (1 + 2 * person) + 20
            flags = rng.integers(0, 3, K)
            low, high = own.min(0), own.max(0)
            values = (100 + image, np.c_[own, flags], np.r_[low, high - low], float(np.prod(high - low) * 0.7))
            for name, value in zip(
                columns, (*values, person == 2 and image % 3 == 0, int((flags > 0).sum())), strict=True
            ):
                columns[name].append(value)
            found[person] = own + rng.normal(0, 1 + 2 * person, (K, 2))
        scores.append(rng.uniform(0, 1, 6).round(1))
        labels.append(np.r_[1, 1, 1, rng.integers(0, 2, 3)])
        points.append(found.reshape(-1))
    truth = Annotations(*(np.array(values) for values in columns.values()))
    row = np.arange(images, dtype=np.int64)
    per_image = pl.DataFrame(
        {"row": row, "score": np.float32(scores), "label": np.int64(labels), "keypoints": np.stack(points)}
    )
    facts = pl.DataFrame(
        {
            "row": row.astype(np.uint64),
            "image_id": 100 + row,
            "file": [f"{image}.png" for image in row],
            "width": [240] * images,
            "height": [240] * images,
            "crowd_index": np.linspace(0, 1, images),
            "path": [f"/nowhere/{image}.png" for image in row],
        }
    )
    return truth, per_image, facts


def make_table(**options: Any) -> tuple[pl.DataFrame, Annotations, pl.DataFrame]:
    truth, per_image, facts = scene(**options)
    return with_annotations(detected_persons(per_image), truth, facts, SIGMAS, EDGES), truth, facts


def same(got: dict[str, Any], wanted: dict[str, float]) -> None:
    assert set(got) == {*wanted, PCK}
    for name, value in wanted.items():
        number = got[name].value
        assert (np.isnan(number) and value == -1) or number == pytest.approx(value, abs=1e-12), name


def test_the_table_holds_all_persons() -> None:
    table, truth, facts = make_table()
    own, found = split_table(table, K)
    for name in vars(truth):
        assert np.array_equal(getattr(own, name), getattr(truth, name)), name
    per_image = scene()[1]
    assert len(found.score) == int((per_image["label"].to_numpy() == 1).sum())
    first = per_image["keypoints"].to_numpy()[0].reshape(6, K, 2)
    assert np.array_equal(found.keypoints[0], first[0])
    assert table["sigmas"].drop_nulls().to_list() == [SIGMAS] and table["skeleton"][0].to_list() == [0, 1, 1, 2, 2, 3]
    assert table["path"].null_count() == 0 and table["row"].is_sorted() and len(facts) == table["row"].n_unique()


@pytest.mark.parametrize("protocol", ["coco", "crowdpose"])
def test_metrics_are_those_of_the_evaluator(protocol: Any) -> None:
    table, truth, facts = make_table()
    _, found = split_table(table, K)
    crowds = facts["crowd_index"].to_numpy()
    options = {"crowd_index": crowds} if protocol == "crowdpose" else {}
    wanted = evaluate(truth, found, facts["image_id"].to_numpy(), np.array(SIGMAS), protocol=protocol, **options)
    got = evaluate_table(table, SIGMAS, protocol, replicates=30, seed=0)
    same(got, wanted)
    assert 0 < got["AP"].value < 1 and got["AP"].low <= got["AP"].value <= got["AP"].high
    assert got["AP"].units == 12 and 0 < got[PCK].value <= 1
    again = evaluate_table(table, SIGMAS, protocol, replicates=30, seed=0)
    bounds = [[bound for e in each.values() for bound in (e.low, e.high)] for each in (got, again)]
    assert np.array_equal(*bounds, equal_nan=True)


def test_images_count_as_often_as_they_are_drawn() -> None:
    """Counts stand for copies of images, persons and detections and all."""
    table, truth, facts = make_table()
    _, found = split_table(table, K)
    rng = np.random.default_rng(1)
    found = Found(found.image, found.keypoints, found.score + rng.uniform(0, 0.01, len(found.score)))  # no ties
    counts = rng.integers(0, 4, len(facts))
    images = facts["image_id"].to_numpy()
    matched = dict(match_images(truth, found, images, np.array(SIGMAS), "coco"))
    got = summarise({area: Pooled.of(list(matched.values()), area) for area in AREAS}, counts.astype(float))
    copies = [(image, 1000 * copy + image) for image, n in zip(images, counts, strict=True) for copy in range(n)]

    def copied(of: Any) -> Any:
        parts = [np.flatnonzero(of.image == image) for image, _ in copies]
        rows = np.concatenate(parts)
        ids = np.concatenate([np.full(len(part), new) for part, (_, new) in zip(parts, copies, strict=True)])
        return type(of)(**{**{name: value[rows] for name, value in vars(of).items()}, "image": ids})

    wanted = evaluate(copied(truth), copied(found), np.array([new for _, new in copies]), np.array(SIGMAS))
    assert got == pytest.approx(wanted, abs=1e-12)


def test_groups_of_images_are_drawn_together() -> None:
    table, _, facts = make_table()
    group = pl.DataFrame({"image_id": facts["image_id"], "group": [f"scene {row // 3}" for row in range(12)]})
    got = evaluate_table(table.join(group, on="image_id", maintain_order="left"), SIGMAS, "coco", replicates=9, seed=0)
    assert got["AP"].units == 4


def test_resamples_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "domains.pose.evaluation2d.joint_bootstrap", lambda *args, replicates, **kwargs: seen.append(replicates)
    )
    table = make_table()[0]
    for asked in (10, 1000):
        evaluate_table(table, SIGMAS, "coco", replicates=asked, seed=0)
    assert seen == [10, REPLICATES]


def test_nothing_found_and_nobody_there() -> None:
    truth, per_image, facts = scene()
    nobody = per_image.with_columns(pl.col("label") * 0)
    got = evaluate_table(
        with_annotations(detected_persons(nobody), truth, facts, SIGMAS, EDGES), SIGMAS, "coco", replicates=5, seed=0
    )
    assert got["AP"].value == 0 and got[PCK].value == 0
    empty = Annotations(*(values[:0] for values in vars(truth).values()))
    table = with_annotations(detected_persons(per_image), empty, facts, SIGMAS, EDGES)
    got = evaluate_table(table, SIGMAS, "coco", replicates=5, seed=0)
    assert np.isnan([estimate.value for estimate in got.values()]).all()
    assert figures(table, got) == []


def test_pictures_without_the_images(tmp_path: Path) -> None:
    table, *_ = make_table()
    pictures = figures(table, evaluate_table(table, SIGMAS, "coco", replicates=5, seed=0))
    assert [each.title.split()[0] for each in pictures] == ["Precision", "Metrics", "Worst", "Median", "Best"]
    for picture in pictures:
        picture.figure.savefig(tmp_path / "figure.png")


def test_the_threshold_of_best_f1() -> None:
    right = np.array([[True, True, False, True, False]] * 10)
    pool = Pooled(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.zeros(5, int), right, ~right, np.array([3.0]))
    assert best_threshold(pool) == 0.6


def test_results_file(tmp_path: Path) -> None:
    detected = detected_persons(scene()[1]).with_columns(image_id=pl.col("row") + 100)
    path = write_results(detected, tmp_path)
    read, rejects = read_detections(path, "custom-4", K)
    assert path.name == "coco_results.json" and rejects == [] and len(read.keypoints) == len(detected)


def test_results_of_nobody(tmp_path: Path) -> None:
    table = make_table()[0].clear()
    assert json.loads(write_results(table, tmp_path).read_text()) == []
