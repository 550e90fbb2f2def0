"""Where the face of a picture is, and the picture of it: found, chosen and cut by rules that are recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError

ALIGN = ("none", "center", "given", "detector")
SEVERAL = ("largest", "center", "score", "refuse")
NO_FACE = ("reject", "whole")
LOOKED_AT = 640  # pixels of the longest side of a picture in which faces are looked for
SMALLEST = 160  # smaller pictures are enlarged to this before: detectors know faces of 20 pixels and more
# A black border, as a share of the longest side: in 390 cropped photographs (muxspace/facial_expressions) the frontal
# cascade of OpenCV 4.11 finds a face in 271 without it and in 359 with it.
BORDER = 0.3
STRETCHED = "not square, taken whole: stretched to a square"  # here, or when a network takes it
_POINTS = 5
U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FaceRules:
    """How the face of a picture is taken.

    Args:
        align: none (whole picture), center (largest square in the middle), given (box that comes with the data), or
            detector.
        faces: which of several: largest, center (nearest to the middle), score, or refuse.
        no_face: reject the picture, or take the whole.
        margin: added around a box on each side, as a share of its longer side.
        upright: turn the picture so that the eyes are level, where they are known.
        side: height and width of a face in pixels; 0: as it is cut.
        weights: file of the detector.
        score: of a face, at least.
    """

    align: str = "none"
    faces: str = "largest"
    no_face: str = "reject"
    margin: float = 0.1
    upright: bool = True
    side: int = 0
    weights: str = ""
    score: float = 0.7


class Face(NamedTuple):
    """A face in a picture.

    Args:
        box: x, y, width, height in pixels.
        score: of the detector; NaN: it gives none.
        points: eyes, nose, corners of the mouth, left of the picture first; None: unknown.
    """

    box: tuple[float, float, float, float]
    score: float
    points: F64 | None


class Taken(NamedTuple):
    """The picture of a face.

    Args:
        pixels: (height, width) or (height, width, 3).
        box: x, y, width, height of the face in the whole picture; None: not known.
        score: of the detector; None: it gives none.
        faces: how many there are; None: nobody looked.
        remark: what is to be known, or "".
    """

    pixels: U8
    box: tuple[float, float, float, float] | None = None
    score: float | None = None
    faces: int | None = None
    remark: str = ""


Detector = Callable[[U8], list[Face]]


def find_weights(path: Path) -> Path:
    """The file of a detector: the path, or the cascade of this name that comes with OpenCV 4."""
    cascades = getattr(getattr(cv2, "data", None), "haarcascades", "")
    shipped = Path(cascades) / path.name
    return shipped if cascades and not path.is_file() and shipped.is_file() else path


def open_detector(weights: Path, score: float) -> Detector:
    """Open a detector: YuNet (Wu, Peng and Yu, 2023) in ONNX, or a Haar cascade (Viola and Jones, 2001) in XML.

    Args:
        weights: file of the detector.
        score: of a face, at least (YuNet).

    Raises:
        DatasetNotFoundError: it is not there.
        ConfigError: it is no detector, or OpenCV cannot run it.
    """
    if not weights.is_file():
        raise DatasetNotFoundError(
            f"{weights}: no such detector; give face_detection_yunet_2023mar.onnx of OpenCV Zoo, or an XML of a cascade"
        )
    if weights.suffix.lower() == ".xml":
        return _open_cascade(weights)
    try:
        network = cv2.FaceDetectorYN.create(str(weights), "", (SMALLEST, SMALLEST), score)
        network.setInputSize((SMALLEST, SMALLEST))
        network.detect(np.zeros((SMALLEST, SMALLEST, 3), np.uint8))
    except (cv2.error, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise ConfigError(
            f"{weights}: is no detector of faces that OpenCV {cv2.__version__} reads ({reason})"
        ) from None

    def detect(pixels: U8) -> list[Face]:
        height, width = pixels.shape[:2]
        network.setInputSize((width, height))
        _, found = network.detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return [_from_yunet(row) for row in (found if found is not None else ())]

    return detect


def _from_yunet(row: npt.NDArray[np.float32]) -> Face:
    """A face of YuNet: its right eye is on the left of the picture."""
    values = row.astype(np.float64)
    x, y, width, height = (float(value) for value in values[:4])
    return Face((x, y, width, height), float(values[14]), values[4:14].reshape(_POINTS, 2))


def _open_cascade(weights: Path) -> Detector:
    maker: Any = getattr(cv2, "CascadeClassifier", None)
    if maker is None:
        raise ConfigError(f"{weights}: OpenCV {cv2.__version__} has no cascades (4 has); give a YuNet file (ONNX)")
    try:
        cascade = maker(str(weights))
        empty = cascade.empty()
    except cv2.error:
        empty = True
    if empty:
        raise ConfigError(f"{weights}: is no cascade that OpenCV {cv2.__version__} reads")

    def detect(pixels: U8) -> list[Face]:
        grey = cv2.equalizeHist(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(20, 20))
        boxes = sorted(tuple(float(value) for value in box) for box in found)
        return [Face((box[0], box[1], box[2], box[3]), float("nan"), None) for box in boxes]

    return detect


def take_face(
    path: Path,
    pixels: U8,
    rules: FaceRules,
    detector: Detector | None = None,
    given: Face | None = None,
) -> Taken:
    """Take the face of a picture.

    Args:
        path: of the picture, for messages.
        pixels: of the picture, grey or RGB.
        rules: how.
        detector: where faces are looked for.
        given: face that comes with the data.

    Shape:
        pixels (height, width[, 3]) uint8 -> the same number of channels.

    Raises:
        CorruptRecordError: there is no face, or several, and the rules refuse that.
    """
    if rules.align == "none":
        return _whole(pixels, rules)
    if rules.align == "center":
        return Taken(_middle(pixels, rules.side))
    faces = [given] if given is not None else []
    if rules.align == "detector":
        faces = _look(pixels, detector) if detector is not None else []
    elif given is None:
        return _without(path, pixels, rules, "no box of the face comes with the data", None)
    faces = [face for face in faces if _is_inside(face, pixels)]
    if not faces:
        return _without(path, pixels, rules, "no face is found", 0)
    if len(faces) > 1 and rules.faces == "refuse":
        raise CorruptRecordError(path, "faces", f"{len(faces)} faces are found: one is needed")
    face = choose(faces, rules.faces, pixels.shape[1], pixels.shape[0])
    score = None if np.isnan(face.score) else face.score
    remark = f"several faces: the one of rule {rules.faces!r} is taken" if len(faces) > 1 else ""
    return Taken(_cut(pixels, face, rules), face.box, score, len(faces), remark)


def choose(faces: Sequence[Face], rule: str, width: int, height: int) -> Face:
    """One of several faces; equal ones in the order in which they were found."""
    if rule == "center":
        middle = [
            (x + w / 2 - width / 2) ** 2 + (y + h / 2 - height / 2) ** 2 for x, y, w, h in (face.box for face in faces)
        ]
        return faces[int(np.argmin(middle))]
    if rule == "score":
        return faces[int(np.argmax([np.nan_to_num(face.score, nan=-1.0) for face in faces]))]
    return faces[int(np.argmax([face.box[2] * face.box[3] for face in faces]))]


def _without(path: Path, pixels: U8, rules: FaceRules, reason: str, faces: int | None) -> Taken:
    if rules.no_face == "reject":
        raise CorruptRecordError(path, "faces", reason)
    return Taken(_middle(pixels, rules.side), faces=faces, remark=f"{reason}: the middle of the picture is taken")


def _is_inside(face: Face, pixels: U8) -> bool:
    """Whether the middle of a box lies in the picture, and the box is at least a pixel."""
    x, y, width, height = face.box
    inside = 0 <= x + width / 2 < pixels.shape[1] and 0 <= y + height / 2 < pixels.shape[0]
    return bool(inside and width >= 1 and height >= 1 and np.isfinite(face.box).all())


def _look(pixels: U8, detector: Detector) -> list[Face]:
    """Look for faces in the picture at a size that detectors know, with a border for faces that fill it."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    scale = min(max(longest, SMALLEST), LOOKED_AT) / longest
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    seen = np.asarray(cv2.resize(pixels, size, interpolation=way), np.uint8)
    seen = np.asarray(cv2.cvtColor(seen, cv2.COLOR_GRAY2RGB), np.uint8) if seen.ndim == 2 else seen
    edge = round(BORDER * max(size))
    seen = np.asarray(cv2.copyMakeBorder(seen, edge, edge, edge, edge, cv2.BORDER_CONSTANT), np.uint8)
    back = np.array([width / size[0], height / size[1]])
    found = []
    for face in detector(seen):
        moved = np.array(face.box) - (edge, edge, 0, 0)
        x, y, wide, high = (float(value) for value in moved * np.tile(back, 2))
        points = (face.points - edge) * back if face.points is not None else None
        found.append(Face((x, y, wide, high), face.score, points))
    return found


def _whole(pixels: U8, rules: FaceRules) -> Taken:
    height, width = pixels.shape[:2]
    fits = not rules.side or (height, width) == (rules.side, rules.side)
    remark = "" if fits else f"resized to {rules.side} pixels"
    return Taken(pixels if fits else _resize(pixels, rules.side), remark=remark if height == width else STRETCHED)


def _middle(pixels: U8, side: int) -> U8:
    """The largest square in the middle."""
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = np.ascontiguousarray(pixels[top : top + edge, left : left + edge])
    return _resize(square, side) if side and side != edge else square


def _resize(pixels: U8, side: int) -> U8:
    way = cv2.INTER_AREA if min(pixels.shape[:2]) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=way), dtype=np.uint8)


def _cut(pixels: U8, face: Face, rules: FaceRules) -> U8:
    """The square around a box, turned by the line of the eyes; black where it leaves the picture."""
    x, y, width, height = face.box
    edge = max(width, height) * (1 + 2 * rules.margin)
    side = rules.side or max(1, round(edge))
    scale = side / edge
    middle = np.array([x + width / 2, y + height / 2])
    if scale < 1:  # shrunk by area first: sampling alone would leave out pixels
        size = tuple(max(1, round(length * scale)) for length in (pixels.shape[1], pixels.shape[0]))
        factor = np.array(size) / (pixels.shape[1], pixels.shape[0])
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        middle, scale = middle * factor, 1.0
    angle = 0.0
    if rules.upright and face.points is not None:
        across = face.points[1] - face.points[0]
        across = across if across[0] >= 0 else -across  # whichever eye is named first
        angle = float(np.degrees(np.arctan2(across[1], across[0])))
    # OpenCV puts whole coordinates on the middle of pixels
    turn = cv2.getRotationMatrix2D((float(middle[0]) - 0.5, float(middle[1]) - 0.5), angle, scale)
    turn = turn + np.concatenate([np.zeros((2, 2)), (side / 2 - middle)[:, None]], axis=1)
    return np.asarray(cv2.warpAffine(pixels, turn, (side, side), flags=cv2.INTER_LINEAR), dtype=np.uint8)
