"""Checksums, atomic writes, and errors of the file system turned into lines a user can act on."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep.common.errors import DatasetNotFoundError, DiskFullError, PrepError

BLOCK = 1 << 20  # bytes per read
_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")  # see `temporary_of`
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries written in Rust or C++ raise errors of their own, and keep the system's only in the text.
_FULL_TEXT = re.compile(rf"No space left on device|\b(os error|errno:?) ({'|'.join(map(str, _FULL))})\b", re.IGNORECASE)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as lower-case hex, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; gzip by its first bytes, whatever its name, is unpacked on the way."""
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        if not packed:
            yield plain
            return
        with gzip.GzipFile(fileobj=plain) as unpacked:
            yield cast("BinaryIO", unpacked)


def canonical_json(value: Any) -> bytes:
    """The one way this project writes JSON: same value, same bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def temporary_of(path: Path) -> Path:
    """Where a file is written before it gets its name: beside it; the process id keeps two shards apart."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def stale_temporaries(folder: Path, names: Collection[str]) -> list[Path]:
    """Temporaries in a folder, of the files of these names; those of a killed process stay for ever.

    Args:
        folder: to look into.
        names: of finished files.
    """
    matches = ((_TEMPORARY.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(path for match, path in matches if match and match[1] in names and path.is_file())


def make_folder(path: Path) -> None:
    """Make a folder for output, and those above it.

    Raises:
        DiskFullError: no space is left.
        PrepError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            with translate_os_errors(path):
                raise
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        why = "there is a file of this name, or of a folder above it" if in_the_way else error.strerror or str(error)
        raise PrepError(f"{path}: this folder cannot be made ({why}); choose one that you may write to") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that other processes see all of it or nothing, also after a power cut.

    Args:
        path: final name; its folder must exist.
        data: the whole content.

    Raises:
        DiskFullError: no space is left.
    """
    temporary = temporary_of(path)
    with translate_os_errors(path):
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def link_or_copy(source: Path, target: Path) -> None:
    """Give a finished file its final name without moving its bytes where the file system allows."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        temporary = temporary_of(target)
        shutil.copyfile(source, temporary)
        temporary.replace(target)


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn disk-full, permission and vanished-file errors into `PrepError`.

    Args:
        path: the file or folder to name where the error itself names none.

    Raises:
        DiskFullError: no space left, or quota used up.
        DatasetNotFoundError: a file vanished.
        PrepError: permission refused or an input/output error.
    """
    try:
        yield
    except PrepError:
        raise
    except Exception as error:
        named = getattr(error, "filename", None)
        where = Path(named) if isinstance(named, str) else path
        if getattr(error, "errno", None) in _FULL or _FULL_TEXT.search(str(error)):
            raise DiskFullError(
                f"{where}: the disk is full (or a quota is used up); free some space and run the same command again: "
                "finished work is kept"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise DatasetNotFoundError(f"{where}: the file is not there any more; restore it and run again") from error
        if isinstance(error, OSError):
            raise PrepError(f"{where}: {error.strerror or error}; check the disk and the permissions") from error
        raise
