"""`dataset.json`: what a prepared directory holds and where it came from. Same input, same bytes."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from data_prep.common.errors import DatasetNotFoundError, ManifestError
from data_prep.common.files import canonical_json, sha256_file, translate_os_errors, write_atomic

FORMAT = "heptad/1"
NAME = "dataset.json"


def tool_version() -> str:
    """Version of the installed heptad, or "0" when it runs from a checkout that was never installed."""
    try:
        return metadata.version("heptad")
    except metadata.PackageNotFoundError:
        return "0"


def write_manifest(directory: Path, content: dict[str, Any]) -> None:
    """Write `dataset.json` last and atomically: a directory with one is whole.

    Args:
        directory: the prepared directory.
        content: JSON values; no clock times, host names or worker counts.
    """
    write_atomic(directory / NAME, canonical_json({"format": FORMAT, **content}))


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read and check `dataset.json`.

    Raises:
        DatasetNotFoundError: there is none.
        ManifestError: it is damaged or of another format.
    """
    path = directory / NAME
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no prepared data here; make it with `heptad DOMAIN prep`")
    with translate_os_errors(path):
        data = path.read_bytes()
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ManifestError(f"{path}: not JSON ({error}); prepare the data again") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ManifestError(f"{path}: format {found!r} instead of {FORMAT!r}; prepare the data again with this version")
    return dict(content)


def verify_files(directory: Path, files: dict[str, str]) -> None:
    """Compare files with their recorded SHA-256.

    Args:
        directory: the prepared directory.
        files: relative path -> SHA-256.

    Raises:
        ManifestError: naming the first file which is missing or differs.
    """
    for name, digest in files.items():
        path = directory / name
        if not path.is_file() or sha256_file(path) != digest:
            raise ManifestError(f"{path}: missing or not the file that {NAME} describes; prepare the data again")
