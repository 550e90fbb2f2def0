"""One file of annotations: images and persons decoded record by record, and checked.

What cannot be used is a reject; what was put right, or is kept although it looks wrong, is a remark. Both name the
file, the place of the record in it, and its ids.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.rejects import Reject, excerpt, to_frame
from data_prep.pose.people.coco_json import read_document
from data_prep.pose.people.repair import Persons, repair

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
LARGEST_ID = 1 << 62
LARGEST_SIDE = 1 << 16  # pixels
_TWICE = "the id is that of another file, too: whose annotations these are is unknown"
IMAGES = {
    "record": pl.UInt64,
    "image_id": pl.Int64,
    "file": pl.String,
    "width": pl.Int64,  # 0: the file does not say
    "height": pl.Int64,
    "crowd_index": pl.Float64,
    "group": pl.String,
}


class ImageEntry(msgspec.Struct):
    """An entry of `images`."""

    id: int
    file_name: str
    width: float | None = None
    height: float | None = None
    crowd_index: float | None = msgspec.field(name="crowdIndex", default=None)


class PersonEntry(msgspec.Struct):
    """An entry of `annotations`; null stands for what is no number."""

    id: int | None = None
    image_id: int | None = None
    category_id: int | None = None
    bbox: list[float | None] | None = None
    area: float | None = None
    iscrowd: float | bool | None = None
    num_keypoints: float | None = None
    keypoints: list[float | None] | None = None


class NestedEntry(PersonEntry):
    """The same with keypoints one level too deep."""

    keypoints: list[list[float | None]] | None = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Rules:
    """How a file is read.

    Args:
        n_keypoints: K.
        category: id of the category with keypoints.
        categories: ids of all.
        area_of_box: the data have no areas: that of the box is taken without a word.
        group: field of an image's entry that says what must stay on one side of a split; empty: none does.
    """

    n_keypoints: int
    category: int
    categories: tuple[int, ...]
    area_of_box: bool = False
    group: str = ""


@dataclass
class Notes:
    """What is to be told about the records of a file.

    Args:
        source: name of the file.
        rejects: records that cannot be used.
        remarks: what was repaired, or looks wrong.
        counts: of what is no fault.
    """

    source: str
    rejects: list[Reject] = field(default_factory=list)
    remarks: list[Reject] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def reject(self, record: int, what: str, reason: str, shown: str = "") -> None:
        """Note a record that cannot be used."""
        self.rejects.append(Reject(self.source, record, what, reason, excerpt(shown)))

    def remark(self, record: int, what: str, reason: str, shown: str = "") -> None:
        """Note a repair, or a doubt."""
        self.remarks.append(Reject(self.source, record, what, reason, excerpt(shown)))


def read_records(path: Path, rules: Rules, folder: Path) -> dict[str, Any]:
    """Task: decode a file; write images, persons, rejects and remarks as tables into `folder`.

    Raises:
        CorruptRecordError: the file as a whole cannot be read.
    """
    document = read_document(path)
    notes = Notes(path.name)
    images = read_images(document.images, rules, notes)
    persons = repair(read_persons(document.annotations, images, rules, notes), notes, area_of_box=rules.area_of_box)
    tables = {
        "images": images,
        "persons": persons.frame(rules.n_keypoints),
        "rejects": to_frame(notes.rejects),
        "remarks": to_frame(notes.remarks),
    }
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet", compression="zstd", statistics=False)
    read = {"images": len(document.images), "annotations": len(document.annotations)}
    return {"read": read, "counts": dict(sorted(notes.counts.items()))}


def read_images(raws: Sequence[msgspec.Raw], rules: Rules, notes: Notes) -> pl.DataFrame:
    """Decode the entries of images.

    Args:
        raws: the entries.
        rules: how.
        notes: of the file.

    Returns:
        A table with the columns of `IMAGES`; ids are unique.
    """
    rows: dict[int, list[Any]] = {}
    spoilt: set[int] = set()
    for record, raw in enumerate(raws):
        entry = _decode(raw, (ImageEntry,), record, "images", notes)
        if entry is None:
            continue
        shown = f"image {entry.id}, {entry.file_name}"
        fault = _image_fault(entry)
        group, missing = _group(raw, rules.group)
        if fault or missing:
            notes.reject(record, "images", fault or missing, shown)
            continue
        width, height = (int(side or 0) for side in (entry.width, entry.height))
        row = [record, entry.id, entry.file_name, width, height, entry.crowd_index, group]
        before = rows.get(entry.id)
        if before is None:
            rows[entry.id] = row
        elif before[2] == entry.file_name:
            notes.reject(record, "images", "repeats an image", f"{shown}: record {before[0]}")
        else:
            spoilt.add(entry.id)
            notes.reject(record, "images", _TWICE, shown)
    for image in sorted(spoilt):  # the first of that id is no better known
        row = rows.pop(image)
        notes.reject(row[0], "images", _TWICE, f"image {image}, {row[2]}")
    return pl.DataFrame(list(rows.values()), schema=IMAGES, orient="row")


def _image_fault(entry: ImageEntry) -> str:
    if abs(entry.id) > LARGEST_ID:
        return "the id is too large"
    if not entry.file_name.strip():
        return "has no file name"
    for name, side in (("width", entry.width), ("height", entry.height)):
        if side is not None and not (0 <= side <= LARGEST_SIDE and side == int(side)):
            return f"{name} is no number of pixels"
    return ""


def _group(raw: msgspec.Raw, name: str) -> tuple[str, str]:
    """The group of an image, and what is wrong with it."""
    if not name:
        return "", ""
    value = msgspec.json.decode(raw).get(name)
    if value is None or isinstance(value, list | dict) or not str(value).strip():
        return "", f"has no {name}, by which images are grouped"
    return str(value).strip(), ""


def read_persons(raws: Sequence[msgspec.Raw], images: pl.DataFrame, rules: Rules, notes: Notes) -> Persons:
    """Decode the entries of annotations; numbers are looked at later, all at once.

    Args:
        raws: the entries.
        images: table of the images that are known.
        rules: how.
        notes: of the file.
    """
    known = set(images["image_id"].to_list())
    columns: dict[str, list[Any]] = {name: [] for name in ("record", "id", "image", "crowd", "counted", "area")}
    boxes, points = array("d"), array("d")
    for record, raw in enumerate(raws):
        entry = _decode(raw, (PersonEntry, NestedEntry), record, "annotations", notes)
        if entry is None or not _is_ours(entry, record, known, rules, notes):
            continue
        shown = _shown(entry)
        flat = _points(entry, record, rules, notes)
        crowd = _crowd(entry, record, notes)
        if flat is None or crowd is None:
            continue
        if entry.bbox is None or len(entry.bbox) != 4:
            found = "no box" if entry.bbox is None else f"a box of {len(entry.bbox)} numbers"
            notes.reject(record, "bbox", f"has {found}; give left, top, width, height", shown)
            continue
        boxes.extend(_numbers(entry.bbox))
        points.extend(flat)
        values = (record, entry.id, entry.image_id, crowd, entry.num_keypoints, entry.area)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    shape = (len(columns["id"]), rules.n_keypoints, 3)
    return Persons(
        np.array(columns["record"], np.int64),
        _give_ids(columns["id"]),
        np.array([number is not None for number in columns["id"]], bool),
        np.array(columns["image"], np.int64),
        np.array(columns["crowd"], bool),
        np.array(_numbers(columns["counted"]), np.float64),
        np.array(_numbers(columns["area"]), np.float64),
        np.array([area is not None for area in columns["area"]], bool),
        np.frombuffer(boxes, np.float64).reshape(-1, 4).copy(),
        np.frombuffer(points, np.float64).reshape(shape).copy(),
    )


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _give_ids(given: Sequence[int | None]) -> I64:
    """Ids; annotations without one get those behind the largest."""
    following = max((number for number in given if number is not None), default=0) + 1
    ids = []
    for number in given:
        ids.append(following if number is None else number)
        following += number is None
    return np.array(ids, np.int64)


def _decode(raw: msgspec.Raw, kinds: Sequence[Any], record: int, what: str, notes: Notes) -> Any:
    """Decode a record as the first form that fits; then with numbers written as texts; else None, and a reject."""
    first: Exception | None = None
    for strict in (True, False):
        for kind in kinds:
            try:
                entry = msgspec.json.decode(raw, type=kind, strict=strict)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
                first = first or error
                continue
            if not strict:
                notes.remark(record, what, "numbers written as texts are taken as numbers", _text(raw))
            return entry
    reason, _, place = str(first).partition(" - at ")
    at = place.strip("`").removeprefix("$.") or "record"
    notes.reject(record, what, f"{at}: {reason[:1].lower()}{reason[1:]}", _text(raw))
    return None


def _text(raw: msgspec.Raw) -> str:
    return excerpt(" ".join(bytes(raw)[:2000].decode("utf-8", "backslashreplace").split()))


def _shown(entry: PersonEntry) -> str:
    return f"annotation {entry.id}, image {entry.image_id}"


def _is_ours(entry: PersonEntry, record: int, known: set[int], rules: Rules, notes: Notes) -> bool:
    """Whether a record is an object of the category with keypoints, on an image that is known."""
    shown = _shown(entry)
    if entry.category_id != rules.category:
        if entry.category_id in rules.categories:
            notes.counts["annotations_of_other_categories"] += 1
            return False
        if len(rules.categories) != 1:
            shown = f"{shown}, category {entry.category_id}"
            notes.reject(record, "category_id", "the category is not in the file", shown)
            return False
        reason = "the category is not in the file: taken as the only one that is"
        notes.remark(record, "category_id", reason, f"{shown}, category {entry.category_id}")
    if entry.image_id not in known:
        notes.reject(record, "image_id", "its image is not in the file, or cannot be used", shown)
        return False
    if entry.id is not None and abs(entry.id) > LARGEST_ID:
        notes.reject(record, "id", "the id is too large", shown)
        return False
    return True


def _crowd(entry: PersonEntry, record: int, notes: Notes) -> bool | None:
    if entry.iscrowd is None:
        notes.remark(record, "iscrowd", "is missing: taken as 0, one person", _shown(entry))
        return False
    if entry.iscrowd not in (0, 1):
        notes.reject(record, "iscrowd", "is neither 0 nor 1", f"{_shown(entry)}: {entry.iscrowd:g}")
        return None
    return bool(entry.iscrowd)


def _points(entry: PersonEntry, record: int, rules: Rules, notes: Notes) -> list[float] | None:
    """The 3 K numbers of an annotation."""
    shown, wanted = _shown(entry), 3 * rules.n_keypoints
    if not entry.keypoints:
        if entry.num_keypoints:
            notes.reject(record, "keypoints", "are missing, and num_keypoints is not 0", shown)
            return None
        notes.counts["annotations_without_keypoints_entry"] += 1
        return [0.0] * wanted
    values: list[Any] = entry.keypoints
    if isinstance(entry, NestedEntry):
        values = [value for part in values for value in part]
        if len(values) == wanted:
            notes.remark(record, "keypoints", "lists inside the list are joined", shown)
    if len(values) != wanted:
        reason = f"are not {wanted} numbers: x, y and flag of each of {rules.n_keypoints}"
        notes.reject(record, "keypoints", reason, f"{shown}: {len(values)} numbers")
        return None
    return _numbers(values)
