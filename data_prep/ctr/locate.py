"""Finding raw files among the paths a user names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_prep.common.errors import DatasetNotFoundError

SUFFIXES = (".csv", ".tsv", ".txt", ".gz", ".parquet", ".dat", ".data", ".log")


def expand_folders(raw: Iterable[Path]) -> list[Path]:
    """Files as they are; folders as their data files, by name.

    Raises:
        DatasetNotFoundError: a path does not exist, or a folder holds no data file.
    """
    found: list[Path] = []
    for path in raw:
        if path.is_dir():
            inside = sorted(
                item
                for item in path.iterdir()
                if item.is_file() and not item.name.startswith(".") and item.suffix.lower() in SUFFIXES
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


def text_logs(raw: tuple[Path, ...], prefer: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """All data files, or the preferred one where it exists among several."""
    files = expand_folders(raw)
    for name in prefer:
        chosen = [path for path in files if path.name == name]
        if chosen and len(raw) == 1:
            return (chosen[0],)
    return tuple(files)


def named(files: Iterable[Path], names: tuple[str, ...], purpose: str) -> Path:
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
