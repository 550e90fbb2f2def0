"""What the tests of patching share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import PrepError
from data_prep.medical.wsi.patches.patch import patch

# Made slides are small: pieces of tissue of 20,000 pixels count.
SMALL: dict[str, Any] = {"preset": "biopsy", "mthresh": 3, "a_t": 0.08, "a_h": 0.02, "patch_size": 64}


def run(raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Tile in this process."""
    return patch(raw, out, **{**SMALL, "executor": "serial", "progress": False, **options})


def fail(raw: Path | list[Path], out: Path, **options: Any) -> str:
    """Tile, and return the line that a user reads."""
    try:
        run(raw, out, **options)
    except PrepError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its checksum."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def status(out: Path) -> dict[str, dict[str, Any]]:
    """Slide -> its row of the status table."""
    return {row["slide"]: row for row in pl.read_parquet(out / "slides.parquet").to_dicts()}
