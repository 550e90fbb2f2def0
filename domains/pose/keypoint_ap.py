"""Average precision and recall of keypoints, after the official evaluators of COCO and CrowdPose, from arrays.

T.-Y. Lin et al. (2014), arXiv 1405.0312; evaluator: cocodataset/cocoapi, pycocotools 2.0. J. Li et al. (2019), arXiv
1812.00324; evaluator: Jeff-sjtu/CrowdPose @ 86fe5e1. Nothing of either package is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Protocol = Literal["coco", "crowdpose"]

COCO_SIGMAS = np.array(
    [0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]
)
COCO_SIGMAS = COCO_SIGMAS / 10
CROWDPOSE_SIGMAS = np.array([0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89, 0.79, 0.79]) / 10
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MOST = 20  # detections of an image that count, best first
EPS = float(np.spacing(1))
BOX_SHARE = 0.53  # of the box's area, which stands for that of a person in CrowdPose
CROWDS = {"easy": (-np.inf, 0.2), "medium": (0.2, 0.8), "hard": (0.8, np.inf)}  # crowd index of an image


@dataclass(frozen=True)
class Annotations:
    """Persons that are there, of all images.

    Attributes:
        image: id of each one's image.
        keypoints: x, y and flag (0: not labelled).
        box: x, y, width, height.
        area: in square pixels.
        crowd: regions of many, which excuse any number of detections.
        labelled: number of labelled keypoints; persons with none are passed over.

    Shape:
        image, area, crowd and labelled (G,), keypoints (G, K, 3), box (G, 4).
    """

    image: Array
    keypoints: Array
    box: Array
    area: Array
    crowd: Array
    labelled: Array


@dataclass(frozen=True)
class Found:
    """Persons that were detected, of all images.

    Attributes:
        image: id of each one's image.
        keypoints: x and y, and anything behind them.
        score: the higher, the surer.

    Shape:
        image and score (D,), keypoints (D, K, 2 or more).
    """

    image: Array
    keypoints: Array
    score: Array


@dataclass(frozen=True)
class Matched:
    """One image after matching; per area: matched (T, D), passed over (T, D), number of persons that count."""

    score: Array
    matched: dict[str, Array] = field(default_factory=dict)
    ignored: dict[str, Array] = field(default_factory=dict)
    persons: dict[str, int] = field(default_factory=dict)


def object_keypoint_similarity(truth: Annotations, found: Found, sigmas: Array, area: Array) -> Array:
    """Similarity of each detection with each person of one image.

    `mean over labelled keypoints of exp(-d² / (2 area (2 sigma)²))`; for persons without any labelled keypoint d is the
    distance to the doubled box.

    Shape:
        sigmas (K,), area (G,) -> (D, G) float64.
    """
    spread = (np.asarray(sigmas) * 2) ** 2
    points = np.asarray(found.keypoints, np.float64)[:, None, :, :2]  # (D, 1, K, 2)
    persons = np.asarray(truth.keypoints, np.float64)
    box = np.asarray(truth.box, np.float64)
    labelled = persons[:, :, 2] > 0  # (G, K)
    counts = labelled.sum(1)
    low = (box[:, :2] - box[:, 2:])[None, :, None]
    high = (box[:, :2] + box[:, 2:] * 2)[None, :, None]
    outside = np.maximum(0.0, low - points) + np.maximum(0.0, points - high)
    distance = np.where((counts > 0)[None, :, None, None], points - persons[None, :, :, :2], outside)
    squared = distance[..., 0] ** 2 + distance[..., 1] ** 2
    exponent = squared / spread / (area + EPS)[None, :, None] / 2
    used = np.where((counts > 0)[:, None], labelled, True)
    similarity: Array = (np.exp(-exponent) * used).sum(-1) / used.sum(1)
    return similarity


def evaluate(
    truth: Annotations,
    found: Found,
    images: Array,
    sigmas: Array,
    *,
    protocol: Protocol = "coco",
    crowd_index: Array | None = None,
) -> dict[str, float]:
    """Evaluate detections of persons.

    Args:
        truth: annotations.
        found: detections, of the class of persons alone; at most 20 of an image count.
        images: ids of all images.
        sigmas: of the K keypoints.
        protocol: coco; crowdpose: a person's area is 0.53 times that of its box.
        crowd_index: of the images, for AP of easy, medium and hard ones.

    Returns:
        AP and AR with their parts: `AP`, `AP50`, `AP75`, `AP_medium`, `AP_large`, and AR likewise; of coco in this
        order. crowdpose has no areas; `AP_easy`, `AP_medium` and `AP_hard` are of images by their crowd index, rounded
        to four digits as the official program does. -1: there is no such person.

    Shape:
        images and crowd_index (I,), sigmas (K,).

    Raises:
        ValueError: an annotation or detection is of an image that is not in `images`, or keypoints are not as many as
            sigmas.
    """
    if truth.keypoints.shape[1] != len(sigmas) or found.keypoints.shape[1] != len(sigmas):
        raise ValueError(
            f"{len(sigmas)} sigmas for {truth.keypoints.shape[1]} annotated and {found.keypoints.shape[1]} detected"
            " keypoints"
        )
    for what, ids in (("annotation", truth.image), ("detection", found.image)):
        strange = np.setdiff1d(ids, images)
        if len(strange):
            raise ValueError(f"image {strange[0]}: there is an {what} of it, but it is no image of this evaluation")
    matched = dict(match_images(truth, found, images, sigmas, protocol))
    every = list(matched.values())
    if protocol == "coco":
        return _summary(every, AREAS)
    numbers = _summary(every, {"all": AREAS["all"]})
    if crowd_index is not None:
        for name, (low, high) in CROWDS.items():
            chosen = {i for i, crowd in zip(images.tolist(), crowd_index.tolist(), strict=True) if low <= crowd < high}
            precision, _ = accumulate([image for i, image in matched.items() if i in chosen], "all")
            kept = precision[precision > -1]
            numbers[f"AP_{name}"] = round(float(kept.mean()), 4) if kept.size else -1.0
    return numbers


def _summary(images: list[Matched], areas: Mapping[str, Any]) -> dict[str, float]:
    return summarise({area: Pooled.of(images, area) for area in areas})


def summarise(pooled: Mapping[str, Pooled], counts: Array | None = None) -> dict[str, float]:
    """AP and AR of each area, `all` among them.

    Args:
        pooled: detections of each area.
        counts: how often each image is there; default once.
    """
    numbers = {}
    results = {area: pool.curves(counts) for area, pool in pooled.items()}
    for which, kind in enumerate(("AP", "AR")):
        for name, area, threshold in (("", "all", None), ("50", "all", 0), ("75", "all", 5)):
            numbers[f"{kind}{name}"] = mean_value(results[area][which], threshold)
        for area in pooled:
            if area != "all":
                numbers[f"{kind}_{area}"] = mean_value(results[area][which], None)
    return numbers


def mean_value(values: Array, threshold: int | None = None) -> float:
    """Mean of the values that are there, at one threshold or at all; -1: there is none."""
    chosen = values if threshold is None else values[threshold]
    kept = chosen[chosen > -1]
    return float(kept.mean()) if kept.size else -1.0


def accumulate(images: list[Matched], area: str) -> tuple[Array, Array]:
    """Precision at 101 recalls, and the highest recall, at ten thresholds; -1 where there is no person.

    Shape:
        -> (10, 101), (10,) float64.
    """
    return Pooled.of(images, area).curves()


@dataclass(frozen=True)
class Pooled:
    """Detections of all images in one order, so that images can be counted any number of times.

    Attributes:
        score: best first.
        owner: place of each one's image.
        right: whether it is a person's, at each threshold.
        wrong: whether it is nobody's; those passed over are neither.
        persons: of each image.

    Shape:
        score and owner (D,), right and wrong (10, D) bool, persons (I,).
    """

    score: Array
    owner: Array
    right: Array
    wrong: Array
    persons: Array

    @classmethod
    def of(cls, images: Sequence[Matched], area: str) -> Pooled:
        """Put images together."""
        persons = np.array([image.persons[area] for image in images], np.float64)
        if not images:
            none = np.zeros((len(THRESHOLDS), 0), bool)
            return cls(np.zeros(0), np.zeros(0, np.int64), none, none, persons)
        score = np.concatenate([image.score for image in images])
        matched = np.concatenate([image.matched[area] for image in images], 1)
        ignored = np.concatenate([image.ignored[area] for image in images], 1)
        owner = np.repeat(np.arange(len(images)), [len(image.score) for image in images])
        order = np.argsort(-score, kind="mergesort")
        order = order[~ignored[:, order].all(0)]  # those that are passed over at all thresholds change nothing
        right, wrong = matched & ~ignored, ~matched & ~ignored
        return cls(score[order], owner[order], right[:, order], wrong[:, order], persons)

    def curves(self, counts: Array | None = None) -> tuple[Array, Array]:
        """Precision at 101 recalls and the highest recall, as `accumulate`.

        Args:
            counts: how often each image is there; default once.

        Shape:
            counts (I,) -> (10, 101), (10,) float64.
        """
        precision, recall = np.full((len(THRESHOLDS), len(RECALLS)), -1.0), np.full(len(THRESHOLDS), -1.0)
        persons = float(self.persons.sum() if counts is None else self.persons @ counts)
        if persons == 0:
            return precision, recall
        weight = 1.0 if counts is None else counts[self.owner]
        right, wrong = (np.cumsum(kind * weight, 1, dtype=np.float64) for kind in (self.right, self.wrong))
        reached = right / persons
        exact = right / (wrong + right + EPS)
        envelope = np.maximum.accumulate(exact[:, ::-1], 1)[:, ::-1]
        for t in range(len(THRESHOLDS)):
            place = np.searchsorted(reached[t], RECALLS, side="left")
            inside = place < reached.shape[1]
            precision[t] = 0.0
            precision[t, inside] = envelope[t, place[inside]]
            recall[t] = reached[t, -1] if reached.shape[1] else 0.0
        return precision, recall


def match_images(
    truth: Annotations, found: Found, images: Array, sigmas: Array, protocol: Protocol
) -> Iterator[tuple[int, Matched]]:
    """Match image by image, in the order of ids; images with neither persons nor detections are left out."""
    for image, persons, best in by_image(truth, found, images):
        yield image, _match_image(persons, best, np.asarray(sigmas, np.float64), protocol)


def by_image(truth: Annotations, found: Found, images: Array) -> Iterator[tuple[int, Annotations, Found]]:
    """Persons and best detections of each image that has any, in the order of ids."""
    images = np.unique(images)
    by_truth, by_found = (_rows(ids, images) for ids in (truth.image, found.image))
    for image, persons, detected in zip(images.tolist(), by_truth, by_found, strict=True):
        if len(persons) + len(detected):
            best = detected[np.argsort(-found.score[detected], kind="mergesort")[:MOST]]
            yield image, _part(truth, persons), _part(found, best)


def _rows(ids: Array, images: Array) -> list[Array]:
    """Rows of each image, in their order."""
    order = np.argsort(ids, kind="stable")
    bounds = np.searchsorted(ids[order], images, side="left"), np.searchsorted(ids[order], images, side="right")
    return [order[low:high] for low, high in zip(*bounds, strict=True)]


def _part(of: Any, rows: Array) -> Any:
    return type(of)(**{name: np.asarray(value)[rows] for name, value in vars(of).items()})


def _match_image(truth: Annotations, found: Found, sigmas: Array, protocol: Protocol) -> Matched:
    box = truth.box.astype(np.float64)
    area = truth.area.astype(np.float64) if protocol == "coco" else box[:, 2] * box[:, 3] * BOX_SHARE
    similarity = object_keypoint_similarity(truth, found, sigmas, area)
    corners = found.keypoints[..., :2].astype(np.float64)
    extent = corners.max(1) - corners.min(1) if len(corners) else np.zeros((0, 2))
    covered = extent[:, 0] * extent[:, 1]
    passed = (truth.labelled == 0) | (truth.crowd != 0)
    image = Matched(found.score)
    for name, (low, high) in AREAS.items():
        ignore = passed | (area < low) | (area > high)
        order = np.argsort(ignore, kind="mergesort")
        matched, ignored = _assign(similarity[:, order], ignore[order], truth.crowd[order] != 0)
        outside = (covered < low) | (covered > high)
        image.matched[name], image.ignored[name] = matched, ignored | (~matched & outside)
        image.persons[name] = int((~ignore).sum())
    return image


def _assign(similarity: Array, ignore: Array, crowd: Array) -> tuple[Array, Array]:
    """Give each detection, best first, the most similar person that is left; those that count go before others.

    Shape:
        similarity (D, G), ignore and crowd (G,), persons that count first -> matched and ignored (T, D) bool.
    """
    detections, persons = similarity.shape
    matched, ignored = np.zeros((2, len(THRESHOLDS), detections), bool)
    if persons == 0:
        return matched, ignored
    counted, last = int((~ignore).sum()), persons - 1
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    free, everyone = np.ones((len(THRESHOLDS), persons), bool), np.arange(len(THRESHOLDS))
    for d in range(detections):
        able = (free | crowd) & (similarity[d] >= least)  # (T, G)
        scores = np.where(able, similarity[d], -1.0)
        chosen = np.full(len(THRESHOLDS), -1)
        for low, high in ((counted, persons), (0, counted)):  # those that count are looked at last, and win
            if high > low:
                # of equal ones the later is taken
                place = last - (persons - high) - np.argmax(scores[:, low:high][:, ::-1], 1)
                chosen = np.where(able[:, low:high].any(1), place, chosen)
        hit = chosen >= 0
        matched[hit, d] = True
        ignored[hit, d] = ignore[chosen[hit]]
        free[everyone[hit], chosen[hit]] = False
    return matched, ignored
