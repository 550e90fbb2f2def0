"""Human3.6M (C. Ionescu et al., 2014): the canonical npz files, or `S*/MyPoseFeatures/D3_Positions/*.cdf`.

32 joints, of which 17 move on their own; 50 Hz; world axes; millimetres in the raw files, metres in the canonical one.
Train S1, S5, S6, S7, S8; test S9, S11. Without 2D files the keypoints are the projections of the poses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import CorruptRecordError
from data_prep.common.extras import need
from data_prep.common.files import translate_os_errors
from data_prep.common.rejects import Reject
from data_prep.pose.sequences.canonical import (
    PROJECTED,
    check_layout,
    choose_points,
    gather,
    missing_cameras,
    only_one,
    refuse_nothing,
    unmatched,
    unpack_points,
    unpack_poses,
)
from data_prep.pose.sequences.human36m_cameras import CAMERAS
from data_prep.pose.sequences.records import (
    Asked,
    Found,
    Listing,
    Recording,
    Remark,
    Source,
    Stage,
    Track,
    label_of,
    natural_key,
    reject_all,
    save_array,
)
from data_prep.pose.sequences.skeletons import H36M_17, H36M_KEPT

FPS = 50.0
JOINTS = 32
SPLITS = {**dict.fromkeys(("S1", "S5", "S6", "S7", "S8"), "train"), "S9": "test", "S11": "test"}
SEQUENCES = {subject: 29 if subject == "S11" else 30 for subject in SPLITS}
NAMES = tuple(camera.name for camera in CAMERAS["S1"])
LICENCE = "Human3.6M licence: research only, registration needed"
DAMAGED = ("S11", "Directions")  # its video is damaged; every published number is without it
_CDF = re.compile(r".*/(S\d+)/(?:[^/]+/)*D3_Positions/([^/]+)\.cdf")


def find(paths: Sequence[Path], asked: Asked, where: Path) -> Found:
    """The canonical pose file, else all cdf files; and the file of keypoints, if one is there and asked for.

    Raises:
        PrepError: there are neither.
    """
    canonical = only_one(paths, "data_3d_h36m.npz")
    if canonical is not None:
        sources = [Source(canonical, "pose", canonical.name)]
    else:
        found = [path for path in paths if _CDF.fullmatch(path.as_posix())]
        if found:
            need("pose", "reading cdf files of Human3.6M", "cdflib")
        found.sort(key=lambda path: natural_key(path.as_posix()))
        sources = [Source(path, "cdf", label_of(path, 4)) for path in found]
    if not sources:
        raise refuse_nothing(where, "data_3d_h36m.npz, or S*/MyPoseFeatures/D3_Positions/*.cdf,")
    points = choose_points(paths, r"data_2d_h36m_(.+)\.npz", asked.keypoints, projectable=True)
    name = points.stem.removeprefix("data_2d_h36m_") if points else PROJECTED
    if points is not None:
        sources.append(Source(points, "points", points.name))
    return Found(tuple(sources), H36M_17, LICENCE, {"keypoints": name})


def unpack(source: Source, folder: Path) -> dict[str, Any]:
    """Write the arrays of one file as files of their own; a cdf file that cannot be read says why instead."""
    if source.kind == "pose":
        return unpack_poses(source, folder)
    if source.kind == "points":
        return unpack_points(source, folder)
    match = _CDF.fullmatch(source.path.as_posix())
    subject, sequence = (match[1], match[2]) if match else ("", "")
    sequence = sequence.replace("TakingPhoto", "Photo").replace("WalkingDog", "WalkDog")
    arrays: list[list[str]] = []
    try:
        save_array(folder, read_cdf(source.path), arrays, subject, sequence, "pose", "")
    except CorruptRecordError as error:
        return {"arrays": [], "subject": subject, "sequence": sequence, "reason": error.reason}
    return {"arrays": arrays}


def read_cdf(path: Path) -> np.ndarray[Any, Any]:
    """The variable `Pose` of a cdf file.

    Shape:
        (T, 32, 3) float32, millimetres.

    Raises:
        CorruptRecordError: the file is damaged, or has no such variable.
    """
    import cdflib

    with translate_os_errors(path):
        if not path.stat().st_size:
            raise CorruptRecordError(path, "file", "is empty; download it again")
        try:
            pose = np.asarray(cdflib.CDF(path).varget("Pose"))
        except Exception as error:  # a damaged file leads its reader to errors of every kind
            raise CorruptRecordError(
                path, "variable Pose", f"cannot be read ({type(error).__name__}: {error}); download the file again"
            ) from error
    if pose.dtype.kind != "f" or pose.ndim not in (2, 3) or pose.shape[-1] != 3 * JOINTS:
        raise CorruptRecordError(
            path, "variable Pose", f"is {pose.dtype} {list(pose.shape)} instead of frames of {JOINTS} joints"
        )
    return pose.reshape(-1, JOINTS, 3).astype(np.float32)


def join(stage: Stage, asked: Asked) -> Listing:
    """Recordings from the unpacked arrays."""
    points_source = next((source for source, _ in stage if source.kind == "points"), None)
    parts: tuple[tuple[int, ...], ...] = ()
    for source, done in stage:
        if source.kind == "points":
            parts = check_layout(source, done.info["metadata"], ("h36m",), H36M_17, convert=asked.convert)
    poses, points = gather(stage)
    where = {str(done.folder): source for source, done in stage}
    chosen = [name for name in NAMES if not asked.cameras or name in asked.cameras]
    rejects: list[Reject] = []
    for source, done in stage:
        if "reason" in done.info:
            name = f"{done.info['subject']}/{done.info['sequence']}"
            rejects += reject_all(source.label, name, chosen, done.info["reason"])
    remarks = unmatched(list(poses), list(points)) + _counts(list(poses))
    if DAMAGED in poses:
        detail = "its video is damaged; published results are without it"
        remarks.append(Remark("/".join(DAMAGED), "", "left_out", 0, detail))
        del poses[DAMAGED]
    total = len(poses) * len(chosen) + len(rejects)
    recordings: list[Recording] = []
    for key in sorted(poses, key=lambda key: natural_key("/".join(key))):
        source, seen = where[str(Path(poses[key].file).parent)], points.get(key)
        reason = "" if points_source is None else missing_cameras(seen, len(NAMES))
        label = points_source.label if points_source is not None and reason else source.label
        if key[0] not in SPLITS:
            label, reason = source.label, f"is none of the subjects {', '.join(SPLITS)}"
        if reason:
            rejects += reject_all(label, "/".join(key), chosen, reason)
            continue
        told = points_source.label if points_source is not None else ""
        tracks = [
            Track(camera, Path(seen[at].file) if seen and points_source is not None else None, source=told, parts=parts)
            for at, camera in enumerate(CAMERAS[key[0]])
            if camera.name in chosen
        ]
        recordings.append(_recording(key, Path(poses[key].file), source, tuple(tracks)))
    return Listing(tuple(recordings), tuple(rejects), tuple(remarks), total)


def _recording(key: tuple[str, str], pose: Path, source: Source, tracks: tuple[Track, ...]) -> Recording:
    subject, sequence = key
    return Recording(
        *("/".join(key), subject, sequence, sequence.split(" ")[0], SPLITS[subject], FPS, source.label, tracks),
        pose=pose,
        joints=H36M_KEPT,
        unit="mm" if source.kind == "cdf" else "m",
    )


def _counts(keys: Sequence[tuple[str, str]]) -> list[Remark]:
    """Subjects that lack sequences: a download that stopped looks like a small data set."""
    found = Counter(subject for subject, sequence in keys if (subject, sequence) != DAMAGED)
    return [
        Remark(subject, "", "missing_sequences", 0, f"{found[subject]} of {wanted} sequences are there")
        for subject, wanted in SEQUENCES.items()
        if found[subject] < wanted
    ]
