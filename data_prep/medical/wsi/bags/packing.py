"""Features of one slide -> a bag that training can rely on: checked, contiguous, or used where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import Reject
from data_prep.common.run import Run, describe_source
from data_prep.medical.wsi.features.hdf5 import open_h5
from data_prep.medical.wsi.features.layouts import FeatureEntry, read_features
from data_prep.medical.wsi.features.native import Stored, count_overflow, write_features

BAG = "bag.h5"  # what a task leaves
TYPES = ("stored", "float16", "float32")
# Columns of an index that say where a bag is.
PLACES = {
    "name": pl.String,
    "patches": pl.UInt32,
    "file": pl.String,
    "dataset": pl.String,
    "coords": pl.String,
    "size_level0": pl.Float64,
    "width": pl.Int64,
    "height": pl.Int64,
}


@dataclass(frozen=True)
class Packing:
    """How bags are stored.

    Args:
        dtype: stored (float16 stays, everything else becomes float32), float16 or float32.
        max_bad: share of a slide's rows that may hold NaN or infinity; they are left out.
        in_place: use feature files where they lie, if they are whole rows of float16 or float32.
    """

    dtype: str
    max_bad: float
    in_place: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in TYPES or not 0 <= self.max_bad < 1:
            raise ConfigError(
                f"dtype {self.dtype!r}, max_bad {self.max_bad}: choose one of {', '.join(TYPES)}, and a share from 0 "
                "to below 1"
            )


@dataclass(frozen=True)
class Bags:
    """Bags that are ready, and what became of the others.

    Args:
        frame: columns of `PLACES`, by name.
        files: path inside the prepared directory -> file.
        sources: entries of `sources` in `dataset.json`.
        rejects: slides that cannot be used.
        facts: feature_dim, encoder, mpp, patch_size as far as they are known.
        bad: slide -> rows left out.
        told: lines for the user.
    """

    frame: pl.DataFrame
    files: dict[str, Path]
    sources: list[dict[str, Any]]
    rejects: list[Reject]
    facts: dict[str, Any]
    bad: dict[str, int]
    told: list[str]


def pack_bags(run: Run, entries: list[FeatureEntry], packing: Packing) -> Bags:
    """Pack the features of slides, one task each.

    Args:
        run: the preparation.
        entries: features, by slide, with the names that the slides shall have.
        packing: how.

    Raises:
        ConfigError: features of several widths or encoders.
    """
    _check_widths(entries)
    holders: dict[Path, int] = {}
    for entry in entries:
        holders[entry.path] = holders.get(entry.path, 0) + 1
    tasks = [
        Task(f"{index:06d}", pack_bag, (entry, packing, holders[entry.path] == 1))
        for index, entry in enumerate(entries)
    ]
    done = run.stage("bags", tasks)
    # A file of many slides is read by many tasks, and its checksum is made once.
    shared = sorted(path for path, count in holders.items() if count > 1)
    hashed = (
        run.stage("sources", [Task(f"{i:06d}", describe, (path,)) for i, path in enumerate(shared)]) if shared else []
    )
    sources = [item.info["source"] for item in (*done, *hashed) if item.info.get("source")]
    good = [(entry, item) for entry, item in zip(entries, done, strict=True) if not item.info["reason"]]
    rejects = [
        Reject(entry.path.name, 0, entry.dataset, item.info["reason"], entry.slide)
        for entry, item in zip(entries, done, strict=True)
        if item.info["reason"]
    ]
    files = {f"bags/{entry.slide}.h5": item.folder / BAG for entry, item in good if not item.info["file"]}
    rows = [
        {**item.info, "name": entry.slide, "file": item.info["file"] or f"bags/{entry.slide}.h5"}
        for entry, item in good
    ]
    frame = pl.DataFrame([{name: row[name] for name in PLACES} for row in rows], schema=PLACES).sort("name")
    bad = {entry.slide: item.info["bad"] for entry, item in good if item.info["bad"]}
    facts, told = _facts(good)
    copied = sum(not item.info["file"] for _, item in good)
    if packing.in_place and copied:
        told.append(
            f"{copied:,} of {len(good):,} bags cannot be used in place (other layout or type, bad rows): copied"
        )
    if bad:
        told.append(f"rows with NaN or infinity were left out of {len(bad):,} slides, {sum(bad.values()):,} in all")
    return Bags(frame, files, sources, rejects, facts, bad, told)


def pack_bag(entry: FeatureEntry, packing: Packing, alone: bool, folder: Path) -> dict[str, Any]:
    """Task: check the features of a slide and store them; a slide that cannot be used is told, not raised.

    Args:
        entry: the features.
        packing: how.
        alone: the file holds no other slide.
        folder: to write into.

    Returns:
        The columns of `PLACES` (`file` empty: copied), the number of bad rows, encoder, mpp and patch_size, and
        `reason`, empty unless the slide cannot be used.
    """
    source = describe_source(entry.path) if alone else None
    try:
        features, coords, attributes = read_features(entry, "drop")
    except CorruptRecordError as error:
        return {"reason": error.reason, "source": source}
    bad, rows = attributes["bad_rows"], len(features)
    if bad > packing.max_bad * (rows + bad):
        reason = f"NaN or infinity in {bad:,} of {rows + bad:,} rows, more than max_bad {packing.max_bad:.0%}"
        return {"reason": reason, "source": source}
    if features.dtype == "float64" and (np.abs(features) > np.finfo(np.float32).max).any():
        return {"reason": "holds values beyond the range of float32; scale them", "source": source}
    stored: Stored = "float32"
    if packing.dtype == "float16" or (packing.dtype == "stored" and features.dtype == "float16"):
        # One value beyond the range of float16 would be infinite.
        stored = "float32" if count_overflow(features) else "float16"
    place = {"file": "", "dataset": "features", "coords": "coords" if coords is not None else ""}
    if packing.in_place and not bad and _lies_ready(entry, packing):
        place = {"file": str(entry.path.resolve()), "dataset": entry.dataset, "coords": entry.coords}
    else:
        kept = {**attributes, "name": entry.slide, "target_mpp": _mpp(attributes)}
        write_features(folder / BAG, features, coords, kept, stored)
    return {
        **place,
        "patches": rows,
        "bad": bad,
        "size_level0": _positive(attributes.get("patch_size_level0")),
        **{side: _whole(attributes.get(f"level0_{side}")) for side in ("width", "height")},
        "encoder": str(attributes.get("encoder") or ""),
        "mpp": _mpp(attributes),
        "patch_size": _whole(attributes.get("patch_size")),
        "source": source,
        "reason": "",
    }


def describe(path: Path, folder: Path) -> dict[str, Any]:
    """Task: checksum of a source file."""
    del folder
    return {"source": describe_source(path)}


def _lies_ready(entry: FeatureEntry, packing: Packing) -> bool:
    if not entry.dataset or entry.dtype not in (
        ("float16", "float32") if packing.dtype == "stored" else (packing.dtype,)
    ):
        return False
    with open_h5(entry.path) as file:
        shapes = [len(file[name].shape) for name in (entry.dataset, entry.coords) if name]
    return shapes == [2] * len(shapes)


def _check_widths(entries: list[FeatureEntry]) -> None:
    first: dict[int, FeatureEntry] = {}
    for entry in entries:
        if entry.rows:
            first.setdefault(entry.dim, entry)
    if len(first) > 1:
        one, other = list(first.values())[:2]
        raise ConfigError(
            f"{other.path}: slide {other.slide!r} has {other.dim:,} features per patch, {one.slide!r} has {one.dim:,}: "
            "of different encoders; give the features of one"
        )


def _facts(good: list[tuple[FeatureEntry, Done]]) -> tuple[dict[str, Any], list[str]]:
    """What all slides have in common, and warnings where they do not."""
    facts: dict[str, Any] = {"feature_dim": good[0][0].dim if good else 0}
    told = []
    for name in ("encoder", "mpp", "patch_size"):
        values: dict[Any, str] = {}
        for entry, item in good:
            if item.info[name]:
                values.setdefault(item.info[name], entry.slide)
        facts[name] = next(iter(values)) if len(values) == 1 else None
        if len(values) > 1:
            (one, slide), (other, another) = list(values.items())[:2]
            what = f"{name} {one} (slide {slide}) and {other} (slide {another})"
            if name == "encoder":
                raise ConfigError(f"features of several encoders: {what}; give the features of one")
            told.append(f"warning: slides of different {name}: {what}; features of different scale are mixed")
    return facts, told


def _mpp(attributes: dict[str, Any]) -> float | None:
    """Micrometres per pixel that patches were taken at: stated, or by the magnification (40 x is 0.25)."""
    stated = _positive(attributes.get("target_mpp"))
    magnification = _positive(attributes.get("target_magnification"))
    return stated if stated or not magnification else 10 / magnification


def _positive(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        return None
    return float(value)


def _whole(value: Any) -> int | None:
    number = _positive(value)
    return int(number) if number and number.is_integer() else None
