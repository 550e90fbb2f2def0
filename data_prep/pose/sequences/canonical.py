"""The npz files in which the field passes Human3.6M and HumanEva on (those of VideoPose3D, D. Pavllo et al., 2019).

- `data_3d_NAME.npz`: `positions_3d` = {subject: {sequence: (T, J, 3) float32 metres, world axes}};
- `data_2d_NAME_SOURCE.npz`: `positions_2d` = {subject: {sequence: [one (T, J, 2 or 3) pixels per camera]}} and
  `metadata` = {layout_name, num_joints, keypoints_symmetry [left, right]}.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.pose.sequences.errors import LayoutError
from data_prep.pose.sequences.objects import read_npz
from data_prep.pose.sequences.records import Remark, Source, Stage, Unpacked, entries_of, save_array
from data_prep.pose.sequences.skeletons import Skeleton, from_coco

PROJECTED = "projected"


def choose_points(paths: Sequence[Path], pattern: str, asked: str, *, projectable: bool) -> Path | None:
    """The file of keypoints that is asked for.

    Args:
        paths: all files.
        pattern: regular expression of a file name, whose bracket finds the source.
        asked: the source, `projected`, or empty.
        projectable: whether keypoints can be made from 3D.

    Returns:
        None: keypoints are made by projection.

    Raises:
        ConfigError: several files, or none, are meant.
    """
    found = {match[1]: path for path in paths if (match := re.fullmatch(pattern, path.name))}
    names = ", ".join(sorted(found)) or "none"
    if asked and asked != PROJECTED:
        if asked not in found:
            raise ConfigError(f"keypoints {asked!r}: there is no such 2D file; those found are of {names}")
        return found[asked]
    if projectable and (asked or not found):
        return None
    if len(found) != 1 or asked:
        why = "projection needs lenses that are not known" if asked else f"found: {names}"
        raise ConfigError(f"keypoints {asked!r}: name one source of 2D keypoints ({why})")
    return next(iter(found.values()))


def only_one(paths: Sequence[Path], name: str) -> Path | None:
    """The file of that name.

    Raises:
        ConfigError: it is there several times.
    """
    found = [path for path in paths if path.name == name]
    if len(found) > 1:
        raise ConfigError(f"{found[1]}: {name} is also in {found[0].parent}; give one of the two folders as raw")
    return found[0] if found else None


def unpack_poses(source: Source, folder: Path) -> dict[str, Any]:
    """Write every array of `data_3d_*.npz` as a file of its own.

    Raises:
        CorruptRecordError: the file is no such file.
    """
    arrays: list[list[str]] = []
    for subject, sequence, pose in walk_positions(source.path, read_npz(source.path), "positions_3d"):
        if not _numbers(pose) or pose.ndim != 3 or pose.shape[2] != 3:
            raise CorruptRecordError(source.path, f"{subject}, {sequence}", "is no array (frames, joints, 3)")
        save_array(folder, pose, arrays, subject, sequence, "pose", "")
    return {"arrays": arrays}


def unpack_points(source: Source, folder: Path) -> dict[str, Any]:
    """Write every array of `data_2d_*.npz` as a file of its own.

    Raises:
        CorruptRecordError: the file is no such file.
    """
    arrays: list[list[str]] = []
    content = read_npz(source.path)
    for subject, sequence, cameras in walk_positions(source.path, content, "positions_2d"):
        several = list(cameras) if isinstance(cameras, list | np.ndarray) else [None]
        for camera, points in enumerate(several):
            if not _numbers(points) or points.ndim != 3 or points.shape[2] not in (2, 3):
                where = f"{subject}, {sequence}, camera {camera}"
                raise CorruptRecordError(source.path, where, "is no array (frames, joints, 2 or 3)")
            save_array(folder, points, arrays, subject, sequence, "points", str(camera))
    return {"arrays": arrays, "metadata": _plain(content.get("metadata"))}


def walk_positions(path: Path, content: dict[str, Any], key: str) -> list[tuple[str, str, Any]]:
    """Subject, sequence and value of each entry of `positions_2d` or `positions_3d`.

    Raises:
        CorruptRecordError: there are none.
    """
    positions = content.get(key)
    if not isinstance(positions, dict) or not all(isinstance(each, dict) for each in positions.values()):
        names = ", ".join(sorted(content)[:6])
        raise CorruptRecordError(
            path, key, f"is no dictionary of subjects and sequences (the file has {names}); give the canonical file"
        )
    return [(str(s), str(q), value) for s, sequences in positions.items() for q, value in sequences.items()]


def _numbers(value: Any) -> TypeGuard[np.ndarray[Any, Any]]:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iuf"


def _plain(metadata: Any) -> dict[str, Any] | None:
    """What is used of the metadata, as JSON values; None: there is nothing of the kind."""
    if not isinstance(metadata, dict):
        return None
    sides = metadata.get("keypoints_symmetry")
    try:
        symmetry = [[int(joint) for joint in side] for side in sides] if sides is not None else None
    except (TypeError, ValueError):
        symmetry = []
    name = metadata.get("layout_name")
    return {"layout_name": str(name) if name is not None else None, "keypoints_symmetry": symmetry}


def check_layout(
    source: Source, metadata: Any, names: Sequence[str], skeleton: Skeleton, *, convert: bool
) -> tuple[tuple[int, ...], ...]:
    """Refuse keypoints whose layout is not the one of the poses, or that do not say which they have.

    Args:
        source: the file of keypoints.
        metadata: of it.
        names: what the layout may be called there.
        skeleton: of the poses.
        convert: take COCO's joints, too.

    Returns:
        For each joint, the joints of the keypoints whose mean it is; empty: they are in the layout of the poses.

    Raises:
        LayoutError: naming what is there.
    """
    name = metadata.get("layout_name") if isinstance(metadata, dict) else None
    if name is None:
        raise LayoutError(
            source.path,
            "metadata",
            f"does not name the layout of the joints (layout_name); {len(skeleton.joints)} joints are no proof, as "
            f"COCO has 17, too: add metadata with layout_name {names[0]!r} if they are {skeleton.name}",
        )
    if name == "coco" and convert:
        return from_coco(skeleton)
    if name not in names:
        raise LayoutError(
            source.path,
            "metadata",
            f"layout_name is {name!r}, the poses are {skeleton.name} ({names[0]!r}): "
            + ("--convert true makes them of COCO's joints" if name == "coco" else "detect them in that layout"),
        )
    symmetry = metadata.get("keypoints_symmetry")
    wanted = {tuple(sorted(skeleton.left)), tuple(sorted(skeleton.right))}
    if symmetry is not None and {tuple(sorted(side)) for side in symmetry} != wanted:
        raise LayoutError(
            source.path,
            "metadata",
            f"keypoints_symmetry {symmetry} is not that of {skeleton.name}, so the joints are in another order",
        )
    return ()


def gather(stage: Stage) -> tuple[dict[tuple[str, str], Unpacked], dict[tuple[str, str], list[Unpacked]]]:
    """Poses, and keypoints of each camera, by subject and sequence."""
    poses: dict[tuple[str, str], Unpacked] = {}
    points: dict[tuple[str, str], list[Unpacked]] = {}
    for source, done in stage:
        for entry in entries_of(done):
            key = (entry.subject, entry.sequence)
            if entry.kind == "points":
                points.setdefault(key, []).append(entry)
            elif key in poses:
                raise ConfigError(f"{source.path}: {' '.join(key)} is in another file, too; give one of them")
            else:
                poses[key] = entry
    return poses, points


def missing_cameras(points: Sequence[Unpacked] | None, cameras: int) -> str:
    """Why the keypoints of a recording cannot be told apart by camera; empty: they can.

    Args:
        points: of each camera.
        cameras: how many there should be.
    """
    if points is None:
        return "has no keypoints of this sequence"
    if len(points) != cameras:
        return f"has keypoints of {len(points)} cameras instead of {cameras}: which is which is not known"
    return ""


def unmatched(poses: Sequence[tuple[str, str]], points: Sequence[tuple[str, str]]) -> list[Remark]:
    """Keypoints of sequences that have no pose: nothing can be learned from them here."""
    known = set(poses)
    lost = [key for key in points if key not in known]
    return [Remark("/".join(key), "", "keypoints_without_pose", 0, "is in the 2D file only") for key in lost]


def refuse_nothing(where: Path, wanted: str) -> DatasetNotFoundError:
    """The error of a folder that does not have the data set."""
    return DatasetNotFoundError(f"{where}: {wanted} is not there; check the folder given as raw")
