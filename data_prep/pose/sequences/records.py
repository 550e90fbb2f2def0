"""What readers of sequences hand on: recordings, their arrays, what was left out and what was noticed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data_prep.common.mapping import Done
from data_prep.common.rejects import Reject
from data_prep.pose.sequences.cameras import Camera
from data_prep.pose.sequences.skeletons import Skeleton


class Remark(NamedTuple):
    """Something about a recording that a user should know: a repair that was made, or a suspicion.

    Args:
        recording: its name.
        camera: empty: all of them.
        kind: one word; the counts of `dataset.json` are by kind.
        frames: how many it concerns.
        detail: one sentence.
    """

    recording: str
    camera: str
    kind: str
    frames: int
    detail: str


@dataclass(frozen=True)
class Asked:
    """Options that decide what is listed.

    Args:
        keypoints: which 2D file, by the end of its name; "projected": made from 3D; empty: the only one there is.
        cameras: names of cameras; empty: the usual ones of the data set.
        actions: names of actions; empty: all.
        poses: metric, or universal (as if all persons were of one size; MPI-INF-3DHP has both).
        convert: make the keypoints of COCO's joints, where a 2D file says that it has those.
    """

    keypoints: str = ""
    cameras: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    poses: str = "metric"
    convert: bool = False


@dataclass(frozen=True)
class Source:
    """A raw file.

    Args:
        path: where it is.
        kind: what the reader takes it for.
        label: how tables name it: enough of the path to tell it from others, and nothing of this machine.
    """

    path: Path
    kind: str
    label: str


class Unpacked(NamedTuple):
    """One array of a raw file, as a file of its own.

    Args:
        subject: as the file calls it.
        sequence: likewise.
        kind: pose, points or valid.
        camera: name or number; empty: of all cameras.
        file: in the folder of the task.
    """

    subject: str
    sequence: str
    kind: str
    camera: str
    file: str


@dataclass(frozen=True)
class Track:
    """What one camera saw.

    Args:
        camera: the camera.
        points: `.npy` (T, J, 2 or 3) pixels, and confidence; None: made by projection.
        pose: `.npy` (T, J, 3) in the axes of this camera; None: made of the recording's pose in the world.
        source: of the points, for messages.
        parts: for each joint, the joints of the points whose mean it is; empty: they are the layout.
    """

    camera: Camera
    points: Path | None = None
    pose: Path | None = None
    source: str = ""
    parts: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Recording:
    """One subject doing one thing, seen by cameras.

    Args:
        name: unique.
        subject: whose body it is.
        sequence: as the data set calls it.
        action: what is done.
        split: train or test, as published.
        fps: frames a second.
        source: file of the pose, for messages.
        tracks: what each camera saw.
        pose: `.npy` (T, J, 3) in the axes of the world; None: tracks have their own.
        valid: `.npy` (T,), whether a frame is to be scored; None: all are.
        joints: those of the raw arrays that make the layout; empty: they are the layout.
        unit: metres or millimetres of the raw poses.
    """

    name: str
    subject: str
    sequence: str
    action: str
    split: str
    fps: float
    source: str
    tracks: tuple[Track, ...]
    pose: Path | None = None
    valid: Path | None = None
    joints: tuple[int, ...] = ()
    unit: Literal["m", "mm"] = "m"


@dataclass(frozen=True)
class Found:
    """Raw files of a data set.

    Args:
        sources: in a stable order.
        skeleton: layout of the prepared joints.
        licence: of the data set.
        notes: facts for `dataset.json`.
    """

    sources: tuple[Source, ...]
    skeleton: Skeleton
    licence: str
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """Everything to be prepared.

    Args:
        recordings: in a stable order.
        rejects: what cannot be used.
        remarks: what should be known.
        clips: how many clips the data set has, rejects included.
    """

    recordings: tuple[Recording, ...]
    rejects: tuple[Reject, ...] = ()
    remarks: tuple[Remark, ...] = ()
    clips: int = 0


Stage = Sequence[tuple[Source, Done]]


def save_array(folder: Path, values: Any, where: list[list[str]], *key: str) -> None:
    """Keep an array as a file of its own.

    Args:
        folder: of the task.
        values: the array.
        where: entries of the task, which gets one more.
        key: subject, sequence, kind, camera.
    """
    file = f"{len(where):05d}.npy"
    np.save(folder / file, np.ascontiguousarray(values), allow_pickle=False)
    where.append([*key, file])


def entries_of(done: Done) -> list[Unpacked]:
    """Arrays that a task has unpacked, with their place on disk."""
    return [
        Unpacked(subject, sequence, kind, camera, str(done.folder / file))
        for subject, sequence, kind, camera, file in done.info.get("arrays", [])
    ]


def reject_all(source: str, recording: str, cameras: Sequence[str], reason: str) -> list[Reject]:
    """Rejects of a recording, one for each camera."""
    return [Reject(source, 0, f"{recording} {camera}", reason, "") for camera in cameras]


def slug(name: str) -> str:
    """A name as a path below the prepared directory."""
    return "/".join(re.sub(r"[^A-Za-z0-9-]+", "_", part).strip("_") or "_" for part in name.split("/"))


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts S5 before S11."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def label_of(path: Path, parts: int) -> str:
    """The end of a path."""
    return "/".join(path.parts[-parts:])
