"""Image files below folders, found by name however it is spelt."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.errors import ConfigError
from data_prep.common.files import translate_os_errors
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


def name_key(name: str) -> str:
    """File names that differ in blanks and upper case only have one key."""
    return "".join(name.split()).casefold()


class FileIndex:
    """Image files by name, whatever folder they are in.

    Args:
        files: the files.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.names: defaultdict[str, list[Path]] = defaultdict(list)
        self.stems: defaultdict[str, list[Path]] = defaultdict(list)
        for path in files:
            key = name_key(path.name)
            self.names[key].append(path)
            self.stems[stem_key(key)].append(path)

    def find(self, name: str, folder: str = "") -> Path | None:
        """The file of a name; else one that differs in its suffix only.

        Args:
            name: file name, with or without suffix; a path counts by its last part.
            folder: of several files, one with a folder of this name above it is taken first.
        """
        key = name_key(name.replace("\\", "/").rsplit("/", 1)[-1])
        found = self.names.get(key) or self.stems.get(stem_key(key)) or self.stems.get(key)
        if not found:
            return None
        return next((path for path in found if folder and folder in path.parts), found[0])


def stem_key(key: str) -> str:
    """A key without the suffix of an image file; other dots belong to the name."""
    stem, dot, suffix = key.rpartition(".")
    return stem if dot and f".{suffix}" in SUFFIXES | DICOM_SUFFIXES else key


def unique_names(paths: Sequence[Path], raw: Sequence[Path]) -> list[str]:
    """What each file is called: its name where no two have the same, else its path below the raw folder.

    Raises:
        ConfigError: even those are not unique.
    """
    names = [path.name for path in paths]
    counts = Counter(name_key(name) for name in names)
    if len(counts) == len(names):
        return names
    longer = [_below(path, raw) for path in paths]
    name, count = Counter(longer).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"raw: {name!r} is in more than one folder given; give the folder above them all")
    return longer


def _below(path: Path, raw: Sequence[Path]) -> str:
    for top in raw:
        if path.is_relative_to(top) and path != top:
            return path.relative_to(top).as_posix()
    return path.name
