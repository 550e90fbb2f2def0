"""A body of sticks that walks, waves, boxes or stands anyhow: what the generated images and sequences are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_prep.pose.sequences.skeletons import Skeleton

F64 = npt.NDArray[np.float64]
MOVEMENTS = ("Walking", "Waving", "Boxing")
RATE = 50.0  # frames a second of a movement
_SIDES = (("left", 1.0), ("right", -1.0))
# lengths in shares of the body's height
_THIGH, _SHANK, _UPPER_ARM, _FOREARM, _TRUNK, _HEAD = 0.25, 0.25, 0.165, 0.155, 0.3, 0.13
_HALF_HIPS, _HALF_SHOULDERS = 0.065, 0.11


@dataclass(frozen=True)
class Angles:
    """How the limbs of a body stand in each frame, in radians; 0 everywhere is a person who stands at attention.

    Args:
        thigh: forwards, of the left and the right leg.
        spread: outwards, of both thighs.
        knee: bent backwards.
        arm: forwards, of both upper arms.
        raise_: outwards, of both upper arms.
        elbow: forearm forwards from the upper arm.
        fold: forearm outwards from the upper arm.
        lean: trunk forwards.
        look: head to the left.

    Shape:
        of the limbs (T, 2), left and right; lean and look (T,).
    """

    thigh: F64
    spread: F64
    knee: F64
    arm: F64
    raise_: F64
    elbow: F64
    fold: F64
    lean: F64
    look: F64


@dataclass(frozen=True)
class Body:
    """The size of a person.

    Args:
        height: metres.
        limbs: factors on the lengths of legs, arms, trunk and breadth, which differ between persons.
    """

    height: float = 1.75
    limbs: tuple[float, float, float, float] = field(default=(1.0, 1.0, 1.0, 1.0))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Body:
        """A person of any size."""
        legs, arms, trunk, breadth = rng.uniform(0.93, 1.07, 4).tolist()
        return cls(float(rng.uniform(1.5, 1.95)), (legs, arms, trunk, breadth))

    def joints(self, angles: Angles, heading: F64, place: F64) -> dict[str, F64]:
        """All joints by their names in the layouts of COCO and Human3.6M.

        Args:
            angles: of the limbs.
            heading: where the body looks to, radians from the first axis.
            place: of the feet on the floor, metres.

        Shape:
            heading (T,), place (T, 2) -> each (T, 3) metres, z up.
        """
        legs, arms, trunk, breadth = (self.height * factor for factor in self.limbs)
        nothing, one = np.zeros_like(heading), np.ones_like(heading)
        ahead = np.stack([np.cos(heading), np.sin(heading), nothing], axis=-1)
        left = np.stack([-np.sin(heading), np.cos(heading), nothing], axis=-1)
        up = np.stack([nothing, nothing, one], axis=-1)

        def hanging(forwards: F64, outwards: F64, side: float) -> F64:
            """The direction of a limb that hangs down where both angles are 0."""
            down = np.cos(forwards) * np.cos(outwards)
            parts = np.stack([np.sin(forwards) * np.cos(outwards), side * np.sin(outwards), -down], axis=-1)
            return np.asarray(np.einsum("ti,tix->tx", parts, np.stack([ahead, left, up], axis=1)))

        at: dict[str, F64] = {}
        for number, (side, sign) in enumerate(_SIDES):  # from the hips at the origin down
            thigh, spread, knee = (turn[:, number] for turn in (angles.thigh, angles.spread, angles.knee))
            at[f"{side}_hip"] = sign * _HALF_HIPS * breadth * left
            at[f"{side}_knee"] = at[f"{side}_hip"] + _THIGH * legs * hanging(thigh, spread, sign)
            at[f"{side}_foot"] = at[f"{side}_knee"] + _SHANK * legs * hanging(thigh - knee, spread, sign)
        spine = -hanging(-angles.lean, nothing, 1.0)  # the direction of the trunk
        at |= {"hip": 0 * up, "spine": 0.5 * _TRUNK * trunk * spine, "thorax": _TRUNK * trunk * spine}
        for number, (side, sign) in enumerate(_SIDES):
            arm, out, elbow, fold = (turn[:, number] for turn in (angles.arm, angles.raise_, angles.elbow, angles.fold))
            at[f"{side}_shoulder"] = at["thorax"] + sign * _HALF_SHOULDERS * breadth * left
            at[f"{side}_elbow"] = at[f"{side}_shoulder"] + _UPPER_ARM * arms * hanging(arm, out, sign)
            at[f"{side}_wrist"] = at[f"{side}_elbow"] + _FOREARM * arms * hanging(arm + elbow, out + fold, sign)
        at |= self._head(at["thorax"], spine, ahead, left, angles.look)
        at |= {f"{side}_ankle": at[f"{side}_foot"] for side, _ in _SIDES}
        lowest = np.minimum(at["left_foot"][:, 2], at["right_foot"][:, 2])
        ground = np.concatenate([place, -lowest[:, None]], axis=1)
        return {name: points + ground for name, points in at.items()}

    def _head(self, thorax: F64, spine: F64, ahead: F64, left: F64, look: F64) -> dict[str, F64]:
        """Neck, top of the head, and face."""
        size = _HEAD * self.height
        turned = np.cos(look)[:, None] * ahead + np.sin(look)[:, None] * left
        beside = np.cos(look)[:, None] * left - np.sin(look)[:, None] * ahead
        middle = thorax + 0.85 * size * spine
        found = {"neck_nose": thorax + 0.6 * size * spine + 0.3 * size * turned, "head": thorax + 1.4 * size * spine}
        found["nose"] = middle + 0.5 * size * turned
        for side, sign in _SIDES:
            found[f"{side}_eye"] = middle + size * (0.42 * turned + 0.17 * sign * beside + 0.16 * spine)
            found[f"{side}_ear"] = middle + size * (0.38 * sign * beside + 0.06 * spine)
        return found


def in_layout(joints: dict[str, F64], skeleton: Skeleton) -> F64:
    """Joints in the order of a layout: each (T, 3) -> (T, J, 3)."""
    return np.stack([joints[name] for name in skeleton.joints], axis=1)


def any_posture(rng: np.random.Generator, count: int) -> Angles:
    """Postures of people who stand, step, reach and crouch, each on its own.

    Args:
        rng: of everything random.
        count: T.
    """

    def turn(low: float, high: float, *more: int) -> F64:
        return rng.uniform(low, high, (count, *more))

    knee = turn(0.0, 0.6, 2)
    return Angles(
        thigh=knee * turn(0.2, 1.0, 2) + turn(-0.3, 0.3, 2),
        spread=turn(0.0, 0.25, 2),
        knee=knee,
        arm=turn(-0.4, 0.6, 2),
        raise_=turn(0.1, 1.3, 2),
        elbow=turn(0.0, 1.0, 2),
        fold=turn(0.0, 0.8, 2),
        lean=turn(-0.1, 0.2),
        look=turn(-0.5, 0.5),
    )


def move(rng: np.random.Generator, movement: str, frames: int) -> tuple[Angles, F64, F64]:
    """A movement at 50 frames a second, each time a little other.

    Args:
        rng: of everything random.
        movement: one of `MOVEMENTS`.
        frames: T.

    Returns:
        Angles, heading (T,) in radians, and place (T, 2) in metres.
    """
    time = np.arange(frames) / RATE
    beat = 2 * np.pi * (float(rng.uniform(0.7, 1.2)) * time + float(rng.uniform()))
    both = np.stack([np.sin(beat), -np.sin(beat)], axis=-1)  # left and right in turns
    still = np.zeros((frames, 2))
    heading = float(rng.uniform(0, 2 * np.pi)) + float(rng.uniform(-0.5, 0.5)) * time
    place = np.tile(rng.uniform(-0.8, 0.8, 2), (frames, 1))
    slow = 0.1 * np.sin(0.3 * beat + float(rng.uniform(0, 6)))
    strength = float(rng.uniform(0.8, 1.2))
    # standing with soft knees
    limbs = {"thigh": still + 0.1, "spread": still + 0.06, "knee": still + 0.2, "arm": still, "raise_": still + 0.12}
    limbs |= {"elbow": still + 0.3, "fold": still}
    if movement == "Walking":
        limbs["thigh"] = 0.1 + 0.45 * strength * both
        limbs["knee"] = 0.35 + 0.3 * np.stack([np.cos(beat), -np.cos(beat)], axis=-1)
        limbs["arm"], limbs["elbow"] = -0.5 * strength * both, 0.35 - 0.2 * both
        pace = np.stack([np.cos(heading), np.sin(heading)], axis=-1) * (1.1 * strength / RATE)
        place = place + np.cumsum(pace, axis=0) - pace.sum(axis=0) / 2
    elif movement == "Waving":
        hand = int(rng.integers(2))
        limbs["raise_"] = limbs["raise_"].copy()
        limbs["fold"] = limbs["fold"].copy()
        limbs["raise_"][:, hand] = 1.7 + 0.25 * strength * np.sin(beat)
        limbs["fold"][:, hand] = 0.7 + 0.5 * strength * np.sin(2 * beat)
    else:
        reach = np.maximum(both, 0.0)
        limbs["arm"] = 0.5 + 0.9 * strength * reach
        limbs["elbow"] = 1.9 - 1.7 * reach
        limbs["knee"], limbs["thigh"] = still + 0.45 + 0.1 * both, still + 0.3 + 0.05 * both
    return Angles(**limbs, lean=0.05 + slow, look=3 * slow), heading, place
