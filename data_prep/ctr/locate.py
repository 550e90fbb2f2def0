"""Finding raw files among the paths a user names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_prep.common.errors import DatasetNotFoundError
from data_prep.ctr.schema import Purpose, Sources

SUFFIXES = (".csv", ".tsv", ".txt", ".gz", ".parquet", ".dat", ".data", ".log")
Names = tuple[str, ...]


def expand_folders(raw: Iterable[Path], also: Names = ()) -> list[Path]:
    """Files as they are; folders as their data files, by name.

    Args:
        raw: what the user named.
        also: names of data files without a usual suffix.

    Raises:
        DatasetNotFoundError: a path does not exist, or a folder holds no data file.
    """
    found: list[Path] = []
    for path in raw:
        if path.is_dir():
            inside = sorted(
                item
                for item in path.iterdir()
                if item.is_file()
                and not item.name.startswith(".")
                and (item.suffix.lower() in SUFFIXES or item.name in also)
            )
            if not inside:
                raise DatasetNotFoundError(f"{path}: no data file in this folder ({', '.join(SUFFIXES)}); check --raw")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DatasetNotFoundError(f"{path}: no such file or folder; check --raw")
    if not found:
        raise DatasetNotFoundError("no raw file given; name files or a folder with --raw")
    return found


def text_logs(raw: tuple[Path, ...], prefer: Names = ()) -> tuple[Path, ...]:
    """Files named one by one as they are; of a folder all data files, or the first preferred one, also packed."""
    files: list[Path] = []
    for path in raw:
        inside = expand_folders((path,))
        chosen = [item for name in prefer for item in inside if item.name in (name, f"{name}.gz")]
        files += chosen[:1] if path.is_dir() and chosen else inside
    return tuple(files or expand_folders(raw))


def logs_with_sides(raw: tuple[Path, ...], logs: Names, sides: dict[str, str], *, required: bool = True) -> Sources:
    """A log and its side files, among the paths named or beside a log named on its own.

    Args:
        raw: what the user named.
        logs: names of the log in a folder, the best first.
        sides: name -> what it holds.
        required: in a folder the log must have one of the names; else all its other files are the log.
    """
    every = expand_folders(raw, also=(*logs, *sides))
    beside = [path.parent / f"{name}{end}" for path in raw if path.is_file() for name in sides for end in ("", ".gz")]
    around = every + [path for path in beside if path.is_file()]
    found = tuple(named(around, (name,), purpose) for name, purpose in sides.items())
    known = {item for name in sides for item in (name, f"{name}.gz")}
    own = [path for path in raw if path.is_file() and path.name not in known]
    if own:  # a log named on its own is taken whatever its name is
        return Sources(tuple(own), found)
    rest = [path for path in every if path.name not in known]
    if required or any(path.name in (name, f"{name}.gz") for path in rest for name in logs):
        rest = [named(rest or every, logs, "the log")]
    return Sources(tuple(rest), found)


def named(files: Iterable[Path], names: Names, purpose: str) -> Path:
    """The first file with one of the names.

    Raises:
        DatasetNotFoundError: none of them is there.
    """
    known = list(files)
    for name in names:
        for path in known:
            if path.name in (name, f"{name}.gz"):
                return path
    place = known[0].parent if known else Path()
    raise DatasetNotFoundError(
        f"{place}: {' or '.join(names)} ({purpose}) is not there; name the folder that holds it with --raw"
    )


def by_purpose(purpose: Purpose, train: Names, test: Names) -> Names:
    """Names of the log in a folder, the best first: to be scored are logs without labels where there are any."""
    return (*test, *train) if purpose == "apply" else train
