"""Where patches are put: the grid of CLAM, with its four tests whether a patch lies in the tissue.

A contour is tiled from the corner of its bounding box, x outside and y inside; pieces are tiled one after another.
`place_on_slide` uses one grid for the whole slide instead, so that patches of neighbouring pieces do not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.medical.wsi.patches.tissue import Piece, axis_downsamples
from data_prep.medical.wsi.slides.slide import Slide

Coordinates = npt.NDArray[np.int64]
Test = Literal["four_pt", "four_pt_hard", "center", "basic"]
TESTS = ("four_pt", "four_pt_hard", "center", "basic")
LARGEST_MASK = 4096  # side of the picture that shares of tissue are measured on


@dataclass(frozen=True)
class Rules:
    """How a slide is tiled.

    Args:
        size: width and height of a patch in level-0 pixels.
        step: from patch to patch in x and y, level-0 pixels.
        contour_fn: which points must be inside of a contour or on it: `four_pt` any of the four points a quarter of
            the patch away from its centre, diagonally; `four_pt_hard` all of them; `center` the centre; `basic` the
            upper left corner.
        use_padding: allow patches that reach beyond the slide.
    """

    size: tuple[int, int]
    step: tuple[int, int]
    contour_fn: str = "four_pt"
    use_padding: bool = True


def rules_at_level(
    slide: Slide, level: int, size: int, step: int, contour_fn: str = "four_pt", *, use_padding: bool = True
) -> Rules:
    """Patches of whole pixels of one level, as CLAM tiles: it cuts the fraction of a downsample such as 4.003 off.

    Args:
        slide: to tile.
        level: of the slide.
        size: side in pixels of that level.
        step: in pixels of that level.
        contour_fn: see `Rules`.
        use_padding: see `Rules`.
    """
    across, down = (int(downsample) for downsample in axis_downsamples(slide, level))
    return Rules((size * across, size * down), (step * across, step * down), contour_fn, use_padding)


def place(pieces: Sequence[Piece], rules: Rules, width: int, height: int) -> Coordinates:
    """Upper left corners of patches, piece by piece, each piece on a grid of its own.

    A piece with a single patch gives none, as in CLAM.

    Args:
        pieces: of tissue.
        rules: how to tile.
        width: of level 0.
        height: of level 0.

    Shape:
        (N, 2) int64, x and y in level-0 pixels.
    """
    parts = [np.zeros((0, 2), np.int64)]
    for piece in pieces:
        x, y, wide, high = cv2.boundingRect(piece.outline)
        found = _candidates((x, y), (x + wide, y + high), rules, width, height)
        found = found[_is_in_tissue(found, piece, rules)]
        if len(found) > 1:
            parts.append(found)
    return np.concatenate(parts)


def place_on_slide(pieces: Sequence[Piece], rules: Rules, width: int, height: int) -> Coordinates:
    """Upper left corners of patches on one grid from the corner of the slide, each position once.

    Args:
        pieces: of tissue.
        rules: how to tile.
        width: of level 0.
        height: of level 0.

    Shape:
        (N, 2) int64, x and y in level-0 pixels, x outside.
    """
    found = _candidates((0, 0), (width, height), rules, width, height)
    kept = np.zeros(len(found), bool)
    for piece in pieces:
        x, y, wide, high = cv2.boundingRect(piece.outline)
        low, end = np.array([x, y]) - rules.size, np.array([x + wide, y + high])
        near = np.flatnonzero(((found >= low) & (found < end)).all(1) & ~kept)
        kept[near] = _is_in_tissue(found[near], piece, rules)
    return found[kept]


def _candidates(start: tuple[int, int], stop: tuple[int, int], rules: Rules, width: int, height: int) -> Coordinates:
    end_x, end_y = stop
    if not rules.use_padding:
        end_x, end_y = min(end_x, width - rules.size[0] + 1), min(end_y, height - rules.size[1] + 1)
    xs = np.arange(start[0], max(start[0], end_x), rules.step[0], dtype=np.int64)
    ys = np.arange(start[1], max(start[1], end_y), rules.step[1], dtype=np.int64)
    return np.stack(np.meshgrid(xs, ys, indexing="ij"), -1).reshape(-1, 2)


def _is_in_tissue(corners: Coordinates, piece: Piece, rules: Rules) -> npt.NDArray[np.bool_]:
    size = rules.size[0]
    shift = size // 2 // 2
    offsets = {"basic": [(0, 0)], "center": [(size // 2, size // 2)]}.get(
        rules.contour_fn, [(size // 2 + dx, size // 2 + dy) for dx in (-shift, shift) for dy in (-shift, shift)]
    )
    hits = np.stack([locate(piece.outline, corners + offset) >= 0 for offset in offsets])
    good = np.asarray(hits.all(0) if rules.contour_fn == "four_pt_hard" else hits.any(0), np.bool_)
    for hole in piece.holes:
        # The centre of a patch of odd size lies between pixels: count in halves.
        left = np.flatnonzero(good)
        good[left] = locate(hole * 2, corners[left] * 2 + size) <= 0
    return good


def locate(polygon: npt.NDArray[Any], points: Coordinates) -> npt.NDArray[np.int8]:
    """Where points lie: 1 inside of a polygon, 0 on its edge, -1 outside, by the even-odd rule.

    The same as cv2.pointPolygonTest, in whole numbers, for all points at once.

    Shape:
        polygon (P, 2) whole numbers, points (N, 2) int64 -> (N,) int8.
    """
    result = np.full(len(points), -1, np.int8)
    if not len(points) or not len(polygon):
        return result
    ends = polygon.astype(np.int64)
    starts = np.roll(ends, 1, axis=0)
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    order = np.argsort(points[:, 1], kind="stable")
    rows, firsts = np.unique(points[order, 1], return_index=True)
    for y, members in zip(rows, np.split(order, firsts[1:]), strict=True):
        edges = np.flatnonzero((low <= y) & (y <= high))
        if not len(edges):
            continue
        (x0, y0), (x1, y1) = starts[edges].T, ends[edges].T
        xs = points[members, 0][:, None]
        # Twice the area of edge and point: zero on the edge's line, else its sign is the side.
        side = (y - y0) * (x1 - x0) - (xs - x0) * (y1 - y0)
        on_edge = (side == 0) & (xs >= np.minimum(x0, x1)) & (xs <= np.maximum(x0, x1))
        # A vertex belongs to the edge above it, so that a crossing counts once.
        crossed = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1)) & (np.where(y1 > y0, side, -side) > 0)
        result[members] = np.where(on_edge.any(1), 0, np.where(crossed.sum(1) % 2 == 1, 1, -1))
    return result


def measure_tissue(pieces: Sequence[Piece], corners: Coordinates, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Share of each patch that is tissue, to a pixel of a picture of the slide with at most 4,096 pixels a side.

    Args:
        pieces: of tissue.
        corners: of the patches, level-0 pixels.
        size: width and height of a patch, level-0 pixels.

    Shape:
        corners (N, 2) int64 -> (N,) float64, 0..1.
    """
    if not pieces or not len(corners):
        return np.zeros(len(corners))
    boxes = np.array([cv2.boundingRect(piece.outline) for piece in pieces])
    low = np.minimum(corners.min(0), boxes[:, :2].min(0))
    high = np.maximum((corners + size).max(0), (boxes[:, :2] + boxes[:, 2:]).max(0))
    scale = max(1.0, float((high - low).max()) / LARGEST_MASK)
    wide, tall = (int(np.ceil(span / scale)) for span in high - low)
    mask = np.zeros((tall, wide), np.uint8)
    for piece in pieces:
        part = np.zeros_like(mask) if piece.holes else mask
        cv2.fillPoly(part, [((piece.outline - low) / scale).astype(np.int32)], (1,))
        for hole in piece.holes:
            cv2.fillPoly(part, [((hole - low) / scale).astype(np.int32)], (0,))
        mask |= part
    sums = cv2.integral(mask)
    first = np.floor((corners - low) / scale).astype(np.int64)
    last = np.minimum(np.maximum(first + 1, np.ceil((corners + size - low) / scale).astype(np.int64)), (wide, tall))
    area = (last - first).prod(1)
    (x0, y0), (x1, y1) = first.T, last.T
    return np.asarray((sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / area)
