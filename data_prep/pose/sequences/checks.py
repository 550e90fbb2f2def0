"""Checks and repairs of one sequence: missing joints, bones, left and right, and whether 2D and 3D belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.pose.sequences.cameras import Camera
from data_prep.pose.sequences.skeletons import LIMBS, SKELETONS, Skeleton, limb_joints

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
MILLIMETRES = 10.0  # no bone is ten metres long, and none but the shortest are ten millimetres
BONES = (0.03, 1.0)  # m; a median bone beyond is none of a person's
SCREEN = 1.5  # a body whose pixels all lie within 1.5 of the corner is no body in pixels
OUTSIDE = 0.2  # share of points beyond the picture that persons who leave it do not reach
WILD = 1e7  # neither pixels nor millimetres of a person: bytes of a damaged file
FAST = 20.0  # m/s; the hands of pitchers are about as fast
UNSTEADY = 0.3  # share by which a bone's length may differ from its median
APART = 0.05  # of the width: keypoints that lie so far from the projected pose, in the median, are not of it
NOISE = 0.01  # of the width: what detectors are off by
_SIDED = [(limb, side) for limb in LIMBS for side in ("left", "right")]
BENT = 0.1  # of the leg: by so much a knee is in front of the line from hip to ankle when it is surely bent
BACKWARD = -0.3  # mean cosine between where knees point and where the body faces


def present(points: F64) -> Mask:
    """Which joints are there: finite, no wild numbers, and not all exactly 0, which is what failed detectors write.

    Shape:
        points (T, J, C) -> (T, J).
    """
    return np.asarray((np.abs(points) < WILD).all(axis=-1) & (points != 0).any(axis=-1))


def fill(values: F64, good: Mask) -> F64:
    """Missing joints filled between the frames before and behind; at the ends the nearest frame is repeated.

    Args:
        values: of joints; every joint is good somewhere.
        good: which are to be kept.

    Shape:
        values (T, J, C), good (T, J) -> (T, J, C).
    """
    if good.all():
        return values
    filled = values.copy()
    times = np.arange(len(values))
    for joint in np.flatnonzero(~good.all(axis=0)):
        known = good[:, joint]
        for axis in range(values.shape[2]):
            filled[~known, joint, axis] = np.interp(times[~known], times[known], values[known, joint, axis])
    return filled


def check_unit(pose: F64, skeleton: Skeleton, unit: str) -> str:
    """Why a pose cannot be in its unit; empty: it can.

    Args:
        pose: finite, in the unit.
        skeleton: of its joints.
        unit: m or mm.
    """
    median = float(np.median(skeleton.bone_lengths(pose)))
    if unit == "m" and median > MILLIMETRES:
        return f"the median bone is {median:.4g} long where metres are expected: these are millimetres; divide by 1000"
    if unit == "mm" and median < MILLIMETRES:
        return f"the median bone is {median:.4g} long where millimetres are expected: these are metres"
    metres = median if unit == "m" else median / 1000.0
    if not BONES[0] <= metres <= BONES[1]:
        return f"the median bone is {metres:.3g} m long, which is none of a person's; check unit and joints"
    return ""


def check_pixels(points: F64, camera: Camera) -> str:
    """Why keypoints cannot be pixels of a camera's picture; empty: they can.

    Shape:
        points (N, 2), finite.
    """
    largest = points.max(axis=0)
    if np.abs(points).max() <= SCREEN:
        return f"no coordinate is beyond {SCREEN}: these are screen units already; pixels are expected"
    wide, high = camera.width, camera.height
    outside = float(((points[:, 0] > wide) | (points[:, 1] > high)).mean())
    if outside > OUTSIDE and largest[0] <= high and largest[1] <= wide:
        return (
            f"points reach to {largest[0]:.0f}, {largest[1]:.0f} in a picture of {wide} x {high}: width and height "
            "seem to be exchanged"
        )
    return ""


def unsteady_bones(pose: F64, skeleton: Skeleton) -> Mask:
    """Frames in which a bone is much longer or shorter than it mostly is.

    Shape:
        pose (T, J, 3) -> (T,).
    """
    lengths = skeleton.bone_lengths(pose)
    median = np.maximum(np.median(lengths, axis=0), 1e-9)
    return np.asarray((np.abs(lengths / median - 1.0) > UNSTEADY).any(axis=1))


def jumps(pose: F64, fps: float) -> Mask:
    """Between which frames a joint moves faster than any person's.

    Shape:
        pose (T, J, 3) metres -> (T - 1,).
    """
    speed = np.linalg.norm(np.diff(pose, axis=0), axis=-1) * fps
    return np.asarray((speed > FAST).any(axis=1))


def crossed_limbs(pose: F64, skeleton: Skeleton) -> Mask:
    """Frames in which a left and a right bone have their usual lengths only when their ends are exchanged.

    Shape:
        pose (T, J, 3) -> (T,).
    """
    found = np.zeros(len(pose), dtype=bool)
    for left, right in zip(skeleton.left, skeleton.right, strict=True):
        above, beside = skeleton.parents[left], skeleton.parents[right]
        if above == beside:
            continue
        straight = [np.linalg.norm(pose[:, a] - pose[:, b], axis=-1) for a, b in ((left, above), (right, beside))]
        crossed = [np.linalg.norm(pose[:, a] - pose[:, b], axis=-1) for a, b in ((right, above), (left, beside))]
        usual = [max(float(np.median(length)), 1e-9) for length in straight]
        off = [np.abs(length / each - 1.0) for length, each in zip(straight, usual, strict=True)]
        fits = [np.abs(length / each - 1.0) for length, each in zip(crossed, usual, strict=True)]
        found |= (np.minimum(*off) > UNSTEADY) & (np.maximum(*fits) < UNSTEADY / 3)
    return found


def facing(pose: F64, skeleton: Skeleton) -> float:
    """How far knees point to where the body faces: near 1 as they should, near -1 where left is right.

    Knees bend one way only: seen from the middle of hip and ankle they are in front. The front is that of a body whose
    left hip is to its left.

    Shape:
        pose (T, J, 3) -> mean cosine, weighted by how far the knees are bent; 0 where none is.
    """
    limbs = {f"{side}_{limb}": joint for (limb, side), joint in zip(_SIDED, limb_joints(skeleton), strict=True)}
    root, neck = skeleton.parents.index(-1), skeleton.find("thorax", "neck")
    ahead = np.cross(pose[:, limbs["left_hip"]] - pose[:, limbs["right_hip"]], pose[:, neck] - pose[:, root])
    ahead /= np.maximum(np.linalg.norm(ahead, axis=-1, keepdims=True), 1e-9)
    total, weight = 0.0, 1e-9
    for side in ("left", "right"):
        middle = (pose[:, limbs[f"{side}_hip"]] + pose[:, limbs[f"{side}_ankle"]]) / 2.0
        leg = np.linalg.norm(pose[:, limbs[f"{side}_hip"]] - middle, axis=-1) * 2.0
        bend = pose[:, limbs[f"{side}_knee"]] - middle
        size = np.linalg.norm(bend, axis=-1)
        bent = size > BENT * leg
        total += float(np.sum((bend * ahead)[bent]))
        weight += float(size[bent].sum())
    return total / weight


@dataclass(frozen=True)
class Match:
    """How well keypoints fit a pose.

    Args:
        error: median distance, pixels.
        distance: of each frame and joint, pixels; NaN where either is missing.
        projected: where the joints should be, pixels.
    """

    error: float
    distance: F64
    projected: F64


def match(points: F64, pose: F64, good: Mask, camera: Camera) -> Match | None:
    """Compare keypoints with the projection of the pose.

    Where the lens is not known, the focal lengths and principal point are used that fit best; they are four numbers,
    so wrong joints are seen still.

    Args:
        points: pixels.
        pose: in the axes of the camera, metres.
        good: joints that both have.
        camera: whose lens is used if it is known.

    Shape:
        points (T, J, 2), pose (T, J, 3), good (T, J).

    Returns:
        None: nothing can be compared.
    """
    good = good & (pose[..., 2] > 0.1)
    if good.sum() < 8:
        return None
    if camera.focal is not None:
        projected = camera.project(pose)
    else:
        flat = pose[..., :2] / np.where(good, pose[..., 2], np.nan)[..., None]
        projected = np.stack([_line(flat[..., axis], points[..., axis], good) for axis in (0, 1)], axis=-1)
    distance = np.where(good, np.linalg.norm(projected - points, axis=-1), np.nan)
    return Match(float(np.nanmedian(distance)), distance, projected)


def _line(x: F64, y: F64, good: Mask) -> F64:
    """`a x + b` with a > 0 that is nearest to y, fitted again without what is far off."""
    chosen = good
    for _ in range(3):
        a, b = x[chosen], y[chosen]
        spread = a - a.mean()
        slope = max(float(np.sum(spread * (b - b.mean())) / max(float(np.sum(spread**2)), 1e-12)), 1e-6)
        made = slope * (x - a.mean()) + b.mean()
        off = np.where(good, np.abs(made - y), np.inf)
        chosen = good & (off <= 3.0 * float(np.median(off[good])) + 1e-9)
    return np.asarray(made)


def exchanged_sides(points: F64, found: Match, skeleton: Skeleton, width: float) -> Mask:
    """Frames in which keypoints fit the pose only with left and right exchanged.

    Shape:
        points (T, J, 2) -> (T,).
    """
    sides = skeleton.left + skeleton.right
    swapped = points[:, skeleton.mirrored]
    straight = np.nan_to_num(found.distance[:, sides]).mean(axis=1)
    crossed = np.linalg.norm(found.projected - swapped, axis=-1)[:, sides]
    crossed = np.where(np.isfinite(crossed).any(axis=1), np.nan_to_num(crossed).mean(axis=1), np.inf)
    return np.asarray((crossed < 0.5 * straight) & (straight > 0.02 * width) & (straight > 3.0 * found.error))


def explain(points: F64, pose: F64, good: Mask, camera: Camera, skeleton: Skeleton, error: float) -> str:
    """What could be the matter with keypoints that do not fit: another order of joints, sides, a mirror; or nothing.

    Args:
        points: pixels.
        pose: in the axes of the camera.
        good: joints that both have.
        camera: of both.
        skeleton: that they should have.
        error: of the match, pixels.
    """
    limbs = limb_joints(skeleton)
    everywhere = np.ones((len(points), len(limbs)), dtype=bool) & good.any(axis=1, keepdims=True)
    for other in SKELETONS.values():
        if other is skeleton or len(other.joints) != len(skeleton.joints):
            continue
        found = match(points[:, limb_joints(other)], pose[:, limbs], everywhere, camera)
        if found is not None and found.error < 0.5 * error:
            return f"they fit in the order of {other.name}: convert them to {skeleton.name} first"
    found = match(points[:, skeleton.mirrored], pose, good, camera)
    if found is not None and found.error < 0.5 * error:
        return "they fit with left and right exchanged"
    mirrored = points * [-1.0, 1.0] + [camera.width, 0.0]
    found = match(mirrored[:, skeleton.mirrored], pose, good, camera)
    if found is not None and found.error < 0.5 * error:
        return "they fit when the picture is mirrored"
    return "they may be of another camera, time, or size of picture"
