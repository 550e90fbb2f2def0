"""Drawn pictures whose classes differ in one small mark, and drawn figures seen by several cameras: for demonstrations.

Both are made so that a whole look does not tell: bodies of all classes are drawn alike, and cameras change light, scale
and place more than figures differ in colour on the average.
"""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl

F32 = npt.NDArray[np.float32]
SHAPES = ("disc", "square", "triangle", "cross")
COLOURS = {"red": (0.9, 0.15, 0.1), "blue": (0.1, 0.25, 0.9), "yellow": (0.95, 0.85, 0.1), "white": (0.95, 0.95, 0.95)}
_SQUARE = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))  # corners, in radii
_TRIANGLE = ((0.0, -1.2), (1.1, 0.9), (-1.1, 0.9))
_FINE = 3  # drawn so many times as large, then shrunk


class PlantedClasses(NamedTuple):
    """What was written.

    Args:
        images: folder with a folder for each class.
        table: CSV with image, label.
        marks: CSV with image, and x, y, radius of the mark in pixels.
    """

    images: Path
    table: Path
    marks: Path


class PlantedIdentities(NamedTuple):
    """What was written.

    Args:
        images: folder with a folder for each identity; names end in `_cCAMERA_NUMBER.png`.
        table: CSV with image, identity, camera.
    """

    images: Path
    table: Path


def write_planted_classes(
    directory: Path, classes: int = 8, per_class: int = 40, size: int = 96, seed: int = 0, mark: float = 0.05
) -> PlantedClasses:
    """Write birds of one look that differ in shape and colour of a mark, somewhere on the body.

    Args:
        directory: made if absent.
        classes: how many, up to 16.
        per_class: pictures of each.
        size: height and width in pixels.
        seed: of everything random.
        mark: radius of the mark, as a share of the side.
    """
    made = PlantedClasses(directory / "images", directory / "images.csv", directory / "marks.csv")
    # neighbours differ in both; from the fifth on, colours come again with another shape
    kinds = [(SHAPES[(at + at // 4) % 4], list(COLOURS)[at % 4]) for at in range(16)]
    if not 2 <= classes <= len(kinds):
        raise ValueError(f"classes {classes}: give 2 to {len(kinds)}")
    rows, marks = [], []
    for number, (shape, colour) in enumerate(kinds[:classes]):
        label = f"{colour}_{shape}"
        (made.images / label).mkdir(parents=True, exist_ok=True)
        for at in range(per_class):
            rng = np.random.default_rng([seed, number, at])
            picture, place = draw_bird(rng, size, shape, COLOURS[colour], mark)
            name = f"{label}/{at:04d}.png"
            _write(made.images / name, picture)
            rows.append((f"images/{name}", label))
            marks.append((f"images/{name}", *place))
    pl.DataFrame(rows, schema=["image", "label"], orient="row").write_csv(made.table)
    schema = {"image": pl.String, "x": pl.Float64, "y": pl.Float64, "radius": pl.Float64}
    pl.DataFrame(marks, schema=schema, orient="row").write_csv(made.marks, float_precision=1)
    return made


def draw_bird(
    rng: np.random.Generator, size: int, shape: str, colour: tuple[float, float, float], extent: float = 0.05
) -> tuple[F32, tuple[float, float, float]]:
    """A bird with a mark on its body, before a background of any colour.

    Shape:
        -> (size, size, 3) float32 in [0, 1], and x, y, radius of the mark in pixels.
    """
    side = size * _FINE
    picture = _background(rng, side)
    centre = (0.5 + rng.uniform(-0.1, 0.1, 2)) * side
    axes = np.array([0.3, 0.2]) * side * rng.uniform(0.85, 1.1)
    angle = float(rng.uniform(-35, 35))
    tone = np.array(colorsys.hsv_to_rgb(rng.uniform(0, 1), rng.uniform(0.1, 0.35), rng.uniform(0.4, 0.6)), np.float32)
    turn = np.deg2rad(angle)
    along = np.array([np.cos(turn), np.sin(turn)])
    _ellipse(picture, centre, axes, angle, tone)
    _ellipse(picture, centre + along * axes[0] * 1.05, axes * [0.42, 0.55], angle, tone * 0.9)
    _ellipse(
        picture, centre - along * axes[0] * 1.1, axes * [0.45, 0.25], angle + float(rng.uniform(-25, 25)), tone * 0.8
    )
    eye = centre + along * axes[0] * 1.15
    cv2.circle(picture, (int(eye[0]), int(eye[1])), side // 60, (0.05, 0.05, 0.05), -1, cv2.LINE_AA)
    radius = extent * side
    # somewhere in the inner half of the body
    reach, direction = np.sqrt(rng.uniform(0, 1)) * 0.6, rng.uniform(0, 2 * np.pi)
    local = axes * reach * [np.cos(direction), np.sin(direction)]
    mark = centre + along * local[0] + np.array([-along[1], along[0]]) * local[1]
    _draw_mark(picture, mark, radius, shape, colour)
    small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    light = rng.uniform(0.85, 1.1) * (1 + rng.normal(0, 0.03, (1, 1, 3)))
    noisy = small * light + rng.normal(0, 0.02, small.shape)
    x, y, wide = (float(value) / _FINE for value in (mark[0], mark[1], radius))
    return np.clip(noisy, 0, 1).astype(np.float32), (x, y, wide)


def _draw_mark(picture: F32, place: F32, radius: float, shape: str, colour: tuple[float, float, float]) -> None:
    x, y = place
    if shape == "disc":
        cv2.circle(picture, (int(x), int(y)), int(radius), colour, -1, cv2.LINE_AA)
        return
    if shape == "cross":
        wide = max(2, int(radius * 0.55))
        cv2.line(picture, (int(x - radius), int(y)), (int(x + radius), int(y)), colour, wide, cv2.LINE_AA)
        cv2.line(picture, (int(x), int(y - radius)), (int(x), int(y + radius)), colour, wide, cv2.LINE_AA)
        return
    corners = _SQUARE if shape == "square" else _TRIANGLE
    points = np.array([(x + dx * radius * 0.9, y + dy * radius * 0.9) for dx, dy in corners]).astype(np.int32)
    cv2.fillPoly(picture, [points], colour, cv2.LINE_AA)


def write_planted_identities(
    directory: Path,
    identities: int = 40,
    cameras: int = 4,
    per_camera: int = 3,
    size: tuple[int, int] = (96, 48),
    seed: int = 0,
) -> PlantedIdentities:
    """Write figures whose hair, shirt, trousers, bag and stripes tell who they are, as several cameras see them.

    Args:
        directory: made if absent.
        identities: how many.
        cameras: each of another light, distance and background; every figure is seen by all of them.
        per_camera: pictures of a figure by a camera.
        size: height and width in pixels.
        seed: of everything random.
    """
    made = PlantedIdentities(directory / "images", directory / "images.csv")
    views = [_camera(np.random.default_rng([seed, 1, number])) for number in range(cameras)]
    rows = []
    for number in range(identities):
        who = _figure(np.random.default_rng([seed, 2, number]))
        folder = made.images / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        for camera, view in enumerate(views):
            for at in range(per_camera):
                rng = np.random.default_rng([seed, 3, number, camera, at])
                name = f"{number:04d}/{number:04d}_c{camera + 1}_{at:03d}.png"
                _write(made.images / name, draw_figure(rng, who, view, size))
                rows.append((f"images/{name}", f"{number:04d}", str(camera + 1)))
    pl.DataFrame(rows, schema=["image", "identity", "camera"], orient="row").write_csv(made.table)
    return made


class _Figure(NamedTuple):
    """Who is drawn: colours (RGB) of hair, shirt, trousers and bag, stripes of the shirt, side of the bag, build."""

    colours: F32
    stripes: float
    bag: int
    build: float


class _Camera(NamedTuple):
    """How a camera sees: gain of each colour, contrast, height of a figure, background, blur."""

    gain: F32
    gamma: float
    scale: float
    ground: F32
    blur: float


def _figure(rng: np.random.Generator) -> _Figure:
    hues = [colorsys.hsv_to_rgb(*rng.uniform([0, 0.35, 0.25], [1, 0.95, 0.95])) for _ in range(4)]
    stripes = float(rng.choice([0.0, 3.0, 5.0, 8.0]))
    return _Figure(np.array(hues, np.float32), stripes, int(rng.integers(-1, 2)), float(rng.uniform(0.8, 1.2)))


def _camera(rng: np.random.Generator) -> _Camera:
    gain = (rng.uniform(0.75, 1.15) * (1 + rng.normal(0, 0.1, 3))).astype(np.float32)
    ground = rng.uniform(0.25, 0.75, (2, 3)).astype(np.float32)
    gamma, scale, blur = rng.uniform([0.75, 0.75, 0.3], [1.3, 0.95, 1.2]).tolist()
    return _Camera(gain, gamma, scale, ground, blur)


def draw_figure(rng: np.random.Generator, who: _Figure, view: _Camera, size: tuple[int, int]) -> F32:
    """A figure as a camera sees it: framed not quite right, in changing light.

    Shape:
        -> (height, width, 3) float32 in [0, 1].
    """
    height, width = (side * 2 for side in size)
    fade = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    picture = np.ascontiguousarray(
        np.broadcast_to(view.ground[0] * (1 - fade) + view.ground[1] * fade, (height, width, 3))
    )
    tall = height * view.scale * rng.uniform(0.9, 1.05)
    x = width * (0.5 + rng.uniform(-0.1, 0.1))
    top = (height - tall) / 2 + height * rng.uniform(-0.05, 0.05)
    half = tall * 0.13 * who.build
    hair, shirt, trousers, bag = (tuple(map(float, colour)) for colour in who.colours)
    stride = rng.uniform(0.1, 0.6) * half
    for side in (-1, 1):
        start, end = (int(x + side * half * 0.4), int(top + 0.55 * tall)), (int(x + side * stride), int(top + tall))
        cv2.line(picture, start, end, trousers, max(2, int(half * 0.7)), cv2.LINE_AA)
        hand = (int(x + side * (half + stride * 0.5)), int(top + 0.55 * tall))
        cv2.line(
            picture, (int(x + side * half), int(top + 0.22 * tall)), hand, shirt, max(2, int(half * 0.4)), cv2.LINE_AA
        )
    left, right, upper, lower = int(x - half), int(x + half), int(top + 0.18 * tall), int(top + 0.57 * tall)
    cv2.rectangle(picture, (left, upper), (right, lower), shirt, -1)
    if who.stripes:
        step = max(2, int((lower - upper) / who.stripes))
        for row in range(upper, lower, step):
            cv2.rectangle(picture, (left, row), (right, min(row + step // 2, lower)), trousers, -1)
    cv2.circle(picture, (int(x), int(top + 0.09 * tall)), max(2, int(0.075 * tall)), (0.85, 0.65, 0.5), -1, cv2.LINE_AA)
    head = (max(2, int(0.08 * tall)), max(2, int(0.06 * tall)))
    cv2.ellipse(picture, (int(x), int(top + 0.06 * tall)), head, 0, 180, 360, hair, -1, cv2.LINE_AA)
    if who.bag:
        corner = (int(x + who.bag * half * 1.1), int(top + 0.42 * tall))
        cv2.circle(picture, corner, max(2, int(half * 0.55)), bag, -1, cv2.LINE_AA)
    picture = cv2.GaussianBlur(picture, (0, 0), view.blur * 2)
    small = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    light = view.gain * rng.uniform(0.85, 1.15)
    seen = np.clip(small * light, 0, 1) ** (view.gamma * rng.uniform(0.9, 1.1))
    return np.clip(seen + rng.normal(0, 0.03, seen.shape), 0, 1).astype(np.float32)


def _background(rng: np.random.Generator, side: int) -> F32:
    coarse = rng.uniform(0.3, 0.9, (4, 4, 3)).astype(np.float32)
    return np.ascontiguousarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))


def _ellipse(
    picture: F32, centre: npt.NDArray[np.float64], axes: npt.NDArray[np.float64], angle: float, tone: F32
) -> None:
    place, extent = (int(centre[0]), int(centre[1])), (int(axes[0]), int(axes[1]))
    cv2.ellipse(picture, place, extent, angle, 0, 360, tuple(map(float, tone)), -1, cv2.LINE_AA)


def _write(path: Path, picture: F32) -> None:
    pixels = np.rint(picture * 255).astype(np.uint8)
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{path}: cannot be written")
