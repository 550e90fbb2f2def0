"""New images and videos, without annotations -> prepared as images of persons, for prediction."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, DatasetNotFoundError, PrepError, RejectsExceededError
from data_prep.common.files import sha256_file, translate_os_errors, write_atomic
from data_prep.common.images import SUFFIXES
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.mapping import Done, Task
from data_prep.common.raw import check_raw, walk
from data_prep.common.rejects import Reject, check_rejects, to_frame
from data_prep.common.run import Run, Settings, identify, is_large, open_run
from data_prep.common.video import SUFFIXES as VIDEOS
from data_prep.pose.people.images import BLOCK, ImageRules, Shot, look_at_block
from data_prep.pose.people.job import PAYLOAD, TOOLS, describe_images, say
from data_prep.pose.people.joining import to_parquet
from data_prep.pose.people.videos import QUALITY, read_video
from data_prep.pose.sequences.records import natural_key

PREDICT = "predict"
LARGEST_ID = 1 << 53  # beyond, JSON readers round
INDEX: dict[str, Any] = {
    "row": pl.UInt64,
    "image_id": pl.Int64,
    "file": pl.String,
    "image": pl.String,  # path below the raw folder, or below the prepared directory
    "stored": pl.Boolean,  # which of both
    "width": pl.UInt32,
    "height": pl.UInt32,
    "persons": pl.UInt32,
    "video": pl.String,  # name of the video, or of the folder of frames; empty: an image by itself
    "frame": pl.UInt32,  # number in the video, from 0
    "time_s": pl.Float64,
    "fps": pl.Float64,  # of the frames that are looked at
    "step": pl.UInt32,  # from one of these to the next
}
PERSONS: dict[str, Any] = {
    **{"row": pl.UInt64, "annotation_id": pl.Int64, "box": pl.List(pl.Float64), "area": pl.Float64},
    **{"crowd": pl.Boolean, "labelled": pl.UInt32, "keypoints": pl.List(pl.Float64)},
}


@dataclass
class Looked:
    """What became of the raw files.

    Args:
        rows: of the index, without `row` and `image_id`.
        files: path inside the prepared directory -> file.
        rejects: images and frames that cannot be used.
        videos: what `dataset.json` says of each video.
        total: images and frames, rejects included.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    videos: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0


def apply_images(
    preparation: Path,
    manifest: dict[str, Any],
    raw: tuple[Path, ...],
    out: Path,
    *,
    fps: float,
    every: int,
    settings: Settings,
    max_rejects: float,
) -> dict[str, Any]:
    """Look at images, and cut videos into images; see `data_prep.pose.apply.apply`."""
    check_raw(raw, out)
    tops = [path.resolve() for path in raw]
    with translate_os_errors(tops[0]):
        found = list(dict.fromkeys(walk(tops)))
    images = [path for path in found if path.suffix.lower() in SUFFIXES]
    videos = [path for path in found if path.suffix.lower() in VIDEOS]
    if not images and not videos:
        raise DatasetNotFoundError(
            f"{raw[0]}: holds no image and no video; images are {_listed(SUFFIXES)}, videos {_listed(VIDEOS)}"
        )
    if every > 1 and not videos:
        raise ConfigError(
            f"every {every}: is for videos; leave frames out of the folder, and give the --fps of the rest"
        )
    root = Path(os.path.commonpath([top if top.is_dir() else top.parent for top in tops]))
    command = {"dataset": manifest["name"], "apply": sha256_file(preparation / NAME), "fps": fps, "every": every}
    files = [*images, *videos]
    sources = [describe_images(root, [str(path.relative_to(root)) for path in files])]
    finished = _find_finished(out, command, sources, root)
    if finished is not None:
        return finished
    eager = Settings(settings.executor, settings.workers, None, settings.progress, eager=is_large(files))
    tools = (*TOOLS, QUALITY, str(root))
    with open_run(out, {"command": command, **identify(files, *tools)}, eager, PAYLOAD) as run:
        looked = _look(run, images, videos, root, fps, every)
        rejects = _check(run, looked, max_rejects, raw[0])
        table = _number(looked.rows)
        parts, entry = _write_index(table, run.scratch)
        _tell(looked, table)
        return run.publish(
            {**looked.files, **parts, "rejects.parquet": rejects},
            {
                **{name: manifest[name] for name in ("name", "licence", "keypoints", "units", "area", "protocol")},
                **{"domain": "pose", "kind": "people", "version": tool_version(), "command": command},
                **{"sources": sources, "image_root": str(root), "split_rule": {"kind": PREDICT}},
                "group": {"name": "image", "kept_apart": False, "groups": len(table), "note": "nothing is divided"},
                "splits": {PREDICT: entry},
                "videos": looked.videos,
                "counts": {"images": len(table), "videos": len(looked.videos)},
                "rejects": {"count": len(looked.rejects), "share": len(looked.rejects) / max(looked.total, 1)},
            },
        )


def _find_finished(out: Path, command: dict[str, Any], sources: list[Any], root: Path) -> dict[str, Any] | None:
    """The manifest of `out` when it holds what is asked for.

    Raises:
        ConfigError: it holds prepared data of something else.
    """
    if not (out / NAME).exists():
        return None
    manifest = read_manifest(out)
    expected = {"command": command, "sources": sources, "image_root": str(root)}
    if all(manifest.get(name) == value for name, value in expected.items()):
        return manifest
    raise ConfigError(
        f"{out}: holds prepared data of other options or other files; choose another output directory or remove it"
    )


def _look(run: Run, images: list[Path], videos: list[Path], root: Path, fps: float, every: int) -> Looked:
    shots = [Shot(number, str(path), 0, 0) for number, path in enumerate(images)]
    # what is found is meant for the picture as it is looked at, so an orientation that a camera noted counts
    rules = ImageRules(exif="apply")
    blocks = [
        Task(f"{at // BLOCK:05d}", look_at_block, (tuple(shots[at : at + BLOCK]), rules))
        for at in range(0, len(shots), BLOCK)
    ]
    looked = Looked()
    _add_images(looked, images, run.stage("images", blocks) if blocks else [], root, fps)
    labels = [f"video-{number:03d}" for number in range(len(videos))]
    tasks = [Task(label, read_video, (str(path), label, every)) for label, path in zip(labels, videos, strict=True)]
    for path, done in zip(videos, run.stage("videos", tasks) if tasks else [], strict=True):
        _add_video(looked, str(path.relative_to(root)), done, every)
    return looked


def _add_images(looked: Looked, images: Sequence[Path], blocks: Sequence[Done], root: Path, fps: float) -> None:
    """Images in their order; those of one folder are frames of one video where a rate is given."""
    order = sorted(range(len(images)), key=lambda at: natural_key(str(images[at].relative_to(root))))
    facts = [fact for done in blocks for fact in pl.read_parquet(done.folder / "facts.parquet").to_dicts()]
    frames: Counter[Path] = Counter()
    for at in order:
        path, fact = images[at], facts[at]
        name, number = str(path.relative_to(root)), frames[path.parent]
        frames[path.parent] += 1
        looked.total += 1
        if fact["reason"]:
            looked.rejects.append(Reject(name, number, "image", fact["reason"], ""))
            continue
        if fact["stored"]:
            looked.files[fact["stored"]] = blocks[at // BLOCK].folder / fact["stored"]
        folder = str(path.parent.relative_to(root))
        video = folder if fps else ""  # "." is the folder above all
        timed = {"frame": number, "time_s": number / fps, "fps": fps, "step": 1} if fps else {}
        looked.rows.append(
            {
                **{"file": name, "image": fact["stored"] or name, "stored": bool(fact["stored"]), "video": video},
                **{"width": fact["width"], "height": fact["height"], **timed},
            }
        )


def _add_video(looked: Looked, name: str, done: Done, every: int) -> None:
    info = done.info
    if info["reason"]:
        looked.total += 1
        looked.rejects.append(Reject(name, 0, "video", info["reason"], ""))
        return
    looked.total += info["decoded"] + len(info["broken"])
    looked.rejects += [
        Reject(name, number, f"frame {number} at {time:.3f} s", "cannot be decoded", "")
        for number, time in info["broken"]
    ]
    rate = info["fps"] / every
    lost = int(info["missing_at_the_end"])
    looked.videos.append(
        {
            **{"file": name, "fps": info["fps"], "frames": info["written"], "every": every},
            **{"broken_frames": [number for number, _ in info["broken"]], "missing_at_the_end": lost},
        }
    )
    for row in pl.read_parquet(done.folder / "frames.parquet").to_dicts():
        looked.files[row["stored"]] = done.folder / row["stored"]
        looked.rows.append(
            {
                **{"file": f"{name} frame {row['frame']}", "image": row["stored"], "stored": True, "video": name},
                **{key: row[key] for key in ("width", "height", "frame", "time_s")},
                **{"fps": rate, "step": every},
            }
        )


def _check(run: Run, looked: Looked, max_rejects: float, where: Path) -> Path:
    """Write the table of rejects, and stop where there are too many."""
    path = run.scratch / "rejects.parquet"
    table = to_frame(looked.rejects)
    write_atomic(path, to_parquet(table))
    for reject in looked.rejects[:_TOLD]:
        say(f"{reject.source}: {reject.field}: {reject.reason}")
    if len(looked.rejects) > _TOLD:
        say(f"... and {len(looked.rejects) - _TOLD:,} more, see rejects.parquet")
    if not looked.rows:
        first = looked.rejects[0]
        raise PrepError(f"{where}: nothing is left of it; {first.source}: {first.reason}")
    try:
        check_rejects(table, looked.total, max_rejects, path)
    except RejectsExceededError as error:
        enough = math.ceil(100 * table.height / looked.total) / 100
        raise RejectsExceededError(f"{error}; --max_rejects {enough:g} predicts the others") from None
    return path


_TOLD = 5  # rejects that are printed


def _number(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Rows with ids: the numbers that image files are called by, as in COCO, where all are; else 1, 2, 3, ..."""
    names = [re.fullmatch(r"0*([0-9]+)", Path(row["file"]).stem) if not row["video"] else None for row in rows]
    ids = [int(match[1]) if match else -1 for match in names]
    if min(ids) < 0 or max(ids) > LARGEST_ID or len(set(ids)) < len(ids):
        ids = list(range(1, len(rows) + 1))
    blank = {"frame": None, "time_s": None, "fps": None, "step": None}
    full = [
        {**blank, **row, "row": at, "image_id": image, "persons": 0}
        for at, (row, image) in enumerate(zip(rows, ids, strict=True))
    ]
    return pl.DataFrame(full, schema=INDEX)


def _write_index(table: pl.DataFrame, folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    files, entry = {}, {"rows": len(table), "persons_rows": 0}
    for name, rows in {"part": table, "persons": pl.DataFrame(schema=PERSONS)}.items():
        data, path = to_parquet(rows), f"{PREDICT}/{name}-00000.parquet"
        files[path] = folder / path.replace("/", "-")
        write_atomic(files[path], data)
        part = {"path": path, "rows": len(rows), "sha256": hashlib.sha256(data).hexdigest()}
        entry["parts" if name == "part" else name] = [part]  # type: ignore[assignment]
    return files, entry


def _tell(looked: Looked, table: pl.DataFrame) -> None:
    single = len(table) - sum(video["frames"] for video in looked.videos)
    told = [f"{single:,} images"] * bool(single)
    told += [
        f"{video['file']}: {video['frames']:,} frames at {video['fps'] / video['every']:g} a second"
        for video in looked.videos
    ]
    say("; ".join(told[:_TOLD]) + (f"; and {len(told) - _TOLD} more videos" if len(told) > _TOLD else ""))
    for video in looked.videos:
        if video["missing_at_the_end"]:
            say(
                f"{video['file']}: ends {video['missing_at_the_end']:,} frames earlier than it says: it is cut off; "
                "what is there is used"
            )


def _listed(suffixes: frozenset[str]) -> str:
    return ", ".join(sorted(suffixes))
