"""Keypoint AP beside the published evaluator of COCO, on generated images."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.pose.keypoint_ap import COCO_SIGMAS, Annotations, Found, evaluate

pytest.importorskip("pycocotools", reason="the extra pose is not installed")
JOINTS = len(COCO_SIGMAS)


def draw(rng, images, most, shaken):
    """Persons, some of them crowds, without labelled joints or small, and detections that are more or less theirs."""
    persons, detections = [], []
    for image in range(images):
        for _ in range(rng.integers(0, most + 1)):
            size = rng.uniform(10, 200, 2)
            box = np.r_[rng.uniform(0, 300, 2), size]
            flags = rng.integers(0, 3, JOINTS) * (rng.random() > 0.15)
            points = np.c_[box[:2] + rng.random((JOINTS, 2)) * size, flags]
            points[flags == 0] = 0
            persons.append((image, points, box, size.prod() * rng.uniform(0.4, 0.9), int(rng.random() < 0.1)))
        for source in [entry for entry in persons if entry[0] == image] * rng.integers(1, 4):
            moved = source[1][:, :2] + rng.normal(0, shaken * np.sqrt(source[3]), (JOINTS, 2))
            detections.append((image, np.c_[moved, np.ones(JOINTS)], rng.integers(1, 8) / 8))
        strangers = rng.uniform(0, 400, (rng.integers(0, 4), JOINTS, 2))
        detections += [(image, np.c_[points, np.ones(JOINTS)], rng.random()) for points in strangers]
    return persons, detections


def official(persons, detections, images):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {"id": i + 1, "image_id": image, "category_id": 1, "keypoints": points.ravel().tolist(), "bbox": box.tolist(),
         "area": area, "iscrowd": crowd, "num_keypoints": int((points[:, 2] > 0).sum())}
        for i, (image, points, box, area, crowd) in enumerate(persons)
    ]  # fmt: skip
    results = [
        {"image_id": image, "category_id": 1, "keypoints": points.ravel().tolist(), "score": float(score)}
        for image, points, score in detections
    ]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "keypoints")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats.tolist()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from([3, 25]))
@settings(max_examples=25, deadline=None)
def test_equals_pycocotools(seed, shaken, most):
    rng, images = np.random.default_rng(seed), 4
    persons, detections = draw(rng, images, most, shaken)
    if not detections:
        return
    columns = [np.array(column) for column in zip(*persons, strict=True)] if persons else []
    truth = (
        Annotations(*columns, (columns[1][:, :, 2] > 0).sum(1))
        if persons
        else Annotations(np.zeros(0), np.zeros((0, JOINTS, 3)), np.zeros((0, 4)), *(np.zeros(0) for _ in range(3)))
    )
    found = Found(*(np.array(column) for column in zip(*detections, strict=True)))
    ours = list(evaluate(truth, found, np.arange(images), COCO_SIGMAS).values())
    assert ours == pytest.approx(official(persons, detections, images), abs=1e-9)
