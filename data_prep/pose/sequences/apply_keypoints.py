"""2D joints over time, without poses -> prepared as clips, for prediction."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import save

from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.files import sha256_file, write_atomic
from data_prep.common.manifest import NAME, tool_version
from data_prep.common.raw import check_raw
from data_prep.common.rejects import Reject, check_rejects, to_frame
from data_prep.common.run import Run, Settings, describe_source, find_finished, identify, open_run
from data_prep.pose.sequences import checks
from data_prep.pose.sequences.cameras import Camera
from data_prep.pose.sequences.checks import F64, Mask
from data_prep.pose.sequences.clips import MISSING, mean_joints
from data_prep.pose.sequences.job import CLIPS, PAYLOAD, TOOLS, say
from data_prep.pose.sequences.keypoint_files import (
    Asked,
    Observed,
    find_keypoints,
    find_skeleton,
    read_keypoints,
    resolve,
)
from data_prep.pose.sequences.records import slug
from data_prep.pose.sequences.skeletons import Skeleton
from data_prep.pose.sequences.splitting import INDEX, to_parquet

PREDICT = "predict"
RATES = 0.01  # relative difference of frame rates that is rounding
LONGEST_GAP = 0.5  # s; a person who is not seen for longer becomes a new clip: what happens between is not made up
EXTRA: dict[str, Any] = {
    "person": pl.String,
    "first_frame": pl.Int64,  # number in the video
    "step": pl.UInt32,  # from one frame to the next
    "start_s": pl.Float64,
    "frame_names": pl.List(pl.String),  # where frames have names
    "filled_frames": pl.UInt32,  # in which a joint was missing
}


@dataclass
class Cut:
    """Clips and what was left out.

    Args:
        rows: of the index, without `row`.
        files: path inside the prepared directory -> content.
        rejects: what cannot be used.
        told: what the user should know.
        total: detections and frames that were read.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    total: int = 0


def apply_keypoints(
    preparation: Path,
    manifest: dict[str, Any],
    raw: tuple[Path, ...],
    out: Path,
    asked: Asked,
    settings: Settings,
    max_rejects: float,
) -> dict[str, Any]:
    """Cut 2D joints into clips; see `data_prep.pose.apply.apply`."""
    check_raw(raw, out)
    skeleton = find_skeleton(str((manifest.get("layout") or {}).get("name")))
    files = find_keypoints(raw)
    asked.picture()
    command = {
        **{"dataset": manifest["name"], "apply": sha256_file(preparation / NAME)},
        **{"layout": asked.layout, "size": asked.size, "fps": asked.fps},
    }
    finished = find_finished(out, {"command": command}, files)
    if finished is not None:
        return finished
    rates = [float(rate) for rate in manifest.get("fps") or ()]
    with open_run(out, {"command": command, **identify(files, *TOOLS)}, settings, PAYLOAD) as run:
        cut = _cut(files, asked, skeleton, rates, max_rejects)
        written = _write(run, cut, files[0], max_rejects)
        say(cut.told, "more")
        return run.publish(
            written,
            {
                **{"domain": "pose", "kind": "sequences", "name": manifest["name"], "version": tool_version()},
                **{"licence": manifest["licence"], "command": command, "layout": skeleton.describe()},
                "sources": [describe_source(path) for path in files],
                "units": {"keypoints_2d": "pixels"},
                "poses": False,  # clips have keypoints only
                "fps": sorted({row["fps"] for row in cut.rows}),
                "keypoints": ", ".join(path.name for path in files[:3]),
                "group": {"name": "subject", "kept_apart": False, "groups": len({row["subject"] for row in cut.rows})},
                "split_rule": {"kind": PREDICT},
                "splits": _entry(cut, written),
                "counts": {"clips": len(cut.rows), "frames": sum(row["frames"] for row in cut.rows)},
                "rejects": {"count": len(cut.rejects), "share": len(cut.rejects) / max(cut.total, 1)},
            },
        )


def _cut(files: Sequence[Path], asked: Asked, skeleton: Skeleton, rates: Sequence[float], max_rejects: float) -> Cut:
    cut = Cut()
    used: dict[str, int] = {}
    for path in files:
        persons, rejects, total, told = read_keypoints(path, asked, max_rejects)
        cut.rejects += rejects
        cut.told += told
        cut.total += total
        guessed = {person.fps or asked.fps for person in persons} == {0.0}
        if guessed:
            cut.told.append(
                f"{path.name}: does not say its frame rate; that of the training data is taken, {rates[0]:g} a second; "
                "--fps says another"
            )
        for person in persons:
            _add(cut, path, person, asked, skeleton, rates, used)
    return cut


def _add(
    cut: Cut,
    path: Path,
    person: Observed,
    asked: Asked,
    skeleton: Skeleton,
    rates: Sequence[float],
    used: dict[str, int],
) -> None:
    """Clips of one person.

    Raises:
        PrepError: it is not known which joints they are, or how large the picture is.
    """
    parts = resolve(person, asked.layout, skeleton)
    size = person.size or asked.picture()
    if size is None:
        raise ConfigError(f"{path}: does not say how large the picture is; give --size, as in --size 1920x1080")
    if person.size and asked.picture() not in (None, person.size):
        raise ConfigError(f"{path}: its picture has {size[0]} x {size[1]} pixels, not --size {asked.size}")
    if asked.fps and person.fps and abs(asked.fps / person.fps - 1) > RATES:
        raise ConfigError(f"{path}: its frames are {person.fps:g} a second, not --fps {asked.fps:g}; leave --fps out")
    rate = asked.fps or person.fps or rates[0]
    camera = Camera("camera", *size)
    told = np.asarray(person.points, dtype=np.float64)
    if told.shape[-1] > 2:  # a joint of confidence 0 was not found
        told = np.where(told[..., 2:3] > 0, told, np.nan)
    points = mean_joints(told, parts)[..., :2]
    seen = checks.present(points)
    where = f"{person.video}, person {person.person}"
    reason = checks.check_pixels(points[seen], camera) if seen.any() else "no joint is there (NaN or 0 in all frames)"
    if reason:
        cut.rejects.append(Reject(person.source, person.first, where, reason, ""))
        return
    for begin, end in runs(np.asarray(seen.any(axis=1), dtype=bool), max(1, round(LONGEST_GAP * rate))):
        piece, good = points[begin:end], seen[begin:end]
        reason = _unusable(good, skeleton)
        if reason:
            frame = person.first + begin * person.step
            cut.rejects.append(Reject(person.source, frame, f"{where}, frames from {frame}", reason, ""))
            continue
        base = f"{slug(person.video.replace('/', '-'))}-{slug(person.person)}"
        used[base] = used.get(base, 0) + 1
        file = f"{CLIPS}/{base}-{used[base]}.safetensors"
        cut.files[file] = _pack(checks.fill(piece, good), good)
        start = person.start if person.start >= 0 else person.first / (rate * person.step)
        cut.rows.append(
            {
                **{
                    "name": f"{person.video}/{person.person}/{used[base]}",
                    "subject": f"{person.video}/{person.person}",
                },
                **{"action": PREDICT, "sequence": person.video, "recording": person.video, "camera": camera.name},
                **{"frames": end - begin, "scored_frames": 0, "fps": rate, **camera.describe(), "files": [file]},
                **{"person": person.person, "first_frame": person.first + begin * person.step, "step": person.step},
                **{"start_s": start + begin / rate, "filled_frames": int((~good).any(axis=1).sum())},
                "frame_names": list(person.names[begin:end]) or None,
            }
        )


def runs(there: Mask, gap: int) -> list[tuple[int, int]]:
    """Stretches that begin and end with a frame that is there, and miss no more than `gap` frames in a row.

    Shape:
        there (T,) -> [(first, behind the last)].
    """
    found: list[tuple[int, int]] = []
    for frame in np.flatnonzero(there).tolist():
        if found and frame - found[-1][1] <= gap:
            found[-1] = (found[-1][0], frame + 1)
        else:
            found.append((frame, frame + 1))
    return found


def _unusable(good: Mask, skeleton: Skeleton) -> str:
    never = np.flatnonzero(~good.any(axis=0))
    if len(never):
        return f"joint {skeleton.joints[never[0]]} is missing (NaN or 0) in every frame"
    if good.mean() < MISSING:
        return f"{1 - good.mean():.0%} of the joints are missing (NaN or 0)"
    return ""


def _pack(points: F64, good: Mask) -> bytes:
    return bytes(save({"keypoints_2d": np.ascontiguousarray(points.astype(np.float32)), "valid_2d": good}))


def _write(run: Run, cut: Cut, where: Path, max_rejects: float) -> dict[str, Path]:
    """Write everything into the scratch folder, and stop where there are too many rejects."""
    files = {"rejects.parquet": run.scratch / "rejects.parquet"}
    table = to_frame(cut.rejects)
    write_atomic(files["rejects.parquet"], to_parquet(table))
    say([f"{entry.source}: {entry.field}: {entry.reason}" for entry in cut.rejects], "more, see rejects.parquet")
    check_rejects(table, max(cut.total, 1), max_rejects, files["rejects.parquet"])
    if not cut.rows:
        why = f"; the first reason: {cut.rejects[0].field}: {cut.rejects[0].reason}" if cut.rejects else ""
        raise PrepError(f"{where}: no keypoints can be used{why}")
    for name, content in cut.files.items():
        files[name] = run.scratch / name.replace("/", "-")
        write_atomic(files[name], content)
    schema = {name: kind for name, kind in INDEX.items() if name != "row"} | EXTRA
    blank = dict.fromkeys(schema)
    index = pl.DataFrame([blank | {k: v for k, v in row.items() if k in schema} for row in cut.rows], schema=schema)
    path = f"{PREDICT}/part-00000.parquet"
    files[path] = run.scratch / "index.parquet"
    write_atomic(files[path], to_parquet(index.with_row_index("row").cast({"row": pl.UInt32})))
    filled = int(index["filled_frames"].sum())
    print(
        f"{len(index):,} clips of {index['subject'].n_unique():,} persons, {int(index['frames'].sum()):,} frames; in"
        f" {filled:,} of them joints were missing and are filled from the frames around",
        file=sys.stderr,
    )
    return files


def _entry(cut: Cut, files: dict[str, Path]) -> dict[str, Any]:
    path = f"{PREDICT}/part-00000.parquet"
    digest = hashlib.sha256(files[path].read_bytes()).hexdigest()
    return {PREDICT: {"rows": len(cut.rows), "parts": [{"path": path, "rows": len(cut.rows), "sha256": digest}]}}
