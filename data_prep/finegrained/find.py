"""Raw files of a data set: lists and folders by name, pictures by the names that lists give them."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.common.images import SUFFIXES
from data_prep.common.raw import walk


class RawFiles:
    """All files below the folders that a user gives as raw.

    Hidden files are passed over, and files that are no pictures by their suffix (Thumbs.db) are no pictures.

    Args:
        raw: files and folders.
    """

    def __init__(self, raw: Sequence[Path]) -> None:
        tops = [path.resolve() for path in raw]
        self.root = Path(os.path.commonpath([top if top.is_dir() else top.parent for top in tops]))
        with translate_os_errors(self.root):
            self.files = list(dict.fromkeys(walk(tops)))
        self.pictures = [self._below(path) for path in self.files if path.suffix.lower() in SUFFIXES]
        self._exact = set(self.pictures)
        self._named: defaultdict[str, list[str]] = defaultdict(list)
        for path in self.pictures:
            self._named[_key(PurePosixPath(path).name)].append(path)

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def all_named(self, *names: str) -> list[Path]:
        """Files of these names, upper case or lower, in the order of the names."""
        wanted = [name.casefold() for name in names]
        found = [path for path in self.files if path.name.casefold() in wanted]
        return sorted(found, key=lambda path: wanted.index(path.name.casefold()))

    def find(self, name: str, purpose: str = "") -> Path:
        """The file of a name.

        Args:
            name: its name.
            purpose: what it says, for the message.

        Raises:
            DatasetNotFoundError: there is none.
            ConfigError: there are several.
        """
        found = self.find_any(name)
        if found is None:
            more = f" ({purpose})" if purpose else ""
            raise DatasetNotFoundError(f"{self.root}: there is no {name}{more}; give the folder that holds it as raw")
        return found

    def find_any(self, name: str) -> Path | None:
        """The file of a name, if there is one.

        Raises:
            ConfigError: there are several.
        """
        found = self.all_named(name)
        if len(found) > 1:
            raise ConfigError(f"{found[1]}: there is {found[0]}, too; give the folder of one data set as raw")
        return found[0] if found else None

    def in_folder(self, name: str) -> list[str]:
        """Pictures in folders of a name (upper case or lower), at any depth below them.

        Raises:
            ConfigError: several folders of this name hold pictures.
        """
        wanted = name.casefold()
        found: defaultdict[str, list[str]] = defaultdict(list)
        for path in self.pictures:
            parts = PurePosixPath(path).parts[:-1]
            places = [at for at, part in enumerate(parts) if part.casefold() == wanted]
            if places:  # a folder in one of the same name, as archives make them, is that folder
                found["/".join(parts[: places[0] + 1])].append(path)
        if len(found) > 1:
            one, other = sorted(found)[:2]
            raise ConfigError(f"{self.root / other}: there is {self.root / one}, too; give the folder of one data set")
        return next(iter(found.values()), [])

    def locate(self, name: str, folder: Path | None = None, strip: int = 0) -> tuple[str, str]:
        """The picture that a list names.

        Args:
            name: path as the list has it; its folders must be there, too: pictures of several folders have one name.
            folder: where it is looked for first.
            strip: leading parts of the name that are passed over, see `find_strip`.

        Returns:
            Path below the root, and what is wrong; one of both is empty.
        """
        parts = _parts_of(name)[strip:]
        if not parts or ".." in parts:
            return "", "the record has no usable file name"
        if folder is not None and folder.is_relative_to(self.root):
            direct = PurePosixPath(folder.relative_to(self.root).as_posix(), *parts).as_posix()
            if direct in self._exact:
                return direct, ""
        tail = tuple(_key(part) for part in parts)
        candidates = self._named.get(tail[-1], [])
        found = [path for path in candidates if PurePosixPath(_key(path)).parts[-len(tail) :] == tail]
        if len(found) > 1:
            exact = [path for path in found if path == "/".join(parts) or path.endswith(f"/{'/'.join(parts)}")]
            found = exact if len(exact) == 1 else found
        if len(found) > 1:
            return "", f"there are several such files ({found[0]}, {found[1]})"
        return (found[0], "") if found else ("", "the image file is not there")

    def find_strip(self, names: Sequence[str], folder: Path) -> int:
        """How many leading parts of all names are of another machine: as few as let half of the pictures be found.

        One number for all of a table: were each name cut until something fits, a missing picture would be taken for
        that of another folder.

        Args:
            names: paths as a table has them.
            folder: of the table.
        """
        deepest = max((len(_parts_of(name)) for name in names), default=1)
        for strip in range(deepest):
            if 2 * sum(not self.locate(name, folder, strip)[1] for name in names) >= len(names):
                return strip
        return 0

    def need_pictures(self) -> None:
        """Refuse raw folders without pictures.

        Raises:
            DatasetNotFoundError: there is none.
        """
        if not self.pictures:
            raise DatasetNotFoundError(f"{self.root}: holds no picture ({', '.join(sorted(SUFFIXES))}); unpack them")


def _key(name: str) -> str:
    """One spelling of a name: composed letters, as some systems store them and others do not; no upper case."""
    return unicodedata.normalize("NFC", name).casefold()


def _parts_of(name: str) -> list[str]:
    return [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".")]
