"""Image files below folders, found by name however it is spelt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.common.files import translate_os_errors
from data_prep.common.names import FileIndex
from data_prep.common.raw import walk
from data_prep.medical.xray.images import SUFFIXES

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_MAGIC_AT = 128


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM image by its suffix, or by its first bytes where it has no suffix that says more."""
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    # Names made of UIDs have suffixes of digits.
    if path.name.upper() == "DICOMDIR" or not (suffix == "" or suffix[1:].isdigit()):
        return False
    with translate_os_errors(path), path.open("rb") as stream:
        stream.seek(_MAGIC_AT)
        return stream.read(4) == b"DICM"


def find_images(raw: Sequence[Path]) -> list[Path]:
    """Image and DICOM files."""
    return [path for path in walk(raw) if path.suffix.lower() in SUFFIXES or is_dicom(path)]


def find_named(raw: Sequence[Path], pattern: str) -> list[Path]:
    """Files whose whole name matches a regular expression, upper case or lower."""
    return [path for path in walk(raw) if re.fullmatch(pattern, path.name, re.IGNORECASE)]


class ImageIndex(FileIndex):
    """Image files by name, whatever folder they are in.

    Args:
        files: the files.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        super().__init__(files, SUFFIXES | DICOM_SUFFIXES)

    def find(self, name: str, folder: str = "") -> Path | None:
        """The file of a name; else one that differs in its suffix only.

        Args:
            name: file name, with or without suffix; a path counts by its last part.
            folder: of several files, one with a folder of this name above it is taken first.
        """
        found = self.all(name)
        if not found:
            return None
        return next((path for path in found if folder and folder in path.parts), found[0])


def stem_key(key: str) -> str:
    """A key without the suffix of an image file; other dots belong to the name."""
    stem, dot, suffix = key.rpartition(".")
    return stem if dot and f".{suffix}" in SUFFIXES | DICOM_SUFFIXES else key
