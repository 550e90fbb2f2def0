"""One task: a block of images is decoded, written as PNG, and described."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import sha256_file, translate_os_errors
from data_prep.common.fingerprints import SIDE, perceptual_hash, thumbnail
from data_prep.medical.xray.errors import ConstantImageError, NotAnImageError
from data_prep.medical.xray.find import is_dicom
from data_prep.medical.xray.images import encode_png, read_image, read_mask, resize, resize_mask
from data_prep.medical.xray.pixels import U8, Radiograph
from data_prep.medical.xray.records import Box

BLOCK_FILES, BLOCK_ROWS = 64, 1024  # images per task: files, rows of an array
OLDEST = 120  # years; higher ages are errors (RSNA has five)
FACTS: dict[str, pl.DataType | type[pl.DataType]] = {
    "index": pl.UInt32,
    "reason": pl.String,  # empty: the image is written
    "field": pl.String,
    "other_view": pl.Boolean,  # not asked for: neither written nor rejected
    "width": pl.UInt32,
    "height": pl.UInt32,
    "view": pl.String,
    "patient": pl.String,  # hash of the header's patient id, to group by; never leaves the scratch folder
    "too_old": pl.Boolean,
    "remarks": pl.List(pl.String),
    "mask": pl.Boolean,
    "mask_reason": pl.String,
    "digest": pl.Binary,  # SHA-256 of the decoded pixels
    "hash": pl.UInt64,
    "bytes": pl.UInt64,  # of the files read: image and mask
    "sha256": pl.String,
    "mask_sha256": pl.String,
}
_BLANK: dict[str, Any] = {
    **{"reason": "", "field": "", "other_view": False, "width": 0, "height": 0, "view": "", "patient": ""},
    **{"too_old": False, "remarks": [], "mask": False, "mask_reason": "", "digest": b"", "hash": 0, "bytes": 0},
    **{"sha256": "", "mask_sha256": ""},
}


@dataclass(frozen=True, slots=True)
class Shot:
    """One image to decode.

    Args:
        index: its number in the listing; names its files.
        path: the file; an unpacked array where `row` is given.
        row: row of the array, or -1.
        view: as the data set says it, or empty.
        crop: part that counts.
        mask: file of its lung mask, or empty.
    """

    index: int
    path: str
    row: int
    view: str
    crop: Box | None
    mask: str


@dataclass(frozen=True)
class Rules:
    """How images are made.

    Args:
        max_side: longest side in pixels.
        percentile: see `read_dicom`.
        channels: 1 or 3.
        views: those that are kept; None: all.
        views_needed: refuse images whose view nobody tells.
        eight_bit_lut: see `read_dicom`.
    """

    max_side: int = 1024
    percentile: float = 0.0
    channels: int = 1
    views: tuple[str, ...] | None = None
    views_needed: bool = False
    eight_bit_lut: bool = False


def image_name(index: int) -> str:
    """Path of a prepared image or mask below `images` or `masks`."""
    return f"{index // 1000:05d}/{index:08d}.png"


def encode_block(shots: Sequence[Shot], rules: Rules, folder: Path) -> dict[str, Any]:
    """Write `images/`, `masks/`, `facts.parquet` and `thumbnails.npy` of a block.

    Raises:
        MissingExtraError: a decoder is not installed.
        DatasetNotFoundError: a file vanished.
    """
    small = np.zeros((len(shots), SIDE, SIDE), np.uint8)
    paths = {shot.path for shot in shots if shot.row >= 0}
    arrays = {path: np.load(path, mmap_mode="r", allow_pickle=False) for path in paths}
    facts = []
    with _one_thread():
        for place, shot in enumerate(shots):
            fact = {**_BLANK, "index": shot.index}
            try:
                given = Radiograph(arrays[shot.path][shot.row]) if shot.row >= 0 else None
                fact |= _encode(shot, given or read_any(Path(shot.path), rules), rules, folder, small[place])
            except CorruptRecordError as error:
                fact |= {"reason": error.reason, "field": error.position}
            if shot.row < 0:
                fact |= _describe_files(shot)
            facts.append(fact)
    np.save(folder / "thumbnails.npy", small)
    pl.DataFrame(facts, schema=FACTS).write_parquet(folder / "facts.parquet", compression="zstd", statistics=False)
    return {"images": len(shots)}


def read_any(path: Path, rules: Rules) -> Radiograph:
    """Read a DICOM or image file.

    Raises:
        CorruptRecordError: one of its kinds in `errors`.
    """
    if is_dicom(path):
        # Imported here, so that other formats need neither pydicom nor the time to load it.
        from data_prep.medical.xray.dicom import read_dicom

        found = read_dicom(path, rules.percentile, eight_bit_lut=rules.eight_bit_lut)
        if rules.channels == 3:
            return replace(found, pixels=np.repeat(found.pixels[..., None], 3, axis=2))
        return found
    return read_image(path, rules.percentile, rules.channels)


def _encode(shot: Shot, found: Radiograph, rules: Rules, folder: Path, small: U8) -> dict[str, Any]:
    view = shot.view or found.view
    fact: dict[str, Any] = {
        "view": view,
        "patient": hashlib.sha256(found.patient.casefold().encode()).hexdigest() if found.patient else "",
        "too_old": found.age is not None and found.age > OLDEST,
        "remarks": list(found.remarks),
    }
    if rules.views is not None and view and view not in rules.views:
        return {**fact, "other_view": True}
    if rules.views_needed and not view:
        return {**fact, "reason": "the header does not say the view", "field": "ViewPosition"}
    pixels = _crop(np.ascontiguousarray(found.pixels), shot.crop, Path(shot.path))
    prepared = resize(pixels, rules.max_side)
    height, width = prepared.shape[:2]
    _write(folder / "images" / image_name(shot.index), encode_png(prepared))
    small[:] = thumbnail(prepared)
    fact |= {
        "width": width,
        "height": height,
        "digest": hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest(),
        "hash": perceptual_hash(small),
    }
    if shot.mask:
        try:
            mask = _fit_mask(read_mask(Path(shot.mask)), found.pixels.shape[:2], shot.crop, (height, width))
            _write(folder / "masks" / image_name(shot.index), encode_png(mask))
            fact["mask"] = True
        except CorruptRecordError as error:
            fact["mask_reason"] = f"mask: {error.reason}"
    return fact


def _crop(pixels: U8, box: Box | None, path: Path) -> U8:
    if box is None:
        return pixels
    left, top, right, bottom = box
    cut = np.ascontiguousarray(pixels[top:bottom, left:right])
    if not cut.size:
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise NotAnImageError(path, "crop box", f"{list(box)} lies outside the image of {size} pixels")
    if cut.min() == cut.max():
        raise ConstantImageError(path, "crop box", "all pixels inside it have one value")
    return cut


def _fit_mask(mask: U8, whole: tuple[int, ...], box: Box | None, size: tuple[int, int]) -> U8:
    """A mask may have any size; it covers the stored image, or (where its size is that) the cropped one."""
    if box is not None:
        left, top, right, bottom = box
        if mask.shape != (min(bottom, whole[0]) - top, min(right, whole[1]) - left):
            mask = np.ascontiguousarray(resize_mask(mask, whole[0], whole[1])[top:bottom, left:right])
    return resize_mask(mask, *size)


def _describe_files(shot: Shot) -> dict[str, Any]:
    path = Path(shot.path)
    with translate_os_errors(path):
        found: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        if shot.mask:
            mask = Path(shot.mask)
            found |= {"bytes": found["bytes"] + mask.stat().st_size, "mask_sha256": sha256_file(mask)}
    return found


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Work is shared out over processes: threads of OpenCV would only fight for the same cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
