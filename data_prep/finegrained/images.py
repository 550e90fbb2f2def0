"""Picture files: looked at, decoded to be sure, and written anew only where they are no plain 8-bit picture."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
from PIL import Image, ImageOps

from data_prep.common.errors import CorruptRecordError
from data_prep.common.fingerprints import SIDE, U8, perceptual_hash, thumbnail
from data_prep.common.images import ORIENTATION, PLAIN, encode_png, opened, read_bytes, to_rgb
from data_prep.finegrained.records import Box

BLOCK = 128  # pictures per task
Region = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels; the last two excluded
FACTS: dict[str, pl.DataType | type[pl.DataType]] = {
    "index": pl.UInt64,
    "reason": pl.String,  # empty: the picture can be used
    "field": pl.String,
    "remarks": pl.List(pl.String),
    "width": pl.UInt32,
    "height": pl.UInt32,
    "left": pl.UInt32,
    "top": pl.UInt32,
    "right": pl.UInt32,
    "bottom": pl.UInt32,
    "grey": pl.Boolean,
    "stored": pl.String,  # file below the task's folder; empty: the picture stays where it is
    "digest": pl.Binary,  # SHA-256 of the pixels inside the region
    "hash": pl.UInt64,
    "bytes": pl.UInt64,
    "sha256": pl.String,
}
_BLANK: dict[str, Any] = {
    **{"reason": "", "field": "", "remarks": [], "width": 0, "height": 0, "left": 0, "top": 0, "right": 0},
    **{"bottom": 0, "grey": False, "stored": "", "digest": b"", "hash": 0, "bytes": 0, "sha256": ""},
}


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to look at.

    Args:
        index: its number; names its file, if it gets one.
        path: the file.
        box: of the object; None: the data set gives none, or nobody wants it.
        boxed: whether the data set gives a box, for which the picture must lie as it is stored.
    """

    index: int
    path: str
    box: Box | None
    boxed: bool


@dataclass(frozen=True)
class ImageRules:
    """How pictures are looked at.

    Args:
        margin: share of the sides of a box that is added on each side.
        trim: pixels cut off at the bottom.
        exif: auto, apply, or ignore the orientation that a camera noted.
        copy: copy each picture.
    """

    margin: float = 0.0
    trim: int = 0
    exif: str = "auto"
    copy: bool = False


def image_name(index: int, suffix: str = ".png") -> str:
    """Path of a picture below `images`."""
    return f"{index // 1000:05d}/{index:08d}{suffix}"


def look_at_block(shots: Sequence[Shot], rules: ImageRules, folder: Path) -> dict[str, Any]:
    """Task: write `facts.parquet`, `thumbnails.npy`, and `images/` with those that are written anew or copied.

    Raises:
        DatasetNotFoundError: a file vanished.
    """
    small = np.zeros((len(shots), SIDE, SIDE), np.uint8)
    facts = []
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # work is shared out over processes
    try:
        for place, shot in enumerate(shots):
            fact: dict[str, Any] = {**_BLANK, "index": shot.index}
            try:
                data = read_bytes(Path(shot.path))
                fact |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                with opened(Path(shot.path), data) as image:
                    fact |= _describe(image, data, shot, rules, folder, small[place])
            except CorruptRecordError as error:
                fact |= {"reason": error.reason, "field": error.position}
            facts.append(fact)
    finally:
        cv2.setNumThreads(before)
    np.save(folder / "thumbnails.npy", small)
    pl.DataFrame(facts, schema=FACTS).write_parquet(folder / "facts.parquet", compression="zstd", statistics=False)
    return {"images": len(shots)}


def _describe(
    image: Image.Image, data: bytes, shot: Shot, rules: ImageRules, folder: Path, small: U8
) -> dict[str, Any]:
    path = Path(shot.path)
    turn, remarks = _decide_turn(image, shot, rules)
    mode, stored = image.mode, ""
    if turn or mode not in PLAIN:
        plain = to_rgb(ImageOps.exif_transpose(image) if turn else image)
        remarks += [f"stored as {mode}: written anew as 8-bit RGB"] * (mode not in PLAIN)
        stored = _write(folder, image_name(shot.index), encode_png(plain))
    else:
        plain = image
        image.load()
        if rules.copy:
            stored = _write(folder, image_name(shot.index, path.suffix.lower()), data)
    region, more = find_region(plain.size, shot.box, rules, path)
    pixels = np.ascontiguousarray(np.asarray(plain.convert("RGB").crop(region)))
    if pixels.min() == pixels.max():
        raise CorruptRecordError(path, "pixels", "all pixels have one value")
    small[:] = thumbnail(pixels)
    return {
        "remarks": remarks + more,
        **{"width": plain.width, "height": plain.height, "grey": mode == "L", "stored": stored},
        **dict(zip(("left", "top", "right", "bottom"), region, strict=True)),
        "digest": hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest(),
        "hash": perceptual_hash(small),
    }


def find_region(size: tuple[int, int], box: Box | None, rules: ImageRules, path: Path) -> tuple[Region, list[str]]:
    """The part of a picture that is used, and remarks.

    Args:
        size: width and height.
        box: of the object; None: the whole picture, but what is trimmed.
        rules: margin and trim.
        path: for messages.

    Raises:
        CorruptRecordError: nothing of the picture is left.
    """
    width, height = size
    height -= rules.trim
    if height < 1:
        raise CorruptRecordError(path, "height", f"{size[1]} pixels, of which {rules.trim} are cut off")
    if box is None:
        return (0, 0, width, height), []
    left, top, right, bottom = box
    if not (right > left and bottom > top):
        raise CorruptRecordError(path, "box", f"the box {_shown(box)} has no area")
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise CorruptRecordError(path, "box", f"the box {_shown(box)} lies outside of {width} x {height} pixels")
    beyond = left < -1 or top < -1 or right > width + 1 or bottom > height + 1
    across, down = rules.margin * (right - left), rules.margin * (bottom - top)
    region = (
        max(0, math.floor(left - across)),
        max(0, math.floor(top - down)),
        min(width, math.ceil(right + across)),
        min(height, math.ceil(bottom + down)),
    )
    return region, ["the box goes beyond the picture: cut off"] * beyond


def _shown(box: Box) -> str:
    return f"[{', '.join(f'{number:g}' for number in box)}]"


def _decide_turn(image: Image.Image, shot: Shot, rules: ImageRules) -> tuple[bool, list[str]]:
    """Whether to carry out the orientation that a camera noted; boxes are for pictures as they are stored."""
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation not in range(2, 9):
        return False, []
    turn = rules.exif == "apply" or (rules.exif == "auto" and not shot.boxed)
    why = "applied" if turn else "ignored" if rules.exif == "ignore" else "ignored: the data set has boxes"
    return turn, [f"EXIF orientation {orientation} is {why}"]


def _write(folder: Path, name: str, data: bytes) -> str:
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return f"images/{name}"
