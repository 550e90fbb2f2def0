"""Where patches are put: the rules of CLAM, written down a second time as plainly as they are stated."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.medical.wsi.patches.grid import TESTS, Rules, locate, measure_tissue, place, place_on_slide
from data_prep.medical.wsi.patches.tissue import Piece

WIDTH, HEIGHT = 400, 300


def blobs(seed: int, count: int = 2) -> list[Piece]:
    """Ragged outlines with holes, as they come out of a mask."""
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4), dtype=np.uint8), (0, 0), 4)
    mask = cv2.threshold(mask, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parents = hierarchy[0, :, 3]
    largest = sorted(np.flatnonzero(parents < 0), key=lambda i: -cv2.contourArea(contours[i]))[:count]
    return [
        Piece(contours[i][:, 0] * 4, [contours[j][:, 0] * 4 for j in np.flatnonzero(parents == i)]) for i in largest
    ]


def belongs(piece: Piece, x: int, y: int, rules: Rules) -> bool:
    size = rules.size[0]
    centre, shift = (x + size // 2, y + size // 2), int(size // 2 * 0.5)
    four = [(centre[0] + dx, centre[1] + dy) for dx in (-shift, shift) for dy in (-shift, shift)]
    points = {"center": [centre], "basic": [(x, y)]}.get(rules.contour_fn, four)
    inside = [cv2.pointPolygonTest(piece.outline, tuple(map(float, point)), False) >= 0 for point in points]
    middle = (x + size / 2, y + size / 2)
    in_hole = any(cv2.pointPolygonTest(hole, middle, False) > 0 for hole in piece.holes)
    return (all(inside) if rules.contour_fn == "four_pt_hard" else any(inside)) and not in_hole


def expected(pieces: list[Piece], rules: Rules) -> list[tuple[int, int]]:
    found = []
    for piece in pieces:
        x0, y0, w, h = cv2.boundingRect(piece.outline)
        x1, y1 = x0 + w, y0 + h
        if not rules.use_padding:
            x1, y1 = min(x1, WIDTH - rules.size[0] + 1), min(y1, HEIGHT - rules.size[1] + 1)
        places = itertools.product(range(x0, x1, rules.step[0]), range(y0, y1, rules.step[1]))
        hits = [(x, y) for x, y in places if belongs(piece, x, y, rules)]
        found += hits if len(hits) > 1 else []
    return found


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 90),
    step=st.integers(5, 90),
    contour_fn=st.sampled_from(TESTS),
    use_padding=st.booleans(),
)
def test_patches_are_where_the_rules_say(seed, size, step, contour_fn, use_padding):
    pieces = blobs(seed)
    rules = Rules((size, size), (step, step), contour_fn, use_padding)
    assert [tuple(row) for row in place(pieces, rules, WIDTH, HEIGHT)] == expected(pieces, rules)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(-10, 10), st.integers(-10, 10)), min_size=1, max_size=30),
)
def test_points_lie_where_opencv_says_also_in_polygons_that_cross_themselves(corners, points):
    polygon = np.array(corners, np.int32)
    wanted = [cv2.pointPolygonTest(polygon, tuple(map(float, point)), False) for point in points]
    assert locate(polygon, np.array(points, np.int64)).tolist() == wanted


def test_patches_of_different_size_in_x_and_y_keep_their_steps():
    piece = Piece(np.array([[0, 0], [99, 0], [99, 99], [0, 99]], np.int32))
    found = place([piece], Rules((30, 20), (30, 20), "basic"), WIDTH, HEIGHT)
    assert sorted(set(found[:, 0])) == [0, 30, 60, 90]
    assert sorted(set(found[:, 1])) == [0, 20, 40, 60, 80]


def test_a_piece_with_a_single_patch_gives_none():
    small = Piece(np.array([[10, 10], [40, 10], [40, 40], [10, 40]], np.int32))
    assert len(place([small], Rules((64, 64), (64, 64)), WIDTH, HEIGHT)) == 0
    assert len(place_on_slide([small], Rules((64, 64), (64, 64)), WIDTH, HEIGHT)) == 1


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), step=st.integers(8, 60), contour_fn=st.sampled_from(TESTS))
def test_one_grid_for_the_slide_has_each_position_in_tissue_once(seed, step, contour_fn):
    pieces = blobs(seed, count=3)
    rules = Rules((step, step), (step, step), contour_fn, use_padding=False)
    found = place_on_slide(pieces, rules, WIDTH, HEIGHT)
    places = itertools.product(range(0, WIDTH - step + 1, step), range(0, HEIGHT - step + 1, step))
    wanted = [(x, y) for x, y in places if any(belongs(piece, x, y, rules) for piece in pieces)]
    assert [tuple(row) for row in found] == wanted


def test_share_of_tissue_is_measured():
    square = np.array([[100, 0], [300, 0], [300, 200], [100, 200]], np.int32)
    hole = np.array([[150, 50], [250, 50], [250, 150], [150, 150]], np.int32)
    corners = np.array([[0, 0], [50, 0], [100, 0], [150, 50], [350, 0]])
    shares = measure_tissue([Piece(square, [hole])], corners, (100, 100))
    assert shares == pytest.approx([0, 0.5, 0.75, 0, 0], abs=0.03)


def test_a_patch_that_reaches_beyond_the_slide_is_allowed_by_padding_only():
    piece = Piece(np.array([[0, 0], [WIDTH - 1, 0], [WIDTH - 1, HEIGHT - 1], [0, HEIGHT - 1]], np.int32))
    padded = place([piece], Rules((90, 90), (90, 90)), WIDTH, HEIGHT)
    inner = place([piece], Rules((90, 90), (90, 90), use_padding=False), WIDTH, HEIGHT)
    assert (padded + 90 > (WIDTH, HEIGHT)).any() and not (inner + 90 > (WIDTH, HEIGHT)).any()
