"""Feature files as the tools of the field write them: found, checked and read.

| layout | where | what is inside |
|---|---|---|
| native | `features/<slide>.h5` | `features` [N, D], `coords` [N, 2], both contiguous, with attributes |
| CLAM | `h5_files/<slide>.h5`, `pt_files/<slide>.pt` | `features`, `coords` in chunks of one row; a tensor alone |
| TRIDENT | `features_<encoder>/<slide>.h5` | `features`, `coords` with attributes |
| ACMIL | one `.h5` for all slides | a group per slide with `feat`, `coords` and the attribute `label` |

A slide's id is its file's name without `.h5` or `.pt`, dots inside included, or its group's name. `.pt` files are read
as plain tensors only: nothing in them is ever executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, ManifestError
from data_prep.common.files import translate_os_errors
from data_prep.common.manifest import NAME as MANIFEST
from data_prep.common.manifest import read_manifest
from data_prep.medical.wsi.features.hdf5 import open_h5, plain_attributes, readable
from data_prep.medical.wsi.features.native import BLOCK, Coords, Features, write_features
from data_prep.medical.wsi.features.tensors import array_type, load_tensors, to_array

__all__ = ["FeatureEntry", "find_features", "read_features", "write_features", "file_slide_id", "find_bad_rows"]

H5, PT = (".h5", ".hdf5"), (".pt", ".pth")
FEATURES, COORDS = ("features", "feat"), "coords"  # names of datasets: CLAM, TRIDENT and native; ACMIL
LARGEST = 64  # a file of features is not smaller by more: they hardly compress
BESIDE = ("patches", "masks", "stitches", "contours", "thumbnails", "visualization")  # folders without features


@dataclass(frozen=True)
class FeatureEntry:
    """Where the features of one slide are.

    Args:
        slide: slide id.
        path: the file.
        dataset: name of the features inside the h5 file; empty for `.pt`.
        coords: name of the coordinates inside the file; empty when it has none.
        rows: patches N.
        dim: features D of each.
        dtype: as `read_features` gives them.
        label: class code stored beside them (ACMIL), if any.
    """

    slide: str
    path: Path
    dataset: str
    coords: str
    rows: int
    dim: int
    dtype: str
    label: int | None = None


def find_features(raw: Path | Iterable[Path], problems: list[CorruptRecordError] | None = None) -> list[FeatureEntry]:
    """Find the features of all slides in files and folders, whatever tool wrote them.

    Args:
        raw: `.h5` and `.pt` files, folders of them (searched to any depth), and output folders of CLAM and TRIDENT.
        problems: takes the errors of damaged files, so that the others are found all the same; None raises the first.

    Returns:
        One entry per slide, by slide id. An entry may have no rows.

    Raises:
        DatasetNotFoundError: nothing is there, or nothing that holds features.
        CorruptRecordError: a file is damaged or holds something else.
        ConfigError: a slide id occurs twice, or a folder holds features of several encoders.
    """
    given = [raw] if isinstance(raw, Path) else list(raw)
    found: dict[str, FeatureEntry] = {}
    damaged = 0
    seen: set[Path] = set()
    for path in (file for folder in given for file in _files(folder, seen)):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            entries = _entries_of(path)
        except CorruptRecordError as error:
            if problems is None:
                raise
            problems.append(error)
            damaged += 1
            continue
        for entry in entries:
            other = found.setdefault(entry.slide, entry)
            if other is not entry:
                raise ConfigError(
                    f"{entry.path}: slide {entry.slide!r} is also in {other.path}; keep one of the two, "
                    "or rename one if they are different slides"
                )
    if not found and not damaged:
        raise DatasetNotFoundError(
            f"{', '.join(map(str, given))}: no feature file here (.h5 or .pt); make them with `heptad medical features`"
        )
    return [found[slide] for slide in sorted(found)]


def read_features(
    entry: FeatureEntry, bad_rows: Literal["error", "drop", "keep"] = "error"
) -> tuple[Features, Coords | None, dict[str, Any]]:
    """Read the features of one slide and make sure that they can be learned from.

    Args:
        entry: from `find_features`.
        bad_rows: what to do with rows that hold NaN or infinity: stop, leave them and their coordinates out, or
            nothing.

    Returns:
        features (N, D) in the stored type; coordinates (N, 2) int64 in level-0 pixels, if any; attributes of both, by
        name, with `bad_rows`, the number of rows that hold NaN or infinity.

    Raises:
        CorruptRecordError: the file is damaged or empty, rows hold NaN or infinity, or the coordinates are not those
            of the features (of another number, of another slide, or outside it).
    """
    where = f"slide {entry.slide}"
    with readable(entry.path, where):
        features, coords, attributes = (_read_h5 if entry.dataset else _read_pt)(entry)
    if not len(features):
        raise CorruptRecordError(entry.path, where, "no patches, an empty bag; leave this slide out")
    if coords is not None:
        _check_coords(entry, features, coords, attributes)
    bad = find_bad_rows(features)
    if bad_rows == "keep":
        return features, coords, {**attributes, "bad_rows": len(bad)}
    if len(bad) and (bad_rows == "error" or len(bad) == len(features)):
        shown = ", ".join(map(str, bad[:3])) + (", ..." if len(bad) > 3 else "")
        raise CorruptRecordError(
            entry.path,
            f"{where}, row{'s' if len(bad) > 1 else ''} {shown}",
            f"NaN or infinity in {len(bad):,} of {len(features):,} rows (float16 overflows beyond 65,504); "
            "extract this slide again in float32 or leave it out",
        )
    if len(bad):
        features = np.delete(features, bad, axis=0)
        coords = np.delete(coords, bad, axis=0) if coords is not None else None
    return features, coords, {**attributes, "bad_rows": len(bad)}


def find_bad_rows(features: Features) -> npt.NDArray[np.int64]:
    """Indices of the rows which hold NaN or infinity.

    Shape:
        (N, D) -> (bad,) int64.
    """
    found = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(features), BLOCK):
        good = np.isfinite(features[start : start + BLOCK]).all(axis=1)
        found.append(start + np.flatnonzero(~good))
    return np.concatenate(found)


def file_slide_id(path: Path) -> str:
    """Slide id of a feature file: its name without `.h5` or `.pt`, dots inside kept."""
    return path.name[: -len(path.suffix)] if path.suffix.lower() in H5 + PT else path.name


def _files(given: Path, seen: set[Path]) -> Iterator[Path]:
    """Feature files in a folder, to any depth, in a stable order."""
    if given.is_file():
        yield given
        return
    if not given.is_dir():
        raise DatasetNotFoundError(f"{given}: no such file or folder; give feature files or a folder of them")
    if given.resolve() in seen:  # a link that leads back
        return
    seen.add(given.resolve())
    if (ours := _prepared(given)) is not None:
        yield from ours
        return
    with translate_os_errors(given):
        names = sorted(path for path in given.iterdir() if not path.name.startswith("."))
    folders = [path for path in names if path.is_dir() and path.name not in BESIDE]
    encoders = [path.name for path in folders if path.name.startswith("features_")]
    if len(encoders) > 1:
        raise ConfigError(f"{given}: features of several encoders: {', '.join(encoders)}; give one of these folders")
    files = [path for path in names if path.suffix.lower() in H5 + PT and path.is_file()]
    if given / "h5_files" in folders and given / "pt_files" in folders:
        # CLAM: the same features twice; those with coordinates are taken.
        with_coords = list(_files(given / "h5_files", seen))
        known = {file_slide_id(path) for path in with_coords}
        files += with_coords
        files += [path for path in _files(given / "pt_files", seen) if file_slide_id(path) not in known]
    yield from files
    for folder in folders:
        if not folder.name.startswith("slide_features_"):  # TRIDENT: one vector per slide
            yield from _files(folder, seen)


def _prepared(folder: Path) -> list[Path] | None:
    """Feature files of a directory that this project wrote; None if it did not."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except ManifestError:  # another program's file of this name
        return None
    kind = manifest.get("kind")
    if kind == "features" and manifest.get("layout", "native") != "native":
        return None
    if kind not in ("features", "bags"):
        what = "coordinates of patches" if kind == "patches" else "other prepared data"
        raise ConfigError(f"{folder}: holds {what}, no features; make them with `heptad medical features`")
    return sorted((folder / kind).glob("*.h5"))


def _entries_of(path: Path) -> list[FeatureEntry]:
    with readable(path, "file"):
        if path.suffix.lower() in PT:
            return [_entry_of_tensor(path)]
        with open_h5(path) as file:
            if _has_features(file):
                return [_entry_of_group(path, file, file_slide_id(path))]
            entries = [_entry_of_group(path, group, group.name.rpartition("/")[2]) for group in _groups(file)]
            if not entries:
                what = f"no dataset is named features; it holds {', '.join(sorted(file)[:5]) or 'nothing'}"
                if COORDS in file or "imgs" in file:
                    what = "holds patches, but no features; make them with `heptad medical features`"
                raise CorruptRecordError(path, "file", what)
            return entries


def _has_features(group: h5py.Group) -> bool:
    return any(isinstance(group.get(name), h5py.Dataset) for name in FEATURES)


def _groups(group: h5py.Group) -> Iterator[h5py.Group]:
    for name in sorted(group):
        child = group.get(name)
        if isinstance(child, h5py.Group):
            if _has_features(child):
                yield child
            else:
                yield from _groups(child)


def _entry_of_group(path: Path, group: h5py.Group, slide: str) -> FeatureEntry:
    data = next(group[name] for name in FEATURES if isinstance(group.get(name), h5py.Dataset))
    coords = group.get(COORDS)
    rows, dim = _rows_and_dim(path, slide, data.shape, data.dtype)
    if not data.is_virtual and not data.external and data.nbytes > LARGEST * path.stat().st_size:
        reason = f"says that it holds {data.nbytes:,} bytes of features, more than the file can; extract it again"
        raise CorruptRecordError(path, f"slide {slide}", reason)
    label = plain_attributes(group).get("label")
    return FeatureEntry(
        slide=slide,
        path=path,
        dataset=str(data.name).lstrip("/"),
        coords=str(coords.name).lstrip("/") if isinstance(coords, h5py.Dataset) else "",
        rows=rows,
        dim=dim,
        dtype=str(data.dtype.newbyteorder("=")),
        label=label if isinstance(label, int) else None,
    )


def _entry_of_tensor(path: Path) -> FeatureEntry:
    features, coords = load_tensors(path, FEATURES, COORDS)
    slide, name = file_slide_id(path), array_type(features)
    rows, dim = _rows_and_dim(path, slide, tuple(features.shape), np.dtype(name))
    return FeatureEntry(slide, path, "", COORDS if coords is not None else "", rows, dim, name)


def _rows_and_dim(path: Path, slide: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int]:
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or not shape[1] or dtype.kind != "f":
        raise CorruptRecordError(
            path, f"slide {slide}", f"features of shape {shape}, type {dtype}; needed is a row of floats per patch"
        )
    return int(shape[0]), int(shape[1])


def _read_h5(entry: FeatureEntry) -> tuple[Features, Coords | None, dict[str, Any]]:
    with open_h5(entry.path) as file:
        data = file[entry.dataset]
        features = np.empty(data.shape, dtype=data.dtype.newbyteorder("="))
        if data.size:  # h5py cannot read nothing
            data.read_direct(features)
        attributes = {**plain_attributes(data.parent), **plain_attributes(data)}
        coords = None
        if entry.coords:
            stored = plain_attributes(file[entry.coords])
            one, other = attributes.get("name"), stored.get("name")
            if one is not None and other is not None and one != other:
                raise CorruptRecordError(
                    entry.path,
                    f"slide {entry.slide}",
                    f"features of slide {one!r} beside coordinates of slide {other!r}; extract this slide again",
                )
            attributes |= stored
            coords = _as_coords(entry, file[entry.coords][()])
    if "patch_size_level0" not in attributes and {"patch_size", "patch_level", "downsample"} <= attributes.keys():
        # CLAM tells the size at a level and how much larger level 0 is.
        ratio = int(np.ravel(attributes["downsample"])[0])
        attributes["patch_size_level0"] = int(attributes["patch_size"]) * ratio
    return features.reshape(-1, entry.dim), coords, attributes


def _read_pt(entry: FeatureEntry) -> tuple[Features, Coords | None, dict[str, Any]]:
    features, coords = load_tensors(entry.path, FEATURES, COORDS)
    places = _as_coords(entry, coords.numpy()) if coords is not None else None
    return to_array(features).reshape(-1, entry.dim), places, {}


def _as_coords(entry: FeatureEntry, found: npt.NDArray[Any]) -> Coords:
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    where = f"slide {entry.slide}, {COORDS}"
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iuf":
        raise CorruptRecordError(entry.path, where, f"shape {found.shape}; needed are x, y of each patch")
    if found.dtype.kind == "f" and not (np.abs(found) < 2.0**53).all():
        raise CorruptRecordError(entry.path, where, "NaN or infinity; extract this slide again")
    return np.ascontiguousarray(found, dtype=np.int64)


def _check_coords(entry: FeatureEntry, features: Features, coords: Coords, attributes: Mapping[str, Any]) -> None:
    where = f"slide {entry.slide}"
    if len(coords) != len(features):
        reason = f"{len(features):,} rows of features but {len(coords):,} coordinates; extract this slide again"
        raise CorruptRecordError(entry.path, where, reason)
    width, height = (int(attributes.get(name) or 0) for name in ("level0_width", "level0_height"))
    if width and height:
        outside = np.flatnonzero((coords >= (width, height)).any(axis=1))
        if len(outside):
            raise CorruptRecordError(
                entry.path,
                f"{where}, row {outside[0]}",
                f"the patch at {tuple(coords[outside[0]].tolist())} is outside the slide of {width:,} x {height:,} "
                "pixels: coordinates of another slide; extract this slide again",
            )
