"""Keypoint AP: equal to the official evaluators, and what follows from its definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from domains.pose.keypoint_ap import COCO_SIGMAS, CROWDPOSE_SIGMAS, Annotations, Found, evaluate

CASE = Path(__file__).parents[2] / "parity" / "cases" / "grouppose_eval.safetensors"
PERFECT = {"AP", "AP50", "AP75", "AR", "AR50", "AR75"}


def load(name):
    case = {k.removeprefix(f"input/{name}/"): v for k, v in load_file(CASE).items() if k.startswith(f"input/{name}/")}
    truth = Annotations(
        *(case[f"gt_{p}"] for p in ("image_id", "keypoints", "bbox", "area", "iscrowd", "num_keypoints"))
    )
    kept = case["dt_category_id"] == 1
    return case, truth, Found(*(case[f"dt_{p}"][kept] for p in ("image_id", "keypoints", "score")))


def run(name="coco", truth=None, found=None):
    case, own_truth, own_found = load(name)
    truth, found = own_truth if truth is None else truth, own_found if found is None else found
    if name == "crowdpose":
        options = {"protocol": "crowdpose", "crowd_index": case["crowd_index"]}
        return evaluate(truth, found, case["image_id"], CROWDPOSE_SIGMAS, **options)
    return evaluate(truth, found, case["image_id"], case.get("sigmas", COCO_SIGMAS))


@pytest.mark.parametrize("name", ["coco", "custom", "crowdpose"])
def test_equals_the_official_evaluator(name):
    want = load_file(CASE)[f"output/{name}/stats"].tolist()
    if name == "crowdpose":
        del want[3:5]
    assert list(run(name).values()) == pytest.approx(want, abs=1e-9)


def test_the_truth_itself_is_perfect():
    _, truth, _ = load("coco")
    real = (truth.crowd == 0) & (truth.labelled > 0)
    counts = np.array([real[truth.image == image].sum() for image in truth.image])
    few = Annotations(**{name: value[counts <= 20] for name, value in vars(truth).items()})
    own = real[counts <= 20]
    found = Found(few.image[own], few.keypoints[own], np.ones(own.sum()))
    numbers = run(truth=few, found=found)
    assert {name for name, value in numbers.items() if value == pytest.approx(1.0)} >= PERFECT


def test_order_of_rows_matters_only_among_equal_scores():
    case, _, found = load("coco")
    found = replace(found, score=np.random.default_rng(0).permutation(len(found.score)) / len(found.score))
    order = np.random.default_rng(1).permutation(len(found.score))
    turned = Found(found.image[order], found.keypoints[order], found.score[order])
    assert run(found=found) == pytest.approx(run(found=turned), abs=1e-12)
    assert len(case["image_id"]) == 60


def test_nobody_there_is_minus_one_and_nothing_found_is_zero():
    _, truth, found = load("coco")
    nobody = Annotations(**{name: value[:0] for name, value in vars(truth).items()})
    assert set(run(truth=nobody).values()) == {-1.0}
    nothing = Found(found.image[:0], found.keypoints[:0], found.score[:0])
    assert set(run(found=nothing).values()) == {0.0}


def test_strange_images_and_keypoints():
    _, truth, found = load("coco")
    with pytest.raises(ValueError, match="image 99: there is an annotation"):
        run(truth=replace(truth, image=np.full_like(truth.image, 99)))
    with pytest.raises(ValueError, match="17 sigmas for 17 annotated and 5 detected"):
        run(found=replace(found, keypoints=found.keypoints[:, :5]))
