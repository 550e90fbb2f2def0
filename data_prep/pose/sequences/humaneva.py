"""HumanEva-I (L. Sigal, A. Balan and M. Black, 2010) as the field passes it on: `data_3d_humaneva15.npz` and 2D files.

Stretches without motion capture cut a sequence into chunks, some of two frames only. The published protocol trains on
`Train` and tests on `Validate` of the same three subjects; it does not keep subjects apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError
from data_prep.common.rejects import Reject
from data_prep.pose.sequences.cameras import Camera
from data_prep.pose.sequences.canonical import (
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
from data_prep.pose.sequences.records import (
    Asked,
    Found,
    Listing,
    Recording,
    Source,
    Stage,
    Track,
    natural_key,
    reject_all,
)
from data_prep.pose.sequences.skeletons import HUMANEVA_15

FPS = 60.0
SIZE = (640, 480)
NAMES = ("C1", "C2", "C3")
LICENCE = "HumanEva licence: research only, registration needed"
SPLITS = {"Train": "train", "Validate": "test"}
# (w, x, y, z) and mm; lenses are not part of what is passed on
_FIRST = (
    ((0.424207, -0.4983646, -0.5802981, 0.4847012), (4062.227, 663.2477, 1528.397)),
    ((0.6503354, -0.7481602, -0.0919284, 0.0941766), (844.8131, -3805.2092, 1504.9929)),
    ((0.0664734, -0.0690535, 0.7416416, -0.6639132), (-797.67377, 3916.3174, 1433.6602)),
)
_SECOND = (
    ((0.4214752, -0.4961493, -0.5838273, 0.4851187), (4112.9121, 626.4929, 1545.2988)),
    ((0.6501393, -0.7476588, -0.0954617, 0.0959808), (923.5740, -3877.9243, 1504.5518)),
    ((0.0699353, -0.0712403, 0.7421637, -0.662742), (-781.4915, 3838.8853, 1444.9929)),
)
_PLACES = {"S1": _FIRST, "S2": _SECOND, "S3": _FIRST}


def cameras_of(subject: str) -> tuple[Camera, ...]:
    """The three cameras as they stood for a subject."""
    return tuple(
        Camera(name, *SIZE, turn, (x / 1000.0, y / 1000.0, z / 1000.0))
        for name, (turn, (x, y, z)) in zip(NAMES, _PLACES[subject], strict=True)
    )


def find(paths: Sequence[Path], asked: Asked, where: Path) -> Found:
    """The two files.

    Raises:
        PrepError: one is missing.
    """
    poses = only_one(paths, "data_3d_humaneva15.npz")
    if poses is None:
        raise refuse_nothing(where, "data_3d_humaneva15.npz")
    points = choose_points(paths, r"data_2d_humaneva15_(.+)\.npz", asked.keypoints, projectable=False)
    if points is None:
        raise ConfigError("keypoints: those of HumanEva cannot be projected, as its lenses are not known")
    sources = (Source(poses, "pose", poses.name), Source(points, "points", points.name))
    return Found(sources, HUMANEVA_15, LICENCE, {"keypoints": points.stem.removeprefix("data_2d_humaneva15_")})


def unpack(source: Source, folder: Path) -> dict[str, Any]:
    """Write the arrays of one file as files of their own."""
    return unpack_poses(source, folder) if source.kind == "pose" else unpack_points(source, folder)


def join(stage: Stage, asked: Asked) -> Listing:
    """Recordings from the unpacked arrays."""
    points_source, points_done = next(entry for entry in stage if entry[0].kind == "points")
    pose_source = next(source for source, _ in stage if source.kind == "pose")
    metadata = points_done.info["metadata"]
    parts = check_layout(points_source, metadata, ("humaneva15",), HUMANEVA_15, convert=asked.convert)
    poses, points = gather(stage)
    chosen = [name for name in NAMES if not asked.cameras or name in asked.cameras]
    recordings: list[Recording] = []
    rejects: list[Reject] = []
    for key in sorted(poses, key=lambda key: natural_key("/".join(key))):
        part, _, subject = key[0].partition("/")
        if part not in SPLITS or subject not in _PLACES:
            reason = "is none of Train and Validate of S1, S2, S3, whose cameras are known"
            rejects += reject_all(pose_source.label, "/".join(key), chosen, reason)
            continue
        reason = missing_cameras(points.get(key), len(NAMES))
        if reason:
            rejects += reject_all(points_source.label, "/".join(key), chosen, reason)
            continue
        tracks = tuple(
            Track(camera, Path(entry.file), source=points_source.label, parts=parts)
            for camera, entry in zip(cameras_of(subject), points[key], strict=True)
            if camera.name in chosen
        )
        action = key[1].split(" ")[0]
        name = "/".join(key)
        recordings.append(
            Recording(
                *(name, subject, key[1], action, SPLITS[part], FPS, pose_source.label, tracks),
                pose=Path(poses[key].file),
            )
        )
    remarks = unmatched(list(poses), list(points))
    return Listing(tuple(recordings), tuple(rejects), tuple(remarks), len(poses) * len(chosen))
