"""MPI-INF-3DHP (D. Mehta et al., 2017): `S*/Seq*/annot.mat` with `camera.calibration`, and `TS*/annot_data.mat`.

Training poses have 28 joints, of which the 17 of the test set are kept; all are millimetres in the axes of each camera.
Train S1 to S8, test TS1 to TS6, which are other persons. Only frames marked as valid are scored in the test set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError
from data_prep.common.extras import need
from data_prep.common.files import translate_os_errors
from data_prep.common.rejects import Reject
from data_prep.pose.sequences.cameras import Camera, quaternion_of
from data_prep.pose.sequences.canonical import refuse_nothing
from data_prep.pose.sequences.matlab_cells import read_cells
from data_prep.pose.sequences.records import (
    Asked,
    Found,
    Listing,
    Recording,
    Source,
    Stage,
    Track,
    entries_of,
    label_of,
    natural_key,
    reject_all,
    save_array,
)
from data_prep.pose.sequences.skeletons import MPI_INF_3DHP_17, MPI_INF_3DHP_KEPT

SIZE = (2048, 2048)
OUTDOOR = (1920, 1080)  # TS5 and TS6
USUAL = ("0", "1", "2", "4", "5", "6", "7", "8")  # the cameras at the height of a chest, of 14
NAMES = tuple(str(number) for number in range(14))
FAST = {("S1", "Seq2"), ("S3", "Seq1"), ("S3", "Seq2"), ("S5", "Seq1"), ("S5", "Seq2")}  # at 50 Hz, others at 25
LICENCE = "MPI-INF-3DHP licence: non-commercial research only"
_TRAIN = re.compile(r".*/(S\d+)/(Seq\d+)/annot\.mat")
_TEST = re.compile(r".*/(TS\d+)/annot_data\.mat")
_POSES = {"metric": "annot3", "universal": "univ_annot3"}
JOINTS = 28


def find(paths: Sequence[Path], asked: Asked, where: Path) -> Found:
    """All files of annotations, and the calibrations beside them.

    Raises:
        PrepError: there are none.
    """
    files = sorted(paths, key=lambda path: natural_key(path.as_posix()))
    train = [Source(path, "train", label_of(path, 3)) for path in files if _TRAIN.fullmatch(path.as_posix())]
    test = [Source(path, "test", label_of(path, 2)) for path in files if _TEST.fullmatch(path.as_posix())]
    if test:
        need("pose", "reading the test set of MPI-INF-3DHP", "h5py")
    if not train and not test:
        raise refuse_nothing(where, "S*/Seq*/annot.mat or TS*/annot_data.mat")
    beside = [source.path.with_name("camera.calibration") for source in train]
    known = [Source(path, "calibration", label_of(path, 3)) for path in beside if path.is_file()]
    return Found((*train, *test, *known), MPI_INF_3DHP_17, LICENCE, {"keypoints": "annotated", "poses": asked.poses})


def unpack(source: Source, folder: Path) -> dict[str, Any]:
    """Write the arrays of one file as files of their own; a file that cannot be read says why instead."""
    try:
        if source.kind == "calibration":
            return {"cameras": {name: camera.describe() for name, camera in read_calibration(source.path).items()}}
        return _unpack_train(source, folder) if source.kind == "train" else _unpack_test(source, folder)
    except CorruptRecordError as error:
        return {"arrays": [], "reason": f"{error.position}: {error.reason}"}


def _unpack_train(source: Source, folder: Path) -> dict[str, Any]:
    values = read_cells(source.path, ("annot2", *_POSES.values()))
    subject, sequence = source.label.split("/")[:2]
    arrays: list[list[str]] = []
    for name, width in (("annot2", 2), ("annot3", 3), ("univ_annot3", 3)):
        cells = values.get(name)
        if not isinstance(cells, list) or not 0 < len(cells) <= len(NAMES):
            raise CorruptRecordError(source.path, name, "is no cell array with a matrix for each of 14 cameras")
        for camera, cell in enumerate(cells):
            if cell.ndim != 2 or cell.shape[1] != width * JOINTS:
                raise CorruptRecordError(
                    source.path, name, f"camera {camera}: is {list(cell.shape)}, not frames of {JOINTS} joints"
                )
            kept = cell.reshape(-1, JOINTS, width)[:, list(MPI_INF_3DHP_KEPT)]
            save_array(folder, _single(kept), arrays, subject, sequence, name, str(camera))
    return {"arrays": arrays}


def _unpack_test(source: Source, folder: Path) -> dict[str, Any]:
    import h5py

    subject = source.label.split("/")[0]
    arrays: list[list[str]] = []
    found: dict[str, npt.NDArray[Any]] = {}
    with translate_os_errors(source.path):
        try:
            with h5py.File(source.path, "r") as file:
                for name in ("annot2", *_POSES.values(), "valid_frame"):
                    found[name] = np.asarray(file[name][()])
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise CorruptRecordError(source.path, "file", f"cannot be read ({error}); download it again") from error
    valid = found.pop("valid_frame").reshape(-1)
    frames, joints = len(valid), len(MPI_INF_3DHP_17.joints)
    for name, values in found.items():
        width = 2 if name == "annot2" else 3
        if values.size != frames * joints * width or values.shape[-1] != width or values.dtype.kind not in "fiu":
            raise CorruptRecordError(
                source.path, name, f"is {list(values.shape)}, not {frames} frames (valid_frame) of {joints} joints"
            )
        save_array(folder, _single(values.reshape(frames, joints, width)), arrays, subject, "", name, "0")
    save_array(folder, valid > 0, arrays, subject, "", "valid", "")
    return {"arrays": arrays}


def _single(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Numbers as float32; those of damaged files that are too large become infinite, which counts as missing."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def read_calibration(path: Path) -> dict[str, Camera]:
    """Cameras of a file of Skeletool: `name`, `size`, `intrinsic` (4 x 4) and `extrinsic` (4 x 4, mm) of each.

    Raises:
        CorruptRecordError: it is no such file.
    """
    with translate_os_errors(path):
        lines = path.read_text("utf-8", "replace").splitlines()
    found: dict[str, Camera] = {}
    fields: dict[str, list[str]] = {}
    for number, line in enumerate([*lines, "name end"]):
        key, *values = line.split() or [""]
        if key == "name" and "name" in fields:
            try:
                camera = _camera(fields)
            except (ValueError, IndexError, KeyError) as error:
                where = f"line {number}"
                raise CorruptRecordError(path, where, f"the camera before is incomplete ({error})") from error
            found[camera.name] = camera
            fields = {}
        fields[key] = values
    if not found:
        raise CorruptRecordError(path, "file", "has no camera; it should be a calibration file of Skeletool")
    return found


def _camera(fields: dict[str, list[str]]) -> Camera:
    lens = np.array(fields["intrinsic"], dtype=np.float64).reshape(4, 4)
    place = np.array(fields["extrinsic"], dtype=np.float64).reshape(4, 4)
    turn = place[:3, :3]  # X in the axes of the camera = turn X + shift
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3):
        raise ValueError("extrinsic is no rotation")
    x, y, z = (round(float(value), 9) for value in -turn.T @ place[:3, 3] / 1000.0)
    width, height = (int(value) for value in fields["size"])
    return Camera(
        fields["name"][0],
        *(width, height, quaternion_of(turn.T), (x, y, z)),
        focal=(float(lens[0, 0]), float(lens[1, 1])),
        centre=(float(lens[0, 2]), float(lens[1, 2])),
    )


def join(stage: Stage, asked: Asked) -> Listing:
    """Recordings from the unpacked arrays."""
    recordings: list[Recording] = []
    rejects: list[Reject] = []
    calibrations = {source.path: done.info for source, done in stage if source.kind == "calibration"}
    names = asked.cameras or USUAL
    clips = 0
    for source, done in stage:
        if source.kind == "calibration":
            continue
        name = source.label.rpartition("/")[0]
        cameras: dict[str, Camera] = {}
        reason = str(done.info.get("reason", ""))
        if source.kind == "train":
            clips += len(names)
            cameras, why = _calibrated(calibrations.get(source.path.with_name("camera.calibration")))
            reason = reason or why
        else:
            clips += 1
            cameras = {"0": Camera("0", *(OUTDOOR if name in ("TS5", "TS6") else SIZE))}
        if reason:
            rejects += reject_all(source.label, name, names if source.kind == "train" else ("0",), reason)
            continue
        arrays = {(entry.kind, entry.camera): Path(entry.file) for entry in entries_of(done)}
        tracks = []
        for camera in names if source.kind == "train" else ("0",):
            if camera not in cameras or ("annot2", camera) not in arrays:
                rejects += reject_all(source.label, name, (camera,), "this camera is missing")
                continue
            pose = arrays[_POSES[asked.poses], camera]
            tracks.append(Track(cameras[camera], arrays["annot2", camera], pose, source.label))
        if tracks:
            recordings.append(_recording(source, name, tuple(tracks), arrays.get(("valid", ""))))
    return Listing(tuple(recordings), tuple(rejects), (), clips)


def _calibrated(info: dict[str, Any] | None) -> tuple[dict[str, Camera], str]:
    """Cameras of a calibration, or why there are none."""
    if info is None:
        return {}, "camera.calibration is not beside it; copy it there"
    if "reason" in info:
        return {}, f"camera.calibration: {info['reason']}"
    return {name: Camera.read(name, entry) for name, entry in info["cameras"].items()}, ""


def _recording(source: Source, name: str, tracks: tuple[Track, ...], valid: Path | None) -> Recording:
    subject, _, sequence = name.partition("/")
    train = source.kind == "train"
    fps = 50.0 if (subject, sequence) in FAST else 25.0
    return Recording(
        *(name, subject, sequence or subject, sequence or subject, "train" if train else "test", fps, source.label),
        tracks,
        valid=valid,
        unit="mm",
    )
