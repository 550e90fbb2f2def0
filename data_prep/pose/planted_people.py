"""Drawn images of several figures whose joints are known, in the layout of COCO: for demonstrations and tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy.spatial import ConvexHull

from data_prep.pose.people.description import COCO
from data_prep.pose.planted_body import F64, Body, any_posture, in_layout
from data_prep.pose.sequences.skeletons import COCO_17

Colour = tuple[int, int, int]
Labels = npt.NDArray[np.int32]
FINE = 2  # images are drawn so many times larger, for smooth edges
FURNITURE = -1  # in a map of who is seen where; 0 is the background
# parts of a figure: joints that it lies between, width in shares of the height, colour
# none is that of a line that a report draws over it
_LEFT, _RIGHT, _TRUNK, _SKIN = (206, 62, 84), (58, 160, 84), (128, 118, 142), (236, 196, 160)
_LIMBS = (("hip", "knee", 0.075), ("knee", "ankle", 0.06), ("shoulder", "elbow", 0.055), ("elbow", "wrist", 0.045))
_FACE = tuple(COCO.names.index(name) for name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear"))
_HEAD_RADIUS = 0.068


class PlantedPeople(NamedTuple):
    """What was written.

    Args:
        root: `annotations/person_keypoints_{train,val}2017.json`, `train2017` and `val2017`.
        train: annotations of the training images.
        valid: annotations of the others.
    """

    root: Path
    train: Path
    valid: Path


class _Seen(NamedTuple):
    """A figure in an image: keypoints (17, 2) in pixels, distance of each from the eye, and height in pixels."""

    points: F64
    depth: F64
    height: float


def write_planted_people(
    directory: Path,
    train: int = 400,
    valid: int = 80,
    size: tuple[int, int] = (256, 192),
    persons: int = 3,
    seed: int = 0,
) -> PlantedPeople:
    """Write images of figures that overlap, leave the picture, and stand behind furniture, some before a crowd.

    The left limbs of a figure are red, the right ones green. Hidden joints are labelled as hidden or not at all,
    joints outside are not labelled; a crowd is one region without keypoints; an image in sixteen shows nobody.

    Args:
        directory: made if absent.
        train: images to train on.
        valid: images to validate and test on.
        size: width and height of an image in pixels.
        persons: at most, of an image.
        seed: of everything random.
    """
    paths = []
    (directory / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count, first in (("train", train, 1), ("val", valid, train + 1)):
        folder = directory / f"{split}2017"
        folder.mkdir(parents=True, exist_ok=True)
        content = _document()
        for image in range(first, first + count):
            picture, found = draw_people(np.random.default_rng([seed, image]), size, persons)
            name = f"{image:012d}.jpg"
            picture.save(folder / name, quality=90)
            content["images"].append(
                {"license": 1, "file_name": name, "height": size[1], "width": size[0], "id": image}
            )
            for number, entry in enumerate(found):
                content["annotations"].append({"id": 100 * image + number, "image_id": image, **entry})
        paths.append(directory / "annotations" / f"person_keypoints_{split}2017.json")
        paths[-1].write_text(json.dumps(content))
    return PlantedPeople(directory, *paths)


def _document() -> dict[str, Any]:
    skeleton = [[start + 1, end + 1] for start, end in COCO.skeleton]
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(COCO.names)}
    return {
        "info": {"description": "planted people", "version": "1.0", "year": 2017},
        "licenses": [{"id": 1, "name": "CC0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "categories": [{**category, "skeleton": skeleton}],
        "images": [],
        "annotations": [],
    }


def draw_people(
    rng: np.random.Generator, size: tuple[int, int], persons: int
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Draw an image, and say who is in it as annotations of COCO do.

    Args:
        rng: of everything random.
        size: width and height in pixels.
        persons: at most.
    """
    width, height = size
    picture = _background(rng, size)
    who = Image.new("I", size)
    found: list[dict[str, Any]] = []
    crowd = int(rng.integers(5, 9)) if rng.random() < 0.15 else 0
    count = 0 if rng.random() < 1 / 16 else int(rng.integers(1, persons + 1))
    left = rng.uniform(0.1, 0.6)
    places = [(float(left + 0.05 * i), 0.5, 0.22) for i in range(crowd)]  # middle, feet, height: shares of the image
    for spot in rng.permutation(count):
        tall = float(rng.uniform(0.6, 0.9))
        middle = (spot + float(rng.uniform(0.25, 0.75))) / count
        places.append((middle, float(rng.uniform(max(0.9, tall + 0.05), 1.05)), tall))
    figures = []
    for number, (middle, feet, tall) in enumerate(places, start=1):
        figure = _place(rng, middle * width, feet * height, tall * height)
        figures.append(figure)
        _draw_figure(rng, picture, who, figure, number)
    if count and rng.random() < 0.25:
        _draw_furniture(rng, picture, who, size)
    labels = np.asarray(who, dtype=np.int32)
    if crowd:
        found += _crowd(labels, crowd)
    for number in range(crowd + 1, len(figures) + 1):
        found += _person(rng, labels, figures[number - 1], number)
    small = picture.resize(size, Image.Resampling.BOX)
    noise = rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(small, dtype=np.float64) + noise, 0, 255).astype(np.uint8)), found


def _background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Smooth greys, and boxes of any colour far behind."""
    rough, fine = (size[0] // 2, size[1] // 2), (size[0] * FINE, size[1] * FINE)
    grey, tint = rng.uniform(120, 215, (4, 5, 1)), rng.uniform(-18, 18, (4, 5, 3))
    picture = Image.fromarray((grey + tint).astype(np.uint8)).resize(rough, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(0, 0.9) * rough[0], rng.uniform(0, 0.5) * rough[1]
        pen.rectangle((x, y, x + rng.uniform(0.1, 0.3) * rough[0], y + rng.uniform(0.1, 0.4) * rough[1]), _colour(rng))
    return picture.filter(ImageFilter.BoxBlur(1)).resize(fine, Image.Resampling.BILINEAR)


def _colour(rng: np.random.Generator, base: Colour = (128, 128, 128), spread: int = 60) -> Colour:
    """A colour near another."""
    red, green, blue = np.clip(np.array(base) + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
    return red, green, blue


def _place(rng: np.random.Generator, middle: float, feet: float, height: float) -> _Seen:
    """A person of any size and posture, seen from far away, from the front or aside, sometimes from behind."""
    body = Body.draw(rng)
    view = float(rng.normal(0, 0.5)) + (np.pi if rng.random() < 0.1 else 0.0)
    joints = body.joints(any_posture(rng, 1), np.array([view]), np.zeros((1, 2)))
    points = in_layout(joints, COCO_17)[0]  # the eye looks along the first axis, from its far end
    scale = height / body.height
    flat = np.stack([middle + scale * points[:, 1], feet - scale * points[:, 2]], axis=-1)
    return _Seen(flat, -points[:, 0], height)


def _parts(figure: _Seen) -> list[tuple[float, str, list[int], float]]:
    """Parts of a figure, the farthest first: distance, kind, joints, width in pixels."""
    found = []
    for side in ("left", "right"):
        for start, end, width in _LIMBS:
            pair = [COCO.names.index(f"{side}_{name}") for name in (start, end)]
            found.append((float(figure.depth[pair].mean()), side, pair, width * figure.height))
    trunk = [COCO.names.index(f"{side}_{name}") for side, name in _OUTLINE]
    found.append((float(figure.depth[trunk].mean()), "trunk", trunk, 0.05 * figure.height))
    found.append((float(figure.depth[list(_FACE)].mean()), "head", list(_FACE), _HEAD_RADIUS * figure.height))
    return sorted(found, key=lambda part: -part[0])


_OUTLINE = (("left", "shoulder"), ("right", "shoulder"), ("right", "hip"), ("left", "hip"))


def _draw_figure(rng: np.random.Generator, picture: Image.Image, who: Image.Image, figure: _Seen, number: int) -> None:
    """Draw a figure, and its number and those of its parts into the map of who is seen."""
    colours = {
        name: _colour(rng, base, 22)
        for name, base in (("left", _LEFT), ("right", _RIGHT), ("trunk", _TRUNK), ("head", _SKIN))
    }
    pens = ((ImageDraw.Draw(picture), FINE), (ImageDraw.Draw(who), 1))
    for order, (_, kind, joints, width) in enumerate(_parts(figure)):
        for pen, scale in pens:
            ink: Any = colours[kind] if scale == FINE else _label(number, order)
            _draw_part(pen, figure.points[joints] * scale, kind, width * scale, ink)
    _draw_face(pens[0][0], figure)


def _label(number: int, part: int) -> int:
    return 16 * number + part


def _draw_part(pen: ImageDraw.ImageDraw, points: F64, kind: str, width: float, ink: Any) -> None:
    corners = [(float(x), float(y)) for x, y in points]
    if kind == "head":
        x, y = points[-2:].mean(0)  # between the ears
        pen.ellipse((x - width, y - 1.15 * width, x + width, y + 1.15 * width), ink)
        return
    if kind == "trunk":
        pen.polygon(corners, ink)
        corners.append(corners[0])
    pen.line(corners, ink, max(round(width), 1), joint="curve")
    for x, y in corners:
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), ink)


def _draw_face(pen: ImageDraw.ImageDraw, figure: _Seen) -> None:
    """Eyes, nose and ears that are on the side of the head that is seen."""
    points, depth = figure.points * FINE, figure.depth
    middle = depth[list(_FACE[3:])].mean()
    radius = max(0.011 * figure.height * FINE, 1.0)
    for joint, ink in zip(_FACE, ((200, 60, 60), *[(20, 20, 20)] * 2, *[(150, 90, 60)] * 2), strict=True):
        if depth[joint] <= middle + 0.005:
            x, y = points[joint]
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), ink)


def _draw_furniture(rng: np.random.Generator, picture: Image.Image, who: Image.Image, size: tuple[int, int]) -> None:
    """A box before the legs of some figures."""
    x, wide = rng.uniform(0, 0.8) * size[0], rng.uniform(0.12, 0.25) * size[0]
    top = rng.uniform(0.72, 0.88) * size[1]
    corners = (x, top, x + wide, float(size[1]))
    fine = (x * FINE, top * FINE, (x + wide) * FINE, float(size[1] * FINE))
    ImageDraw.Draw(picture).rectangle(fine, _colour(rng, (120, 84, 50), 25))
    ImageDraw.Draw(who).rectangle(corners, FURNITURE)


def _person(rng: np.random.Generator, labels: Labels, figure: _Seen, number: int) -> list[dict[str, Any]]:
    """The annotation of a figure; none where nothing of it is seen."""
    mask = (labels >= _label(number, 0)) & (labels < _label(number + 1, 0))
    rows, columns = np.nonzero(mask)
    if len(rows) < 30:
        return []
    height, width = labels.shape
    parts = _parts(figure)
    triples: list[float] = []
    for joint, (x, y) in enumerate(figure.points):
        column, row = int(np.floor(x)), int(np.floor(y))
        if not (0 <= column < width and 0 <= row < height):
            triples += [0, 0, 0]
            continue
        top = int(labels[row, column]) - _label(number, 0)
        seen = 0 <= top < len(parts) and joint in parts[top][2] and (joint not in _FACE or _faces(figure, joint))
        flag = 2 if seen else 1
        if not seen and rng.random() < 0.3:
            triples += [0, 0, 0]
        else:
            triples += [round(float(x), 1), round(float(y), 1), flag]
    box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    return [
        {
            "category_id": 1,
            "iscrowd": 0,
            "bbox": box,
            "area": float(mask.sum()),
            "num_keypoints": sum(flag > 0 for flag in triples[2::3]),
            "keypoints": triples,
            "segmentation": [_outline(rows, columns)],
        }
    ]


def _faces(figure: _Seen, joint: int) -> bool:
    return bool(figure.depth[joint] <= figure.depth[list(_FACE[3:])].mean() + 0.005)


def _outline(rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> list[float]:
    """The convex hull of pixels as a polygon x, y, x, y, ..."""
    _, first = np.unique(rows, return_index=True)  # of pixels in order: the ends of each row span the hull
    ends = np.concatenate([first, np.append(first[1:], len(rows)) - 1])
    x, y = columns[ends], rows[ends]
    corners = np.concatenate([np.stack([x + dx, y + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    return [float(value) for value in corners[ConvexHull(corners).vertices].ravel()]


def _crowd(labels: Labels, figures: int) -> list[dict[str, Any]]:
    """One annotation of all figures behind, with run lengths in the order of columns; none where they are hidden."""
    mask = (labels >= _label(1, 0)) & (labels < _label(figures + 1, 0))
    if mask.sum() < 30:
        return []
    rows, columns = np.nonzero(mask)
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return [
        {
            "category_id": 1,
            "iscrowd": 1,
            "bbox": [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
            "area": float(mask.sum()),
            "num_keypoints": 0,
            "keypoints": [0] * (3 * len(COCO.names)),
            "segmentation": {"size": list(labels.shape), "counts": counts},
        }
    ]
