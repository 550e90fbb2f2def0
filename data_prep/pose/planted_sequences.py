"""Figures of sticks that walk, wave and box before four cameras, in the files of Human3.6M: to show and to test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.pose.planted_body import MOVEMENTS, Body, in_layout, move
from data_prep.pose.sequences.human36m import JOINTS, SPLITS
from data_prep.pose.sequences.human36m_cameras import CAMERAS
from data_prep.pose.sequences.skeletons import H36M_17, H36M_KEPT

SOURCE = "planted"  # of the keypoints, as the name of their file says it
Nested = dict[str, dict[str, Any]]


class PlantedSequences(NamedTuple):
    """What was written.

    Args:
        poses: `data_3d_h36m.npz`, metres in the world.
        keypoints: `data_2d_h36m_planted.npz`, pixels of each camera.
    """

    poses: Path
    keypoints: Path


def write_planted_sequences(
    directory: Path,
    subjects: Sequence[str] = tuple(SPLITS),
    frames: int = 150,
    noise: float = 4.0,
    seed: int = 0,
) -> PlantedSequences:
    """Write each movement of each subject, and its keypoints as a detector of some noise would find them.

    Each subject has a body of its own. Train, validation and test are what Human3.6M makes of the subjects' names.

    Args:
        directory: made if absent.
        subjects: of Human3.6M, whose cameras are known.
        frames: of each sequence, at 50 a second.
        noise: deviation of the keypoints from the projected joints, pixels of a picture of 1000.
        seed: of everything random.
    """
    poses: Nested = {}
    points: Nested = {}
    for number, subject in enumerate(subjects):
        rng = np.random.default_rng([seed, number])
        body = Body.draw(rng)
        for movement in MOVEMENTS:
            pose = in_layout(body.joints(*move(rng, movement, frames)), H36M_17)
            seen = [camera.project(camera.from_world(pose)) for camera in CAMERAS[subject]]
            found = [pixels + rng.normal(0, noise, pixels.shape) for pixels in seen]
            poses.setdefault(subject, {})[movement] = _all_joints(pose)
            points.setdefault(subject, {})[movement] = [pixels.astype(np.float32) for pixels in found]
    directory.mkdir(parents=True, exist_ok=True)
    made = PlantedSequences(directory / "data_3d_h36m.npz", directory / f"data_2d_h36m_{SOURCE}.npz")
    sides = [sorted(H36M_17.left), sorted(H36M_17.right)]
    metadata = {"layout_name": "h36m", "num_joints": len(H36M_17.joints), "keypoints_symmetry": sides}
    np.savez_compressed(made.poses, positions_3d=_as_object(poses))
    np.savez_compressed(made.keypoints, positions_2d=_as_object(points), metadata=_as_object(metadata))
    return made


def _all_joints(pose: Any) -> Any:
    """17 joints in their places among the 32 of the raw data; the others repeat the hip."""
    full = np.repeat(pose[:, :1], JOINTS, axis=1)
    full[:, list(H36M_KEPT)] = pose
    return full.astype(np.float32)


def _as_object(value: Any) -> Any:
    """A dictionary as the files of the field hold it."""
    made = np.empty((), dtype=object)
    made[()] = value
    return made
