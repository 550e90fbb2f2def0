"""What `repack` does to one slide, and the tables it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import CorruptRecordError
from data_prep.common.rejects import Reject, to_frame
from data_prep.common.run import describe_source
from data_prep.medical.wsi.features.foreign_layouts import merge_acmil, plain_name, write_clam, write_trident
from data_prep.medical.wsi.features.layouts import FeatureEntry, find_bad_rows, read_features
from data_prep.medical.wsi.features.native import Coords, Features, Stored, count_overflow, write_features
from data_prep.medical.wsi.patches.coords import read_coords
from data_prep.medical.wsi.slides.find import slide_id

STATUS = {
    "slide": pl.String,
    "file": pl.String,
    "status": pl.String,  # done, failed
    "reason": pl.String,
    "patches": pl.Int64,
    "bad": pl.Int64,  # rows left out
    "dim": pl.Int64,
    "dtype": pl.String,
}


@dataclass(frozen=True)
class Wanted:
    """How features are written.

    Args:
        layout: whose.
        dtype: stored, float16 or float32.
        max_bad: share of a slide's rows that may hold NaN or infinity.
        encoder: name of what made all of them; empty when nobody tells.
    """

    layout: str
    dtype: str
    max_bad: float
    encoder: str

    @property
    def place(self) -> frozenset[str]:
        """Names of what is published besides the tables."""
        name = plain_name(self.encoder or "unknown")
        places = {"native": ("features",), "clam": ("h5_files", "pt_files"), "trident": (f"features_{name}",)}
        return frozenset(places.get(self.layout, (f"patch_feats_pretrain_{name}.h5",)))


def repack_slide(
    entry: FeatureEntry, wanted: Wanted, patches: Path | None, label: int | None, folder: Path
) -> dict[str, Any]:
    """Task: check the features of one slide and write them; a slide that cannot be is told, not raised.

    Args:
        entry: the features.
        wanted: how to write them.
        patches: file of the slide's coordinates, if it is given.
        label: class code, if it is known.
        folder: to write into.
    """
    try:
        features, coords, attributes = read_features(entry, "keep")
        if patches is not None:
            coords, attributes = _join(entry, features, coords, attributes, patches)
        bad = find_bad_rows(features)
        if len(bad) > wanted.max_bad * len(features):
            raise CorruptRecordError(
                entry.path,
                f"slide {entry.slide}, row {bad[0]}",
                f"NaN or infinity in {len(bad):,} of {len(features):,} rows, more than max_bad {wanted.max_bad:.2%}; "
                "extract this slide again",
            )
        features = np.delete(features, bad, axis=0) if len(bad) else features
        coords = np.delete(coords, bad, axis=0) if coords is not None and len(bad) else coords
        said = attributes.get("encoder")
        if said and said != wanted.encoder:
            reason = f"made by encoder {said!r}, others by {wanted.encoder!r}; give the features of one"
            raise CorruptRecordError(entry.path, f"slide {entry.slide}", reason)
        attributes |= {"name": entry.slide, "encoder": wanted.encoder or None, "label": label}
        stored = _write(folder, entry.slide, features, coords, attributes, wanted)
    except CorruptRecordError as error:
        reason = str(error).replace(f"{entry.path.parent}/", "")
        return {"status": "failed", "reason": reason, "patches": 0, "bad": 0}
    return {
        **{"status": "done", "reason": "", "patches": len(features), "bad": len(bad), "dim": entry.dim},
        **{"dtype": stored, "mpp": attributes.get("target_mpp"), "patch_size": attributes.get("patch_size")},
    }


def describe(path: Path, folder: Path) -> dict[str, Any]:
    """Task: checksum of a source file."""
    del folder
    return {"source": describe_source(path)}


def merge(slides: list[tuple[str, Path, int | None]], name: str, folder: Path) -> dict[str, Any]:
    """Task: one file of all slides, for ACMIL."""
    merge_acmil(slides, folder / name)
    return {}


def write_tables(rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Task: the status of all slides, and what could not be used."""
    pl.DataFrame(rows, schema=STATUS, orient="row").write_parquet(folder / "slides.parquet", statistics=False)
    lost = [Reject(row["file"], 0, "slide", row["reason"], row["slide"]) for row in rows if row["status"] != "done"]
    left = [
        Reject(row["file"], 0, "rows", f"{row['bad']:,} rows with NaN or infinity left out", row["slide"])
        for row in rows
        if row["bad"]
    ]
    to_frame([*lost, *left]).write_parquet(folder / "rejects.parquet", compression="zstd", statistics=False)
    return {}


def _join(
    entry: FeatureEntry, features: Features, coords: Coords | None, attributes: Mapping[str, Any], patches: Path
) -> tuple[Coords, dict[str, Any]]:
    """Add what a file of coordinates knows, if it is of these features."""
    grid, where = read_coords(patches), f"slide {entry.slide}"
    if entry.slide not in (grid.slide, slide_id(grid.slide)):
        raise CorruptRecordError(entry.path, where, f"{patches.name} holds coordinates of slide {grid.slide!r}")
    if len(grid.coords) != len(features):
        reason = f"{len(features):,} rows of features, but {len(grid.coords):,} coordinates in {patches.name}"
        raise CorruptRecordError(entry.path, where, f"{reason}; give the coordinates that the features were made of")
    if coords is not None and not np.array_equal(coords, grid.coords):
        row = int(np.flatnonzero((coords != grid.coords).any(axis=1))[0])
        one, other = tuple(coords[row].tolist()), tuple(grid.coords[row].tolist())
        reason = f"row {row} is of the patch at {one}, and in {patches.name} at {other}; give the coordinates that the "
        raise CorruptRecordError(entry.path, where, f"{reason}features were made of")
    known = {
        "patch_size_level0": grid.size_level0,
        "patch_size": grid.size,
        "target_mpp": grid.mpp,
        "level0_width": grid.width or None,
        "level0_height": grid.height or None,
    }
    return grid.coords, {**attributes, **{name: value for name, value in known.items() if value is not None}}


def _write(
    folder: Path, slide: str, features: Features, coords: Coords | None, attributes: dict[str, Any], wanted: Wanted
) -> Stored:
    half = wanted.dtype == "float16" or (wanted.dtype == "stored" and features.dtype == np.float16)
    stored: Stored = "float16" if half and not count_overflow(features) else "float32"
    if wanted.layout == "clam":
        write_clam(folder, slide, features, coords, stored)
    elif wanted.layout == "trident":
        write_trident(folder, slide, features, coords, attributes, stored)
    else:
        (folder / "features").mkdir()
        write_features(folder / "features" / f"{slide}.h5", features, coords, attributes, stored)
    return stored
