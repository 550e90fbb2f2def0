"""Image files: looked at, decoded to be sure, and written anew only where they are no plain 8-bit picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image, ImageOps

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors
from data_prep.common.images import ORIENTATION, PLAIN, encode_png, opened, read_bytes, to_rgb

BLOCK = 256  # images per task
_TURNED = (5, 6, 7, 8)  # orientations that exchange width and height
FACTS: dict[str, pl.DataType | type[pl.DataType]] = {
    "index": pl.UInt64,
    "reason": pl.String,  # empty: the image can be used
    "remarks": pl.List(pl.String),
    "width": pl.Int64,
    "height": pl.Int64,
    "grey": pl.Boolean,
    "stored": pl.String,  # file below the task's folder; empty: the image stays where it is
    "digest": pl.Binary,  # SHA-256 of the decoded pixels, or of the file where they are not looked at
    "bytes": pl.UInt64,
}


@dataclass(frozen=True, slots=True)
class Shot:
    """One image to look at.

    Args:
        index: number of the image; names its file, if it gets one.
        path: the file.
        width: as the annotations say it; 0: they do not.
        height: likewise.
    """

    index: int
    path: str
    width: int
    height: int


@dataclass(frozen=True)
class ImageRules:
    """How images are looked at.

    Args:
        exif: auto, apply, or ignore the orientation that a camera noted.
        pixels: decode each image, which finds damaged ones.
        copy: copy each image.
    """

    exif: str = "auto"
    pixels: bool = True
    copy: bool = False


def image_name(index: int, suffix: str = ".png") -> str:
    """Path of an image below `images`."""
    return f"{index // 1000:05d}/{index:08d}{suffix}"


def look_at_block(shots: Sequence[Shot], rules: ImageRules, folder: Path) -> dict[str, Any]:
    """Task: write `facts.parquet`, and `images/` with those that are written anew or copied.

    Raises:
        DatasetNotFoundError: a file vanished.
    """
    facts = []
    blank = {"reason": "", "remarks": [], "width": 0, "height": 0, "grey": False, "stored": "", "digest": b""}
    for shot in shots:
        fact: dict[str, Any] = {**blank, "index": shot.index, "bytes": 0}
        try:
            with translate_os_errors(Path(shot.path)):
                fact["bytes"] = Path(shot.path).stat().st_size
            fact |= _look_at(shot, rules, folder)
        except CorruptRecordError as error:
            fact["reason"] = error.reason
        facts.append(fact)
    pl.DataFrame(facts, schema=FACTS).write_parquet(folder / "facts.parquet", compression="zstd", statistics=False)
    return {"images": len(shots)}


def _look_at(shot: Shot, rules: ImageRules, folder: Path) -> dict[str, Any]:
    path = Path(shot.path)
    data = read_bytes(path)
    with opened(path, data) as image:
        return _describe(image, data, shot, rules, folder)


def _describe(image: Image.Image, data: bytes, shot: Shot, rules: ImageRules, folder: Path) -> dict[str, Any]:
    turn, remarks = _decide_turn(image, shot, rules)
    mode = image.mode
    result: dict[str, Any] = {"grey": mode == "L"}
    if turn or mode not in PLAIN:
        plain = to_rgb(ImageOps.exif_transpose(image) if turn else image)
        remarks += [f"stored as {mode}: written anew as 8-bit RGB"] * (mode not in PLAIN)
        result |= {"stored": _write(folder, image_name(shot.index), encode_png(plain))}
    else:
        plain = image
        if rules.pixels:
            image.load()
        if rules.copy:
            suffix = Path(shot.path).suffix.lower() or ".jpg"
            result["stored"] = _write(folder, image_name(shot.index, suffix), data)
    digest = hashlib.sha256(f"{plain.mode} {plain.size}".encode() + plain.tobytes() if rules.pixels else data).digest()
    return {**result, "remarks": remarks, "width": plain.width, "height": plain.height, "digest": digest}


def _decide_turn(image: Image.Image, shot: Shot, rules: ImageRules) -> tuple[bool, list[str]]:
    """Whether to carry out the orientation that a camera noted: annotations tell by the size they are made for."""
    exif = rules.exif
    # Pillow decodes a PNG to look for metadata behind its pixels.
    looked_at = rules.pixels or image.format != "PNG" or "exif" in image.info
    orientation = image.getexif().get(ORIENTATION, 1) if looked_at else 1
    if orientation not in range(2, 9):
        return False, []
    if exif != "auto":
        return exif == "apply", [f"EXIF orientation {orientation} is {'applied' if exif == 'apply' else 'ignored'}"]
    width, height = image.size
    if orientation in _TURNED and width != height and (shot.width, shot.height) in ((width, height), (height, width)):
        turn = (shot.width, shot.height) == (height, width)
        done = "applied" if turn else "ignored"
        return turn, [f"EXIF orientation {orientation} is {done}: the annotations are for the image of this size"]
    return False, [
        f"EXIF orientation {orientation} is ignored: the size does not tell what the annotations are for; see --exif"
    ]


def _write(folder: Path, name: str, data: bytes) -> str:
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return f"images/{name}"
