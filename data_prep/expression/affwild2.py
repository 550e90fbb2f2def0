"""Aff-Wild2, challenge of expressions (Kollias, 2022, ABAW): frames of videos, one number for each.

`EXPR*/Train_Set/VIDEO.txt` and `Validation_Set/VIDEO.txt`: a line with the names of the classes, then a line for each
frame, -1 where it has no label. `cropped_aligned/VIDEO/00001.jpg` belongs to the first of these. Frames in which no
face was found are missing; some videos have more frames than lines.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.common.hashing import hash_numbers, hash_strings
from data_prep.common.rejects import Reject, excerpt
from data_prep.common.telling import few
from data_prep.expression.records import BLANK, ROWS, Asked, Listing, find_named
from data_prep.expression.taxonomy import expression

CLASSES = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other")  # of the codes 0, 1, ...
LICENCE = "on request, for non-commercial research"
SETS = {"train_set": "train", "validation_set": "test", "valid_set": "test", "training_set": "train"}
NOTE = (
    "the published validation set is the split test, whose labels are known; validation videos are taken from the "
    "training set; one person may be in several videos"
)
_FRAME = re.compile(r"(\d+)\.(jpe?g|png)", re.IGNORECASE)
I64 = npt.NDArray[np.int64]


class Annotation(NamedTuple):
    """Labels of one video.

    Args:
        path: the file.
        split: it belongs to.
        codes: of each frame, -1 without label, -2 where the line is no code.
    """

    path: Path
    split: str
    codes: I64


class Drawn(NamedTuple):
    """Most training frames.

    Args:
        per_video: of a video; 0: all.
        per_label: of a video with one label; 0: all.
        seed: of the choice.
    """

    per_video: int
    per_label: int
    seed: int


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the frames that have a label.

    Args:
        raw: folders of frames and of annotations.
        asked: `per_video`, `per_video_label`, `seed`.
    """
    if asked.per_video < 0 or asked.per_video_label < 0:
        raise ConfigError("per_video and per_video_label count frames; 0 takes all")
    files = [path for path in find_named(raw, r".*\.txt") if path.parent.name.lower() in SETS]
    if not files:
        raise DatasetNotFoundError(f"{raw[0]}: no annotations as in EXPR_Recognition_Challenge/Train_Set/VIDEO.txt")
    video, most = Counter(path.stem for path in files).most_common(1)[0]
    if most > 1:
        one, other = [path for path in files if path.stem == video][:2]
        raise ConfigError(f"{other}: video {video!r} has annotations in {one}, too; give one set of EXPR alone")
    folders = _find_folders(raw, {path.stem for path in files})
    drawn = Drawn(asked.per_video, asked.per_video_label, asked.seed)
    counts: Counter[str] = Counter()
    tables: list[pl.DataFrame] = []
    rejects: list[Reject] = []
    remarks: list[Reject] = []
    for path in files:
        if path.stem not in folders:
            rejects.append(Reject(path.name, 0, "video", "the folder of its frames is not there", ""))
            continue
        table = _list_video(read_annotation(path, rejects), folders[path.stem], drawn, counts, remarks)
        if not len(table):
            remarks.append(Reject(path.name, 0, "video", "the video has no frame with a label", ""))
        tables.append(table)
    if not any(map(len, tables)):
        raise DatasetNotFoundError(
            f"{raw[0]}: no folder of frames such as cropped_aligned/{files[0].stem}/00001.jpg has labels "
            f"({few([path.stem for path in files])})"
        )
    notes = {"videos": len(tables), **dict(sorted(counts.items()))}
    return Listing(
        *(pl.concat(tables), "aff-wild2", tuple(files), LICENCE, CLASSES, tuple(rejects), tuple(remarks)),
        group="video",
        note=NOTE,
        video=True,
        notes=notes,
    )


def _find_folders(raw: Sequence[Path], videos: set[str]) -> dict[str, Path]:
    """Folders called as videos, not deeper than four; files, of which there are millions, are not looked at."""
    found: dict[str, Path] = {}
    level = [path for path in raw if path.is_dir()]
    for _ in range(4):
        below: list[Path] = []
        for folder in level:
            with translate_os_errors(folder), os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir())
            for name in names:
                if name in videos:
                    found.setdefault(name, folder / name)
                elif name[0] != "." and name != "__MACOSX":
                    below.append(folder / name)
        level = below
    return found


def read_annotation(path: Path, rejects: list[Reject]) -> Annotation:
    """Read the labels of a video.

    Args:
        path: the file.
        rejects: gets lines that are no label.

    Raises:
        ConfigError: its first line names no or other classes.
    """
    with translate_os_errors(path):
        lines = path.read_bytes().decode("utf-8-sig", "replace").splitlines()
    names = [expression(word) for word in (lines[0] if lines else "").split(",")]
    if len(names) != len(CLASSES) or set(names) != set(CLASSES):
        shown = excerpt(lines[0]) if lines else ""
        raise ConfigError(
            f"{path}: line 1 is {shown!r} instead of the names of the classes ({', '.join(CLASSES)}); annotations of "
            "expressions (EXPR) are read"
        )
    order = np.array([CLASSES.index(name) for name in names])  # codes mean what the first line says
    while len(lines) > 1 and not lines[-1].strip():
        lines.pop()
    codes = np.full(len(lines) - 1, -2, np.int64)
    for at, line in enumerate(lines[1:]):
        text = line.strip()
        digits = text.removeprefix("-")
        value = int(text) if digits.isascii() and digits.isdecimal() and len(digits) < 9 else -2
        if -1 <= value < len(CLASSES):
            codes[at] = order[value] if value >= 0 else -1
        else:
            reason = f"the label is outside -1 to {len(CLASSES) - 1}"
            rejects.append(Reject(path.name, at, "label", reason, excerpt(text)))
    return Annotation(path, SETS[path.parent.name.lower()], codes)


def _list_video(
    labels: Annotation, folder: Path, drawn: Drawn, counts: Counter[str], remarks: list[Reject]
) -> pl.DataFrame:
    with translate_os_errors(folder), os.scandir(folder) as entries:
        found = sorted((int(match[1]), entry.name) for entry in entries if (match := _FRAME.fullmatch(entry.name)))
    numbers = np.array([number for number, _ in found], dtype=np.int64)
    known = (numbers >= 1) & (numbers <= len(labels.codes))
    beyond = int((~known).sum())
    codes = np.where(known, labels.codes[np.clip(numbers - 1, 0, max(len(labels.codes) - 1, 0))], -2)  # frame 1: line 1
    counts["frames"] += len(found)
    counts["frames_beyond_annotation"] += beyond
    counts["frames_without_label"] += int((codes == -1).sum())
    counts["lines_without_frame"] += len(labels.codes) - len(set(numbers[known].tolist()))
    name = labels.path.stem
    if beyond:
        remarks.append(Reject(name, len(labels.codes), "frames", f"{beyond:,} frames behind the last label", ""))
    last = int(numbers[known].max(initial=0))
    if last < len(labels.codes):
        reason = f"the video ends early: frames up to {last:,}, labels up to {len(labels.codes):,}"
        remarks.append(Reject(name, last, "frames", reason, ""))
    chosen = np.flatnonzero(codes >= 0)
    if labels.split == "train":
        capped = _cap(numbers, codes, chosen, name, drawn)
        counts["frames_left_out_by_cap"] += len(chosen) - len(capped)
        chosen = capped
    return _rows(labels, folder, [found[at] for at in chosen], codes[chosen])


def _cap(numbers: I64, codes: I64, chosen: I64, video: str, drawn: Drawn) -> I64:
    """At most so many frames of each label, then of all; which, depends on seed, video and number alone."""
    lots = hash_numbers(numbers[chosen].astype(np.uint64) ^ hash_strings([video])[0], drawn.seed)
    order = chosen[np.argsort(lots, kind="stable")]
    if drawn.per_label:
        order = np.concatenate(
            [order[:0], *(order[codes[order] == code][: drawn.per_label] for code in range(len(CLASSES)))]
        )
        again = hash_numbers(numbers[order].astype(np.uint64) ^ hash_strings([video])[0], drawn.seed)
        order = order[np.argsort(again, kind="stable")]
    return np.sort(order[: drawn.per_video or None])


def _rows(labels: Annotation, folder: Path, frames: Sequence[tuple[int, str]], codes: I64) -> pl.DataFrame:
    video = labels.path.stem
    # two persons of one video are in two folders, VIDEO_left and VIDEO_right: they stay on one side
    group = re.sub(r"_(left|right)$", "", video)
    columns: dict[str, Any] = {
        **dict.fromkeys(ROWS),
        **BLANK,
        "name": [f"{video}/{name}" for _, name in frames],
        "path": [str(folder / name) for _, name in frames],
        "label": [CLASSES[code] for code in codes],
        "subject": group,
        "source": video,
        "split": labels.split,
        "record": [number - 1 for number, _ in frames],
        "frame": [number - 1 for number, _ in frames],
    }
    whole = {name: value if isinstance(value, list) else [value] * len(frames) for name, value in columns.items()}
    return pl.DataFrame(whole, schema=ROWS)
