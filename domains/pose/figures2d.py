"""Pictures of a test of Group Pose: precision and recall, and what was found in the best and the worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from domains.common.errors import PreparedDataError
from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, dots, plain
from domains.common.intervals import Estimate
from domains.pose.evaluation2d import split_table
from domains.pose.keypoint_ap import (
    BOX_SHARE,
    RECALLS,
    THRESHOLDS,
    Annotations,
    Array,
    Found,
    Pooled,
    by_image,
    match_images,
    object_keypoint_similarity,
)
from domains.pose.people import read_rgb

SHOWN = 2  # images of each kind
CURVES = {0.5: BLUE, 0.75: ORANGE, 0.95: GREY}


def figures(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: of a test, see `evaluation2d.with_annotations`.
        metrics: of the same.

    Returns:
        None where nobody is annotated.
    """
    sigmas = predictions["sigmas"].drop_nulls()[0].to_numpy()
    edges = predictions["skeleton"].drop_nulls()[0].to_numpy().reshape(-1, 2)
    truth, found = split_table(predictions, len(sigmas))
    ids = np.unique(predictions["image_id"].to_numpy())
    boxes = "AP_medium" not in metrics  # the protocol of CrowdPose
    matched = dict(match_images(truth, found, ids, sigmas, "crowdpose" if boxes else "coco"))
    pool = Pooled.of(list(matched.values()), "all")
    defined = {name: estimate for name, estimate in metrics.items() if not np.isnan(estimate.value)}
    if not defined:
        return []  # nobody is annotated
    pictures = [_curves(pool), _parts(defined)]
    area = truth.box[:, 2] * truth.box[:, 3] * BOX_SHARE if boxes else truth.area
    level = best_threshold(pool)
    return [*pictures, *_examples(predictions, truth, found, area, sigmas, edges, level)]


def best_threshold(pool: Pooled) -> float:
    """Score above which detections have the best F1 at a similarity of 0.5; for pictures alone."""
    if not len(pool.score):
        return 0.0
    right, wrong = np.cumsum(pool.right[0]), np.cumsum(pool.wrong[0])
    f1 = 2 * right / np.maximum(right + wrong + pool.persons.sum(), 1)
    return float(pool.score[int(f1.argmax())])


def _curves(pool: Pooled) -> Picture:
    precision, _ = pool.curves()
    figure, panel = axes(5.4, 4.2)
    for threshold, colour in CURVES.items():
        values = precision[int(np.abs(THRESHOLDS - threshold).argmin())]
        panel.plot(RECALLS, np.where(values < 0, np.nan, values), color=colour, label=f"{threshold:.2f}", linewidth=1.5)
    panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    panel.legend(frameon=False, title="similarity")
    caption = "The area below a curve is AP at that object keypoint similarity; AP is the mean of ten such areas."
    return Picture("Precision and recall", caption, figure)


def _parts(metrics: Mapping[str, Estimate]) -> Picture:
    caption = "Each metric with its interval over images. Those that no person of the split counts for are left out."
    return Picture("Metrics", caption, dots(list(metrics.items()), label="value"))


def _examples(
    table: pl.DataFrame, truth: Annotations, found: Found, area: Array, sigmas: Array, edges: Array, level: float
) -> list[Picture]:
    """Images with the best, the median and the worst mean similarity of a person and what was found."""
    wide = Annotations(truth.image, truth.keypoints, truth.box, area, truth.crowd, truth.labelled)
    kept: dict[int, tuple[Annotations, Found]] = {}
    quality = {}
    for image, persons, best in by_image(wide, found, np.unique(table["image_id"].to_numpy())):
        counted = (persons.crowd == 0) & (persons.labelled > 0)
        if counted.any():
            sure = Found(*(np.asarray(values)[best.score >= level] for values in vars(best).values()))
            similarity = object_keypoint_similarity(persons, sure, sigmas, persons.area)[:, counted]
            quality[image] = float(similarity.max(0).mean()) if len(sure.score) else 0.0
            kept[image] = persons, sure
    order = sorted(quality, key=lambda image: (quality[image], image))
    if not order:
        return []
    middle = max(len(order) // 2 - SHOWN // 2, 0)
    places = {"Worst": order[:SHOWN], "Median": order[middle : middle + SHOWN], "Best": order[::-1][:SHOWN]}
    facts = table.unique("image_id", keep="first", maintain_order=True)
    pictures = []
    for kind, images in places.items():
        figure = Figure(figsize=(5.2 * len(images), 4.4), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(images)))
        for panel, image in zip(panels, images, strict=True):
            fact = facts.row(by_predicate=pl.col("image_id") == image, named=True)
            _background(panel, fact)
            persons, sure = kept[image]
            for points in persons.keypoints[persons.crowd == 0]:
                _pose(panel, points[:, :2], points[:, 2] > 0, edges, ORANGE, "--")
            for points in sure.keypoints:
                _pose(panel, points[:, :2], np.ones(len(points), bool), edges, BLUE, "-")
            panel.set_title(f"{plain(str(fact['file']))}: {quality[image]:.2f}", fontsize=9)
        caption = (
            f"Blue: found, score of at least {level:.2f} (best F1). Orange: annotated. In the title the mean similarity"
            " of an annotated person to what was found."
        )
        pictures.append(Picture(f"{kind} images", caption, figure))
    return pictures


def _background(panel: Axes, fact: Mapping[str, object]) -> None:
    width, height = int(str(fact["width"])), int(str(fact["height"]))
    try:
        panel.imshow(read_rgb(Path(str(fact["path"]))).permute(1, 2, 0).numpy(), alpha=0.75)
    except PreparedDataError:  # moved since the test
        panel.set_facecolor("#eeeeee")
    panel.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    panel.set_aspect("equal")


def _pose(panel: Axes, points: Array, there: Array, edges: Sequence[Array] | Array, colour: str, style: str) -> None:
    for start, end in edges:
        if there[start] and there[end]:
            panel.plot(points[[start, end], 0], points[[start, end], 1], color=colour, linewidth=1.4, linestyle=style)
    panel.scatter(points[there, 0], points[there, 1], s=8, color=colour, zorder=3)
