"""Keypoints that other programs found, in the results format of COCO -> arrays and sequences of frames, for lifting.

    [{"image_id": 1, "category_id": 1, "keypoints": [x, y, score, ...], "score": 0.9}, ...]

Such a file does not say which joints it has, and COCO's 17 are not those of Human3.6M: the name of the layout is asked
for, never guessed. Some programs add `track_id`, or write names of frames in the place of ids; both are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, CorruptRecordError, RejectsExceededError
from data_prep.common.rejects import Reject, excerpt
from data_prep.pose.people.coco_json import decode, read_bytes

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
WHAT = "a list of detections in the results format of COCO"
FARTHEST = 1e6  # pixels
SHARES = 2.0  # largest coordinate of what cannot be pixels
MOST_FRAMES = 10_000_000  # between the first id and the last


class Entry(msgspec.Struct):
    """A detection; null stands for what is no number."""

    image_id: int | str
    keypoints: list[float | None]
    score: float | None = None
    category_id: int = 1
    track_id: int | None = None
    idx: Any = None  # what AlphaPose calls the track


@dataclass(frozen=True)
class Detections:
    """What was found, sorted by frame; of a frame the best first.

    Args:
        layout: name of the joints' layout.
        frames: ids or names of the frames that have a detection, in their order.
        frame: number in `frames`.
        keypoints: x, y in pixels, and the confidence or flag that the program gives.
        score: of the detection.
        track: of the person; -1: not known.
        left_out: detections of other categories.

    Shape:
        frame, score, track (N,), keypoints (N, K, 3).
    """

    layout: str
    frames: tuple[int | str, ...]
    frame: I64
    keypoints: F64
    score: F64
    track: I64
    left_out: int = 0

    def tracks(self) -> list[int]:
        """Tracks, the longest first; empty where none is known."""
        counts = Counter(self.track[self.track >= 0].tolist())
        return sorted(counts, key=lambda track: (-counts[track], track))

    def sequence(self, track: int | None = None) -> tuple[list[int | str], F64]:
        """One person over time.

        Args:
            track: of the person; None: the best detection of each frame.

        Returns:
            Frames, and keypoints, NaN where this person is not found. Between ids that are numbers no frame is missing;
            of frames that have names, those in which nobody was found are not known.

        Shape:
            T frames, (T, K, 3) float64.

        Raises:
            ConfigError: there is no such track, or the ids are too far apart to be frames.
        """
        rows = np.arange(len(self.frame)) if track is None else np.flatnonzero(self.track == track)
        if not len(rows):
            raise ConfigError(f"track {track}: there is no detection of it; the tracks are {self.tracks()[:10]}")
        used, first = np.unique(self.frame[rows], return_index=True)
        best = rows[first]
        names = [self.frames[number] for number in used.tolist()]
        numbers = [name for name in names if isinstance(name, int)]
        if len(numbers) < len(names):
            begin, end = int(used[0]), int(used[-1]) + 1
            between = np.full((end - begin, *self.keypoints.shape[1:]), np.nan)
            between[used - begin] = self.keypoints[best]
            return list(self.frames[begin:end]), between
        length = numbers[-1] - numbers[0] + 1
        if length > MOST_FRAMES:
            raise ConfigError(f"image ids from {numbers[0]} to {numbers[-1]} are no frames of one video")
        filled = np.full((length, *self.keypoints.shape[1:]), np.nan)
        filled[np.array(numbers) - numbers[0]] = self.keypoints[best]
        return list(range(numbers[0], numbers[-1] + 1)), filled


def read_detections(
    path: Path, layout: str, n_keypoints: int, *, max_rejects: float = 0.01
) -> tuple[Detections, list[Reject]]:
    """Read a results file.

    Args:
        path: JSON, or JSON packed with gzip.
        layout: name of the layout of the joints, such as coco-17.
        n_keypoints: K of this layout.
        max_rejects: share of unusable detections that is tolerated.

    Returns:
        Detections, and those that cannot be used with the reason.

    Raises:
        ConfigError: the layout is not named, or the coordinates are no pixels.
        CorruptRecordError: the file is no list of detections; with the place.
        RejectsExceededError: too many cannot be used.
    """
    if not layout:
        raise ConfigError(
            f"{path}: {n_keypoints} keypoints do not say which joints they are; name their layout, such as coco-17 or "
            "h36m-17"
        )
    raws: list[msgspec.Raw] = decode(path, read_bytes(path), list[msgspec.Raw], WHAT)
    rejects: list[Reject] = []
    entries: list[Entry] = []
    seen: set[tuple[Any, ...]] = set()
    left_out = 0
    for record, raw in enumerate(raws):
        entry, field, reason = _read_entry(raw, n_keypoints)
        if entry is not None and not reason and entry.category_id != 1:
            left_out += 1
            continue
        if entry is not None and not reason:
            key = (entry.image_id, entry.track_id, *entry.keypoints)
            field, reason = ("keypoints", "repeats a detection of this image") if key in seen else ("", "")
            seen.add(key)
        if entry is None or reason:
            shown = f"image {entry.image_id}" if entry is not None else bytes(raw)[:400]
            rejects.append(Reject(path.name, record, field, reason, excerpt(shown)))
            continue
        entries.append(entry)
    if len(rejects) > max_rejects * len(raws):
        one = rejects[0]
        raise RejectsExceededError(
            f"{path}: record {one.record}: {one.field}: {one.reason} ({one.excerpt}); {len(rejects):,} of "
            f"{len(raws):,} detections cannot be used, more than --max-rejects {max_rejects:g} allows"
        )
    if not entries:
        raise CorruptRecordError(path, "document", "there is no detection of category 1, persons, in it")
    return _gather(path, entries, layout, n_keypoints, left_out), rejects


def _read_entry(raw: msgspec.Raw, n_keypoints: int) -> tuple[Entry | None, str, str]:
    """A detection, and the field and reason why it cannot be used."""
    try:
        entry = msgspec.json.decode(raw, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason, _, place = str(error).partition(" - at ")
        return None, place.strip("`").removeprefix("$.") or "record", f"{reason[:1].lower()}{reason[1:]}"
    if entry.track_id is None and type(entry.idx) is int:
        entry.track_id = entry.idx
    if type(entry.image_id) is int and abs(entry.image_id) > 1 << 62:
        return entry, "image_id", "is too large"
    count = len(entry.keypoints)
    if count != 3 * n_keypoints:
        more = "; x, y and confidence are needed of each" if count == 2 * n_keypoints else ""
        return entry, "keypoints", f"{count} numbers, where {n_keypoints} keypoints have {3 * n_keypoints}{more}"
    if any(value is None or not abs(value) <= FARTHEST for value in entry.keypoints):
        return entry, "keypoints", "a coordinate or confidence is no possible number"
    if not any(entry.keypoints):
        return entry, "keypoints", "all are 0: nothing was found"
    if entry.score is None:
        return entry, "score", "is missing, or no number"
    if entry.track_id is not None and not 0 <= entry.track_id < 1 << 62:
        return entry, "track_id", "is negative, or too large"
    return entry, "", ""


def _gather(path: Path, entries: Sequence[Entry], layout: str, n_keypoints: int, left_out: int) -> Detections:
    if len({type(entry.image_id) for entry in entries}) > 1:
        raise ConfigError(f"{path}: some images have a number, others a name; give one kind")
    points = np.array([entry.keypoints for entry in entries], np.float64).reshape(-1, n_keypoints, 3)
    if np.abs(points[:, :, :2]).max() < SHARES:
        raise ConfigError(
            f"{path}: no coordinate reaches {SHARES:g}: these are shares of the image, not pixels; multiply x by its "
            "width, y by its height"
        )
    names = sorted({entry.image_id for entry in entries}, key=_natural)
    place = {name: number for number, name in enumerate(names)}
    frame = np.array([place[entry.image_id] for entry in entries], np.int64)
    score = np.array([entry.score for entry in entries], np.float64)
    track = np.array([-1 if entry.track_id is None else entry.track_id for entry in entries], np.int64)
    order = np.lexsort((np.arange(len(frame)), -score, frame))
    return Detections(layout, tuple(names), frame[order], points[order], score[order], track[order], left_out)


def _natural(name: int | str) -> tuple[Any, ...]:
    """Frame 10 comes after frame 9, also in names."""
    if isinstance(name, int):
        return (name,)
    parts = re.split(r"([0-9]+)", name)
    return (*(int(part) if at % 2 else part for at, part in enumerate(parts)), name)
