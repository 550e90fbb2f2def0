"""One way to open every slide: formats of OpenSlide (with DICOM), plain and pyramidal TIFF, PNG and JPEG."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import openslide

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.medical.wsi.slides.find import CLOSED, KNOWN, PICTURES
from data_prep.medical.wsi.slides.formats import open_picture, open_tiff, read_tiff_head
from data_prep.medical.wsi.slides.slide import CACHED, Image, Slide, over_white


class OpenSlideSlide(Slide):
    """A slide in a format of OpenSlide.

    Args:
        path: the file.
        handle: opened by OpenSlide.
    """

    def __init__(self, path: Path, handle: openslide.OpenSlide) -> None:
        super().__init__(path, [(int(w), int(h)) for w, h in handle.level_dimensions], dict(handle.properties))
        self.level_downsamples = [float(downsample) for downsample in handle.level_downsamples]
        self._handle, self._lock, self._cache = handle, threading.Lock(), openslide.OpenSlideCache(CACHED)
        handle.set_cache(self._cache)

    def _read(self, x: int, y: int, level: int, width: int, height: int) -> Image:
        handle = self._handle
        try:
            return over_white(np.asarray(handle.read_region((x, y), level, (width, height))))
        except openslide.OpenSlideError:
            # After an error a handle refuses everything, also to other threads, whose region may be sound: replace
            # it, and try once more with one that no other thread can spoil.
            self._replace(handle)
            with openslide.OpenSlide(str(self.path)) as own:
                return over_white(np.asarray(own.read_region((x, y), level, (width, height))))

    def _replace(self, failed: openslide.OpenSlide) -> None:
        with self._lock:
            if self._handle is failed:  # the old one closes with its last reader
                self._handle = openslide.OpenSlide(str(self.path))
                self._handle.set_cache(self._cache)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def open_slide(path: Path | str) -> Slide:
    """Open a slide of any known format.

    Args:
        path: the file; of a DICOM series any of its files.

    Raises:
        DatasetNotFoundError: it is not there, or is a .mrxs without its folder.
        CorruptRecordError: truncated, damaged, or not a slide.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such file; give a slide")
    kind = path.suffix.lower()
    if kind == ".mrxs" and not path.with_suffix("").is_dir():
        raise DatasetNotFoundError(
            f"{path}: its folder {path.stem}/ is missing: a .mrxs slide is this file and the folder of the same name "
            "with its .dat files beside it; copy both"
        )
    if kind in CLOSED:
        raise CorruptRecordError(path, "header", f"{kind} is a closed format; export the slide as DICOM or as TIFF")
    if kind in PICTURES:
        return open_picture(path)
    head = read_tiff_head(path)
    opened, why = _try_openslide(path)
    # The other reader gives the tiles of plain TIFF several times as fast, and sees all levels of OME-TIFF.
    if opened is not None and not (head and opened.properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff"):
        return opened
    if opened is None and head:
        return open_tiff(path, why)
    if opened is not None:
        return _prefer_tiff(path, opened, head.levels if head else 0)
    if kind in KNOWN:  # not as a picture: a .mrxs file is one, and shows the slide in small
        what = why or "neither OpenSlide nor a reader of TIFF knows this format"
        raise CorruptRecordError(path, "header", f"not a slide: {what}; remove it or copy it again")
    return open_picture(path)


def _prefer_tiff(path: Path, opened: OpenSlideSlide, levels: int) -> Slide:
    if levels < len(opened.level_dimensions):
        return opened
    try:
        tiff = open_tiff(path)
    except CorruptRecordError:  # pixels of a kind that only OpenSlide knows
        return opened
    opened.close()
    return tiff


def _try_openslide(path: Path) -> tuple[OpenSlideSlide | None, str]:
    try:
        return OpenSlideSlide(path, openslide.OpenSlide(str(path))), ""
    except openslide.OpenSlideUnsupportedFormatError:
        return None, ""
    except openslide.OpenSlideError as error:
        return None, str(error)
