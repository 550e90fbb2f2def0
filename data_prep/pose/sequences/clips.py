"""One recording -> a safetensors file for each camera, checked and repaired; what was repaired is told.

A file holds `keypoints_2d` (T, J, 2) float32 pixels, `pose_3d` (T, J, 3) float32 metres in the axes of the camera,
`valid_2d` and `valid_3d` (T, J) bool, False where a value was missing and is filled, or is not to be scored; and
`confidence_2d` (T, J) float32 where a detector gave one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from data_prep.common.rejects import Reject
from data_prep.pose.sequences import checks
from data_prep.pose.sequences.errors import ClipError
from data_prep.pose.sequences.records import Recording, Remark, Track
from data_prep.pose.sequences.skeletons import COCO_17, Skeleton

MISSING = 0.5  # share of joints that may be missing
LONGER = 1.5  # times as many keypoint frames as pose frames: another frame rate, not a longer file
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass
class Clip:
    """One recording as a camera saw it.

    Args:
        points: pixels (T, J, 2).
        pose: metres in the axes of the camera (T, J, 3).
        seen: joints whose keypoints were there (T, J).
        known: joints whose pose was there and is to be scored (T, J).
        confidence: of the keypoints (T, J), if any.
    """

    points: F64
    pose: F64
    seen: Mask
    known: Mask
    confidence: F64 | None = None


class _Teller:
    """Collects remarks of a recording.

    Args:
        recording: its name.
    """

    def __init__(self, recording: str) -> None:
        self.recording = recording
        self.remarks: list[Remark] = []

    def say(self, camera: str, kind: str, frames: int, detail: str) -> None:
        """Add a remark."""
        self.remarks.append(Remark(self.recording, camera, kind, frames, detail))


def make_clips(recording: Recording, skeleton: Skeleton, rate: float, folder: Path) -> dict[str, Any]:
    """Prepare all cameras of a recording.

    Args:
        recording: what to read.
        skeleton: layout of its joints.
        rate: frames a second that are wanted; 0: as recorded.
        folder: gets `CAMERA.safetensors` of each camera.

    Returns:
        `clips`, `rejects`, `remarks`, and `digest` of the pose.
    """
    teller, rejects, clips = _Teller(recording.name), [], []
    digest = ""
    world: tuple[F64, Mask] | None = None
    try:
        step = thinning(recording, rate)
        if recording.pose is not None:
            world = _read_pose(recording, recording.pose, skeleton, teller, "")
            digest = _digest(world[0])
    except ClipError as error:
        cameras = [track.camera.name for track in recording.tracks]
        return {"clips": [], "remarks": [], "digest": "", "rejects": [_reject(error, name) for name in cameras]}
    for track in recording.tracks:
        try:
            clip = _make(recording, track, skeleton, world, teller)
        except ClipError as error:
            rejects.append(_reject(error, track.camera.name))
            continue
        digest = digest or _digest(clip.pose)
        entry = _check_match(recording, track, clip, skeleton, teller)
        if isinstance(entry, Reject):
            rejects.append(entry)
            continue
        clips.append(entry | _write(clip, step, folder / f"{track.camera.name}.safetensors"))
        clips[-1] |= {"camera": track.camera.name, "fps": recording.fps / step}
    if step > 1 and clips:
        teller.say("", "thinned", 0, f"from {recording.fps:g} to {recording.fps / step:g} frames a second")
    return {"clips": clips, "rejects": rejects, "remarks": teller.remarks, "digest": digest}


def _reject(error: ClipError, camera: str) -> Reject:
    return Reject(error.path, error.frame, f"{error.position} {camera}".strip(), error.reason, "")


def thinning(recording: Recording, rate: float) -> int:
    """Of how many frames one is kept.

    Raises:
        ClipError: the frame rate is no multiple of the one that is wanted.
    """
    if not rate:
        return 1
    step = round(recording.fps / rate)
    if step < 1 or abs(recording.fps / rate / step - 1) > 1e-6:
        reason = f"has {recording.fps:g} frames a second, which cannot be thinned to {rate:g}; ask for a divisor"
        raise ClipError(recording.source, recording.name, reason)
    return step


def _read_pose(recording: Recording, path: Path, skeleton: Skeleton, teller: _Teller, camera: str) -> tuple[F64, Mask]:
    """A pose in metres without holes, and which joints were there and are to be scored.

    Raises:
        ClipError: it cannot be used.
    """

    def fail(reason: str, frame: int = 0) -> ClipError:
        return ClipError(recording.source, recording.name, reason, frame)

    raw = np.load(path, mmap_mode="r", allow_pickle=False)
    joints = list(recording.joints) or list(range(len(skeleton.joints)))
    if recording.joints and raw.shape[1] != 32:
        raise fail(f"has {raw.shape[1]} joints instead of 32: these are other joints, or selected ones")
    if not recording.joints and raw.shape[1] != len(joints):
        raise fail(f"has {raw.shape[1]} joints, {skeleton.name} has {len(joints)}")
    if not len(raw):
        raise fail("has no frames")
    pose = np.asarray(raw[:, joints], dtype=np.float64)
    good = checks.present(pose)
    scored = np.ones(len(pose), bool) if recording.valid is None else np.load(recording.valid, allow_pickle=False)
    if len(scored) != len(pose):
        raise fail(f"has {len(pose):,} frames, and {len(scored):,} marks of valid ones")
    if not scored.any():
        raise fail("has no frame that is marked as valid")
    pose = _filled(pose, good, scored, skeleton, fail, "pose")
    _tell_filled(good, scored, teller, camera, "filled_poses")
    reason = checks.check_unit(pose[scored], skeleton, recording.unit)
    if reason:
        raise fail(reason)
    pose /= 1000.0 if recording.unit == "mm" else 1.0
    _suspect(pose[scored], recording.fps, skeleton, teller, camera)
    return pose, good & scored[:, None]


def _filled(values: F64, good: Mask, wanted: Mask, skeleton: Skeleton, fail: Any, what: str) -> F64:
    """Fill what is missing, unless that is too much; frames that are not wanted (T,) may be empty."""
    good = good[wanted]
    never = np.flatnonzero(~good.any(axis=0))
    if len(never):
        raise fail(f"joint {skeleton.joints[never[0]]} of the {what} is missing (NaN or 0) in every frame")
    if good.mean() < MISSING:
        raise fail(f"{1 - good.mean():.0%} of the joints of the {what} are missing (NaN or 0)")
    return checks.fill(values, checks.present(values))


def _tell_filled(good: Mask, wanted: Mask, teller: _Teller, camera: str, kind: str) -> None:
    """Tell how much was filled of the frames that are wanted."""
    holes = ~good & wanted[:, None]
    if holes.any():
        frames = holes.any(axis=1)
        detail = f"{int(holes.sum())} joints are NaN or 0, the first in frame {int(frames.argmax())}"
        teller.say(camera, kind, int(frames.sum()), f"{detail}; filled from the frames around")


def _suspect(pose: F64, fps: float, skeleton: Skeleton, teller: _Teller, camera: str) -> None:
    """Tell what looks wrong with a pose, without changing it."""
    unsteady = int(checks.unsteady_bones(pose, skeleton).sum())
    if unsteady:
        teller.say(camera, "unsteady_bones", unsteady, "a bone is 30 % longer or shorter than it mostly is")
    jumps = checks.jumps(pose, fps)
    if jumps.any():
        detail = f"a joint moves faster than {checks.FAST:g} m/s, first behind frame {int(jumps.argmax())}"
        teller.say(camera, "jumps", int(jumps.sum()), f"{detail}: frames are missing, or the capture is wrong")
    crossed = checks.crossed_limbs(pose, skeleton)
    if crossed.any():
        detail = f"a left and a right joint seem exchanged, the first in frame {int(crossed.argmax())}"
        teller.say(camera, "crossed_limbs", int(crossed.sum()), detail)
    cosine = checks.facing(pose, skeleton)
    if cosine < checks.BACKWARD:
        detail = f"knees bend backwards (mean cosine {cosine:.2f}): left and right seem exchanged throughout"
        teller.say(camera, "backward_knees", len(pose), detail)


def _make(
    recording: Recording, track: Track, skeleton: Skeleton, world: tuple[F64, Mask] | None, teller: _Teller
) -> Clip:
    """Keypoints and pose of one camera.

    Raises:
        ClipError: they cannot be used.
    """
    camera, source = track.camera, track.source or recording.source

    def fail(reason: str, frame: int = 0) -> ClipError:
        return ClipError(source, recording.name, reason, frame)

    if track.pose is not None:
        pose, known = _read_pose(recording, track.pose, skeleton, teller, camera.name)
    elif world is not None:
        pose, known = camera.from_world(world[0]), world[1]
    else:
        raise ClipError(recording.source, recording.name, "has no pose")
    wanted = np.asarray(known.any(axis=1), dtype=bool)
    if track.points is None:
        points = camera.project(pose)
        seen = checks.present(points)
        return Clip(_filled(points, seen, wanted, skeleton, fail, "projection"), pose, seen, known)
    raw = np.load(track.points, mmap_mode="r", allow_pickle=False)
    wide = len(COCO_17.joints) if track.parts else len(skeleton.joints)
    if raw.shape[1] != wide:
        layout = COCO_17.name if track.parts else skeleton.name
        raise fail(f"has {raw.shape[1]} joints, {layout} has {wide}")
    frames = len(pose)
    if len(raw) < frames or len(raw) > max(LONGER * frames, frames + 10):
        why = "keypoints of every frame are needed" if len(raw) < frames else "the frame rates seem to differ"
        raise fail(f"has {len(raw):,} frames of keypoints for {frames:,} of the pose: {why}", min(len(raw), frames))
    if len(raw) > frames:
        teller.say(camera.name, "cut", len(raw) - frames, f"keypoints cut from {len(raw):,} to {frames:,} frames")
    values = mean_joints(np.asarray(raw[:frames], dtype=np.float64), track.parts)
    points, seen = values[..., :2], checks.present(values[..., :2])
    if seen.any():
        reason = checks.check_pixels(points[seen], camera)
        if reason:
            raise fail(reason)
    points = _filled(points, seen, wanted, skeleton, fail, "keypoints")
    _tell_filled(seen, wanted, teller, camera.name, "filled_keypoints")
    return Clip(points, pose, seen, known, np.nan_to_num(values[..., 2]) if values.shape[2] == 3 else None)


def mean_joints(values: F64, parts: tuple[tuple[int, ...], ...]) -> F64:
    """Joints that are the mean of others; what is missing (NaN or 0) makes missing what is made of it."""
    if not parts:
        return values
    holes = np.where(checks.present(values[..., :2])[..., None], values, np.nan)
    return np.stack([holes[:, list(each)].mean(axis=1) for each in parts], axis=1)


def _check_match(
    recording: Recording, track: Track, clip: Clip, skeleton: Skeleton, teller: _Teller
) -> dict[str, Any] | Reject:
    """Compare keypoints and pose; those that do not belong together are a reject."""
    good, camera = clip.seen & clip.known, track.camera
    found = checks.match(clip.points, clip.pose, good, camera)
    if found is None:
        return {"reprojection_pixels": None}
    swapped = checks.match(clip.points[:, skeleton.mirrored], clip.pose, good[:, skeleton.mirrored] & good, camera)
    contrary = swapped is not None and swapped.error < 0.5 * found.error
    if found.error > checks.APART * camera.width or (contrary and found.error > checks.NOISE * camera.width):
        why = checks.explain(clip.points, clip.pose, good, camera, skeleton, found.error)
        reason = f"keypoints are {found.error:.0f} pixels (median) from the projected pose: {why}"
        return Reject(track.source or recording.source, 0, f"{recording.name} {camera.name}", reason, "")
    crossed = checks.exchanged_sides(clip.points, found, skeleton, camera.width)
    if crossed.any():
        detail = f"keypoints fit with left and right exchanged, the first in frame {int(crossed.argmax())}"
        teller.say(camera.name, "exchanged_sides", int(crossed.sum()), detail)
    return {"reprojection_pixels": round(found.error, 2)}


def _write(clip: Clip, step: int, path: Path) -> dict[str, Any]:
    """Write every `step`-th frame, and say what was written."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "keypoints_2d": clip.points[::step].astype(np.float32),
        "pose_3d": clip.pose[::step].astype(np.float32),
        "valid_2d": clip.seen[::step],
        "valid_3d": clip.known[::step],
    }
    if clip.confidence is not None:
        arrays["confidence_2d"] = clip.confidence[::step].astype(np.float32)
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    return {
        "file": path.name,
        "frames": len(arrays["pose_3d"]),
        "frames_before": len(clip.pose),
        "scored": int(arrays["valid_3d"].any(axis=1).sum()),
        "digest": _digest(clip.points),
    }


def _digest(values: F64) -> str:
    """SHA-256 of numbers, rounded to a hundredth of a millimetre, or of a thousandth of a pixel."""
    return hashlib.sha256(np.round(values, 5).astype(np.float32).tobytes()).hexdigest()


def describe_cameras(recordings: list[Recording]) -> dict[str, Any]:
    """The `cameras` entry of `dataset.json`: of each subject, place and lens of each camera."""
    found: dict[str, dict[str, Any]] = {}
    for recording in recordings:
        for track in recording.tracks:
            found.setdefault(recording.subject, {})[track.camera.name] = track.camera.describe()
    return found
