"""Which slides are to be encoded, with which coordinates, and what of it an earlier run has done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, DatasetNotFoundError, ManifestError
from data_prep.common.files import canonical_json, sha256_file, translate_os_errors
from data_prep.common.manifest import read_manifest
from data_prep.common.rejects import Reject
from data_prep.medical.wsi.patches.coords import SUFFIX
from data_prep.medical.wsi.slides.find import slide_id
from data_prep.medical.wsi.slides.identity import identify_file

STATUS = {
    "slide": pl.String,
    "file": pl.String,  # name of the slide's file
    "bytes": pl.Int64,  # of that file
    "slide_sha256": pl.String,  # of the file, or of samples of a large one
    "coords_sha256": pl.String,
    "status": pl.String,  # done, failed
    "reason": pl.String,
    "patches": pl.Int64,  # rows of features
    "bad": pl.Int64,  # patches that cannot be read
    "retried": pl.Int64,  # patches that were read from the next level
    "dim": pl.Int64,  # features of a patch
    "dtype": pl.String,  # as stored
    "patch_size": pl.Int64,  # pixels at the resolution of the patches
    "mpp": pl.Float64,  # that resolution, micrometres per pixel
    "sha256": pl.String,  # of the file of features
}
_IDENTITY = ("slide", "file", "bytes", "slide_sha256", "coords_sha256")


@dataclass(frozen=True)
class Planned:
    """A slide to be encoded.

    Args:
        slide: its id.
        path: the slide.
        coords: file of its coordinates.
        identity: what tells these files from others, as in the status table.
    """

    slide: str
    path: Path
    coords: Path
    identity: dict[str, Any]

    @property
    def key(self) -> str:
        """Of its task: another slide under the same name, or other coordinates, are another task."""
        return f"{self.slide}-{hashlib.sha256(canonical_json(self.identity)).hexdigest()[:12]}"


def find_coords(patches: Path) -> dict[str, Path]:
    """Coordinate files by slide id: of `heptad medical patch`, of CLAM or TRIDENT, or a folder of `.h5` files.

    Raises:
        DatasetNotFoundError: there are none.
        ConfigError: two files are of one slide, or the folder holds something else.
    """
    folder, kind = patches, patching_of(patches).get("kind", "patches")
    if kind != "patches":
        raise ConfigError(f"{patches}: holds {kind}, not patches; give what `heptad medical patch` made")
    if (patches / "patches").is_dir():
        folder = patches / "patches"
    found: dict[str, Path] = {}
    with translate_os_errors(folder):
        files = sorted(folder.glob("*.h5")) if folder.is_dir() else []
    for path in files:
        if path.name.startswith("."):
            continue
        other = found.setdefault(path.stem.removesuffix(SUFFIX), path)
        if other is not path:
            raise ConfigError(f"{path}: is of the same slide as {other}; keep one of the two")
    if not found:
        raise DatasetNotFoundError(
            f"{folder}: no coordinates of patches here (.h5); make them with `heptad medical patch`"
        )
    return found


def patching_of(patches: Path) -> dict[str, Any]:
    """`dataset.json` of a directory that `heptad medical patch` made; empty for folders of other programs."""
    try:
        return read_manifest(patches)
    except (DatasetNotFoundError, ManifestError):  # another program may have a file of this name
        return {}


def patched_before(patches: Path) -> dict[str, tuple[str, str]]:
    """What `heptad medical patch` says of each slide: its status, and the reason when it has no patches."""
    if not patching_of(patches):
        return {}
    with translate_os_errors(patches):
        table = pl.read_parquet(patches / "slides.parquet", columns=["slide", "status", "reason"], memory_map=False)
    return {slide: (status, reason or "") for slide, status, reason in table.iter_rows()}


def plan(
    slides: Iterable[Path], coords: dict[str, Path], said: Mapping[str, tuple[str, str]]
) -> tuple[list[Planned], list[dict[str, Any]]]:
    """Pair slides and coordinates.

    Args:
        slides: files.
        coords: coordinate file of each slide id.
        said: by patching, of each slide; those that the user had it skip are left out.

    Returns:
        What can be done, and rows of the status table for what cannot, both by slide id.
    """
    paths = {slide_id(path): path for path in slides}
    planned, failed = [], []
    for slide in sorted(paths.keys() | coords.keys()):
        path, file = paths.get(slide), coords.get(slide)
        status, why = said.get(slide, ("", ""))
        if path is None and file is not None:
            reason = f"{file.name}: there is no slide of this id among the slides; add the slide, or remove this file"
            failed.append(failure({**dict.fromkeys(_IDENTITY), "slide": slide}, reason))
        elif path is not None and status in ("failed", "empty"):
            reason = why.replace(f"{path.parent}/", "") or "it has no patches"
            reason = reason if path.name in reason else f"{path.name}: {reason}"
            failed.append(failure({**dict.fromkeys(_IDENTITY), "slide": slide, "file": path.name}, reason))
        elif path is not None and file is not None:
            planned.append(Planned(slide, path, file, _identify(slide, path, file)))
        elif path is not None and status != "skipped":
            reason = f"{path.name}: no coordinates of its patches; patch it with the others, or remove the slide"
            failed.append(failure({**dict.fromkeys(_IDENTITY), "slide": slide, "file": path.name}, reason))
    return planned, failed


def failure(identity: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """A row of the status table for a slide without features."""
    counts = {"patches": 0, "bad": 0, "retried": 0}
    return {**dict.fromkeys(STATUS), **identity, "status": "failed", "reason": reason, **counts}


def _identify(slide: str, path: Path, coords: Path) -> dict[str, Any]:
    found = identify_file(path)
    digest = found.get("sha256", found.get("sampled_sha256"))
    return {
        "slide": slide,
        "file": path.name,
        "bytes": found["bytes"],
        "slide_sha256": digest,
        "coords_sha256": sha256_file(coords),
    }


@dataclass(frozen=True)
class Earlier:
    """What a finished directory holds.

    Args:
        rows: of its status table, by slide id.
        rejects: patches that were left out, by slide file.
    """

    rows: dict[str, dict[str, Any]]
    rejects: dict[str, list[Reject]]

    @classmethod
    def read(cls, out: Path) -> Earlier:
        """Read the tables of a finished directory."""
        with translate_os_errors(out):
            rows = {row["slide"]: row for row in pl.read_parquet(out / "slides.parquet").iter_rows(named=True)}
            rejects: dict[str, list[Reject]] = {}
            for reject in map(Reject._make, pl.read_parquet(out / "rejects.parquet").iter_rows()):
                if reject.field == "patch":
                    rejects.setdefault(reject.source, []).append(reject)
        return cls(rows, rejects)

    def is_of(self, planned: Iterable[Planned], failed: Iterable[dict[str, Any]]) -> bool:
        """Whether it was made of exactly these files, and nothing in it is worth a second try."""
        wanted = {item.slide: item for item in planned}
        hopeless = {row["slide"] for row in failed}
        return self.rows.keys() == wanted.keys() | hopeless and all(
            (row["status"] == "done" and slide in wanted and self.holds(wanted[slide]))
            or (row["status"] == "failed" and slide in hopeless)
            for slide, row in self.rows.items()
        )

    def holds(self, item: Planned) -> bool:
        """Whether it has the features of this slide, made of the same files."""
        row = self.rows.get(item.slide, {})
        return row.get("status") == "done" and all(row[name] == value for name, value in item.identity.items())
