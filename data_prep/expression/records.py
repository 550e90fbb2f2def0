"""What the readers of data sets hand to the engine: a table with one row for each image, and what is known of all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.images import SUFFIXES
from data_prep.common.raw import walk
from data_prep.common.rejects import Reject
from data_prep.common.splits import SPLITS

ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
IMAGE = -1  # `column` of an image that is a file of its own
ROWS: dict[str, Any] = {
    "name": pl.String,  # unique
    "path": pl.String,  # image file, or table with pixels
    "label": pl.String,  # as it is written; empty: none
    "subject": pl.String,  # whoever is on the picture; empty: unknown
    "source": pl.String,  # video or collection; empty: unknown
    "split": pl.String,  # that the data come with; empty: to be drawn
    "record": pl.Int64,  # in the list or table, from 0; -1: in none
    "column": pl.Int32,  # of the pixels, in a table; IMAGE: `path` is the image
    "start": pl.UInt64,  # of the line in the table, bytes
    "size": pl.UInt64,  # of the line, bytes
    "box": pl.List(pl.Float64),  # x, y, width, height of the face in pixels; null: not given
    "points": pl.List(pl.Float64),  # x, y of eyes, nose, corners of the mouth, left of the picture first
    "frame": pl.UInt32,  # of a video
    "time_s": pl.Float64,
    "target": pl.List(pl.Float32),  # share of each native class; null: the label alone
}
BLANK: dict[str, Any] = {
    **{"label": "", "subject": "", "source": "", "split": "", "record": -1, "column": IMAGE, "start": 0, "size": 0},
    **{"box": None, "points": None, "frame": None, "time_s": None, "target": None},
}
_SPLIT_NAMES = {
    **{"val": "valid", "validation": "valid", "dev": "valid", "publictest": "valid"},
    **{"training": "train", "testing": "test", "privatetest": "test"},
}


@dataclass(frozen=True)
class Listing:
    """All images of a data set, before any is read.

    Args:
        rows: one for each image, columns `ROWS`, in a stable order.
        name: of the data set.
        lists: files that tell about the images, tables with pixels among them.
        licence: of the data set.
        classes: the data set's own, in its own order; empty: by name.
        rejects: records that name no usable image.
        remarks: what is odd about records that are kept.
        group: what `subject` is, for messages: subject, character, video.
        note: what is to be known about splits.
        side: pixels of all images, where the data set says it; 0: it does not.
        video: whether images are frames of videos, each like the one before.
        notes: facts for `counts` of `dataset.json`.
    """

    rows: pl.DataFrame
    name: str
    lists: tuple[Path, ...] = ()
    licence: str = "not stated"
    classes: tuple[str, ...] = ()
    rejects: tuple[Reject, ...] = ()
    remarks: tuple[Reject, ...] = ()
    group: str = "subject"
    note: str = ""
    side: int = 0
    video: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """Options that only some data sets have.

    Args:
        table: folder: CSV of the images.
        subject_pattern: folder: regular expression that finds the subject in a file's name.
        votes: ferplus: what becomes of the votes.
        peak_frames: ck+: last frames of a sequence that show its expression.
        neutral_frames: ck+: first frames that are neutral.
        per_video: aff-wild2: most training frames of a video; 0: all.
        per_video_label: aff-wild2: most training frames of a video with one label; 0: all.
        seed: of frames that are chosen.
        align: how faces are aligned: it decides which files of RAF-DB are read.
    """

    table: Path | None = None
    subject_pattern: str = ""
    votes: str = "majority"
    peak_frames: int = 3
    neutral_frames: int = 1
    per_video: int = 0
    per_video_label: int = 0
    seed: int = 0
    align: str = "none"


def to_rows(found: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows of a listing, from mappings that name only what is known."""
    return pl.DataFrame([{**BLANK, **each} for each in found], schema=ROWS, orient="row")


def find_images(raw: Sequence[Path]) -> list[Path]:
    """Image files, in the order of their names."""
    return [path for path in walk(raw) if path.suffix.lower() in SUFFIXES]


def find_named(raw: Sequence[Path], pattern: str) -> list[Path]:
    """Files whose whole name matches a regular expression, upper case or lower."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return [path for path in walk(raw) if compiled.fullmatch(path.name)]


def refuse_archives(raw: Sequence[Path]) -> None:
    """Refuse packed files.

    Raises:
        DatasetNotFoundError: naming the first.
    """
    for path in raw:
        if path.is_file() and path.suffix.lower() in ARCHIVES:
            raise DatasetNotFoundError(f"{path}: is a packed file; unpack it, and give the folder with what was in it")


def archives_hint(raw: Sequence[Path]) -> str:
    """What to do where a folder holds packed files and nothing that is looked for, or ""."""
    packed = [path for path in walk(raw) if path.suffix.lower() in ARCHIVES]
    return f"; unpack {packed[0]} first" if packed else ""


def normalise_split(text: str) -> str:
    """`train`, `valid` or `test` for their usual spellings, else ""."""
    word = "".join(text.split()).casefold()
    word = _SPLIT_NAMES.get(word, word)
    return word if word in SPLITS else ""


def subject_finder(pattern: str) -> re.Pattern[str] | None:
    """A pattern with one pair of brackets around the subject; None: there is none.

    Raises:
        ConfigError: it is none.
    """
    try:
        compiled = re.compile(pattern) if pattern else None
    except re.error as error:
        raise ConfigError(f"subject_pattern {pattern!r}: no regular expression ({error})") from error
    if compiled is not None and compiled.groups != 1:
        raise ConfigError(rf"subject_pattern {pattern!r}: put the subject in one pair of brackets, as in '(.+)_\d+'")
    return compiled
