"""Which files in a folder are slides, and what each slide is called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors

PICTURES = frozenset({".png", ".jpg", ".jpeg"})
DICOM = ".dcm"
# What OpenSlide or tifffile reads, and plain pictures.
KNOWN = PICTURES | {".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", DICOM}
# Formats of closed libraries: found, so that their users are told, and then refused.
CLOSED = frozenset({".kfb", ".sdpc", ".isyntax"})
_NUMBERED = re.compile(r"[A-Za-z]{0,5}_?\d{1,5}")
_WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # DICOM: VL Whole Slide Microscopy Image Storage


def slide_id(path: Path | str) -> str:
    """File name without its slide extension; other dots belong to the name.

    DICOM files that are only numbered within their folder (`3.dcm`, `DCM_0.dcm`) are called after the folder.

    Example:
        >>> slide_id("a/TCGA-CR-7395.1F2A.svs")
        'TCGA-CR-7395.1F2A'
    """
    path = Path(path)
    if path.suffix.lower() == DICOM and _NUMBERED.fullmatch(path.stem) and path.parent.name:
        return path.parent.name
    return path.stem if path.suffix.lower() in KNOWN | CLOSED else path.name


def find_slides(raw: Sequence[Path] | Path) -> list[Path]:
    """All slides among files and in folders (searched to the bottom), ordered by slide id.

    A DICOM series is one slide, represented by its first file. Files given one by one are taken whatever their names.

    Args:
        raw: files and folders.

    Raises:
        DatasetNotFoundError: a path does not exist, or there is no slide.
        ConfigError: two slides have one id.
    """
    paths = [raw] if isinstance(raw, Path) else list(raw)
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            with translate_os_errors(path):
                found += _search(path)
        elif path.exists():
            found.append(path)
        else:
            raise DatasetNotFoundError(f"{path}: no such file or folder; give a slide or a folder of slides")
    if not found:
        places = ", ".join(map(str, paths))
        raise DatasetNotFoundError(f"{places}: holds no slide; looked for {', '.join(sorted(KNOWN))}")
    named: dict[str, Path] = {}
    for path in sorted(found):
        other = named.setdefault(slide_id(path), path)
        if other != path and other.resolve() != path.resolve():
            raise ConfigError(
                f"{path}: has the same slide id {slide_id(path)!r} as {other}; rename one of them, or leave one out"
            )
    return [named[name] for name in sorted(named)]


def _search(folder: Path) -> Iterable[Path]:
    # Names that begin with a dot are left-overs of other programs ("._slide.svs" of macOS).
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in KNOWN | CLOSED and not path.name.startswith(".") and path.is_file()
    ]
    # A .vms or .vmu slide is a text file beside the JPEG files that it names.
    parts = {path.parent for path in files if path.suffix.lower() in {".vms", ".vmu"}}
    files = [path for path in files if path.parent not in parts or path.suffix.lower() not in PICTURES]
    dicom = [path for path in files if path.suffix.lower() == DICOM]
    return [path for path in files if path.suffix.lower() != DICOM] + _first_of_series(dicom)


def _first_of_series(files: list[Path]) -> list[Path]:
    """One file of each series of slide images; files that cannot be read are kept, to be reported when opened."""
    if not files:
        return []
    import pydicom  # slow to import, and most folders hold no DICOM

    first: dict[tuple[Path, str], Path] = {}
    for path in files:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SeriesInstanceUID"])
            kind, series = str(header.get("SOPClassUID", "")), str(header.get("SeriesInstanceUID", ""))
        except Exception:  # whatever pydicom raises on damaged bytes
            kind, series = _WSI_CLASS, str(path)
        if kind == _WSI_CLASS:
            first.setdefault((path.parent, series), path)
    return list(first.values())
