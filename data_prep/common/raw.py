"""Raw files where a user keeps them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.common.errors import ConfigError, DatasetNotFoundError


def check_raw(raw: Sequence[Path], out: Path) -> None:
    """Refuse raw paths that are not there, and an output directory among the raw files.

    Raises:
        DatasetNotFoundError: naming the first path that is not there.
        ConfigError: what is written would be read as raw data next time.
    """
    if not raw:
        raise DatasetNotFoundError("raw: no file or folder is given")
    for path in raw:
        if not path.exists():
            raise DatasetNotFoundError(f"{path}: no such file or folder; check the path given as raw")
        if out.resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"{out}: lies inside the raw folder {path}; choose an output directory outside of it")


def walk(raw: Sequence[Path]) -> Iterator[Path]:
    """All files, folder by folder in the order of names; hidden ones and those of archivers are passed over.

    Links to folders are followed, but not back into a folder that they are in.
    """
    for top in raw:
        if top.is_file():
            yield top
            continue
        found: list[Path] = []
        for folder, folders, files in os.walk(top, followlinks=True):
            real, above = os.path.realpath(folder), os.path.realpath(Path(folder).parent)
            if folder != str(top) and f"{above}/".startswith(f"{real}/"):
                folders.clear()
                continue
            folders[:] = [name for name in folders if name[0] != "." and name != "__MACOSX"]
            found += [Path(folder, name) for name in files if name[0] != "."]
        yield from sorted(found)
