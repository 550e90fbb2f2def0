"""CK+ (Lucey et al., 2010): sequences from neutral to the peak of an expression; 118 subjects, 327 labelled sequences.

As it is published: `cohn-kanade-images/S005/001/S005_001_00000011.png`, and `Emotion/S005/001/*_emotion.txt` with one
number; without an emotion file a sequence has no label. Copies: `CK+48/anger/S010_004_00000017.png` (last three frames,
981 images), and `ckextended.csv` (920 images, nobody is named).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.common.images import SUFFIXES
from data_prep.common.names import unique_names
from data_prep.common.raw import walk
from data_prep.common.rejects import Reject, excerpt
from data_prep.expression.fer2013 import find_table, label_lines
from data_prep.expression.pixel_table import scan
from data_prep.expression.records import Asked, Listing, to_rows
from data_prep.expression.taxonomy import expression

CLASSES = ("neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")  # of the codes 0, ...
EXTENDED = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt")  # of ckextended.csv
LICENCE = "on request, for research"
_FRAME = re.compile(r"(S\d+)_(\d+)_(\d+)", re.IGNORECASE)
_EMOTION = re.compile(r"(S\d+)_(\d+)_\d+_emotion\.txt", re.IGNORECASE)

Sequences = dict[tuple[str, str], list[Path]]


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images.

    Args:
        raw: the folder of the data set, in one of its three layouts.
        asked: `peak_frames`, `neutral_frames`.
    """
    if asked.peak_frames < 1 or asked.neutral_frames < 0:
        raise ConfigError("peak_frames counts from 1, neutral_frames from 0")
    files = list(dict.fromkeys(walk(raw)))
    emotions = [path for path in files if _EMOTION.fullmatch(path.name)]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if emotions:
        return _from_sequences(images, emotions, asked)
    table = find_table(raw) if not images else None
    if table is not None:
        return _from_table(table)
    return _from_folders(raw, images)


def _from_sequences(images: Sequence[Path], emotions: Sequence[Path], asked: Asked) -> Listing:
    sequences: Sequences = defaultdict(list)
    for path in images:
        match = _FRAME.fullmatch(path.stem)
        if match:
            sequences[match[1].upper(), match[2]].append(path)
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    remarks: list[Reject] = []
    labelled: set[tuple[str, str]] = set()
    for path in emotions:
        match = _EMOTION.fullmatch(path.name)
        key = (match[1].upper(), match[2]) if match else ("", "")
        code, text = _read_emotion(path)
        frames = sorted(sequences.get(key, ()), key=lambda frame: int(frame.stem.rsplit("_", 1)[1]))
        reason = ""
        if code is None:
            reason = f"the emotion is no whole number of 0 to {len(CLASSES) - 1}"
        elif key in labelled:
            reason = "the sequence has two emotion files"
        elif not frames:
            reason = "the sequence has no images"
        if reason or code is None:
            rejects.append(Reject(path.name, 0, "emotion", reason, excerpt(text)))
            continue
        labelled.add(key)
        if len(frames) < asked.peak_frames + asked.neutral_frames:
            remarks.append(Reject(path.name, 0, "", f"the sequence has only {len(frames)} frames", ""))
        rows += _frames_of(frames, CLASSES[code], key[0], asked)
    if not rows:
        raise DatasetNotFoundError(f"{emotions[0]}: no emotion file has its images; keep cohn-kanade-images beside it")
    notes = {"sequences": len(sequences), "labelled_sequences": len(labelled)}
    notes["sequences_without_label_left_out"] = len(sequences.keys() - labelled)
    return Listing(
        *(to_rows(rows), "ck+", (), LICENCE, CLASSES, tuple(rejects), tuple(remarks)),
        note=f"the last {asked.peak_frames} frames of a sequence show its expression, the first {asked.neutral_frames} "
        "are neutral",
        notes=notes,
    )


def _frames_of(frames: Sequence[Path], label: str, subject: str, asked: Asked) -> list[dict[str, Any]]:
    """Peak frames, and neutral ones that are none of these."""
    peak = frames[-asked.peak_frames :]
    first = [frame for frame in frames[: asked.neutral_frames] if frame not in peak]
    named = [(frame, "neutral") for frame in first] + [(frame, label) for frame in peak]
    return [
        {
            "name": frame.name,
            "path": str(frame),
            "label": name,
            "subject": subject,
            "source": frame.stem.rsplit("_", 1)[0],
        }
        for frame, name in named
    ]


def _read_emotion(path: Path) -> tuple[int | None, str]:
    with translate_os_errors(path):
        text = path.read_bytes()[:200].decode("utf-8", "replace").strip()
    try:
        code = float(text)
    except ValueError:
        return None, text
    return (int(code) if code in range(len(CLASSES)) else None), text


def _from_table(path: Path) -> Listing:
    table = scan(path)
    rows, rejects = label_lines(table, EXTENDED, "ckextended")
    # its Usage divides images, not subjects, and the frames of one sequence are on all sides
    rows = [{**row, "source": row["split"], "split": ""} for row in rows]
    return Listing(
        *(to_rows(rows), "ck+", (path,), LICENCE, EXTENDED, tuple(rejects)),
        note="the table names no subjects and its Usage divides the frames of one sequence: results on any split of it "
        "are those of known faces; prepare the images, whose names tell the subject",
        side=table.side,
    )


def _from_folders(raw: Sequence[Path], images: Sequence[Path]) -> Listing:
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for path, name in zip(images, unique_names(images, raw), strict=True):
        match = _FRAME.match(path.stem)
        if match is None:
            rejects.append(Reject(path.name, 0, "name", "the name does not begin as S010_004_00000017 does", ""))
            continue
        if expression(path.parent.name) not in CLASSES:
            rejects.append(Reject(path.name, 0, "folder", "the folder is called after no class", path.parent.name[:99]))
            continue
        place = {"subject": match[1].upper(), "source": f"{match[1].upper()}_{match[2]}"}
        rows.append({"name": name, "path": str(path), "label": path.parent.name, **place})
    if not rows:
        raise DatasetNotFoundError(
            f"{raw[0]}: neither *_emotion.txt beside cohn-kanade-images, nor CLASS/S010_004_00000017.png, nor a table "
            "with pixels such as ckextended.csv"
        )
    counts = Counter(str(row["label"]) for row in rows)
    classes = tuple(name for name in CLASSES if name != "neutral" or "neutral" in counts)
    return Listing(to_rows(rows), "ck+", (), LICENCE, classes, tuple(rejects))
