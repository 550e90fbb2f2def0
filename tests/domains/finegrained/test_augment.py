"""Random changes of pictures."""

from __future__ import annotations

import pytest
import torch

from domains.common.errors import ConfigError
from domains.finegrained.augment import Augmentation, DrawnChanges, centre_cut


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def changed(images, size=(8, 6), **options):
    return DrawnChanges(Augmentation(**options), 1, 2, torch.arange(len(images))).apply(images, size)


def test_a_cut_is_a_place_of_the_picture_mirrored_or_not(images):
    found = changed(images)
    flips = 0
    for image, cut in zip(images.float() / 255, found, strict=True):
        places = image.unfold(1, 8, 1).unfold(2, 6, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 6)
        same, mirrored = ((places == one).flatten(1).all(1).any() for one in (cut, cut.flip(-1)))
        assert same or mirrored
        flips += int(mirrored and not same)
    assert 16 < flips < 48


def test_padding_is_black_and_every_place_occurs(images):
    found = changed(torch.full_like(images, 255), size=(12, 10), pad=2, flip=False)
    assert ((found == 0) | (found == 1)).all()
    assert found.amin() == 0
    assert {int(one[0].any(1).sum()) for one in found} == {10, 11, 12}


def test_erasing_takes_a_rectangle_of_the_asked_area(images):
    white = torch.full((400, 3, 40, 40), 255, dtype=torch.uint8)
    found = changed(white, size=(40, 40), erase=0.5, erase_area=(0.1, 0.2), flip=False)
    erased = (found != 1).any(1)
    shares = erased.float().mean((1, 2))
    assert 0.4 < (shares > 0).float().mean() < 0.6
    assert shares[shares > 0].min() > 0.05
    assert shares.max() < 0.25
    one = erased[shares > 0][0]
    rows, columns = one.any(1), one.any(0)
    assert one.equal(rows[:, None] & columns[None]), "a rectangle"


def test_erased_rectangles_have_the_asked_ratio_of_sides_in_pixels_and_stay_whole():
    white = torch.full((400, 3, 64, 32), 255, dtype=torch.uint8)
    options = {"erase": 1.0, "erase_area": (0.1, 0.33), "erase_aspect": 0.3, "flip": False}
    erased = (changed(white, size=(64, 32), **options) != 1).any(1)
    heights, widths = (erased.any(axis).sum(1).float() for axis in (2, 1))
    ratios = heights / widths
    assert 0.25 < ratios.min() < 0.45
    assert 2.4 < ratios.max() < 4.0
    assert (widths.clamp(max=31) == widths).float().mean() > 0.8, "few fill the width"
    shares = heights * widths / (64 * 32)
    assert shares.min() > 0.08
    assert shares.mean() == pytest.approx(0.215, abs=0.015), "none is cut at the edges"


def test_light_scales_colours_and_nothing_is_changed_without_options(images):
    found = changed(images, size=(12, 10), brightness=0.5, flip=False)
    factor = found[:, 0, 0, 0] / (images[:, 0, 0, 0].float() / 255)
    assert factor.nan_to_num(1).min() < 0.8
    torch.testing.assert_close(changed(images, size=(12, 10), flip=False), images.float() / 255)
    torch.testing.assert_close(centre_cut(images, (8, 6)), images[:, :, 2:10, 2:8].float() / 255)


@pytest.mark.parametrize("options", [{"erase": 1.5}, {"erase_area": (0.5, 0.1)}, {"pad": -1}, {"brightness": -0.1}])
def test_ranges_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match=r"data\.augmentation"):
        Augmentation(**options)
