"""Numbers of annotations, all at once: what is impossible is repaired where only one way is open, else rejected."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
FARTHEST = 1e6  # pixels; no keypoint is as far away
FLAGS = (0, 1, 2)  # not labelled, labelled but hidden, labelled and visible


class Noted(Protocol):
    """Where rejects and remarks are collected."""

    def reject(self, record: int, what: str, reason: str, shown: str = "") -> None:
        """Note a record that cannot be used."""
        ...

    def remark(self, record: int, what: str, reason: str, shown: str = "") -> None:
        """Note a repair, or a doubt."""
        ...


@dataclass(frozen=True)
class Persons:
    """Annotations of a file, as columns.

    Args:
        record: place in the file.
        id: of the annotation.
        has_id: whether the file gives it.
        image: id of the image.
        crowd: a region of many.
        counted: number of labelled keypoints as the file says it; NaN: it does not.
        area: square pixels; NaN: no number.
        has_area: whether the file gives one.
        box: left, top, width, height in pixels.
        keypoints: x, y in pixels, and flag.

    Shape:
        all (N,), but box (N, 4), keypoints (N, K, 3).
    """

    record: I64
    id: I64
    has_id: Mask
    image: I64
    crowd: Mask
    counted: F64
    area: F64
    has_area: Mask
    box: F64
    keypoints: F64

    def where(self, kept: Mask) -> Persons:
        """Some of them."""
        return Persons(*(getattr(self, each.name)[kept] for each in fields(self)))

    def frame(self, n_keypoints: int) -> pl.DataFrame:
        """As a table."""
        labelled = (self.keypoints[:, :, 2] > 0).sum(1)
        return pl.DataFrame(
            {
                "record": self.record.astype(np.uint64),
                "image_id": self.image,
                "annotation_id": self.id,
                "box": pl.Series(self.box, dtype=pl.Array(pl.Float64, 4)),
                "area": self.area,
                "crowd": self.crowd,
                "labelled": labelled.astype(np.uint16),
                "keypoints": pl.Series(
                    self.keypoints.reshape(len(self.record), 3 * n_keypoints),
                    dtype=pl.Array(pl.Float64, 3 * n_keypoints),
                ),
            }
        )


def repair(persons: Persons, notes: Noted, *, area_of_box: bool = False) -> Persons:
    """Check and repair.

    Args:
        persons: as the file has them; not changed.
        notes: what is told about it.
        area_of_box: the data have no areas: that of the box is taken without a word.

    Returns:
        Those that can be used: coordinates finite, flags 0, 1 or 2, boxes without negative sides, areas above 0, ids
        unique.
    """
    keypoints = _repair_keypoints(persons, notes)
    persons = Persons(**{**_columns(persons), "keypoints": keypoints})
    persons = persons.where(_check_boxes(persons, notes))
    persons = Persons(**{**_columns(persons), "area": _repair_areas(persons, notes, area_of_box=area_of_box)})
    empty = persons.area <= 0
    _tell(persons, empty, notes.reject, "bbox", "neither the box nor the area is larger than 0")
    persons = persons.where(~empty)
    flat = (persons.box[:, 2:] <= 0).any(1)
    _tell(persons, flat, notes.remark, "bbox", "the box has no area: evaluated, but not trained on")
    return _separate(persons, notes)


def _columns(persons: Persons) -> dict[str, Any]:
    return {each.name: getattr(persons, each.name) for each in fields(persons)}


def _tell(persons: Persons, found: Any, note: Any, what: str, reason: str, numbers: Any = None) -> None:
    """Note the reason for each annotation that was found, with its number where there are some."""
    for row in np.flatnonzero(found):
        number = f": {numbers[row]:g}" if numbers is not None else ""
        shown = f"annotation {persons.id[row]}, image {persons.image[row]}{number}"
        note(int(persons.record[row]), what, reason, shown)


def _repair_keypoints(persons: Persons, notes: Noted) -> F64:
    points = persons.keypoints.copy()
    place, flag = points[:, :, :2], points[:, :, 2]
    stated = (np.nan_to_num(flag) > 0).sum(1)
    broken = ~((np.abs(place) <= FARTHEST).all(2) & np.isfinite(flag))  # NaN is not below any number
    points[broken] = 0
    reason = "keypoints with a coordinate or flag that is no possible number: taken as not labelled"
    _tell(persons, broken.any(1), notes.remark, "keypoints", reason, broken.sum(1))
    negative = flag < 0
    odd = ~np.isin(flag, FLAGS)
    reason = "keypoints with a flag that is none of 0, 1, 2: above 0 taken as 2, labelled; below as 0, not labelled"
    _tell(persons, odd.any(1), notes.remark, "keypoints", reason, odd.sum(1))
    points[:, :, 2] = np.where(negative, 0, np.where(odd, 2, flag))
    flag = points[:, :, 2]
    at_origin = (flag > 0) & (place == 0).all(2)
    reason = "keypoints flagged as labelled at 0, 0, where those lie that are not: taken as not labelled"
    _tell(persons, at_origin.any(1), notes.remark, "keypoints", reason, at_origin.sum(1))
    points[at_origin] = 0
    points[negative] = 0
    placed = (flag == 0) & (place != 0).any(2)
    reason = "keypoints with a place but flag 0: taken as not labelled"
    _tell(persons, placed.any(1), notes.remark, "keypoints", reason, placed.sum(1))
    points[placed] = 0
    recounted = np.isfinite(persons.counted) & (persons.counted != stated)
    _tell(persons, recounted, notes.remark, "num_keypoints", "disagrees with the flags: counted anew", persons.counted)
    return points


def _check_boxes(persons: Persons, notes: Noted) -> Mask:
    box = persons.box
    unreal = ~(np.abs(box) <= FARTHEST).all(1)
    _tell(persons, unreal, notes.reject, "bbox", "the box has a number that is none, or is impossible")
    negative = ~unreal & (box[:, 2:] < 0).any(1)
    reason = "the box has a negative width or height; give left, top, width, height"
    _tell(persons, negative, notes.reject, "bbox", reason)
    return np.asarray(~(unreal | negative))


def _repair_areas(persons: Persons, notes: Noted, *, area_of_box: bool) -> F64:
    of_box = persons.box[:, 2] * persons.box[:, 3]
    if area_of_box:
        return of_box
    usable = persons.area > 0  # NaN is not
    usable &= persons.area <= FARTHEST**2
    replaced = ~usable & (of_box > 0)
    _tell(persons, replaced & ~persons.has_area, notes.remark, "area", "is missing, or no number: taken from the box")
    reason = "is no possible one: taken from the box"
    _tell(persons, replaced & persons.has_area, notes.remark, "area", reason, persons.area)
    return np.where(usable, persons.area, of_box)


def _separate(persons: Persons, notes: Noted) -> Persons:
    """Reject what repeats an annotation, and give an id of its own to what is another one."""
    _tell(persons, ~persons.has_id, notes.remark, "id", "is missing: the annotation gets one")
    counts = Counter(persons.id.tolist())
    if len(counts) == len(persons.id):
        return persons
    ids, kept = persons.id.copy(), np.ones(len(persons.id), bool)
    first: dict[int, list[int]] = {}
    following = max(counts) + 1
    for row in np.flatnonzero([counts[number] > 1 for number in persons.id.tolist()]):
        number = int(persons.id[row])
        shown = f"annotation {number}, image {persons.image[row]}"
        record = int(persons.record[row])
        before = first.setdefault(number, [])
        same = next((other for other in before if _equal(persons, other, int(row))), None)
        if same is not None:
            kept[row] = False
            notes.reject(record, "id", "repeats an annotation", f"{shown}: record {persons.record[same]}")
        elif before:
            ids[row] = following
            notes.remark(record, "id", "is that of another annotation, too: changed", f"{shown}: now {following}")
            following += 1
        before.append(int(row))
    return Persons(**{**_columns(persons), "id": ids}).where(kept)


def _equal(persons: Persons, one: int, other: int) -> bool:
    return all(
        np.array_equal(getattr(persons, name)[one], getattr(persons, name)[other])
        for name in ("image", "crowd", "area", "box", "keypoints")
    )
