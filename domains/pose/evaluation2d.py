"""From what Group Pose says of images to a table of persons, and from the table to the numbers of COCO and CrowdPose.

The table of a test has a row for each detection and one for each annotated person, so that metrics and pictures need
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from domains.common.intervals import Estimate, joint_bootstrap
from domains.common.writing import write_whole
from domains.pose.grouppose import PERSON
from domains.pose.keypoint_ap import (
    AREAS,
    CROWDS,
    Annotations,
    Array,
    Found,
    Pooled,
    Protocol,
    by_image,
    match_images,
    mean_value,
    object_keypoint_similarity,
    summarise,
)

REPLICATES = 200  # at most: each sorts out all detections of the split anew
NEAR = 0.1  # of the longer side of a person's box, for PCK
PCK = f"PCK@{NEAR:g}"
RESULTS = "coco_results.json"


def detected_persons(images: pl.DataFrame) -> pl.DataFrame:
    """One row for each detected person, from one for each image.

    Args:
        images: with the columns `score` and `label` (S of each image) and `keypoints` (S x K x 2 of each image), and
            any others, which stay.

    Returns:
        The others, `score`, and `keypoints`: a list of x, y, x, y, ... in pixels of the original image.
    """
    score, label = (images[name].to_numpy().reshape(len(images), -1) for name in ("score", "label"))
    points = images["keypoints"].to_numpy().reshape(*score.shape, -1)
    image, place = np.nonzero(label == PERSON)
    table = images.drop("score", "label", "keypoints")[image.astype(np.int64)]
    rows = points[image, place]
    keypoints = pl.Series("keypoints", rows, dtype=pl.Array(pl.Float32, rows.shape[1])).arr.to_list()
    return table.with_columns(score=pl.Series(score[image, place], dtype=pl.Float32), keypoints=keypoints)


def with_facts(detected: pl.DataFrame, images: pl.DataFrame) -> pl.DataFrame:
    """Put what is known of images before their detections; both have `row`."""
    rows = detected.with_columns(pl.col("row").cast(images["row"].dtype))
    table = rows.join(images, on="row", how="left", maintain_order="left")
    return table.select(*images.columns, "score", "keypoints")


def with_annotations(
    detected: pl.DataFrame,
    truth: Annotations,
    images: pl.DataFrame,
    sigmas: Sequence[float],
    skeleton: Sequence[Sequence[int]],
) -> pl.DataFrame:
    """Put the annotated persons of the images behind the detected ones.

    Args:
        detected: see `detected_persons`; with `row`.
        truth: of the split.
        images: those that were looked at: `row`, `image_id`, and further columns that go into the table.
        sigmas: of the keypoints.
        skeleton: pairs of keypoints.

    Returns:
        Columns of both, `annotated` telling which; the first row has `sigmas` and `skeleton` (ends in turns), too.
    """
    seen = np.isin(truth.image, images["image_id"].to_numpy())
    points = np.asarray(truth.keypoints, np.float64)[seen]
    persons = pl.DataFrame(
        {
            "image_id": pl.Series(truth.image[seen], dtype=pl.Int64),
            "keypoints": _lists(points[:, :, :2].reshape(len(points), 2 * len(sigmas)), pl.Float64),
            "flags": _lists(points[:, :, 2], pl.UInt8),
            "box": _lists(truth.box[seen], pl.Float64),
            "area": pl.Series(truth.area[seen], dtype=pl.Float64),
            "crowd": pl.Series(truth.crowd[seen] != 0, dtype=pl.Boolean),
            "labelled": pl.Series(truth.labelled[seen], dtype=pl.UInt32),
        }
    )
    persons = persons.join(images, on="image_id", how="left", maintain_order="left").with_columns(annotated=True)
    found = with_facts(detected, images).with_columns(pl.col("keypoints").cast(pl.List(pl.Float64)), annotated=False)
    table = pl.concat([found, persons], how="diagonal").sort("row", "annotated", maintain_order=True)
    first = pl.int_range(pl.len()) == 0
    edges = [int(end) for pair in skeleton for end in pair]
    return table.with_columns(
        sigmas=pl.when(first).then(pl.lit(pl.Series([list(sigmas)], dtype=pl.List(pl.Float64)))),
        skeleton=pl.when(first).then(pl.lit(pl.Series([edges], dtype=pl.List(pl.Int32)))),
    )


def split_table(table: pl.DataFrame, n_keypoints: int) -> tuple[Annotations, Found]:
    """Persons and detections of a table of `with_annotations`, as the evaluator takes them."""
    found = table.filter(~pl.col("annotated"))
    truth = table.filter(pl.col("annotated"))
    annotations = Annotations(
        truth["image_id"].to_numpy(),
        np.concatenate([_matrix(truth, "keypoints", n_keypoints, 2), _matrix(truth, "flags", n_keypoints, 1)], 2),
        _matrix(truth, "box", 4, 1)[..., 0],
        truth["area"].to_numpy(),
        truth["crowd"].to_numpy(),
        truth["labelled"].to_numpy(),
    )
    points = _matrix(found, "keypoints", n_keypoints, 2)
    return annotations, Found(found["image_id"].to_numpy(), points, found["score"].to_numpy())


def evaluate_table(
    table: pl.DataFrame, sigmas: Sequence[float], protocol: Protocol, *, replicates: int, seed: int
) -> dict[str, Estimate]:
    """AP and AR of `keypoint_ap.evaluate`, and PCK, with intervals over images, or over their groups.

    At most 200 resamples are drawn: each is an evaluation of the whole split, without the matching, which is done once.

    Args:
        table: see `with_annotations`.
        sigmas: of the keypoints.
        protocol: coco or crowdpose; of the latter also AP of easy, medium and hard images, where all have a crowd
            index.
        replicates: resamples of the images.
        seed: of the resampling.

    Returns:
        NaN where there is no person to find, which the official programs write as -1.
    """
    truth, found = split_table(table, len(sigmas))
    ids, first = np.unique(table["image_id"].to_numpy(), return_index=True)
    matched = dict(match_images(truth, found, ids, np.asarray(sigmas), protocol))
    images, pools = list(matched.values()), {}
    for area in AREAS if protocol == "coco" else ("all",):
        pools[area] = Pooled.of(images, area)
    facts = table[first.astype(np.int64)]
    crowds = _by_crowd(matched, facts) if protocol == "crowdpose" else {}
    near = np.array([counts for _, counts in keypoints_near(truth, found, ids, sigmas)], np.float64).reshape(-1, 2)

    def measure(counts: Array) -> list[float]:
        numbers = summarise(pools, counts)
        for name, (chosen, pool) in crowds.items():
            value = mean_value(pool.curves(counts[chosen])[0])
            numbers[name] = round(value, 4)  # as the official program
        right, of = counts @ near
        numbers[PCK] = right / of if of else -1.0
        return [value if value > -1 else float("nan") for value in numbers.values()]

    names = [*summarise(pools), *crowds, PCK]
    groups = facts["group"].to_numpy() if "group" in facts.columns else None
    return joint_bootstrap(names, measure, len(images), groups, replicates=min(replicates, REPLICATES), seed=seed)


def _by_crowd(matched: Mapping[int, Any], facts: pl.DataFrame) -> dict[str, tuple[Array, Pooled]]:
    """Images of each kind by their crowd index: their places, and their detections."""
    if "crowd_index" not in facts.columns or facts["crowd_index"].null_count():
        return {}
    crowd, images = facts["crowd_index"].to_numpy(), list(matched.values())
    kinds = {}
    for name, (low, high) in CROWDS.items():
        chosen = np.flatnonzero((low <= crowd) & (crowd < high))
        kinds[f"AP_{name}"] = chosen, Pooled.of([images[i] for i in chosen], "all")
    return kinds


def keypoints_near(
    truth: Annotations, found: Found, images: Array, sigmas: Sequence[float]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Of each image: labelled keypoints of all persons, and how many of them the most similar detection is near to."""
    for image, persons, best in by_image(truth, found, images):
        kept = (persons.crowd == 0) & (persons.labelled > 0)
        points, boxes = persons.keypoints[kept], persons.box[kept]
        labelled = points[..., 2] > 0
        right = 0
        if len(best.score) and len(points):
            similarity = object_keypoint_similarity(persons, best, np.asarray(sigmas), persons.area)[:, kept]
            nearest = best.keypoints[similarity.argmax(0)][..., :2]
            distance = np.linalg.norm(nearest - points[..., :2], axis=-1)
            right = int((labelled & (distance <= NEAR * boxes[:, 2:].max(1)[:, None])).sum())
        yield image, (right, int(labelled.sum()))


def write_results(table: pl.DataFrame, directory: Path) -> Path:
    """Write detections as a results file of COCO.

    The third number of each keypoint is 1, as COCO recommends: the network says nothing of single keypoints, and the
    constant of the official program (0.731) is easily taken for a confidence.
    """
    path = directory / RESULTS
    if not len(table):
        write_whole(path, b"[]\n")
        return path
    points = np.stack([np.asarray(row, np.float64) for row in table["keypoints"]])
    points = points.reshape(len(table), -1, 2).round(3)
    triples = np.concatenate([points, np.ones_like(points[..., :1])], 2).reshape(len(table), -1)
    columns = (table["image_id"].to_list(), triples, table["score"].to_numpy().astype(np.float64).round(6).tolist())
    entries = (
        msgspec.json.encode({"image_id": image, "category_id": PERSON, "keypoints": row.tolist(), "score": score})
        for image, row, score in zip(*columns, strict=True)
    )
    write_whole(path, b"[" + b",\n".join(entries) + b"]\n")
    return path


def _lists(rows: Array, kind: type[pl.DataType]) -> pl.Series:
    rows = np.ascontiguousarray(rows)
    return pl.Series(rows, dtype=pl.Array(pl.Float64, rows.shape[1])).arr.to_list().cast(pl.List(kind))


def _matrix(table: pl.DataFrame, name: str, *shape: int) -> Array:
    values = table[name].explode(empty_as_null=False) if len(table) else pl.Series([], dtype=pl.Float64)
    return values.to_numpy().astype(np.float64).reshape(len(table), *shape)
