"""Joints of the data sets of sequences, by name; what a prepared directory says of its layout.

The names are those of `domains/pose/layouts.py`, which reads them from `dataset.json`: arrays never tell their layout,
as those of COCO and of Human3.6M have the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Skeleton:
    """The joints of a body, in order.

    Args:
        name: of the layout.
        joints: names of the joints.
        parents: parent of each joint, -1 for the root; empty: none is defined.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...] = ()

    @property
    def left(self) -> list[int]:
        """Joints of the left side whose counterpart is `right`, in its order."""
        return [self.joints.index(name.replace("right_", "left_")) for name in self.joints if "right_" in name]

    @property
    def right(self) -> list[int]:
        """Joints of the right side."""
        return [place for place, name in enumerate(self.joints) if "right_" in name]

    @property
    def mirrored(self) -> list[int]:
        """For each joint, the joint whose place it takes in a mirror."""
        order = list(range(len(self.joints)))
        for left, right in zip(self.left, self.right, strict=True):
            order[left], order[right] = right, left
        return order

    @property
    def bones(self) -> list[tuple[int, int]]:
        """Joint and parent of each bone."""
        return [(joint, parent) for joint, parent in enumerate(self.parents) if parent >= 0]

    def find(self, *names: str) -> int:
        """The joint that has one of these names."""
        return next(self.joints.index(name) for name in names if name in self.joints)

    def describe(self) -> dict[str, Any]:
        """The `layout` entry of `dataset.json`."""
        return {
            "name": self.name,
            "joints": list(self.joints),
            "left": sorted(self.left),
            "right": sorted(self.right),
            "mirrored": self.mirrored,
            "parents": list(self.parents),
        }

    def bone_lengths(self, pose: F64) -> F64:
        """Length of each bone in each frame.

        Shape:
            pose (T, J, 3) -> (T, bones), in the unit of the pose.
        """
        joints, parents = (list(side) for side in zip(*self.bones, strict=True))
        return np.asarray(np.linalg.norm(pose[:, joints] - pose[:, parents], axis=-1))


H36M_17 = Skeleton(
    "h36m-17",
    (
        *("hip", "right_hip", "right_knee", "right_foot", "left_hip", "left_knee", "left_foot", "spine", "thorax"),
        *("neck_nose", "head", "left_shoulder", "left_elbow", "left_wrist"),
        *("right_shoulder", "right_elbow", "right_wrist"),
    ),
    (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
)
HUMANEVA_15 = Skeleton(
    "humaneva-15",
    (
        *("pelvis", "thorax", "left_shoulder", "left_elbow", "left_wrist"),
        *("right_shoulder", "right_elbow", "right_wrist", "left_hip", "left_knee", "left_ankle"),
        *("right_hip", "right_knee", "right_ankle", "head"),
    ),
    (-1, 0, 1, 2, 3, 1, 5, 6, 0, 8, 9, 0, 11, 12, 1),
)
MPI_INF_3DHP_17 = Skeleton(
    "mpi-inf-3dhp-17",
    (
        *("head_top", "neck", "right_shoulder", "right_elbow", "right_wrist"),
        *("left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle"),
        *("left_hip", "left_knee", "left_ankle", "pelvis", "spine", "head"),
    ),
    (16, 15, 1, 2, 3, 1, 5, 6, 14, 8, 9, 14, 11, 12, -1, 14, 1),
)
COCO_17 = Skeleton(
    "coco-17",
    (
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
)
SKELETONS = {each.name: each for each in (H36M_17, HUMANEVA_15, MPI_INF_3DHP_17, COCO_17)}
# the 17 joints of Human3.6M's 32 that move on their own; the others repeat them or are hands and toes
H36M_KEPT = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
# the 17 joints of MPI-INF-3DHP's 28 that its test set has
MPI_INF_3DHP_KEPT = (7, 5, 14, 15, 16, 9, 10, 11, 23, 24, 25, 18, 19, 20, 4, 3, 6)
# joints of Human3.6M and HumanEva that COCO calls otherwise, or between whose joints they lie
_FROM_COCO = {
    "hip": "left_hip right_hip",
    "pelvis": "left_hip right_hip",
    "spine": "left_hip right_hip left_shoulder right_shoulder",
    "thorax": "left_shoulder right_shoulder",
    "neck_nose": "nose",
    "head": "left_eye right_eye left_ear right_ear",
    "left_foot": "left_ankle",
    "right_foot": "right_ankle",
}
LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def from_coco(skeleton: Skeleton) -> tuple[tuple[int, ...], ...]:
    """For each joint, the joints of COCO whose mean it is; for Human3.6M and HumanEva."""
    return tuple(
        tuple(COCO_17.joints.index(part) for part in _FROM_COCO.get(joint, joint).split()) for joint in skeleton.joints
    )


def limb_joints(skeleton: Skeleton) -> list[int]:
    """Shoulders, elbows, wrists, hips, knees and ankles, left and right, in one order for all layouts."""
    names = [f"{side}_{limb}" for limb in LIMBS for side in ("left", "right")]
    return [skeleton.find(name, name.replace("ankle", "foot")) for name in names]
