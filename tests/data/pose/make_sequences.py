"""Makes miniature data sets of walking figures in the original layouts of Human3.6M, HumanEva and MPI-INF-3DHP.

    python -m tests.data.pose.make_sequences FOLDER

Bones have fixed lengths, knees bend forwards, and keypoints are projections, so that whatever a check finds was put in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from data_prep.pose.sequences.cameras import Camera, quaternion_of
from data_prep.pose.sequences.human36m_cameras import CAMERAS
from data_prep.pose.sequences.humaneva import cameras_of
from data_prep.pose.sequences.skeletons import (
    H36M_17,
    H36M_KEPT,
    HUMANEVA_15,
    MPI_INF_3DHP_17,
    MPI_INF_3DHP_KEPT,
    Skeleton,
)

H36M_META = {
    "layout_name": "h36m",
    "num_joints": 17,
    "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]],
}
EVA_META = {
    "layout_name": "humaneva15",
    "num_joints": 15,
    "keypoints_symmetry": [[2, 3, 4, 8, 9, 10], [5, 6, 7, 11, 12, 13]],
}


def walk(skeleton: Skeleton, frames: int, seed: int = 0) -> np.ndarray:
    """A figure that walks in a circle, metres, z up, (T, J, 3)."""
    rng = np.random.default_rng([seed, 7])
    time = np.arange(frames) / 50.0
    phase = 2 * np.pi * (time * rng.uniform(0.8, 1.2) + rng.uniform())
    turn = rng.uniform(0, 6) + 0.5 * time
    up = np.tile([0.0, 0.0, 1.0], (frames, 1))
    ahead = np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=-1)
    left = np.cross(up, ahead)

    def limb(start: np.ndarray, angle: np.ndarray, length: float) -> np.ndarray:
        return start + length * (np.sin(angle)[:, None] * ahead - np.cos(angle)[:, None] * up)

    hip = 0.6 * np.stack([np.sin(turn), -np.cos(turn), 0 * turn], axis=-1) + 0.95 * up
    at = {"hip": hip, "spine": hip + 0.25 * up, "thorax": hip + 0.5 * up, "neck_nose": hip + 0.6 * up + 0.05 * ahead}
    at |= {"head": hip + 0.72 * up, "head_top": hip + 0.8 * up}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        swing = 0.4 * sign * np.sin(phase)
        at[f"{side}_hip"] = hip + sign * 0.13 * left
        at[f"{side}_knee"] = limb(at[f"{side}_hip"], swing, 0.45)
        at[f"{side}_foot"] = limb(at[f"{side}_knee"], swing - 0.6 - 0.3 * np.sin(phase), 0.44)
        at[f"{side}_shoulder"] = at["thorax"] + sign * 0.17 * left
        at[f"{side}_elbow"] = limb(at[f"{side}_shoulder"], -swing, 0.28)
        at[f"{side}_wrist"] = limb(at[f"{side}_elbow"], -swing + 0.5, 0.25)
    at |= {"pelvis": hip, "neck": at["thorax"], "left_ankle": at["left_foot"], "right_ankle": at["right_foot"]}
    return np.stack([at[name] for name in skeleton.joints], axis=1)


def as_object(value: Any) -> np.ndarray:
    """A dictionary as NumPy pickles it."""
    made = np.empty((), dtype=object)
    made[()] = value
    return made


def save_npz(path: Path, **members: Any) -> Path:
    """An npz file with dictionaries in it."""
    np.savez_compressed(path, **{name: as_object(value) for name, value in members.items()})
    return path


def h36m_32(pose: np.ndarray) -> np.ndarray:
    """17 joints in their places among 32."""
    full = np.repeat(pose[:, :1], 32, axis=1)
    full[:, list(H36M_KEPT)] = pose
    return full.astype(np.float32)


def project(pose: np.ndarray, cameras: Sequence[Camera]) -> list[np.ndarray]:
    """Pixels of a pose in the world, for each camera."""
    return [camera.project(camera.from_world(pose)).astype(np.float32) for camera in cameras]


Positions = dict[str, dict[str, Any]]


def h36m_positions(
    subjects: Sequence[str] = ("S1", "S9"), sequences: Sequence[str] = ("Walking 1", "Eating"), frames: int = 40
) -> tuple[Positions, Positions]:
    """Content of both canonical files: poses of 32 joints in metres, and their keypoints."""
    poses: Positions = {}
    points: Positions = {}
    for number, subject in enumerate(subjects):
        for other, sequence in enumerate(sequences):
            pose = walk(H36M_17, frames + other, seed=10 * number + other)
            poses.setdefault(subject, {})[sequence] = h36m_32(pose)
            points.setdefault(subject, {})[sequence] = project(pose, CAMERAS[subject])
    return poses, points


def write_h36m(
    folder: Path, poses: Positions, points: Positions | None, meta: Any = H36M_META, name: str = "gt"
) -> Path:
    """Canonical files of Human3.6M."""
    folder.mkdir(parents=True, exist_ok=True)
    save_npz(folder / "data_3d_h36m.npz", positions_3d=poses)
    if points is not None:
        extra = {} if meta is None else {"metadata": meta}
        save_npz(folder / f"data_2d_h36m_{name}.npz", positions_2d=points, **extra)
    return folder


def write_cdf(path: Path, pose: np.ndarray) -> None:
    """`D3_Positions` of Human3.6M: a pose (T, 32, 3) in millimetres."""
    from cdflib import cdfwrite

    path.parent.mkdir(parents=True, exist_ok=True)
    values = pose.reshape(1, len(pose), 96).astype(np.float32)
    file = cdfwrite.CDF(path, {"Majority": "row_major", "Encoding": 6})
    about = {"Variable": "Pose", "Data_Type": 44, "Num_Elements": 1, "Rec_Vary": True, "Var_Type": "zVariable"}
    about |= {"Dim_Sizes": list(values.shape[1:]), "Dim_Vary": [True, True], "Compress": 6}
    file.write_var(about, var_data=values)
    file.close()


def eva_positions(
    parts: Sequence[str] = ("Train/S1", "Train/S2", "Validate/S1", "Validate/S3"), frames: int = 30
) -> tuple[Positions, Positions]:
    """Content of both files of HumanEva; the lenses are made up."""
    poses: Positions = {}
    points: Positions = {}
    for number, part in enumerate(parts):
        for other, sequence in enumerate(("Walking 1 chunk0", "Jog 1 chunk0", "Jog 1 chunk2")):
            pose = walk(HUMANEVA_15, 2 if "chunk2" in sequence else frames, seed=10 * number + other)
            poses.setdefault(part, {})[sequence] = pose.astype(np.float32)
            cameras = [
                Camera(c.name, c.width, c.height, c.quaternion, c.translation, (720.0, 715.0), (330.0, 235.0))
                for c in cameras_of(part.split("/")[1])
            ]
            points.setdefault(part, {})[sequence] = project(pose, cameras)
    return poses, points


def write_eva(folder: Path, poses: Positions, points: Positions | None, meta: Any = EVA_META) -> Path:
    """Canonical files of HumanEva."""
    folder.mkdir(parents=True, exist_ok=True)
    save_npz(folder / "data_3d_humaneva15.npz", positions_3d=poses)
    if points is not None:
        save_npz(folder / "data_2d_humaneva15_gt.npz", positions_2d=points, metadata=meta)
    return folder


def hp_cameras(count: int = 14) -> list[Camera]:
    """Cameras in a circle that look at a figure."""
    found = []
    for number in range(count):
        angle = 2 * np.pi * number / count
        place = np.array([4 * np.cos(angle), 4 * np.sin(angle), 1.4])
        ahead = np.array([-np.cos(angle), -np.sin(angle), 0.0])
        matrix = np.stack([np.cross(ahead, [0, 0, 1.0]), [0, 0, -1.0], ahead], axis=1)
        x, y, z = place.tolist()
        found.append(
            Camera(str(number), 2048, 2048, quaternion_of(matrix), (x, y, z), (1497.7, 1497.1), (1024.7, 1051.4))
        )
    return found


def calibration(cameras: Sequence[Camera]) -> str:
    """`camera.calibration` of Skeletool."""
    from data_prep.pose.sequences.cameras import rotation

    lines = ["Skeletool Camera Calibration File V1.0"]
    for camera in cameras:
        turn = rotation(camera.quaternion).T
        place = np.eye(4)
        place[:3, :3], place[:3, 3] = turn, -turn @ np.array(camera.translation) * 1000
        lens = np.eye(4)
        lens[0, 0], lens[1, 1] = camera.focal
        lens[:2, 2] = camera.centre
        lines += [
            f"name          {camera.name}",
            "  sensor      10 10",
            f"  size        {camera.width} {camera.height}",
        ]
        lines += ["  animated    0", "  intrinsic   " + " ".join(f"{v:.10g}" for v in lens.ravel())]
        lines += ["  extrinsic   " + " ".join(f"{v:.10g}" for v in place.ravel()), "  radial      0"]
    return "\n".join(lines) + "\n"


def cells(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A cell array of one column."""
    made = np.empty((len(arrays), 1), dtype=object)
    for place, array in enumerate(arrays):
        made[place, 0] = array
    return made


def hp_train(frames: int, seed: int, cameras: Sequence[Camera]) -> dict[str, list[np.ndarray]]:
    """Content of `annot.mat`: 28 joints of each camera, pixels and millimetres."""
    pose = np.repeat(walk(MPI_INF_3DHP_17, frames, seed)[:, :1], 28, axis=1)
    pose[:, list(MPI_INF_3DHP_KEPT)] = walk(MPI_INF_3DHP_17, frames, seed)
    found: dict[str, list[np.ndarray]] = {"annot2": [], "annot3": [], "univ_annot3": []}
    for camera in cameras:
        seen = camera.from_world(pose)
        found["annot2"].append(camera.project(seen).reshape(frames, -1))
        found["annot3"].append(seen.reshape(frames, -1) * 1000)
        found["univ_annot3"].append(seen.reshape(frames, -1) * 900)
    return found


def write_annot(path: Path, content: dict[str, list[np.ndarray]], *, compressed: bool = True) -> None:
    """`annot.mat` of a training sequence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = {"cameras": np.arange(len(content["annot2"]))[:, None], "note": "made up"}
    scipy.io.savemat(path, {**{n: cells(a) for n, a in content.items()}, **extra}, do_compression=compressed)


def write_annot_data(path: Path, frames: int = 24, seed: int = 5, size: tuple[int, int] = (2048, 2048)) -> np.ndarray:
    """`annot_data.mat` of a test subject, whose first frames are not valid; returns the pose in metres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pose = hp_cameras()[3].from_world(walk(MPI_INF_3DHP_17, frames, seed))
    camera = Camera("0", *size, focal=(size[1] * 0.75, size[1] * 0.75), centre=(size[0] / 2, size[1] / 2))
    points = camera.project(pose)
    valid = np.ones((frames, 1))
    valid[:4] = 0
    with h5py.File(path, "w") as file:
        file["annot2"], file["annot3"] = points[:, None], pose[:, None] * 1000
        file["univ_annot3"], file["valid_frame"] = pose[:, None] * 900, valid
    return pose


def write_3dhp(folder: Path, frames: int = 30) -> Path:
    """Two training sequences and two test subjects."""
    for number, name in enumerate(("S1/Seq1", "S3/Seq2")):
        write_annot(folder / name / "annot.mat", hp_train(frames, number, hp_cameras()))
        (folder / name / "camera.calibration").write_text(calibration(hp_cameras()))
    write_annot_data(folder / "TS1" / "annot_data.mat")
    write_annot_data(folder / "TS5" / "annot_data.mat", seed=6, size=(1920, 1080))
    return folder


def main(folder: Path) -> None:
    """Write one of each."""
    write_h36m(folder / "human36m", *h36m_positions())
    write_eva(folder / "humaneva", *eva_positions())
    write_3dhp(folder / "mpi_inf_3dhp")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
