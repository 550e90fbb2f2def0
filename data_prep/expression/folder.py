"""Pictures of one's own: a folder for each class, or a table that names image, label and what else is known."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, DatasetNotFoundError, LeakError
from data_prep.common.files import translate_os_errors
from data_prep.common.images import SUFFIXES
from data_prep.common.names import FileIndex, name_key, unique_names
from data_prep.common.rejects import Reject, excerpt
from data_prep.common.tables import read_table
from data_prep.expression.records import (
    Asked,
    Listing,
    archives_hint,
    find_images,
    find_named,
    normalise_split,
    subject_finder,
    to_rows,
)
from data_prep.expression.taxonomy import clean, expression

_NAMES = {
    "image": ("image", "file", "filename", "path"),
    "label": ("label", "emotion", "expression", "class"),
    "subject": ("subject", "person", "participant"),
    "split": ("split", "usage"),
    "source": ("source", "video"),
}
_BOX = ("x", "y", "width", "height")
_TABLE = r".*\.[ct]sv"


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images.

    Args:
        raw: a folder with one folder per class (above them, where wanted, `train`, `val` and `test`), or folders
            with the images of the table.
        asked: `table`: CSV with the columns image and label, and subject, split, source, x, y, width, height where
            known; `subject_pattern`.
    """
    pattern = subject_finder(asked.subject_pattern)
    if asked.table is None:
        return from_folders(raw, pattern)
    return _from_table(raw, asked.table, pattern)


def from_folders(raw: Sequence[Path], pattern: re.Pattern[str] | None = None) -> Listing:
    """List the images of folders of classes.

    Args:
        raw: folders with a folder for each class, or with `train`, `val` and `test` above these.
        pattern: finds the subject in a file name.
    """
    files = find_images(raw)
    tables = _find_tables(raw)
    if not files:
        looked = ", ".join(sorted(SUFFIXES))
        raise DatasetNotFoundError(f"{raw[0]}: holds no image; looked for {looked}{archives_hint(raw)}")
    rows = []
    for path, name in zip(files, unique_names(files, raw), strict=True):
        top = next(top for top in raw if path == top or path.is_relative_to(top))
        parts = path.relative_to(top).parts[:-1]
        split = normalise_split(parts[0]) if parts else ""
        label = clean(parts[1 if split else 0]) if len(parts) > bool(split) else ""
        if not label:
            hint = f"such as --table {tables[0]}" if tables else "with the columns image and label"
            raise ConfigError(
                f"{path}: is in no folder of a class; put images into {top}/CLASS/ (or {top}/train/CLASS/), or give a "
                f"table with --table, {hint}"
            )
        found = pattern.search(path.name) if pattern is not None else None
        subject = clean(found[1] or "") if found else ""
        rows.append({"name": name, "path": str(path), "label": label, "split": split, "subject": subject})
    if any(row["split"] for row in rows):
        odd = next((row["path"] for row in rows if not row["split"]), None)
        if odd is not None:
            raise ConfigError(f"{odd}: is neither in train, val nor test, as other images are; move it into one")
    labels = {row["label"] for row in rows}
    if tables and len(labels) == 1:
        raise ConfigError(
            f"{raw[0]}: all images are in one folder, {labels.pop()!r}, and a table of labels lies beside it: give it "
            f"with --table {tables[0]}"
        )
    unread = "a table of labels lies beside the images and is not read: folders tell the class; --table takes the table"
    inside = [path for path in tables if any(path.is_relative_to(top) for top in raw)]
    return Listing(to_rows(rows), "folder", remarks=tuple(Reject(path.name, 0, "", unread, "") for path in inside))


def _find_tables(raw: Sequence[Path]) -> list[Path]:
    """Tables whose header names images and labels: below the raw folders, then beside them."""
    found = list(find_named(raw, _TABLE))
    for top in raw:
        with translate_os_errors(top):
            found += find_named(sorted(path for path in top.parent.iterdir() if path.is_file()), _TABLE)
    return [path for path in dict.fromkeys(found) if _names_images(path)]


def _names_images(path: Path) -> bool:
    with translate_os_errors(path), path.open("rb") as stream:
        head = stream.readline(1 << 12).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    columns = {name.strip(' "\r\n').lower() for name in re.split(r"[,\t;]", head)}
    return all(columns & set(_NAMES[meaning]) for meaning in ("image", "label"))


def _from_table(raw: Sequence[Path], path: Path, pattern: re.Pattern[str] | None) -> Listing:
    cells, columns = _read_cells(path)
    images = find_images(raw)
    index = FileIndex(images, SUFFIXES)
    rejects: list[Reject] = []
    remarks: list[Reject] = []
    kept: dict[Path, dict[str, Any]] = {}
    torn: set[Path] = set()
    for record, row in enumerate(cells):
        file = _find(row["image"], (path.parent, *raw), index)
        reason = _fault(row, file, columns)
        if reason or not isinstance(file, Path):
            rejects.append(Reject(path.name, record, "", reason, excerpt(row["image"])))
            continue
        found = pattern.search(file.name) if pattern is not None and not row["subject"] else None
        entry: dict[str, Any] = {
            **{"path": str(file), "label": clean(row["label"]), "record": record, "source": row["source"]},
            **{"subject": clean(row["subject"] or (found[1] or "" if found else ""))},
            **{"split": normalise_split(row["split"]), "box": _box(row)},
        }
        before = kept.setdefault(file, entry)
        if before is not entry:
            if before["split"] != entry["split"]:
                raise LeakError(
                    f"{path}: row {record:,}: image {file.name!r} is of {entry['split']}, and of {before['split']} in "
                    f"row {before['record']:,}; name each image once"
                )
            same = (expression(before["label"]) or before["label"]) == (expression(entry["label"]) or entry["label"])
            torn |= set() if same else {file}
            what = f"row {before['record']} says the same" if same else f"row {before['record']} has another label"
            remarks.append(Reject(path.name, record, "image", f"the image is listed twice: {what}", excerpt(file.name)))
    for file in sorted(torn):
        entry = kept.pop(file)
        reason = "the rows of this image have several labels"
        rejects.append(Reject(path.name, entry["record"], "label", reason, excerpt(file.name)))
    listed = {*kept, *torn}
    spare = [image for image in images if image not in listed]
    remarks += [Reject(image.name, 0, "", "no row of the table names this image", "") for image in spare]
    if not kept:
        first = f" (first: {rejects[0].reason}, {rejects[0].excerpt})" if rejects else ""
        raise DatasetNotFoundError(f"{path}: no row names a usable image below {raw[0]}{first}")
    names = unique_names(list(kept), (*raw, path.parent))
    rows = [{**entry, "name": name} for entry, name in zip(kept.values(), names, strict=True)]
    notes = {"images_without_row": len(spare), "rows_listed_twice": len(remarks) - len(spare)}
    return Listing(to_rows(rows), "folder", (path,), rejects=tuple(rejects), remarks=tuple(remarks), notes=notes)


def _read_cells(path: Path) -> tuple[list[dict[str, str]], frozenset[str]]:
    table = read_table(path)
    known = {
        meaning: next(word for word in words if word in table.columns)
        for meaning, words in _NAMES.items()
        if any(word in table.columns for word in words)
    }
    for meaning in ("image", "label"):
        if meaning not in known:
            has = ", ".join(table.columns)
            raise ConfigError(f"{path}: has no column {meaning!r} (or {', '.join(_NAMES[meaning][1:])}), only {has}")
    sides = [name for name in _BOX if name in table.columns]
    if sides and len(sides) < len(_BOX):
        raise ConfigError(f"{path}: has a column {sides[0]!r}, but not all of {', '.join(_BOX)} of a face's box")
    names = {**{meaning: known.get(meaning, "") for meaning in _NAMES}, **{name: name for name in sides}}
    rows = [{key: row.get(name, "") for key, name in names.items()} for row in table.to_dicts()]
    return rows, frozenset({*known, *sides})


def _find(name: str, folders: Sequence[Path], index: FileIndex) -> Path | str:
    """The file of a name, or why there is none."""
    if not name_key(name):
        return "no image is named"
    for folder in folders:
        path = (folder if folder.is_dir() else folder.parent) / name
        if path.is_file():
            return path
    found = index.all(name)
    if len(found) > 1:
        return f"{len(found)} files have this name; give their paths"
    return found[0] if found else "the image file is not there"


def _fault(row: dict[str, str], file: Path | str, columns: frozenset[str]) -> str:
    if isinstance(file, str):
        return file
    if file.suffix.lower() not in SUFFIXES:
        return "the file is no image by its suffix"
    if not row["label"]:
        return "no label"
    if "split" in columns and not normalise_split(row["split"]):
        return "the split is none of train, valid, test"
    if "x" in columns and _box(row) is None and any(row[name] for name in _BOX):
        return "the box of the face is not four numbers"
    return ""


def _box(row: dict[str, str]) -> list[float] | None:
    try:
        box = [float(row[name]) for name in _BOX]
    except (KeyError, ValueError):
        return None
    return box if all(map(math.isfinite, box)) and min(box[2:]) > 0 else None
