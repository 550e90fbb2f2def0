"""Where tissue is: the segmentation of CLAM (Lu et al., 2021, Methods "WSI processing"), contour for contour.

Saturation is smoothed by a median, cut at a threshold (fixed or Otsu's) and closed; contours with too little area
are dropped, and of their holes the largest are kept. Areas are counted in squares of 512 x 512 level-0 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, PrepError
from data_prep.medical.wsi.slides.slide import BAND, Image, RegionError, Slide

Polygon = npt.NDArray[np.int32]
UNIT = 512  # side of the square that areas are counted in, level-0 pixels
DOWNSAMPLE = 64.0  # of the level that is looked at
LARGEST = 10**8  # pixels of that level: beyond, the level is shrunk on the way
WHOLE = 1 << 24  # pixels read in one piece: a cut may move pixels by a fraction where levels are no whole multiples
BLOCK = 256  # side of the pieces that are read one by one where a level is damaged
TOLERATED = 0.01  # share of unreadable pieces


@dataclass(frozen=True)
class Segmentation:
    """How tissue is told from glass.

    Args:
        sthresh: saturation (0..255) above which a pixel is tissue.
        mthresh: side of the median window, odd.
        close: side of the box that closes gaps; 0 closes none.
        use_otsu: find the threshold by Otsu's method instead.
        a_t: least area of a piece of tissue without its holes, in squares of 512 x 512 level-0 pixels.
        a_h: least area of a hole, in the same unit.
        max_n_holes: holes kept in each piece, the largest first.
        seg_level: level to look at; -1 takes the best one for a downsample of 64.
        keep_ids: numbers of the pieces to keep; empty keeps all.
        exclude_ids: numbers of the pieces to drop.
    """

    sthresh: int = 8
    mthresh: int = 7
    close: int = 4
    use_otsu: bool = False
    a_t: float = 100.0
    a_h: float = 16.0
    max_n_holes: int = 8
    seg_level: int = -1
    keep_ids: tuple[int, ...] = ()
    exclude_ids: tuple[int, ...] = ()

    def check(self, where: str) -> Segmentation:
        """Refuse values that cannot be.

        Raises:
            ConfigError: naming where they stand.
        """
        if self.mthresh < 1 or self.mthresh % 2 == 0:
            raise ConfigError(f"{where}: mthresh {self.mthresh}: the side of a median window is odd, as 7")
        if not 0 <= self.sthresh <= 255 or min(self.close, self.a_t, self.a_h, self.max_n_holes) < 0:
            raise ConfigError(
                f"{where}: sthresh {self.sthresh}, close {self.close}, a_t {self.a_t:g}, a_h {self.a_h:g}, "
                f"max_n_holes {self.max_n_holes}: give sthresh from 0 to 255 and the others not below 0"
            )
        return self


PRESETS = {
    "default": Segmentation(),
    "biopsy": Segmentation(15, 11, 2, False, 1.0, 1.0, 2),
    "resection": Segmentation(15, 11, 4, False, 100.0, 16.0, 8),
    "tcga": Segmentation(8, 7, 4, False, 16.0, 4.0, 8),
}


@dataclass(frozen=True)
class Piece:
    """One connected piece of tissue, in level-0 pixels.

    Args:
        outline: (P, 2) int32, corners of its outer contour.
        holes: contours of its holes.
    """

    outline: Polygon
    holes: list[Polygon] = field(default_factory=list)


class Found(NamedTuple):
    """What a segmentation found.

    Args:
        pieces: of tissue, in the order in which they are tiled.
        threshold: of the saturation: the given one, or Otsu's.
        largest: area of the largest contour, kept or not, in squares of 512 x 512 level-0 pixels.
        contours: outer contours in all.
    """

    pieces: list[Piece]
    threshold: float
    largest: float
    contours: int


def segment(saturation: Image, scale: tuple[float, float], options: Segmentation) -> Found:
    """Find tissue in a saturation picture.

    Args:
        saturation: of the slide at a low resolution.
        scale: level-0 pixels per pixel of it, in x and y.
        options: how.

    Shape:
        saturation (H, W) uint8.
    """
    smooth = cv2.medianBlur(saturation, options.mthresh)
    method = cv2.THRESH_BINARY | (cv2.THRESH_OTSU if options.use_otsu else 0)
    # In place: the picture may have a hundred million pixels.
    threshold, mask = cv2.threshold(smooth, 0 if options.use_otsu else options.sthresh, 255, method, dst=smooth)
    if options.close:
        box = np.ones((options.close, options.close), np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, box, dst=mask)
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    unit = int(UNIT**2 / (scale[0] * scale[1]))  # CLAM counts whole pixels of the low level
    parents = hierarchy[0, :, 3] if hierarchy is not None else np.zeros(0, np.int32)
    areas = np.array([cv2.contourArea(contour) for contour in contours])
    inside = np.bincount(parents[parents >= 0], areas[parents >= 0], minlength=len(contours))
    pieces = []
    for index in map(int, np.flatnonzero(parents == -1)):
        area = areas[index] - inside[index]
        if area == 0 or area <= options.a_t * unit:
            continue
        holes = sorted(map(int, np.flatnonzero(parents == index)), key=lambda hole: areas[hole], reverse=True)
        kept = [hole for hole in holes[: options.max_n_holes] if areas[hole] > options.a_h * unit]
        pieces.append(Piece(_to_level0(contours[index], scale), [_to_level0(contours[hole], scale) for hole in kept]))
    chosen = [i for i in range(len(pieces)) if _is_chosen(i, options)]
    largest = float((areas - inside)[parents == -1].max(initial=0.0))
    return Found([pieces[i] for i in chosen], float(threshold), largest / max(unit, 1), int((parents == -1).sum()))


def _is_chosen(index: int, options: Segmentation) -> bool:
    return (not options.keep_ids or index in options.keep_ids) and index not in options.exclude_ids


def _to_level0(contour: npt.NDArray[Any], scale: tuple[float, float]) -> Polygon:
    return np.asarray(contour.reshape(-1, 2) * np.array(scale), np.int32)  # cuts fractions off, as CLAM does


def choose_level(slide: Slide, options: Segmentation) -> int:
    """Level that tissue is looked for at.

    Raises:
        PrepError: the slide lacks the level asked for.
    """
    downsamples = slide.level_downsamples
    if options.seg_level >= len(downsamples):
        raise PrepError(
            f"{slide.path}: has levels 0 to {len(downsamples) - 1}, and not seg_level {options.seg_level}; give one of "
            "these, or -1 for the best"
        )
    if options.seg_level >= 0:
        return options.seg_level
    # The last level before the first that is coarser, as OpenSlide chooses; not `best_level`, which tolerates a little.
    coarser = [i for i, downsample in enumerate(downsamples) if downsample > DOWNSAMPLE]
    return max(0, coarser[0] - 1) if coarser else len(downsamples) - 1


def find_tissue(slide: Slide, options: Segmentation, damage: Damage) -> Found:
    """Segment a slide, reading only a low level of it.

    Raises:
        RegionError: too much of that level is damaged.
        PrepError: the slide lacks the level asked for.
    """
    level = choose_level(slide, options)
    return segment(read_saturation(slide, level, damage), axis_downsamples(slide, level), options)


def axis_downsamples(slide: Slide, level: int) -> tuple[float, float]:
    """Level-0 pixels per pixel of a level in x and y, which OpenSlide gives as one mean."""
    width, height = slide.level_dimensions[level]
    return slide.width / width, slide.height / height


def shrinkage(slide: Slide, level: int) -> int:
    """Whole factor by which a level is to be shrunk before it is looked at: 1 unless it is huge."""
    width, height = slide.level_dimensions[level]
    if width * height <= LARGEST:
        return 1
    return max(int(DOWNSAMPLE / slide.level_downsamples[level]), int(np.ceil(np.sqrt(width * height / LARGEST))))


def saturation_of(rgb: Image) -> Image:
    """Saturation of the HSV colour model.

    Shape:
        (H, W, 3) uint8 -> (H, W) uint8.
    """
    return np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1])


class Damage:
    """Counts the pieces of a slide that were read, and those that could not be.

    Args:
        slide: which is read.
    """

    def __init__(self, slide: Slide) -> None:
        self.slide, self.pieces, self.bad = slide, 0, 0

    def check(self) -> None:
        """Refuse a slide of which too much is unreadable.

        Raises:
            RegionError: naming how much.
        """
        if self.bad > TOLERATED * self.pieces:
            raise RegionError(
                f"{self.slide.path}: {self.bad:,} of {self.pieces:,} regions cannot be decoded, more than "
                f"{TOLERATED:.0%}; the file is damaged, copy or export it again"
            )


def read_saturation(slide: Slide, level: int, damage: Damage) -> Image:
    """Saturation of a whole level; damaged places count as glass.

    Shape:
        (H, W) uint8, the size of the level.

    Raises:
        RegionError: too much is damaged.
    """
    width, height = slide.level_dimensions[level]
    picture = np.empty((height, width), np.uint8)
    for row, band in read_bands(slide, level, height if width * height <= WHOLE else max(1, BAND // width), damage):
        picture[row : row + len(band)] = saturation_of(band)
    damage.check()
    return picture


def read_bands(
    slide: Slide, level: int, rows: int, damage: Damage, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, Image]]:
    """Rows of a level from top to bottom; damaged places are white.

    Args:
        slide: to read.
        level: of the slide.
        rows: at a time.
        damage: counts what cannot be read.
        first: row to begin at.
        last: row to end before; the height of the level by default.
    """
    width, height = slide.level_dimensions[level]
    end = height if last is None else last
    shrink = slide.height / height
    for top in range(first, end, rows):
        tall, y = min(rows, end - top), round(top * shrink)
        pieces = -(-width // BLOCK) * -(-tall // BLOCK)
        damage.pieces += pieces
        try:
            yield top, slide.read_region(0, y, level, width, tall)
        except RegionError:
            yield top, _read_pieces(slide, level, top, tall, damage)


def _read_pieces(slide: Slide, level: int, top: int, tall: int, damage: Damage) -> Image:
    width, height = slide.level_dimensions[level]
    picture = np.full((tall, width, 3), 255, np.uint8)
    for y in range(0, tall, BLOCK):
        for x in range(0, width, BLOCK):
            wide, high = min(BLOCK, width - x), min(BLOCK, tall - y)
            left, upper = round(x * slide.width / width), round((top + y) * slide.height / height)
            try:
                picture[y : y + high, x : x + wide] = slide.read_region(left, upper, level, wide, high)
            except RegionError:
                damage.bad += 1
    return picture


def tissue_share(pieces: list[Piece], width: int, height: int) -> float:
    """Share of a slide that is tissue.

    Args:
        pieces: of tissue.
        width: of level 0.
        height: of level 0.
    """
    total = sum(cv2.contourArea(piece.outline) - sum(cv2.contourArea(hole) for hole in piece.holes) for piece in pieces)
    return float(total) / (width * height)
