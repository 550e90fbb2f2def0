"""Files of recordings below folders: in a natural order, with names that do not depend on where the data lie."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.common.raw import walk as common_walk
from data_prep.ieeg.errors import EmptyFileError

_LONGEST = 120  # characters of a name; file systems take 255 bytes
_POINTERS = (b"version https://git-lfs", b"/annex/objects/")
_POINTER_SIZE = 1024  # bytes; no signal is so small


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts `run 2` before `run 10`; upper and lower case are told apart last."""
    parts = re.split(r"(\d+)", text)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts if part]
    return (*key, (2, 0, text))


def walk(raw: Sequence[Path]) -> list[Path]:
    """All files below folders in a natural order, each once, also links that lead nowhere.

    Raises:
        DatasetNotFoundError: nothing is given, or a path is not there.
    """
    if not raw:
        raise DatasetNotFoundError("raw: no file or folder is given")
    found: dict[Path, None] = {}
    for top in raw:
        if not top.exists():
            raise DatasetNotFoundError(f"{top}: no such file or folder; check the path given as raw")
        files = sorted(common_walk([top]), key=lambda path: natural_key(path.relative_to(top).as_posix()))
        found.update(dict.fromkeys(files))
    return list(found)


def find_files(raw: Sequence[Path], suffixes: Collection[str], what: str) -> list[Path]:
    """Files whose name ends in one of some suffixes, upper case or lower.

    Args:
        raw: folders to look into, or files.
        suffixes: with their dot, in lower case.
        what: they are called, for the message.

    Raises:
        DatasetNotFoundError: there is none.
    """
    files = [path for path in walk(raw) if path.suffix.lower() in suffixes]
    if not files:
        raise DatasetNotFoundError(f"{raw[0]}: holds no {what} ({', '.join(sorted(suffixes))}); check the path")
    return files


def below(path: Path, raw: Sequence[Path]) -> str:
    """A path as its user knows it: below the folder that was given."""
    for top in raw:
        if path != top and path.is_relative_to(top):
            return path.relative_to(top).as_posix()
    return path.name


def safe_name(text: str) -> str:
    """A file name for a text: letters, digits and `.+'-_`; of a long one, its beginning and a checksum."""
    name = re.sub(r"[^\w.+'-]+", "_", unicodedata.normalize("NFC", text)).strip("._") or "recording"
    if len(name.encode()) <= _LONGEST:
        return name
    checksum = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    return name.encode()[: _LONGEST - 13].decode("utf-8", "ignore") + "-" + checksum


def unique_names(texts: Iterable[str]) -> list[str]:
    """`safe_name` of each text; where two would be equal (in any case of letters), the later ones are numbered."""
    names: list[str] = []
    taken: set[str] = set()
    for text in texts:
        plain = name = safe_name(text)
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def name_recordings(sources: Sequence[str]) -> list[str]:
    """Names of recordings from their paths below the raw folder: without suffix, folders joined by `_`."""
    return unique_names(Path(source).with_suffix("").as_posix().replace("/", "_") for source in sources)


def subject_pattern(text: str) -> re.Pattern[str] | None:
    """The option `subject_pattern`, compiled; None where it is empty.

    Raises:
        ConfigError: it is no regular expression with one pair of brackets.
    """
    try:
        pattern = re.compile(text) if text else None
    except re.error as error:
        raise ConfigError(f"subject_pattern {text!r}: no regular expression ({error})") from error
    if pattern is not None and pattern.groups != 1:
        raise ConfigError(f"subject_pattern {text!r}: put the subject in one pair of brackets, as in 'pat_(\\d+)/'")
    return pattern


def find_subject(source: str, pattern: re.Pattern[str] | None) -> str:
    """The subject of a recording from its path below the raw folder.

    Without a pattern it is the first folder, or the file's own name: of folders one in another, the outermost is the
    safe choice, because sessions of one subject are never taken for several.

    Raises:
        ConfigError: the pattern finds nothing in the path.
    """
    if pattern is None:
        first, _, rest = source.partition("/")
        return first if rest else Path(first).stem
    found = pattern.search(source)
    if not found or not found[1]:
        raise ConfigError(f"{source}: subject_pattern {pattern.pattern!r} finds no subject in this path; widen it")
    return found[1]


def check_file(path: Path) -> int:
    """Size of a file that holds data.

    Raises:
        DatasetNotFoundError: it is not there, or a link that leads nowhere.
        EmptyFileError: 0 bytes, or a placeholder of git-annex or Git LFS.
    """
    if path.is_symlink() and not path.exists():
        raise DatasetNotFoundError(f"{path}: a link to a file that is not there; fetch it (git annex get, datalad get)")
    with translate_os_errors(path):
        size = path.stat().st_size
        if size == 0:
            raise EmptyFileError(path, "file", "0 bytes: the file is empty; fetch or copy it again")
        if size <= _POINTER_SIZE:
            head = path.read_bytes()
            if any(pointer in head for pointer in _POINTERS):
                raise EmptyFileError(path, "file", "a placeholder, not the data; fetch it (git lfs pull, datalad get)")
    return size


def some(items: Iterable[str], limit: int = 6) -> str:
    """The first of a list of names, and how many more there are."""
    names = list(items)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
