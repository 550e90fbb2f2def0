"""Which joint is which: named layouts, and the conversions between them that are defined.

COCO-17 and Human3.6M-17 have the same shape and another meaning. So arrays never tell their layout; a name does, and
where no conversion is defined none is made up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from domains.common.errors import ConfigError

MILLIMETRES = 10.0  # no bone is ten metres long, and none but the shortest are ten millimetres


@dataclass(frozen=True)
class Layout:
    """The joints of a body, in order.

    Args:
        name: what files call it.
        joints: names of the joints.
        left: joints of the left side.
        right: their counterparts, in the same order.
        parents: parent of each joint, -1 for the root; empty where the layout has no root.
        edges: pairs of joints that a drawing connects; by default each joint and its parent.

    Raises:
        ConfigError: the parts do not fit together.
    """

    name: str
    joints: tuple[str, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    parents: tuple[int, ...] = ()
    edges: tuple[tuple[int, int], ...] = field(default=())

    def __post_init__(self) -> None:
        count, sides = len(self.joints), [*self.left, *self.right]
        if not count or len(set(self.joints)) != count:
            raise ConfigError(f"layout {self.name}: joints must have names, each its own")
        if len(self.left) != len(self.right) or len(set(sides)) != len(sides):
            raise ConfigError(f"layout {self.name}: left and right must pair as many joints, each once")
        if self.parents and (len(self.parents) != count or self.parents.count(-1) != 1):
            raise ConfigError(f"layout {self.name}: parents must name one of each joint, and -1 for one root")
        if any(not 0 <= joint < count for joint in sides) or any(not -1 <= joint < count for joint in self.parents):
            raise ConfigError(f"layout {self.name}: left, right and parents must be joints 0 to {count - 1}")
        if any(not 0 <= joint < count for edge in self.edges for joint in edge):
            raise ConfigError(f"layout {self.name}: edges must connect joints 0 to {count - 1}")
        if not self.edges:
            bones = tuple((parent, joint) for joint, parent in enumerate(self.parents) if parent >= 0)
            object.__setattr__(self, "edges", bones)

    @property
    def root(self) -> int:
        """The joint that poses are relative to.

        Raises:
            ConfigError: the layout has none.
        """
        if not self.parents:
            raise ConfigError(f"layout {self.name} has no root joint; convert it to one that has: {_rooted()}")
        return self.parents.index(-1)

    def mirrored(self) -> list[int]:
        """For each joint, the joint whose place it takes in a mirror."""
        order = list(range(len(self.joints)))
        for left, right in zip(self.left, self.right, strict=True):
            order[left], order[right] = right, left
        return order

    def index(self, joint: str) -> int:
        """Number of a joint.

        Raises:
            ConfigError: the layout has no such joint.
        """
        if joint not in self.joints:
            raise ConfigError(f"layout {self.name} has no joint {joint!r}; it has {', '.join(self.joints)}")
        return self.joints.index(joint)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


H36M_17 = Layout(
    name="h36m-17",
    joints=_words(
        "hip right_hip right_knee right_foot left_hip left_knee left_foot spine thorax neck_nose head "
        "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist"
    ),
    left=(4, 5, 6, 11, 12, 13),
    right=(1, 2, 3, 14, 15, 16),
    parents=(-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
)
COCO_17 = Layout(
    name="coco-17",
    joints=_words(
        "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
        "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
    ),
    left=(1, 3, 5, 7, 9, 11, 13, 15),
    right=(2, 4, 6, 8, 10, 12, 14, 16),
    edges=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10)),
        *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
)
HUMANEVA_15 = Layout(
    name="humaneva-15",
    joints=_words(
        "pelvis thorax left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist "
        "left_hip left_knee left_ankle right_hip right_knee right_ankle head"
    ),
    left=(2, 3, 4, 8, 9, 10),
    right=(5, 6, 7, 11, 12, 13),
    parents=(-1, 0, 1, 2, 3, 1, 5, 6, 0, 8, 9, 0, 11, 12, 1),
)
MPI_INF_3DHP_17 = Layout(
    name="mpi-inf-3dhp-17",
    joints=_words(
        "head_top neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist "
        "right_hip right_knee right_ankle left_hip left_knee left_ankle pelvis spine head"
    ),
    left=(5, 6, 7, 11, 12, 13),
    right=(2, 3, 4, 8, 9, 10),
    parents=(16, 15, 1, 2, 3, 1, 5, 6, 14, 8, 9, 14, 11, 12, -1, 14, 1),
)
CROWDPOSE_14 = Layout(
    name="crowdpose-14",
    joints=_words(
        "left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip right_hip "
        "left_knee right_knee left_ankle right_ankle head_top neck"
    ),
    left=(0, 2, 4, 6, 8, 10),
    right=(1, 3, 5, 7, 9, 11),
    edges=(
        *((10, 8), (8, 6), (11, 9), (9, 7), (6, 7), (0, 6), (1, 7), (0, 1)),
        *((0, 2), (1, 3), (2, 4), (3, 5), (12, 13), (0, 13), (1, 13)),
    ),
)
LAYOUTS = {each.name: each for each in (H36M_17, COCO_17, HUMANEVA_15, MPI_INF_3DHP_17, CROWDPOSE_14)}

# the ends of legs are called feet by Human3.6M, ankles by all others
_TO_FEET = {"left_foot": "left_ankle", "right_foot": "right_ankle"}
_TO_ANKLES = {ankle: foot for foot, ankle in _TO_FEET.items()}
_COCO_BODY = {
    "thorax": "left_shoulder right_shoulder",
    "head": "left_eye right_eye left_ear right_ear",
}
# (from, to) -> joints of the target that are called otherwise in the source, or are the mean of several of its joints
_CONVERSIONS: dict[tuple[str, str], dict[str, str]] = {
    ("coco-17", "h36m-17"): {
        **_COCO_BODY,
        **_TO_FEET,
        "hip": "left_hip right_hip",
        "spine": "left_hip right_hip left_shoulder right_shoulder",
        "neck_nose": "nose",
    },
    ("coco-17", "humaneva-15"): {**_COCO_BODY, "pelvis": "left_hip right_hip"},
    ("h36m-17", "humaneva-15"): {**_TO_ANKLES, "pelvis": "hip"},
    ("h36m-17", "mpi-inf-3dhp-17"): {
        **_TO_ANKLES,
        "pelvis": "hip",
        "neck": "thorax",
        "head": "neck_nose",
        "head_top": "head",
    },
    ("mpi-inf-3dhp-17", "h36m-17"): {
        **_TO_FEET,
        "hip": "pelvis",
        "thorax": "neck",
        "neck_nose": "head",
        "head": "head_top",
    },
    ("mpi-inf-3dhp-17", "humaneva-15"): {"thorax": "neck"},
}


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"layout {name!r} is unknown; the layouts are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def convert(points: Tensor, source: str, target: str) -> Tensor:
    """Joints of one layout from those of another: the same joint, or the mean of the joints that it lies between.

    A joint that is missing (NaN) makes missing what is computed from it.

    Args:
        points: in the source layout, in two or three dimensions and any unit, without confidences.
        source: name of their layout.
        target: name of the layout that is wanted.

    Shape:
        points (..., J, C) -> (..., J', C).

    Raises:
        ConfigError: a layout is unknown, the points are not of the source layout, or no conversion is defined.
    """
    check_joints(points, find_layout(source))
    if find_layout(source) is find_layout(target):
        return points
    return torch.stack([points[..., list(parts), :].mean(dim=-2) for parts in sources(source, target)], dim=-2)


def sources(source: str, target: str) -> list[tuple[int, ...]]:
    """For each joint of the target layout, the joints of the source layout whose mean it is.

    Raises:
        ConfigError: a layout is unknown, or no conversion is defined.
    """
    old, new = find_layout(source), find_layout(target)
    if (source, target) not in _CONVERSIONS:
        defined = [f"{a} to {b}" for a, b in _CONVERSIONS]
        raise ConfigError(
            f"no conversion from {source} to {target} is defined, as joints would have to be guessed; there are "
            f"{', '.join(defined)}"
        )
    changed = _CONVERSIONS[source, target]
    return [tuple(old.index(part) for part in changed.get(joint, joint).split()) for joint in new.joints]


def check_joints(points: Tensor, layout: Layout) -> None:
    """Refuse points that cannot be of a layout.

    Raises:
        ConfigError: the last axes are not its joints and 2 or 3 coordinates.
    """
    if points.ndim < 2 or points.shape[-2] != len(layout.joints) or points.shape[-1] not in (2, 3):
        raise ConfigError(
            f"points of shape {tuple(points.shape)} are not of layout {layout.name}, whose last axes are "
            f"{len(layout.joints)} joints and 2 or 3 coordinates; name the layout that they have"
        )


def mirror(points: Tensor, layout: Layout) -> Tensor:
    """Points as a mirror shows them: x negated, left and right exchanged.

    Args:
        points: with x = 0 in the middle: screen units, or axes of the camera.
        layout: of the joints.

    Shape:
        points (..., J, C) -> (..., J, C).

    Raises:
        ConfigError: the points are not of the layout.
    """
    check_joints(points, layout)
    flipped = points[..., layout.mirrored(), :].clone()
    flipped[..., 0] = -flipped[..., 0]
    return flipped


def check_metres(points: Tensor, layout: Layout, what: str) -> None:
    """Refuse 3D points whose bones are too long to be in metres.

    Args:
        points: in three dimensions.
        layout: of the joints.
        what: what they are, for the message.

    Raises:
        ConfigError: the median bone is longer than ten.
    """
    check_joints(points, layout)
    if points.numel() == 0:
        return
    starts, ends = (list(side) for side in zip(*layout.edges, strict=True))
    median = float((points[..., starts, :] - points[..., ends, :]).norm(dim=-1).nanmedian())
    if median > MILLIMETRES:
        raise ConfigError(f"{what}: the median bone is {median:.3g} long, so these are millimetres; divide by 1000")


def _rooted() -> str:
    return ", ".join(name for name, layout in LAYOUTS.items() if layout.parents)
