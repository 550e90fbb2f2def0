"""Drawn faces with planted expressions: for demonstrations and tests. Nobody is on them.

Mouth, brows and eyes tell the expression; subjects differ in shape, skin and hair, pictures in pose, light and noise,
and some labels are wrong, as they are in data sets of faces.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.expression.taxonomy import BASIC7

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
_FINE = 4  # drawn so many times larger, then shrunk, so that lines are smooth
_POINTS = 25  # of a line


class Planted(NamedTuple):
    """What was written.

    Args:
        images: folder of the pictures, one folder for each label.
        table: CSV with image, label, subject, and truth: the expression that was drawn.
    """

    images: Path
    table: Path


class _Look(NamedTuple):
    """What an expression does to a face.

    Args:
        smile: of the corners of the mouth, up.
        open: of the mouth.
        width: of the mouth.
        brow: up.
        slant: of the inner ends of the brows, up.
        eye: how wide the eyes are open.
        skew: of the mouth, one corner up.
        nose: wrinkles beside it.
    """

    smile: float = 0.0
    open: float = 0.0
    width: float = 1.0
    brow: float = 0.0
    slant: float = 0.0
    eye: float = 1.0
    skew: float = 0.0
    nose: float = 0.0


LOOKS = {
    "neutral": _Look(),
    "anger": _Look(smile=-0.25, width=0.85, brow=-0.6, slant=-0.9, eye=0.75),
    "disgust": _Look(smile=-0.5, open=0.15, width=0.8, brow=-0.35, slant=-0.3, eye=0.55, nose=1.0),
    "fear": _Look(smile=-0.3, open=0.45, width=1.15, brow=0.7, slant=0.8, eye=1.4),
    "happiness": _Look(smile=0.9, open=0.25, width=1.25, brow=0.1, eye=0.8),
    "sadness": _Look(smile=-0.8, width=0.85, slant=0.9, eye=0.7),
    "surprise": _Look(open=1.0, width=0.75, brow=1.0, eye=1.5),
    "contempt": _Look(smile=0.1, skew=0.8, brow=0.1, eye=0.85),
}


class _Subject(NamedTuple):
    """Shape and colours of a person.

    Args:
        head: half its width and height, where the picture is 2 wide.
        eyes: half their distance, and their height.
        mouth: its height.
        brow: weight of the brows.
        skin: its colour.
        hair: its colour.
    """

    head: tuple[float, float]
    eyes: tuple[float, float]
    mouth: float
    brow: float
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]


def write_planted_faces(
    directory: Path,
    subjects: int = 40,
    each: int = 14,
    size: int = 48,
    classes: tuple[str, ...] = BASIC7,
    noise: float = 0.05,
    grey: bool = True,
    seed: int = 0,
) -> Planted:
    """Write pictures of drawn faces, in a folder for each label and in a table.

    Args:
        directory: made if absent.
        subjects: persons.
        each: pictures of a person, of expressions that are drawn at random, some rarer than others.
        size: height and width in pixels.
        classes: expressions, of those of `LOOKS`.
        noise: share of labels that are wrong.
        grey: write grey pictures, else RGB.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    made = Planted(directory / "images", directory / "faces.csv")
    weights = np.array([1.0 if at < 5 else 0.6 for at in range(len(classes))])  # unequal, as they are everywhere
    rows = []
    for number in range(subjects):
        subject = _draw_subject(rng)
        for shot in range(each):
            truth = str(rng.choice(classes, p=weights / weights.sum()))
            picture = draw_face(rng, subject, truth, size)
            wrong = rng.random() < noise
            label = str(rng.choice([name for name in classes if name != truth])) if wrong else truth
            name = f"{label}/S{number:03d}_{shot:03d}.png"
            path = made.images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            stored = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY if grey else cv2.COLOR_RGB2BGR)
            if not cv2.imwrite(str(path), stored):
                raise OSError(f"{path}: cannot be written")
            rows.append((f"images/{name}", label, f"S{number:03d}", truth))
    pl.DataFrame(rows, schema=["image", "label", "subject", "truth"], orient="row").write_csv(made.table)
    return made


def _draw_subject(rng: np.random.Generator) -> _Subject:
    tone = float(rng.uniform(0.35, 0.95))
    dark = float(rng.uniform(0.05, 0.5)) * tone
    return _Subject(
        (float(rng.uniform(0.6, 0.74)), float(rng.uniform(0.8, 0.92))),
        (float(rng.uniform(0.24, 0.32)), float(rng.uniform(-0.2, -0.08))),
        float(rng.uniform(0.34, 0.46)),
        float(rng.uniform(0.8, 1.5)),
        (tone, tone * float(rng.uniform(0.72, 0.85)), tone * float(rng.uniform(0.55, 0.75))),
        (dark, dark * 0.8, dark * 0.6),
    )


def draw_face(rng: np.random.Generator, subject: _Subject, name: str, size: int) -> U8:
    """One picture of a person.

    Args:
        rng: of strength, pose, light and noise.
        subject: who.
        name: expression.
        size: height and width in pixels.

    Shape:
        -> (size, size, 3) uint8.
    """
    look, strength = LOOKS[name], float(rng.uniform(0.65, 1.15))
    calm = LOOKS["neutral"]
    look = _Look(*(at_rest + strength * (full - at_rest) for at_rest, full in zip(calm, look, strict=True)))
    look = _Look(*(value + float(rng.normal(0, 0.06)) for value in look))
    canvas = _Canvas(size * _FINE, float(rng.uniform(0.1, 0.9)), _pose(rng))
    _draw_head(canvas, subject)
    _draw_eyes(canvas, subject, look)
    _draw_mouth(canvas, subject, look)
    picture = cv2.resize(canvas.pixels, (size, size), interpolation=cv2.INTER_AREA)
    return _light(rng, np.asarray(picture, np.float32))


def _pose(rng: np.random.Generator) -> F32:
    """Face coordinates (-1..1, y down) -> the same, turned, moved and scaled: 2 x 3."""
    angle = float(rng.normal(0, 0.12))
    yaw = float(rng.uniform(0.85, 1.0))  # a turned head is narrower
    scale = float(rng.uniform(0.92, 1.08))
    cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
    shift = rng.normal(0, 0.04, 2)
    return np.array([[cosine * yaw, -sine, shift[0]], [sine * yaw, cosine, shift[1]]], np.float32)


class _Canvas:
    """A picture that is drawn on in coordinates of the face."""

    def __init__(self, size: int, ground: float, pose: F32) -> None:
        self.size, self.pose = size, pose
        self.pixels = np.full((size, size, 3), ground * 255, np.uint8)

    def _place(self, points: F32) -> npt.NDArray[np.int32]:
        placed = points @ self.pose[:, :2].T + self.pose[:, 2]
        return np.rint((placed + 1) / 2 * self.size).astype(np.int32)

    def fill(self, points: F32, colour: tuple[float, ...]) -> None:
        """Fill a closed line."""
        cv2.fillPoly(self.pixels, [self._place(points)], [value * 255 for value in colour])

    def line(self, points: F32, colour: tuple[float, ...], width: float) -> None:
        """Draw an open line."""
        thick = max(1, round(width * self.size / 2))
        cv2.polylines(self.pixels, [self._place(points)], False, [value * 255 for value in colour], thick)


def _ellipse(x: float, y: float, wide: float, high: float) -> F32:
    turn = np.linspace(0, 2 * np.pi, 2 * _POINTS, dtype=np.float32)
    return np.stack([x + wide * np.cos(turn), y + high * np.sin(turn)], axis=1)


def _draw_head(canvas: _Canvas, subject: _Subject) -> None:
    wide, high = subject.head
    canvas.fill(_ellipse(0, -0.12, wide * 1.08, high * 1.02), subject.hair)
    canvas.fill(_ellipse(0, 0.05, wide, high), subject.skin)
    shade = tuple(value * 0.75 for value in subject.skin)
    canvas.line(np.array([[0, -0.05], [0.06, 0.2], [-0.03, 0.22]], np.float32), shade, 0.035)


def _draw_eyes(canvas: _Canvas, subject: _Subject, look: _Look) -> None:
    apart, height = subject.eyes
    shade = tuple(value * 0.7 for value in subject.skin)
    for side in (-1, 1):
        x = side * apart
        canvas.fill(_ellipse(x, height, 0.13, 0.075 * max(look.eye, 0.15)), (0.95, 0.95, 0.95))
        canvas.fill(_ellipse(x, height, 0.05, min(0.05, 0.075 * max(look.eye, 0.15))), (0.1, 0.08, 0.06))
        inner, outer = x - side * 0.14, x + side * 0.16
        top = height - 0.17 - 0.09 * look.brow
        brow = [[inner, top - 0.09 * look.slant], [x, top - 0.03], [outer, top + 0.05 * look.slant]]
        canvas.line(np.array(brow, np.float32), subject.hair, 0.05 * subject.brow)
        if look.nose > 0.3:
            wrinkle = [[side * 0.05, height + 0.04], [side * 0.13, height + 0.16], [side * 0.17, height + 0.34]]
            canvas.line(np.array(wrinkle, np.float32), shade, 0.03 * look.nose)


def _draw_mouth(canvas: _Canvas, subject: _Subject, look: _Look) -> None:
    half = 0.27 * look.width
    x = np.linspace(-1, 1, _POINTS, dtype=np.float32)
    bow = -0.14 * look.smile * (x**2) - 0.1 * look.skew * np.maximum(x, 0) ** 2
    gap = 0.14 * max(look.open, 0.0) * np.sqrt(np.maximum(1 - x**2, 0))
    upper = np.stack([x * half, subject.mouth + bow - gap], axis=1)
    lower = np.stack([x * half, subject.mouth + bow + gap * 1.3], axis=1)
    lips = tuple(value * part for value, part in zip(subject.skin, (0.75, 0.45, 0.45), strict=True))
    canvas.fill(np.concatenate([upper, lower[::-1]]).astype(np.float32), (0.25, 0.05, 0.05))
    canvas.line(upper.astype(np.float32), lips, 0.05)
    canvas.line(lower.astype(np.float32), lips, 0.05)


def _light(rng: np.random.Generator, picture: F32) -> U8:
    """Light from one side, contrast, blur and noise of a camera."""
    size = picture.shape[0]
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    angle = float(rng.uniform(0, 2 * np.pi))
    light = 1 + float(rng.uniform(0, 0.35)) * (x * math.cos(angle) + y * math.sin(angle))
    lit = picture * light[..., None] * float(rng.uniform(0.75, 1.15))
    if rng.random() < 0.3:
        lit = np.asarray(cv2.GaussianBlur(lit, (0, 0), size / 90), np.float32)
    lit = lit + rng.normal(0, float(rng.uniform(2, 9)), lit.shape)
    return np.asarray(np.clip(np.rint(lit), 0, 255), dtype=np.uint8)
