"""Keypoint AP of COCO on generated images beside pycocotools, in one process.

    python -m benchmarks.pose_evaluation [--images 5000] [--repeats 3]

Persons and detections as of COCO val2017: 1.65 persons and 50 detections an image, 17 keypoints. CPU-seconds of one
thread, the median over repeats. pycocotools is timed with and without its reading of results, which both programs have
in memory; ours takes arrays, and is timed from a list of dictionaries, too. The last line is the largest difference of
the ten numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.pose.keypoint_ap import COCO_SIGMAS, Annotations, Found, evaluate

JOINTS = len(COCO_SIGMAS)
PERSONS, DETECTIONS = 1.65, 50  # of an image


def draw(images: int, seed: int) -> tuple[Annotations, Found]:
    """Persons, and detections of which some are theirs."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), rng.poisson(PERSONS, images))
    size = rng.uniform(20, 300, (len(image), 2))
    low = rng.uniform(0, 340, (len(image), 2))
    flags = rng.integers(0, 3, (len(image), JOINTS))
    points = low[:, None] + rng.random((len(image), JOINTS, 2)) * size[:, None]
    keypoints = np.concatenate([points * (flags > 0)[..., None], flags[..., None]], 2)
    area = size.prod(1) * 0.6
    truth = Annotations(image, keypoints, np.c_[low, size], area, np.zeros(len(image)), (flags > 0).sum(1))
    of = np.repeat(np.arange(images), DETECTIONS)
    detected = rng.uniform(0, 640, (len(of), JOINTS, 2))
    score = rng.random(len(of)) * 0.6
    first = np.searchsorted(of, np.arange(images))  # the first places of an image are its persons, moved
    order = np.arange(len(image)) - np.searchsorted(image, image)
    kept = order < DETECTIONS
    places = first[image[kept]] + order[kept]
    moved = rng.normal(0, 1, (int(kept.sum()), JOINTS, 2)) * (0.08 * np.sqrt(area[kept]))[:, None, None]
    detected[places], score[places] = points[kept] + moved, rng.random(len(places)) * 0.5 + 0.5
    return truth, Found(of, detected, score)


def as_json(truth: Annotations, found: Found, images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same in the layout of COCO."""
    persons = [
        {
            "id": number + 1,
            "image_id": int(truth.image[number]),
            "category_id": 1,
            "keypoints": truth.keypoints[number].ravel().tolist(),
            "bbox": truth.box[number].tolist(),
            "area": float(truth.area[number]),
            "iscrowd": 0,
            "num_keypoints": int(truth.labelled[number]),
        }
        for number in range(len(truth.image))
    ]
    data = {"info": {}, "images": [{"id": image} for image in range(images)], "annotations": persons}
    triples = np.concatenate([found.keypoints, np.ones_like(found.keypoints[..., :1])], 2).reshape(len(found.image), -1)
    results = [
        {"image_id": int(image), "category_id": 1, "keypoints": points.tolist(), "score": float(score)}
        for image, points, score in zip(found.image, triples, found.score, strict=True)
    ]
    return data | {"categories": [{"id": 1, "name": "person"}]}, results


def official(data: dict[str, Any], results: list[dict[str, Any]]) -> tuple[list[float], dict[str, float]]:
    """The ten numbers of pycocotools, and its CPU-seconds."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        begin = time.process_time()
        loaded = truth.loadRes([dict(entry) for entry in results])
        read = time.process_time()
        judge = COCOeval(truth, loaded, "keypoints")
        judge.evaluate()
        judge.accumulate()
        done = time.process_time()
        judge.summarize()
    return judge.stats.tolist(), {
        "pycocotools, from dictionaries": done - begin,
        "pycocotools, evaluation": done - read,
    }


def ours(truth: Annotations, results: list[dict[str, Any]], found: Found, ids: Any) -> tuple[Any, dict[str, float]]:
    """The ten numbers of ours, and its CPU-seconds."""
    begin = time.process_time()
    columns: list[NDArray[Any]] = [np.array([entry[name] for entry in results]) for name in ("image_id", "keypoints")]
    points = columns[1].reshape(len(results), JOINTS, 3)
    read = Found(columns[0], points, np.array([entry["score"] for entry in results]))
    numbers = evaluate(truth, read, ids, COCO_SIGMAS)
    middle = time.process_time()
    evaluate(truth, found, ids, COCO_SIGMAS)
    done = time.process_time()
    return list(numbers.values()), {"ours, from dictionaries": middle - begin, "ours, from arrays": done - middle}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    truth, found = draw(options.images, 0)
    data, results = as_json(truth, found, options.images)
    ids = np.arange(options.images)
    seconds: dict[str, list[float]] = {}
    theirs: list[float] = []
    mine: list[float] = []
    for _ in range(options.repeats):
        theirs, first = official(data, results)
        mine, second = ours(truth, results, found, ids)
        for name, value in (first | second).items():
            seconds.setdefault(name, []).append(value)
    print(f"{options.images:,} images, {len(truth.image):,} persons, {len(found.image):,} detections\n")
    print("| program | CPU s |\n|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.2f} |")
    print(f"\nAP {mine[0]:.4f}; largest difference {np.abs(np.subtract(theirs, mine)).max():.1e}")


if __name__ == "__main__":
    main()
