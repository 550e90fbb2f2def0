"""RAF-DB basic (Li, Deng and Du, 2017): photographs from the web; 12,271 for training, 3,068 for test, seven classes.

`EmoLabel/list_patition_label.txt` with lines `train_00001.jpg 5`; `Image/aligned/train_00001_aligned.jpg` (100 x 100)
and `Image/original/train_00001.jpg`; `Annotation/boundingbox/train_00001_boundingbox.txt` (left, top, right, bottom)
and `Annotation/manual/train_00001_manu_attri.txt`, whose first five lines are eyes, nose and corners of the mouth.
Copies of the data set come as `{train,test}/{1..7}/*.jpg`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.common.images import SUFFIXES
from data_prep.common.names import unique_names
from data_prep.common.raw import walk
from data_prep.common.rejects import Reject, excerpt
from data_prep.expression.records import Asked, Listing, normalise_split, to_rows

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # of the codes 1, 2, ...
LICENCE = "on request, for non-commercial research"
NOTE = "nobody knows who is on the images: one person may be in several splits"
_LIST = r"list_par?tition_label\.txt"  # the published file is called list_patition_label.txt
_LONGEST = 1 << 26  # bytes of the list
_POINTS = 10


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images: the aligned ones, or the originals where faces are to be aligned here.

    Args:
        raw: the folder of the data set.
        asked: `align`.
    """
    files = list(dict.fromkeys(walk(raw)))
    lists = [path for path in files if re.fullmatch(_LIST, path.name, re.IGNORECASE)]
    if len(lists) > 1:
        raise ConfigError(f"{raw[0]}: {len(lists)} lists, {lists[0]} and {lists[1]}; give the folder of one data set")
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not lists:
        return _from_folders(raw, images)
    original = asked.align != "none"
    pictures = Pictures(_by_stem(images, aligned=not original), _by_stem(images, aligned=original), original)
    boxes = {path.name.lower(): path for path in files if path.suffix.lower() == ".txt"} if original else {}
    lines = [(record, line.split()) for record, line in enumerate(_lines(lists[0]))]
    rows, rejects = _from_list(lists[0], [line for line in lines if line[1]], pictures, boxes)
    listed = {_stem(words[0]) for _, words in lines if words}
    remarks = [
        Reject(path.name, 0, "", "no line of the list names this image", "")
        for stem, paths in pictures.wanted.items()
        for path in paths
        if stem not in listed
    ]
    notes = {"images_without_label": len(remarks), "files": "original" if original else "aligned"}
    return Listing(
        *(to_rows(rows), "raf-db", (lists[0],), LICENCE, CLASSES, tuple(rejects), tuple(remarks)),
        note=NOTE,
        notes=notes,
    )


class Pictures(NamedTuple):
    """Image files by what the list calls them.

    Args:
        wanted: of the kind that is read.
        others: of the other kind.
        original: whether originals are read.
    """

    wanted: dict[str, list[Path]]
    others: dict[str, list[Path]]
    original: bool

    def fault(self, stem: str) -> str:
        """Why an image cannot be read; empty: it can."""
        found = self.wanted.get(stem, [])
        if len(found) > 1:
            return f"{len(found)} image files have this name"
        if found:
            return ""
        if stem not in self.others:
            return "the image file is not there"
        if self.original:
            return "the original is not there, the aligned image alone; --align none takes the aligned ones"
        return "the aligned image is not there, the original alone; --align given cuts the faces of the originals"


def _by_stem(images: Sequence[Path], *, aligned: bool) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in images:
        stem = _stem(path.name)
        if aligned == (stem.endswith("_aligned") or path.parent.name.lower() == "aligned"):
            found.setdefault(stem.removesuffix("_aligned"), []).append(path)
    return found


def _stem(name: str) -> str:
    return Path(name).stem.lower()


def _from_list(
    path: Path, lines: Sequence[tuple[int, Sequence[str]]], pictures: Pictures, boxes: dict[str, Path]
) -> tuple[list[dict[str, Any]], list[Reject]]:
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    seen: dict[str, str] = {}
    for record, words in lines:
        stem = _stem(words[0])
        code = int(words[1]) if len(words) == 2 and words[1].isdecimal() and words[1].isascii() else 0
        split = normalise_split(stem.partition("_")[0])
        reason = pictures.fault(stem)
        if not 1 <= code <= len(CLASSES):
            reason = f"the label is outside 1 to {len(CLASSES)}"
        elif not split:
            reason = "the name begins neither with train nor with test"
        elif stem in seen:
            reason = f"the image is listed twice, with the labels {seen[stem]} and {words[1]}"
        if reason:
            rejects.append(Reject(path.name, record, "", reason, excerpt(" ".join(words))))
            continue
        seen[stem] = words[1]
        place = {"name": words[0], "path": str(pictures.wanted[stem][0]), "split": split, "record": record}
        rows.append({**place, "label": CLASSES[code - 1], **_face(stem, boxes)})
    if not rows:
        first = f" (first: {rejects[0].reason}: {rejects[0].excerpt})" if rejects else ""
        raise DatasetNotFoundError(f"{path}: no line names an image that is there{first}; keep Image beside EmoLabel")
    return rows, rejects


def _lines(path: Path) -> list[str]:
    with translate_os_errors(path):
        if path.stat().st_size > _LONGEST:
            raise CorruptRecordError(path, "file", f"{path.stat().st_size:,} bytes are no list of this data set")
        return path.read_bytes().decode("utf-8", "replace").splitlines()


def _face(stem: str, boxes: dict[str, Path]) -> dict[str, Any]:
    """Box and points of a face where their files are there and hold numbers; else nothing is given."""
    found: dict[str, Any] = {}
    corners = _numbers(boxes.get(f"{stem}_boundingbox.txt"), 4)
    if corners is not None and corners[2] > corners[0] and corners[3] > corners[1]:
        found["box"] = [corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]]
        points = _numbers(boxes.get(f"{stem}_manu_attri.txt"), _POINTS)
        found |= {"points": points} if points is not None else {}
    return found


def _numbers(path: Path | None, count: int) -> list[float] | None:
    if path is None:
        return None
    try:
        with translate_os_errors(path):
            found = [float(word) for word in path.read_bytes()[: 1 << 16].split()[:count]]
    except ValueError:
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def _from_folders(raw: Sequence[Path], images: Sequence[Path]) -> Listing:
    rows: list[dict[str, Any]] = []
    for path, name in zip(images, unique_names(images, raw), strict=True):
        code, split = path.parent.name, normalise_split(path.parent.parent.name)
        if code not in set("1234567") or not split:
            raise DatasetNotFoundError(
                f"{path}: is in no folder as in train/5, and no EmoLabel/list_patition_label.txt is below {raw[0]}"
            )
        rows.append({"name": name, "path": str(path), "label": CLASSES[int(code) - 1], "split": split})
    if not rows:
        raise DatasetNotFoundError(
            f"{raw[0]}: neither EmoLabel/list_patition_label.txt with Image/aligned nor folders train/1 to test/7"
        )
    return Listing(to_rows(rows), "raf-db", licence=LICENCE, classes=CLASSES, note=NOTE)
