"""Segmentation by saturation: thresholds, areas, holes, levels, damage."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data_prep.common.errors import ConfigError, PrepError
from data_prep.medical.wsi.patches import tissue
from data_prep.medical.wsi.patches.tissue import (
    PRESETS,
    Damage,
    Segmentation,
    choose_level,
    find_tissue,
    read_saturation,
    segment,
    shrinkage,
    tissue_share,
)
from data_prep.medical.wsi.planted_slides import HOLE
from data_prep.medical.wsi.slides.reader import open_slide
from data_prep.medical.wsi.slides.slide import RegionError
from tests.data.medical import make_slides as make

FINE = Segmentation(mthresh=1, close=0, a_t=0, a_h=0)
UNIT = tissue.UNIT**2


def squares(*boxes: tuple[int, int, int, int, int], side: int = 600) -> np.ndarray:
    """Saturation with boxes (x, y, width, height, value), later ones on top."""
    picture = np.zeros((side, side), np.uint8)
    for x, y, width, height, value in boxes:
        picture[y : y + height, x : x + width] = value
    return picture


def outlines(picture, options=FINE, scale=(1.0, 1.0)):
    return [cv2.boundingRect(piece.outline) for piece in segment(picture, scale, options).pieces]


class TestSegment:
    def test_saturation_must_exceed_the_threshold(self):
        picture = squares((10, 10, 50, 50, 20), (100, 10, 50, 50, 21))
        found = segment(picture, (1.0, 1.0), Segmentation(20, 1, 0, False, 0, 0))
        assert [cv2.boundingRect(piece.outline) for piece in found.pieces] == [(100, 10, 50, 50)]
        assert found.threshold == 20 and found.contours == 1

    def test_otsu_finds_the_threshold_between_glass_and_pale_tissue(self):
        picture = np.random.default_rng(0).integers(0, 4, (600, 600), dtype=np.uint8)
        picture[100:300, 100:300] += 6
        assert outlines(picture, Segmentation(9, 1, 0, False, 0, 0)) == []
        found = segment(picture, (1.0, 1.0), Segmentation(9, 5, 0, True, 0.05, 0))
        assert [cv2.boundingRect(piece.outline)[2:] for piece in found.pieces] == [(200, 200)]
        assert 3 <= found.threshold < 6

    def test_the_median_removes_specks_and_closing_joins_pieces(self):
        picture = squares((50, 50, 100, 100, 99), (158, 50, 100, 100, 99), (400, 400, 2, 2, 99))
        assert len(outlines(picture)) == 3
        assert len(outlines(picture, Segmentation(8, 7, 0, False, 0, 0))) == 2
        assert [box[2:] for box in outlines(picture, Segmentation(8, 7, 12, False, 0, 0))] == [(208, 100)]

    def test_areas_count_in_squares_of_512_at_level_0_without_holes(self):
        picture = squares((10, 10, 81, 81, 99), (30, 30, 40, 40, 0), (300, 10, 81, 81, 99))
        scale = (64.0, 64.0)  # a contour of 80 x 80 is 100 squares of 512 x 512 level-0 pixels
        assert len(outlines(picture, Segmentation(8, 1, 0, False, 99.9, 0), scale)) == 1
        assert len(outlines(picture, Segmentation(8, 1, 0, False, 100, 0), scale)) == 0
        found = segment(picture, scale, Segmentation(8, 1, 0, False, 70, 0))
        assert len(found.pieces) == 2 and found.largest == 100

    def test_the_largest_holes_are_kept(self):
        holes = [(20 + 60 * i, 20, 10 + 5 * i, 10 + 5 * i, 0) for i in range(5)]
        picture = squares((0, 0, 400, 100, 99), *holes)

        def sides(count, a_h=0.0):
            (piece,) = segment(picture, (1.0, 1.0), Segmentation(8, 1, 0, False, 0, a_h, count)).pieces
            return [cv2.boundingRect(hole)[2] for hole in piece.holes]

        # The contour of a hole runs on the tissue around it.
        assert sides(2) == [32, 27] and sides(8) == [32, 27, 22, 17, 12] and sides(0) == []
        assert sides(8, 500 / UNIT) == [32, 27]

    def test_pieces_are_kept_and_dropped_by_number(self):
        picture = squares(*[(100 * i + 5, 10, 60, 60, 99) for i in range(5)])
        every = outlines(picture)
        assert outlines(picture, Segmentation(8, 1, 0, False, 0, 0, keep_ids=(3, 1))) == [every[1], every[3]]
        assert outlines(picture, Segmentation(8, 1, 0, False, 0, 0, exclude_ids=(0, 4))) == every[1:4]

    def test_contours_come_in_level_0_pixels_of_either_axis(self):
        found = outlines(squares((10, 20, 31, 41, 99)), scale=(4.0003, 3.5))
        assert found == [(40, 70, 121, 141)]

    def test_glass_has_none(self):
        found = segment(squares(), (1.0, 1.0), Segmentation())
        assert found.pieces == [] and found.contours == 0 and found.largest == 0

    def test_presets_are_those_of_clam(self):
        names = ("sthresh", "mthresh", "close", "use_otsu", "a_t", "a_h", "max_n_holes")
        found = {preset: tuple(getattr(options, name) for name in names) for preset, options in PRESETS.items()}
        assert found == {
            "default": (8, 7, 4, False, 100, 16, 8),
            "biopsy": (15, 11, 2, False, 1, 1, 2),
            "resection": (15, 11, 4, False, 100, 16, 8),
            "tcga": (8, 7, 4, False, 16, 4, 8),
        }

    @pytest.mark.parametrize("options", [{"mthresh": 4}, {"mthresh": 0}, {"sthresh": 256}, {"a_t": -1}, {"close": -1}])
    def test_impossible_settings_are_refused(self, options):
        with pytest.raises(ConfigError, match="table: line 2: "):
            Segmentation(**options).check("table: line 2")


@pytest.fixture(scope="module")
def picture():
    return make.draw_tissue(1024, 800, seed=2)


@pytest.fixture(scope="module")
def path(tmp_path_factory, picture):
    return make.write_slide(tmp_path_factory.mktemp("tissue") / "s.tif", picture)


class TestSlide:
    def test_the_level_for_a_downsample_of_64(self, path):
        with open_slide(path) as slide:
            assert choose_level(slide, Segmentation()) == 2
            assert choose_level(slide, Segmentation(seg_level=0)) == 0
            with pytest.raises(PrepError, match=r"s\.tif: has levels 0 to 2, and not seg_level 3"):
                choose_level(slide, Segmentation(seg_level=3))
            slide.level_downsamples = [1.0, 4.0, 64.0003]
            assert choose_level(slide, Segmentation()) == 1
            slide.level_downsamples = [1.0, 16.0, 64.0]
            assert choose_level(slide, Segmentation()) == 2

    def test_found_tissue_is_where_it_was_drawn(self, path):
        with open_slide(path) as slide:
            found = find_tissue(slide, Segmentation(mthresh=3, a_t=0.05, a_h=0.01, seg_level=1), Damage(slide))
            share = tissue_share(found.pieces, slide.width, slide.height)
        assert len(found.pieces) == 2 and all(len(piece.holes) == 1 for piece in found.pieces)
        assert share == pytest.approx(2 * np.pi * 0.38**2 * 0.5 * (1 - HOLE**2), rel=0.15)

    def test_bands_give_the_same_as_one_piece(self, path, monkeypatch):
        with open_slide(path) as slide:
            whole = read_saturation(slide, 0, Damage(slide))
            monkeypatch.setattr(tissue, "WHOLE", 0)
            monkeypatch.setattr(tissue, "BAND", 33 * slide.width)
            assert np.array_equal(read_saturation(slide, 0, Damage(slide)), whole)
        assert np.array_equal(whole.shape, (800, 1024))

    def test_huge_levels_are_shrunk_to_a_downsample_of_64(self, path):
        with open_slide(path) as slide:
            assert shrinkage(slide, 0) == 1
            slide.level_dimensions = [(40_000, 40_000)]
            slide.level_downsamples = [1.0]
            assert shrinkage(slide, 0) == 64
            slide.level_dimensions, slide.level_downsamples = [(40_000, 40_000), (10_001, 10_001)], [1.0, 4.0]
            assert shrinkage(slide, 1) == 16

    def test_damaged_pieces_count_as_glass_until_they_are_too_many(self, tmp_path, picture, monkeypatch):
        large = np.tile(picture, (4, 4, 1))
        path = make.corrupt_tiles(make.write_slide(tmp_path / "d.tif", large, downsamples=(1,)), 0, [17])
        with open_slide(path) as slide:
            damage = Damage(slide)
            found = read_saturation(slide, 0, damage)
            sound = cv2.cvtColor(large, cv2.COLOR_RGB2HSV)[..., 1]
            assert (damage.bad, damage.pieces) == (1, 16 * 13)
            assert (found[256:512, 256:512] == 0).all()
            assert np.abs(found.astype(int) - sound)[600:].mean() < 10
            monkeypatch.setattr(tissue, "TOLERATED", 0.001)
            with pytest.raises(RegionError, match=r"1 of 208 regions cannot be decoded, more than 0%"):
                read_saturation(slide, 0, Damage(slide))
