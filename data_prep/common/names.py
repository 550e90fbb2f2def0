"""Files below folders by the names that lists and tables call them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.common.errors import ConfigError


def name_key(name: str) -> str:
    """File names that differ in blanks and upper case only have one key."""
    return "".join(name.split()).casefold()


class FileIndex:
    """Files by name, whatever folder they are in.

    Args:
        files: the files.
        suffixes: of the names that are files' names; other dots belong to the name.
    """

    def __init__(self, files: Iterable[Path], suffixes: frozenset[str]) -> None:
        self.suffixes = suffixes
        self.names: defaultdict[str, list[Path]] = defaultdict(list)
        self.stems: defaultdict[str, list[Path]] = defaultdict(list)
        for path in files:
            key = name_key(path.name)
            self.names[key].append(path)
            self.stems[self._stem(key)].append(path)

    def all(self, name: str) -> list[Path]:
        """Files of a name; else those that differ in their suffix only.

        Args:
            name: with or without suffix; a path counts by its last part.
        """
        key = name_key(name.replace("\\", "/").rsplit("/", 1)[-1])
        return self.names.get(key) or self.stems.get(self._stem(key)) or self.stems.get(key) or []

    def _stem(self, key: str) -> str:
        stem, dot, suffix = key.rpartition(".")
        return stem if dot and f".{suffix}" in self.suffixes else key


def unique_names(paths: Sequence[Path], raw: Sequence[Path]) -> list[str]:
    """What each file is called: its name where no two have the same, else its path below the raw folder.

    Raises:
        ConfigError: even those are not unique.
    """
    names = [path.name for path in paths]
    if len({name_key(name) for name in names}) == len(names):
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
