"""One task: faces of a block of images, or of the frames of a video, are read, cut, written and described."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
from PIL import Image, ImageOps

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import sha256_file, translate_os_errors
from data_prep.common.fingerprints import SIDE, perceptual_hash, thumbnail
from data_prep.common.images import ORIENTATION, PLAIN, encode_png, opened, read_bytes, to_rgb
from data_prep.common.video import Video
from data_prep.expression.faces import U8, Detector, Face, FaceRules, open_detector, take_face
from data_prep.expression.pixel_table import read_pixels
from data_prep.expression.records import IMAGE

BLOCK_FILES, BLOCK_ROWS = 256, 2048  # images per task: files, rows of a table
CHUNK = 512  # faces of a video that are held at a time
FACTS: dict[str, Any] = {
    "index": pl.UInt64,  # number in the listing, or of the frame among those of its video
    "reason": pl.String,  # empty: the face is written
    "field": pl.String,
    "remarks": pl.List(pl.String),
    "width": pl.UInt32,
    "height": pl.UInt32,
    "grey": pl.Boolean,
    "box": pl.List(pl.Float32),
    "score": pl.Float32,
    "faces": pl.UInt32,
    "digest": pl.Binary,  # SHA-256 of the pixels of the face
    "hash": pl.UInt64,
    "stored": pl.String,  # below the task's folder
    "at": pl.UInt32,  # row of a packed file; null: the file is the picture
    "bytes": pl.UInt64,  # of the image file
    "sha256": pl.String,
    "frame": pl.UInt32,
    "time_s": pl.Float64,
}
_BLANK: dict[str, Any] = {
    **{"reason": "", "field": "", "remarks": [], "width": 0, "height": 0, "grey": True, "box": None, "score": None},
    **{"faces": None, "digest": b"", "hash": 0, "stored": "", "at": None, "bytes": 0, "sha256": "", "frame": None},
    "time_s": None,
}


_FACE = FaceRules()


@dataclass(frozen=True)
class Rules:
    """How pictures become faces.

    Args:
        face: how the face of a picture is taken.
        channels: 1 grey, 3 RGB, 0 as the pictures are.
        packed: faces become rows of arrays instead of files; they have one size then.
    """

    face: FaceRules = _FACE
    channels: int = 0
    packed: bool = False


def image_name(index: int, suffix: str = ".png") -> str:
    """Path of a face below `images`."""
    return f"{index // 1000:05d}/{index:08d}{suffix}"


def encode_block(rows: pl.DataFrame, first: int, rules: Rules, folder: Path) -> dict[str, Any]:
    """Write `faces.npy` or `images/`, `facts.parquet` and `thumbnails.npy` of a block of a listing.

    Args:
        rows: of the listing.
        first: number of the first of them.
        rules: how.
        folder: of the task.

    Raises:
        DatasetNotFoundError: a file vanished.
    """
    writer = _Writer(folder, rules)
    detector = _detector(rules.face)
    with _one_thread():
        for index, row in enumerate(rows.iter_rows(named=True), first):
            path = Path(row["path"])
            fact: dict[str, Any] = {**_BLANK, "index": index}
            try:
                if row["column"] == IMAGE:
                    with translate_os_errors(path):
                        fact |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                    fact |= _from_file(path, row, rules, detector, writer, index)
                else:
                    pixels = read_pixels(path, row["start"], row["size"], row["column"])
                    fact |= _take(path, pixels, rules, detector, None, writer, index, [])
            except CorruptRecordError as error:
                fact |= {"reason": error.reason, "field": error.position}
            writer.facts.append(fact)
    writer.finish()
    return {"images": len(rows)}


def encode_video(path: str, every: int, rules: Rules, folder: Path) -> dict[str, Any]:
    """Write the faces of the frames of a video, chunk by chunk, as `encode_block` does.

    Args:
        path: of the video.
        every: take each `every`-th frame.
        rules: how.
        folder: of the task.

    Returns:
        `fps`; `decoded` and `said` frames; `broken`: number and seconds of each frame that cannot be decoded; `missing`
        frames at the end; `reason` why the video cannot be used, empty if it can.
    """
    writer = _Writer(folder, rules, thumbnails=False)
    detector = _detector(rules.face)
    blank = {"fps": 0.0, "decoded": 0, "said": 0, "broken": [], "missing": 0}
    place = Path(path)
    try:
        with Video(place) as video, _one_thread():
            for index, frame in enumerate(video.frames(every)):
                fact: dict[str, Any] = {**_BLANK, "index": index, "frame": frame.number, "time_s": frame.seconds}
                try:
                    fact |= _take(place, frame.pixels, rules, detector, None, writer, index, [])
                except CorruptRecordError as error:
                    fact |= {"reason": error.reason, "field": error.position}
                writer.facts.append(fact)
    except CorruptRecordError as error:
        writer.finish()
        return {**blank, "reason": error.reason}
    writer.finish()
    reason = "" if video.decoded else "no frame of the video can be decoded; copy or download it again"
    broken = [list(each) for each in video.broken]
    told = {"fps": video.fps, "decoded": video.decoded, "said": video.said, "broken": broken}
    return {**told, "missing": video.missing_at_the_end, "reason": reason}


class _Writer:
    """Where faces go: rows of arrays of `CHUNK`, or files; and what is known of them.

    Args:
        folder: of the task.
        rules: how faces are stored.
        thumbnails: keep these, to look for duplicates.
    """

    def __init__(self, folder: Path, rules: Rules, *, thumbnails: bool = True) -> None:
        self.folder, self.rules, self.thumbnails = folder, rules, thumbnails
        self.facts: list[dict[str, Any]] = []
        self.small: list[U8] = []
        self._held: list[U8] = []
        self._chunks = 0

    def write(self, index: int, pixels: U8, plain: tuple[bytes, str] | None) -> dict[str, Any]:
        """Write a face.

        Args:
            index: names its file.
            pixels: of the face.
            plain: file that holds these pixels already, and its suffix.
        """
        if self.rules.packed:
            self._held.append(pixels if pixels.ndim == 3 else pixels[..., None])
            place = {"stored": f"faces-{self._chunks:05d}.npy", "at": len(self._held) - 1}
            if len(self._held) == CHUNK:
                self._flush()
            return place
        data, suffix = plain or (encode_png(Image.fromarray(pixels)), ".png")
        stored = f"images/{image_name(index, suffix)}"
        path = self.folder / stored
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"stored": stored}

    def _flush(self) -> None:
        if self._held:
            channels = max(face.shape[2] for face in self._held)
            whole = [np.broadcast_to(face, (*face.shape[:2], channels)) for face in self._held]
            np.save(self.folder / f"faces-{self._chunks:05d}.npy", np.stack(whole))
            self._held, self._chunks = [], self._chunks + 1

    def finish(self) -> None:
        """Write what is left, and the tables."""
        self._flush()
        small = np.stack(self.small) if self.small else np.zeros((0, SIDE, SIDE), np.uint8)
        np.save(self.folder / "thumbnails.npy", small)
        table = pl.DataFrame(self.facts, schema=FACTS, orient="row")
        table.write_parquet(self.folder / "facts.parquet", compression="zstd", statistics=False)


def _from_file(
    path: Path, row: dict[str, Any], rules: Rules, detector: Detector | None, writer: _Writer, index: int
) -> dict[str, Any]:
    data = read_bytes(path)
    with opened(path, data) as image:
        mode, kind, noted = image.mode, image.format, image.getexif()
        turned = noted.get(ORIENTATION, 1) in range(2, 9)
        picture = ImageOps.exif_transpose(image) if turned else image
        picture = picture if mode in PLAIN else to_rgb(picture)
        pixels = np.asarray(picture, dtype=np.uint8)
    remarks = [f"stored as {mode}"] * (mode not in PLAIN) + ["turned as the camera noted"] * turned
    plain = (data, ".jpg") if kind == "JPEG" and not noted and not remarks else None
    given = None
    if row["box"] is not None:
        points = np.array(row["points"], np.float64).reshape(-1, 2) if row["points"] is not None else None
        given = Face(tuple(row["box"]), float("nan"), points)
    return _take(path, pixels, rules, detector, given, writer, index, remarks, plain)


def _take(
    path: Path,
    pixels: U8,
    rules: Rules,
    detector: Detector | None,
    given: Face | None,
    writer: _Writer,
    index: int,
    remarks: list[str],
    plain: tuple[bytes, str] | None = None,
) -> dict[str, Any]:
    taken = take_face(path, pixels, rules.face, detector, given)
    face = taken.pixels
    grey = face.ndim == 2 or bool((face == face[..., :1]).all())
    if rules.channels == 1 and face.ndim == 3:
        face = np.asarray(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), np.uint8)
        grey = True
    elif grey and face.ndim == 3:
        face = np.ascontiguousarray(face[..., 0])
    remarks = remarks + [taken.remark] * bool(taken.remark)
    remarks += ["all pixels have one value"] * bool(face.min() == face.max())
    small = thumbnail(np.ascontiguousarray(face))
    writer.small += [small] * writer.thumbnails
    kept = plain if taken.pixels is pixels and rules.channels != 1 else None
    return {
        **{"remarks": remarks, "width": face.shape[1], "height": face.shape[0], "grey": grey},
        **{"box": taken.box, "score": taken.score, "faces": taken.faces},
        **{
            "digest": hashlib.sha256(repr(face.shape).encode() + face.tobytes()).digest(),
            "hash": perceptual_hash(small),
        },
        **writer.write(index, face, kept),
    }


def _detector(rules: FaceRules) -> Detector | None:
    return open_detector(Path(rules.weights), rules.score) if rules.align == "detector" else None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Work is shared out over processes: threads of OpenCV would only fight for the same cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
