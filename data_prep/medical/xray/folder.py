"""Images of one's own: a folder for each class, or a table that names image, label and what else is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.names import name_key, unique_names
from data_prep.common.rejects import Reject, excerpt
from data_prep.common.tables import read_table
from data_prep.medical.xray.find import ImageIndex, find_images
from data_prep.medical.xray.records import Asked, Item, Listing, normalise_id, normalise_split, normalise_view

COLUMNS = ("image", "label", "patient", "source", "view", "split", "mask")


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images.

    Args:
        raw: a folder with one folder per class (above them, where wanted, `train`, `val` and `test`), or folders
            with the images of the table.
        asked: `table`: CSV with the columns image and label, and patient, source, view, split, mask where known;
            `patient_pattern`, `patients_per_source`, `channels`.
    """
    pattern = _pattern(asked.patient_pattern)
    if asked.channels not in (1, 3):
        raise ConfigError(f"channels {asked.channels}: give 1 (grey) or 3 (RGB)")
    if asked.table is not None:
        items, rejects = _from_table(raw, asked.table, pattern)
        lists: tuple[Path, ...] = (asked.table,)
    else:
        items, rejects, lists = _from_folders(raw, pattern), [], ()
    return Listing(
        tuple(items),
        lists=lists,
        rejects=tuple(rejects),
        patients_per_source=asked.patients_per_source,
        channels=asked.channels,
    )


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        pattern = re.compile(text) if text else None
    except re.error as error:
        raise ConfigError(f"patient_pattern {text!r}: no regular expression ({error})") from error
    if pattern is not None and pattern.groups != 1:
        raise ConfigError(f"patient_pattern {text!r}: put the patient in one pair of brackets, as in 'person(\\d+)_'")
    return pattern


def _patient(pattern: re.Pattern[str] | None, name: str) -> str:
    found = pattern.search(name) if pattern is not None else None
    return found[1] or "" if found else ""


def _from_folders(raw: Sequence[Path], pattern: re.Pattern[str] | None) -> list[Item]:
    files = find_images(raw)
    names = unique_names(files, raw)
    items = []
    for path, name in zip(files, names, strict=True):
        top = next(top for top in raw if path == top or path.is_relative_to(top))
        parts = path.relative_to(top).parts[:-1]
        split = normalise_split(parts[0]) if parts else ""
        label = normalise_id(parts[1 if split else 0]) if len(parts) > bool(split) else ""
        if not label:
            raise ConfigError(
                f"{path}: is in no folder of a class; put images into {top}/CLASS/ (or {top}/train/CLASS/), "
                "or give a table with --table"
            )
        items.append(Item(name, path, label, normalise_id(_patient(pattern, path.name)), split=split))
    if not items:
        raise DatasetNotFoundError(f"{raw[0]}: holds no PNG, JPEG, TIFF, BMP or DICOM file")
    if any(item.split for item in items) and not all(item.split for item in items):
        odd = next(item for item in items if not item.split)
        raise ConfigError(f"{odd.path}: is neither in train, val nor test, as other images are; move it into one")
    return items


def _from_table(raw: Sequence[Path], path: Path, pattern: re.Pattern[str] | None) -> tuple[list[Item], list[Reject]]:
    table = read_table(path)
    missing = [name for name in ("image", "label") if name not in table.columns]
    if missing:
        raise ConfigError(f"{path}: has no column {missing[0]!r}, only {', '.join(table.columns)}; see --help")
    rows = [{name: row.get(name, "") for name in COLUMNS} for row in table.to_dicts()]
    index = ImageIndex(find_images(raw))
    items: list[Item] = []
    rejects: list[Reject] = []
    files: list[Path] = []
    taken: set[Path] = set()
    for record, row in enumerate(rows):
        file = find_file(row["image"], (path.parent, *raw), index)
        mask = find_file(row["mask"], (path.parent, *raw), None) if row["mask"] else None
        reason = _fault(row, file, mask, "split" in table.columns, file in taken)
        if reason or file is None:
            rejects.append(Reject(path.name, record, "", reason, excerpt(row["image"])))
            continue
        taken.add(file)
        files.append(file)
        patient = row["patient"] or _patient(pattern, file.name)
        items.append(
            Item(
                "",
                file,
                normalise_id(row["label"]),
                normalise_id(patient),
                row["source"],
                normalise_view(row["view"]),
                normalise_split(row["split"]),
                mask=mask,
                record=record,
            )
        )
    names = unique_names(files, (*raw, path.parent))
    return [_named(item, name) for item, name in zip(items, names, strict=True)], rejects


def _named(item: Item, name: str) -> Item:
    values: dict[str, Any] = {field: getattr(item, field) for field in Item.__dataclass_fields__}
    return Item(**{**values, "name": name})


def _fault(row: dict[str, str], file: Path | None, mask: Path | None, split: bool, again: bool) -> str:
    if file is None:
        return "the image file is not there"
    if again:
        return "the image is in the table twice"
    if not row["label"]:
        return "no label"
    if row["mask"] and mask is None:
        return "the mask file is not there"
    if split and not normalise_split(row["split"]):
        return "the split is none of train, valid, test"
    return ""


def find_file(name: str, folders: Sequence[Path], index: ImageIndex | None) -> Path | None:
    """A file by its path, beside the table or in the raw folders, else by its name wherever it is there."""
    if not name_key(name):
        return None
    for folder in folders:
        path = (folder if folder.is_dir() else folder.parent) / name
        if path.is_file():
            return path
    return index.find(name) if index is not None else None
