"""Physical size of a pixel: where slides keep it, and what to do when they do not.

Resolutions are micrometres per pixel (mpp); objective magnification is only another word for it: 40x is 0.25,
20x is 0.5. Nothing is guessed: a slide that does not say its resolution is refused unless the user says it.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import ConfigError, DatasetNotFoundError, PrepError
from data_prep.common.files import translate_os_errors
from data_prep.medical.wsi.slides.find import slide_id
from data_prep.medical.wsi.slides.slide import Slide

SMALLEST, LARGEST = 0.05, 10.0  # mpp of a scanner; what is outside of it (96 dpi are 265) describes no slide
SKEW = 0.05  # tolerated difference of the two axes


class ResolutionError(PrepError, ValueError):
    """The size of a slide's pixels is not known."""


class Resolution(NamedTuple):
    """Micrometres per level-0 pixel, and where they were found."""

    mpp: float
    source: str


def to_magnification(mpp: float) -> float:
    """Objective magnification of a resolution: 0.25 -> 40."""
    return 10.0 / mpp


def to_mpp(magnification: float) -> float:
    """Resolution of an objective magnification: 40 -> 0.25."""
    return 10.0 / magnification


def find_mpp(slide: Slide, table: Mapping[str, float] | None = None, default: float | None = None) -> float:
    """Micrometres per level-0 pixel; see `find_resolution`."""
    return find_resolution(slide, table, default).mpp


def find_resolution(slide: Slide, table: Mapping[str, float] | None, default: float | None) -> Resolution:
    """Micrometres per level-0 pixel: as the user's table has it, as the slide has it, or the user's default.

    Args:
        slide: to look at.
        table: slide id -> mpp, given by the user, who knows better than the file.
        default: for slides that do not say it.

    Raises:
        ResolutionError: nobody says it; names what was looked at.
    """
    if table and slide.slide_id in table:
        return Resolution(table[slide.slide_id], "table")
    tried = []
    for name, look in _PLACES:
        maker = name.partition(".")[0]
        if maker in _MAKERS and not any(key.startswith(f"{maker}.") for key in slide.properties):
            continue
        try:
            pair = look(slide.properties)
        except (ValueError, ZeroDivisionError, IndexError):
            pair = None
        if pair is None:
            tried.append(name)
            continue
        across, down = pair
        mean = (across + down) / 2
        if not (math.isfinite(mean) and SMALLEST <= across <= LARGEST and SMALLEST <= down <= LARGEST):
            tried.append(f"{name} (is {mean:.4g} um, not of a scanner)")
        elif abs(across - down) > SKEW * mean:
            tried.append(f"{name} (differs between the axes: {across:.4g} and {down:.4g})")
        else:
            return Resolution(mean, name)
    if default is not None:
        return Resolution(default, "default")
    power = slide.properties.get("openslide.objective-power")
    hint = f" (it says {power}x, which would be {to_mpp(float(power)):g})" if power and _is_number(power) else ""
    raise ResolutionError(
        f"{slide.path}: does not say how many micrometres a pixel is{hint}; looked at {', '.join(tried)}; give "
        "--mpp-table FILE (columns slide_id,mpp) or --default-mpp NUMBER, or tile by --level"
    )


def check_mpp(mpp: float, where: str) -> float:
    """Refuse what cannot be a resolution.

    Raises:
        ConfigError: naming where it stands.
    """
    if not (math.isfinite(mpp) and SMALLEST <= mpp <= LARGEST):
        raise ConfigError(f"{where}: {mpp:g} micrometres per pixel; give {SMALLEST:g} to {LARGEST:g} (0.25 is 40x)")
    return mpp


def read_mpp_table(path: Path) -> dict[str, float]:
    """Read a csv with the columns slide_id and mpp; ids may carry the extension of the file.

    Raises:
        DatasetNotFoundError: there is no such file.
        ConfigError: columns missing, or a row that is no resolution; names the row.
    """
    rows = read_table(path)
    if not rows or "slide_id" not in rows[0] or "mpp" not in rows[0]:
        raise ConfigError(f"{path}: give a csv with the columns slide_id,mpp and a row for each slide")
    table: dict[str, float] = {}
    for number, row in enumerate(rows, 2):
        name = slide_id((row["slide_id"] or "").strip())
        if not name or not _is_number(row["mpp"] or ""):
            raise ConfigError(f"{path}: line {number}: give slide_id and mpp, a number; found {row['mpp']!r}")
        mpp = check_mpp(float(row["mpp"]), f"{path}: line {number}")
        if table.setdefault(name, mpp) != mpp:
            raise ConfigError(f"{path}: line {number}: slide {name!r} has two resolutions; leave one")
    return table


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a csv file, in UTF-8 or else in Latin-1 (tables saved by spreadsheet programs).

    Raises:
        DatasetNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such file; give a csv file")
    with translate_os_errors(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = text.splitlines()
    delimiter = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    return [row for row in csv.DictReader(lines, delimiter=delimiter) if any(row.values())]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


Pair = tuple[float, float]
Look = Callable[[Mapping[str, str]], Pair | None]


def _both(across: str, down: str, factor: float = 1.0) -> Look:
    def look(properties: Mapping[str, str]) -> Pair | None:
        if across not in properties:
            return None
        return float(properties[across]) * factor, float(properties.get(down, properties[across])) * factor

    return look


def _tiff(properties: Mapping[str, str]) -> Pair | None:
    unit = {"centimeter": 1e4, "inch": 2.54e4}.get(properties.get("tiff.ResolutionUnit", "").lower())
    if unit is None or "tiff.XResolution" not in properties:
        return None
    across = unit / float(properties["tiff.XResolution"])
    return across, unit / float(properties.get("tiff.YResolution", properties["tiff.XResolution"]))


def _ome(properties: Mapping[str, str]) -> Pair | None:
    factors = {"µm": 1.0, "um": 1.0, "μm": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
    factor = factors.get(properties.get("ome.PhysicalSizeXUnit", "µm"))
    return None if factor is None else _both("ome.PhysicalSizeX", "ome.PhysicalSizeY", factor)(properties)


def _philips(properties: Mapping[str, str]) -> Pair | None:
    numbers = re.findall(r"[\d.]+(?:[eE][-+]?\d+)?", properties.get("philips.DICOM_PIXEL_SPACING", ""))
    return (float(numbers[1]) * 1e3, float(numbers[0]) * 1e3) if numbers else None


def _description(properties: Mapping[str, str]) -> Pair | None:
    found = re.search(r"\bMPP\s*[=:]\s*([\d.]+)", properties.get("tiff.ImageDescription", ""), re.IGNORECASE)
    return (float(found[1]), float(found[1])) if found else None


# Looked at, and spoken of, only where a slide is of that maker.
_MAKERS = frozenset({"ome", "mirax", "philips", "ventana", "dicom"})
_DICOM = "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing"
_MIRAX = "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL"
# In this order; the first that holds the resolution of a scanner counts.
_PLACES: tuple[tuple[str, Look], ...] = (
    ("openslide.mpp-x", _both("openslide.mpp-x", "openslide.mpp-y")),
    ("aperio.MPP", _both("aperio.MPP", "aperio.MPP")),
    ("tiff.XResolution with tiff.ResolutionUnit", _tiff),
    ("MPP in tiff.ImageDescription", _description),
    ("ome.PhysicalSizeX", _ome),
    (f"{_MIRAX}_X", _both(f"{_MIRAX}_X", f"{_MIRAX}_Y")),
    ("philips.DICOM_PIXEL_SPACING", _philips),
    ("ventana.ScanRes", _both("ventana.ScanRes", "ventana.ScanRes")),
    (_DICOM, _both(f"{_DICOM}[1]", f"{_DICOM}[0]", 1e3)),
)
