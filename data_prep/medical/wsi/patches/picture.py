"""A thumbnail that shows what was found: tissue outlined, holes too, patches as squares."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from data_prep.medical.wsi.patches.grid import Coordinates
from data_prep.medical.wsi.patches.tissue import Damage, Piece, read_bands
from data_prep.medical.wsi.slides.slide import Image, RegionError, Slide, resample

TISSUE, HOLE, PATCH = (0, 170, 0), (0, 0, 255), (40, 40, 40)  # RGB
QUALITY = 85  # of the JPEG


def draw(
    slide: Slide, max_side: int, pieces: Sequence[Piece], corners: Coordinates, size: float, picture: Image | None
) -> bytes:
    """A JPEG of the slide with contours and patches.

    Args:
        slide: to show.
        max_side: pixels of the longer side.
        pieces: of tissue.
        corners: of the patches, level-0 pixels.
        size: of a patch, level-0 pixels.
        picture: the slide in small, if it is known already; it may reach a little beyond the slide.
    """
    canvas = read_thumbnail(slide, max_side) if picture is None else _shrink(picture, max_side)
    scale = np.array([canvas.shape[1] / slide.width, canvas.shape[0] / slide.height])
    squares = np.rint(np.concatenate([corners * scale, (corners + size) * scale], 1)).astype(int)
    shaded = canvas.copy()
    for x0, y0, x1, y1 in squares.tolist():
        cv2.rectangle(shaded, (x0, y0), (x1, y1), PATCH, 1)
    canvas = np.asarray(cv2.addWeighted(canvas, 0.5, shaded, 0.5, 0), np.uint8)
    width = max(1, round(max(canvas.shape) / 500))
    for piece in pieces:
        for rings, colour in (([piece.outline], TISSUE), (piece.holes, HOLE)):
            lines = [np.rint(ring * scale).astype(np.int32) for ring in rings]
            cv2.polylines(canvas, lines, True, colour, width, cv2.LINE_AA)
    bgr = cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def read_thumbnail(slide: Slide, max_side: int) -> Image:
    """The whole slide in small; white where it is damaged.

    Shape:
        (H, W, 3) uint8.
    """
    try:
        return slide.thumbnail(max_side)
    except RegionError:
        level = len(slide.level_dimensions) - 1
        width, height = slide.level_dimensions[level]
        rows = max(1, (1 << 24) // width)
        bands = [
            _shrink_band(band, max_side, width, height) for _, band in read_bands(slide, level, rows, Damage(slide))
        ]
        return _shrink(np.concatenate(bands), max_side)


def _shrink_band(band: Image, max_side: int, width: int, height: int) -> Image:
    factor = max(1.0, max(width, height) / max_side)
    return resample(band, max(1, round(band.shape[1] / factor)), max(1, round(band.shape[0] / factor)))


def _shrink(picture: Image, max_side: int) -> Image:
    height, width = picture.shape[:2]
    factor = max(1.0, max(width, height) / max_side)
    return resample(picture, max(1, round(width / factor)), max(1, round(height / factor)))
