"""Slides that OpenSlide does not take: plain and pyramidal TIFF by its strips and tiles, PNG and JPEG."""

from __future__ import annotations

import logging
import os
import struct
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import tifffile

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors
from data_prep.medical.wsi.slides.slide import CACHED, Image, Slide, over_white

# tifffile tells damage to its logger as well; users read our message instead.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

LARGEST_TILE = 1 << 28  # pixels; OpenSlide takes memory for any size that damaged directories claim, and then aborts
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY, _INVERTED, _RGB, _YCBCR = 1, 0, 2, 6
_ADVICE = "convert it to a tiled RGB TIFF, for example with `vips tiffsave SLIDE OUT.tif --tile --pyramid`"


@dataclass(frozen=True)
class TiffHead:
    """What the directories of a TIFF file say.

    Args:
        levels: of its first series.
    """

    levels: int


def read_tiff_head(path: Path) -> TiffHead | None:
    """Look at the directories of a TIFF file, and whether everything that they name is in the file.

    Returns:
        None when the file is no TIFF.

    Raises:
        CorruptRecordError: the file is truncated.
    """
    with translate_os_errors(path), path.open("rb") as stream:
        if stream.read(4) not in _MAGIC:
            return None
    try:
        with tifffile.TiffFile(path) as tif:
            size = tif.filehandle.size
            needed = _needed_bytes(tif)
            pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
            huge = any(page.tilewidth * page.tilelength > LARGEST_TILE for page in pages)
            levels = len(tif.series[0].levels) if len(tif.pages) and needed <= size else 0
    except Exception:  # (a dialect tifffile does not know may still be one of OpenSlide's)
        return TiffHead(0)
    if needed > size:
        raise CorruptRecordError(
            path,
            f"byte {size:,}",
            f"truncated: the file ends here, and its contents go on to byte {needed:,} at least; copy it again",
        )
    if huge:
        raise CorruptRecordError(
            path, "TIFF directories", f"damaged: a tile of more than {LARGEST_TILE:,} pixels; copy it again"
        )
    return TiffHead(levels)


def _needed_bytes(tif: tifffile.TiffFile) -> int:
    """End of the last thing that the directories refer to, and of the directories themselves."""
    stream, layout = tif.filehandle, tif.tiff
    if not len(tif.pages):
        stream.seek(8 if layout.is_bigtiff else 4)
        return max(8, layout.offsetsize + int(struct.unpack(layout.offsetformat, stream.read(layout.offsetsize))[0]))
    ends = [0]
    # Hamamatsu's tags have too few bits for files of more than 4 GB: their offsets are pieced together.
    for page in () if tif.is_ndpi else tif.pages:
        ends += [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    last = tif.pages[-1].offset
    stream.seek(last)
    entries = int(struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))[0])
    stream.seek(last + layout.tagnosize + entries * layout.tagsize)
    following = stream.read(layout.offsetsize)
    if len(following) < layout.offsetsize:
        return int(stream.size + 1)
    # tifffile stops at a directory behind the end of the file: what follows its last one says so.
    return int(max(*ends, struct.unpack(layout.offsetformat, following)[0]))


class TiffSlide(Slide):
    """A TIFF file read strip by strip or tile by tile, so that its size does not matter.

    Args:
        path: the file.
        tif: opened by tifffile.

    Raises:
        ValueError: pixels of a kind that is no picture in colours or greys.
    """

    def __init__(self, path: Path, tif: tifffile.TiffFile) -> None:
        self._tif = tif
        self._pages = [level.keyframe for level in tif.series[0].levels]
        for page in self._pages:
            _check_page(page)
        super().__init__(path, [(page.imagewidth, page.imagelength) for page in self._pages], _properties(tif))
        self._cache: OrderedDict[tuple[int, int], Image] = OrderedDict()
        self._cached, self._lock = 0, threading.Lock()

    def _read(self, x: int, y: int, level: int, width: int, height: int) -> Image:
        page, shrink = self._pages[level], self.level_downsamples[level]
        left, top = round(x / shrink), round(y / shrink)
        region = np.full((height, width, 3), 255, np.uint8)
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across = -(-page.imagewidth // wide)
        right, bottom = min(left + width, page.imagewidth), min(top + height, page.imagelength)
        for row in range(max(0, top) // tall, -(-bottom // tall)):
            for column in range(max(0, left) // wide, -(-right // wide)):
                tile = self._segment(level, row * across + column)
                x0, y0 = column * wide, row * tall
                x1, y1 = min(right, x0 + tile.shape[1]), min(bottom, y0 + tile.shape[0])
                from_x, from_y = max(x0, left, 0), max(y0, top, 0)
                if from_x < x1 and from_y < y1:
                    region[from_y - top : y1 - top, from_x - left : x1 - left] = tile[
                        from_y - y0 : y1 - y0, from_x - x0 : x1 - x0
                    ]
        return region

    def _segment(self, level: int, index: int) -> Image:
        key = (level, index)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        found = self._decode(self._pages[level], index)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = found
                self._cached += found.nbytes
            while self._cached > CACHED and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return found

    def _decode(self, page: tifffile.TiffPage, index: int) -> Image:
        planes = 1 if page.planarconfig == 1 or page.samplesperpixel == 1 else page.samplesperpixel
        step = len(page.dataoffsets) // planes
        parts = []
        for plane in range(planes):
            offset, count = page.dataoffsets[plane * step + index], page.databytecounts[plane * step + index]
            # pread: threads share the file, and none moves the place of another.
            data = os.pread(self._tif.filehandle.fileno(), count, offset) if count else None
            decoded, _, shape = page.decode(data, plane * step + index, jpegtables=page.jpegtables)
            if decoded is None:  # a sparse file leaves out what is empty
                decoded = np.full((1, *shape[1:3], page.samplesperpixel // planes), 255, np.uint8)
            parts.append(decoded[0])
        return _to_rgb(np.concatenate(parts, axis=-1), page)

    def close(self) -> None:
        """Close the file."""
        self._tif.close()


class PictureSlide(Slide):
    """A picture held in memory.

    Args:
        path: the file.
        pixels: (H, W, 3) uint8, RGB.
    """

    def __init__(self, path: Path, pixels: Image) -> None:
        super().__init__(path, [(pixels.shape[1], pixels.shape[0])], {})
        self._pixels = pixels

    def _read(self, x: int, y: int, level: int, width: int, height: int) -> Image:
        region = np.full((height, width, 3), 255, np.uint8)
        part = self._pixels[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
        top, left = max(0, -y), max(0, -x)
        region[top : top + part.shape[0], left : left + part.shape[1]] = part
        return region


def open_tiff(path: Path, why: str = "") -> Slide:
    """Open a TIFF file by its strips and tiles.

    Args:
        path: the file.
        why: what another reader said about it.

    Raises:
        CorruptRecordError: damaged, or its pixels are no picture.
    """
    tif = None
    try:
        tif = tifffile.TiffFile(path)
        return TiffSlide(path, tif)
    except Exception as error:  # tifffile's errors are of many kinds
        if tif is not None:
            tif.close()
        raise CorruptRecordError(path, "TIFF directories", f"no slide ({why or error}); {_ADVICE}") from error


def open_picture(path: Path) -> Slide:
    """Open a PNG or JPEG file.

    Raises:
        CorruptRecordError: not a picture either, truncated, or too large to be held in memory.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Pillow.open(path, formats=("PNG", "JPEG")) as picture:
            warnings.simplefilter("ignore")  # Pillow warns from a half of the size that it refuses
            rgba = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
            pixels = np.asarray(picture.convert("RGBA" if rgba else "RGB"))
    except UnidentifiedImageError as error:
        what = "not a slide: neither OpenSlide nor a reader of TIFF, PNG and JPEG knows this format"
        raise CorruptRecordError(path, "header", f"{what}; remove it or copy it again") from error
    except Pillow.DecompressionBombError as error:
        raise CorruptRecordError(path, "header", f"too many pixels for a single-level picture; {_ADVICE}") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise CorruptRecordError(path, "pixels", f"truncated or damaged ({error}); copy it again") from error
    return PictureSlide(path, over_white(pixels) if rgba else np.ascontiguousarray(pixels))


def _check_page(page: tifffile.TiffPage) -> None:
    kind, samples = page.photometric, page.samplesperpixel
    known = (kind in (_GREY, _INVERTED) and samples in (1, 2)) or (kind in (_RGB, _YCBCR) and samples in (3, 4))
    # JPEG is the one compression after which YCbCr arrives as RGB.
    if not known or page.dtype not in (np.uint8, np.uint16) or (kind == _YCBCR and page.compression not in (6, 7)):
        raise ValueError(f"pixels of kind {kind!s}, {samples} x {page.dtype} are not RGB or grey of 8 or 16 bits")


def _to_rgb(tile: npt.NDArray[Any], page: tifffile.TiffPage) -> Image:
    if tile.dtype == np.uint16:
        tile = (tile >> 8).astype(np.uint8)
    if page.photometric == _INVERTED:
        tile = np.concatenate([255 - tile[..., :1], tile[..., 1:]], axis=-1)
    if tile.shape[-1] in (1, 2):
        tile = np.concatenate([tile[..., :1]] * 3 + [tile[..., 1:]], axis=-1)
    return over_white(tile) if tile.shape[-1] == 4 and page.extrasamples else np.ascontiguousarray(tile[..., :3])


def _properties(tif: tifffile.TiffFile) -> dict[str, str]:
    """Tags named as OpenSlide names them, and the pixel size of OME-TIFF."""
    page = cast("tifffile.TiffPage", tif.pages[0])
    found: dict[str, str] = {}
    for name in ("ImageDescription", "Make", "Model", "Software"):
        if name in page.tags:
            found[f"tiff.{name}"] = str(page.tags[name].value)
    for name in ("XResolution", "YResolution"):
        value = page.tags.valueof(name)
        if value is not None and value[1]:
            found[f"tiff.{name}"] = repr(value[0] / value[1])
    units = {1: "none", 2: "inch", 3: "centimeter"}
    # Without the tag the unit is the inch, says the standard.
    found["tiff.ResolutionUnit"] = units.get(int(page.tags.valueof("ResolutionUnit", 2)), "none")
    if tif.is_ome and tif.ome_metadata:
        from xml.etree import ElementTree

        pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
        for name in ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeXUnit", "PhysicalSizeYUnit"):
            if pixels is not None and name in pixels.attrib:
                found[f"ome.{name}"] = pixels.attrib[name]
    return found
