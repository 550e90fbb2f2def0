"""Which split each recording is in, duplicates, and the tables of a preparation of sequences."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, LeakError
from data_prep.common.files import write_atomic
from data_prep.common.splits import SPLITS, refuse_shared
from data_prep.pose.sequences.records import Recording

INDEX: dict[str, Any] = {
    "row": pl.UInt32,
    "name": pl.String,
    "subject": pl.String,
    "action": pl.String,
    "sequence": pl.String,
    "recording": pl.String,
    "camera": pl.String,
    "frames": pl.UInt32,
    "scored_frames": pl.UInt32,
    "fps": pl.Float64,
    "width": pl.UInt32,  # pixels
    "height": pl.UInt32,
    "quaternion": pl.List(pl.Float64),  # (w, x, y, z), camera to world; null: unknown
    "translation": pl.List(pl.Float64),  # m, position in the world
    "focal": pl.List(pl.Float64),  # pixels
    "centre": pl.List(pl.Float64),  # pixels
    "radial": pl.List(pl.Float64),
    "tangential": pl.List(pl.Float64),
    "reprojection_pixels": pl.Float64,  # median distance of keypoints from the projected pose
    "files": pl.List(pl.String),
}
REMARKS: dict[str, Any] = {
    "recording": pl.String,
    "camera": pl.String,
    "kind": pl.String,
    "frames": pl.UInt32,
    "detail": pl.String,
}
PAIRS: dict[str, Any] = {
    "first": pl.String,
    "second": pl.String,
    "first_subject": pl.String,
    "second_subject": pl.String,
    "first_split": pl.String,
    "second_split": pl.String,
    "kind": pl.String,  # pose or keypoints
}


@dataclass(frozen=True)
class Kept:
    """One prepared clip.

    Args:
        recording: what it is of.
        row: its values for the index, but for the row number.
        path: the finished file.
    """

    recording: Recording
    row: dict[str, Any]
    path: Path


def parse_names(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def divide(
    recordings: Sequence[Recording], valid: Sequence[str], test: Sequence[str], overlaps: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Split of each recording, by name, and the `split_rule` entry of `dataset.json`.

    Args:
        recordings: all that are prepared.
        valid: subjects of the validation split.
        test: subjects of the test split; none: as published.
        overlaps: why subjects are on both sides of the published split; empty: they are not.

    Raises:
        ConfigError: a subject is not there, or asked for twice.
        LeakError: a subject would be on two sides.
    """
    there = sorted({recording.subject for recording in recordings})
    for option, names in (("valid_subjects", valid), ("test_subjects", test)):
        unknown = [name for name in names if name not in there]
        if unknown:
            raise ConfigError(f"{option}: there is no subject {unknown[0]!r}; there are {', '.join(there)}")
    both = sorted(set(valid) & set(test))
    if both:
        raise ConfigError(f"valid_subjects and test_subjects: both name {both[0]!r}")
    splits: dict[str, str] = {}
    for recording in recordings:
        published = recording.split if not test else "test" if recording.subject in test else "train"
        moved = recording.subject in valid and (published == "train" or not overlaps)
        splits[recording.name] = "valid" if moved else published
    if not overlaps or test:
        _refuse_leaks(recordings, splits)
    elif valid:
        raise LeakError(
            f"subject {valid[0]!r} would be in valid and in test, as the published split has all subjects in train and "
            "in test; name test_subjects, too, and subjects are kept apart"
        )
    kind = "subjects" if test else "published"
    return splits, {"kind": kind, "valid_subjects": list(valid), "test_subjects": list(test)}


def _refuse_leaks(recordings: Sequence[Recording], splits: Mapping[str, str]) -> None:
    names = [recording.name for recording in recordings]
    sides = [splits[name] for name in names]
    refuse_shared("subject", [recording.subject for recording in recordings], sides, names, "recording")


def find_pairs(
    digests: Sequence[tuple[str, str, str]], recordings: Mapping[str, Recording], splits: Mapping[str, str]
) -> pl.DataFrame:
    """Recordings, or clips, with exactly the same numbers.

    Args:
        digests: recording, what it is of (pose or keypoints), digest.
        recordings: by name.
        splits: of each recording.
    """
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, kind, digest in digests:
        if digest and name not in groups[kind, digest]:
            groups[kind, digest].append(name)
    rows = [
        (
            *(first, second, recordings[first].subject, recordings[second].subject),
            *(splits[first], splits[second], kind),
        )
        for (kind, _), (first, *others) in groups.items()
        for second in others
    ]
    return pl.DataFrame(rows, schema=PAIRS, orient="row")


def refuse_pairs(pairs: pl.DataFrame) -> None:
    """Refuse the same numbers on two sides of a split.

    Raises:
        LeakError: naming the first pair.
    """
    crossing = pairs.filter(pl.col("first_split") != pl.col("second_split"))
    if crossing.height:
        row = crossing.row(0, named=True)
        raise LeakError(
            f"{row['first']} ({row['first_split']}) and {row['second']} ({row['second_split']}) have the same "
            f"{row['kind']} ({crossing.height:,} such pairs): take one out, or use --duplicates report"
        )


def write_index(
    kept: Sequence[Kept], splits: Mapping[str, str], folder: Path
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write the index of each split.

    Returns:
        Path inside the prepared directory -> file, and the `splits` entry of `dataset.json`.
    """
    files: dict[str, Path] = {}
    entries: dict[str, Any] = {}
    schema = {name: kind for name, kind in INDEX.items() if name != "row"}
    for split in SPLITS:
        rows = [{name: clip.row[name] for name in schema} for clip in kept if splits[clip.recording.name] == split]
        table = pl.DataFrame(rows, schema=schema)
        data = to_parquet(table.with_row_index("row").cast({"row": pl.UInt32}))
        path = f"{split}/part-00000.parquet"
        files[path] = folder / f"{split}-part-00000.parquet"
        write_atomic(files[path], data)
        part = {"path": path, "rows": len(rows), "sha256": hashlib.sha256(data).hexdigest()}
        entries[split] = {"rows": len(rows), "parts": [part]}
    return files, entries


def count(kept: Sequence[Kept], splits: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Of each split: subjects, recordings, clips, frames."""
    found = {}
    for split in SPLITS:
        chosen = [clip for clip in kept if splits[clip.recording.name] == split]
        found[split] = {
            "subjects": len({clip.recording.subject for clip in chosen}),
            "recordings": len({clip.recording.name for clip in chosen}),
            "clips": len(chosen),
            "frames": sum(clip.row["frames"] for clip in chosen),
            "scored_frames": sum(clip.row["scored_frames"] for clip in chosen),
        }
    return found


def to_parquet(table: pl.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()
