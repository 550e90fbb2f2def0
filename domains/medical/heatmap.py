"""Heat maps of slides from stored attention and coordinates: arrays in, pictures out; the slide is not read again."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from domains.common.errors import ConfigError
from domains.common.figures import plain
from domains.medical.slide_attention import Float32s, Scale, SlideAttention, scale_attention, strongest

Image = NDArray[np.uint8]
# (x, y, side in level-0 pixels, side in pixels) -> RGB, or None where the slide cannot be decoded
PatchReader = Callable[[int, int, float, int], Image | None]

DPI = 100
# pixels around a picture of up to 1,000; more around larger ones
BAR, LOWEST = 190, 420  # width of the colour bar's strip, height that it needs
HEADER = 64
BACKGROUND = 238  # grey level where there is no thumbnail


def draw_heat_map(
    found: SlideAttention,
    *,
    thumbnail: Image | None = None,
    scale: Scale = "rank",
    alpha: float = 0.5,
    smooth: float = 0.0,
    max_side: int = 2048,
    colours: str = "turbo",
    subtitle: str = "",
) -> Image:
    """Draw attention over a slide, with a heading and a colour bar.

    Args:
        found: attention of the slide.
        thumbnail: the whole slide in small, RGB; None: a plain ground.
        scale: `rank` or `raw`, see `scale_attention`.
        alpha: opacity of the colours over the slide.
        smooth: standard deviation of a Gaussian blur inside the tissue, in patches; 0: each patch as it is.
        max_side: longer side of the slide's picture in pixels.
        colours: a colour map of matplotlib.
        subtitle: second line of the heading.

    Shape:
        (height, width, 3) uint8 RGB.

    Raises:
        ConfigError: an option has a value that cannot work, or the thumbnail is of another slide.
    """
    check_options(alpha=alpha, smooth=smooth, max_side=max_side, colours=colours)
    shape = canvas_shape(found.width, found.height, max_side)
    values, covered = rasterise(found, scale_attention(found.attention, scale), shape)
    if smooth:
        pixels = smooth * float(np.median(found.sizes)) * shape[1] / found.width
        values = blur(values, covered, pixels)
    picture = overlay(values, covered, ground(thumbnail, found, shape), alpha, colours)
    top = float(found.attention.max())
    return framed(picture, colours, scale, top, f"{found.slide}", subtitle or f"{len(found.attention):,} patches")


def check_options(*, alpha: float, smooth: float, max_side: int, colours: str) -> None:
    """Check what a user may have mistyped.

    Raises:
        ConfigError: an option has a value that cannot work.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha {alpha} is no opacity; give a number from 0 to 1")
    if not 0 <= smooth <= 100:
        raise ConfigError(f"smooth {smooth} is no width in patches; give a number from 0 (none), such as 0.5")
    if not 64 <= max_side <= 30_000:
        raise ConfigError(f"max_side {max_side} is no size of a picture; give 64 to 30000 pixels")
    if colours not in matplotlib.colormaps:
        raise ConfigError(f"colours {colours!r} is no colour map of matplotlib; try turbo, viridis, coolwarm, inferno")


def canvas_shape(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Height and width of the picture of a slide; never larger than the slide."""
    shrink = max(1.0, max(width, height) / max_side)
    return max(1, round(height / shrink)), max(1, round(width / shrink))


def rasterise(
    found: SlideAttention, values: Float32s, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Mean value of the patches over each pixel, and which pixels any patch covers.

    Two-dimensional differences at the corners of the patches and two cumulative sums: the time does not depend on how
    large patches are or how far they overlap.

    Args:
        found: where the patches are.
        values: of the patches.
        shape: height and width of the picture.

    Shape:
        values (N,) -> (height, width) float32, (height, width) bool.
    """
    height, width = shape
    scale = np.array([width / found.width, height / found.height])
    first = np.rint(found.coords * scale).astype(np.int64)
    last = np.rint((found.coords + found.sizes[:, None].astype(np.float64)) * scale).astype(np.int64)
    last = np.maximum(last, first + 1)  # a patch smaller than a pixel has one
    limit = np.array([width, height])
    first, last = first.clip(0, limit), last.clip(0, limit)
    (left, upper), (right, lower) = first.T, last.T
    # whole numbers of 2^-32: sums of differences that should cancel do
    marks = np.rint(values.astype(np.float64) * 2**32).astype(np.int64)
    total = np.zeros((height + 1, width + 1), dtype=np.int64)
    count = np.zeros((height + 1, width + 1), dtype=np.int64)
    for rows, columns, sign in ((upper, left, 1), (upper, right, -1), (lower, left, -1), (lower, right, 1)):
        np.add.at(total, (rows, columns), sign * marks)
        np.add.at(count, (rows, columns), sign)
    for plane in (total, count):
        for axis in (0, 1):
            np.cumsum(plane, axis=axis, out=plane)
    total, count = total[:-1, :-1], count[:-1, :-1]
    covered = count > 0
    mean = np.where(covered, total / np.maximum(count, 1) / 2**32, 0.0)
    return mean.astype(np.float32), covered


def blur(values: NDArray[np.float32], covered: NDArray[np.bool_], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur inside the covered pixels, which do not fade into what is not covered.

    Shape:
        values, covered (H, W) -> (H, W) float32.
    """
    mask = covered.astype(np.float32)
    weight = cv2.GaussianBlur(mask, (0, 0), sigma)
    mixed = cv2.GaussianBlur(values * mask, (0, 0), sigma)
    return np.where(covered, mixed / np.maximum(weight, 1e-6), 0.0).astype(np.float32)


def ground(thumbnail: Image | None, found: SlideAttention, shape: tuple[int, int]) -> Image:
    """The picture under the colours.

    Raises:
        ConfigError: the thumbnail has other proportions than the slide.
    """
    height, width = shape
    if thumbnail is None:
        return np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    rows, columns = thumbnail.shape[:2]
    # a thumbnail is rounded to whole pixels
    slack = 0.02 + 1 / min(rows, columns)
    if abs(columns * found.height / (rows * found.width) - 1) > slack:
        raise ConfigError(
            f"{found.slide}: the thumbnail of {columns} x {rows} px and the slide of {found.width} x {found.height} px"
            " have different proportions; give the thumbnail of this slide"
        )
    method = cv2.INTER_AREA if columns > width else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(thumbnail, (width, height), interpolation=method), dtype=np.uint8)


def overlay(values: NDArray[np.float32], covered: NDArray[np.bool_], under: Image, alpha: float, colours: str) -> Image:
    """Mix colours into the covered pixels of a picture.

    Shape:
        values, covered (H, W); under (H, W, 3) uint8 -> (H, W, 3) uint8.
    """
    index = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    mixed = cv2.addWeighted(_table(colours)[index], alpha, under, 1 - alpha, 0)
    return np.where(covered[..., None], mixed, under).astype(np.uint8)


def framed(picture: Image, colours: str, scale: Scale, top: float, title: str, subtitle: str) -> Image:
    """Put a heading above a picture and its colour bar beside it.

    Args:
        picture: RGB.
        colours: colour map.
        scale: what the bar shows.
        top: the largest attention.
        title: first line, bold.
        subtitle: second line.
    """
    zoom = max(1.0, math.sqrt(picture.shape[0] * picture.shape[1]) / 1000)
    heading, bar = round(HEADER * zoom), round(BAR * zoom)
    height, width = max(picture.shape[0], round(LOWEST * zoom)), picture.shape[1]
    page = np.full((heading + height, max(width, 360) + bar, 3), 255, dtype=np.uint8)
    page[heading : heading + picture.shape[0], :width] = picture
    page[heading:, -bar:] = _colour_bar(height, bar, zoom, colours, scale, top)
    page[:heading] = _heading(page.shape[1], heading, zoom, title, subtitle)
    return page


def patch_sheet(
    found: SlideAttention, read: PatchReader, *, count: int = 16, size: int = 256, columns: int = 4
) -> Image | None:
    """The patches with the most attention, strongest first, none overlapping a stronger one.

    Args:
        found: attention of the slide.
        read: cuts a patch from the slide.
        count: how many patches.
        size: of a patch in the picture, in pixels.
        columns: of the picture.

    Returns:
        RGB; None without patches.
    """
    chosen = strongest(found, count)
    if not len(chosen):
        return None
    tiles: list[Image] = []
    captions: list[str] = []
    for rank, index in enumerate(chosen):
        (x, y), side = found.coords[index].tolist(), float(found.sizes[index])
        tile = read(x, y, side, size)
        tiles.append(np.full((size, size, 3), BACKGROUND, dtype=np.uint8) if tile is None else tile)
        captions.append(f"{rank + 1}.  {found.attention[index]:.2e}   x {x:,}  y {y:,}")
        if tile is None:
            captions[-1] += " (unreadable)"
    return _grid(
        tiles, captions, min(columns, len(tiles)), f"{found.slide}: the strongest of {len(found.attention):,} patches"
    )


def _grid(tiles: Sequence[Image], captions: Sequence[str], columns: int, title: str) -> Image:
    size, gap, line = tiles[0].shape[0], 8, 22
    rows = -(-len(tiles) // columns)
    width, height = columns * (size + gap) + gap, HEADER + rows * (size + line + gap)
    page, text = np.full((height, width, 3), 255, dtype=np.uint8), _blank(width, height)
    text.text(gap / width, 1 - 0.5 * HEADER / height, plain(title, max(width // 9, 16)), va="center", fontsize=12)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x, y = gap + (i % columns) * (size + gap), HEADER + (i // columns) * (size + line + gap)
        shown = plain(caption, max(size // 6, 12))
        text.text(x / width, 1 - (y + size + line / 2) / height, shown, va="center", fontsize=8.5)
        page[y : y + size, x : x + size] = tile
    return np.minimum(page, _pixels(text))


def _heading(width: int, height: int, zoom: float, title: str, subtitle: str) -> Image:
    figure = _blank(width, height, zoom)
    left, letters = 8 * zoom / width, width / zoom
    figure.text(left, 0.68, plain(title, max(int(letters) // 10, 16)), va="center", fontsize=12, weight="bold")
    figure.text(left, 0.28, plain(subtitle, max(int(letters) // 7, 20)), va="center", fontsize=9.5, color="#55606f")
    return _pixels(figure)


def _colour_bar(height: int, width: int, zoom: float, colours: str, scale: Scale, top: float) -> Image:
    figure = _blank(width, height, zoom)
    length = min(height - 80 * zoom, 900 * zoom)
    panel = figure.add_axes((20 / BAR, 1 - (30 * zoom + length) / height, 26 / BAR, length / height))
    panel.imshow(_table(colours)[::-1, None], aspect="auto", extent=(0, 1, 0, 1))
    panel.set_xticks([])
    panel.yaxis.tick_right()
    panel.yaxis.set_label_position("right")
    ticks = np.linspace(0, 1, 5)
    if scale == "rank":
        panel.set_yticks(ticks, [f"{100 * tick:.0f}" for tick in ticks])
        panel.set_ylabel("attention, percentile of the patches")
    else:
        panel.set_yticks(ticks, [f"{top * tick:.1e}" if tick else "0" for tick in ticks])
        panel.set_ylabel("attention")
    panel.spines[:].set_visible(False)
    return _pixels(figure)


def _blank(width: int, height: int, zoom: float = 1.0) -> Figure:
    dpi = DPI * zoom
    # the hundredth of a pixel keeps the canvas, which is cut to whole pixels, from losing one to rounding
    return Figure(figsize=((width + 0.01) / dpi, (height + 0.01) / dpi), dpi=dpi)


def _pixels(figure: Figure) -> Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=figure.dpi)
    width, height = (int(side * figure.dpi) for side in figure.get_size_inches())
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8).reshape(height, width, 4)[..., :3]


def _table(colours: str) -> Image:
    table = matplotlib.colormaps[colours](np.arange(256), bytes=True)
    return np.asarray(table, dtype=np.uint8)[:, :3]
