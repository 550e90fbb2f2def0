"""Work that a finished directory of an earlier run already holds.

Slides come one by one: a damaged one is copied again, new ones arrive. Then the same command runs again, and what is
finished for slides that did not change is taken over. While that goes on the directory counts as unfinished: its
`dataset.json` waits in the scratch folder.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, DatasetNotFoundError, ManifestError
from data_prep.common.files import link_or_copy, translate_os_errors
from data_prep.common.manifest import NAME, read_manifest
from data_prep.common.run import WORK

PREVIOUS = "previous"  # folder inside the scratch folder


def read_previous(out: Path, command: dict[str, Any]) -> dict[str, Any] | None:
    """`dataset.json` of what was finished before, also when an update of it was interrupted.

    Raises:
        ConfigError: it was made with other options.
    """
    for folder in (out, out / WORK / PREVIOUS):
        try:
            found = read_manifest(folder)
        except DatasetNotFoundError:
            continue
        except ManifestError:
            if folder == out:
                raise
            continue
        if found.get("command") != command:
            if not found["counts"]["processed"]:  # nothing came of the other options
                return None
            raise ConfigError(
                f"{out}: holds prepared data of other options; choose another output directory or remove it"
            )
        return found
    return None


def put_aside(out: Path, scratch: Path, previous: dict[str, Any] | None) -> None:
    """Let a finished directory count as unfinished, keeping its `dataset.json` if anything came of it."""
    with translate_os_errors(out):
        if previous is None:
            (out / NAME).unlink(missing_ok=True)
            return
        (scratch / PREVIOUS).mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another shard has done it
            (out / NAME).replace(scratch / PREVIOUS / NAME)


def put_back(out: Path, scratch: Path) -> None:
    """Let the directory count as finished again, when nothing has changed."""
    with translate_os_errors(out):
        (scratch / PREVIOUS / NAME).replace(out / NAME)
        shutil.rmtree(scratch, ignore_errors=True)


def unchanged(recorded: dict[str, Any], source: dict[str, Any]) -> bool:
    """Whether a recorded slide is the one at hand, treated as it would be now.

    Args:
        recorded: entry of `sources` in `dataset.json`.
        source: entry of the slide at hand, without its status.
    """
    return all(recorded.get(name) == value for name, value in source.items())


def keep(out: Path, slide: str, file: str, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Take the files of one finished slide over.

    Args:
        out: the directory finished before.
        slide: its id.
        file: name of its file, as in `rejects.parquet`.
        names: files inside `out`; those which are not there are left out.
        folder: of this task.

    Returns:
        Its row of `slides.parquet`, its rows of `rejects.parquet`, and the files taken.
    """
    with translate_os_errors(out):
        rows = pl.read_parquet(out / "slides.parquet", memory_map=False).filter(pl.col("slide") == slide)
        rejects = pl.read_parquet(out / "rejects.parquet", memory_map=False).filter(pl.col("source") == file)
        taken = [name for name in names if (out / name).is_file()]
        for name in taken:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(out / name, folder / name)
    return {"row": rows.row(0, named=True), "rejects": [list(row) for row in rejects.iter_rows()], "files": taken}


def list_files(out: Path, folder: str) -> list[str]:
    """Files of one folder inside a directory, by name."""
    found = (out / folder).iterdir() if (out / folder).is_dir() else ()
    return sorted(f"{folder}/{path.name}" for path in found)
