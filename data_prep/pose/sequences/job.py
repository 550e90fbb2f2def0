"""One preparation of sequences: options checked, files unpacked, recordings made into clips, the result described."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors

from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.files import write_atomic
from data_prep.common.manifest import tool_version
from data_prep.common.mapping import Done, Task
from data_prep.common.raw import check_raw, walk
from data_prep.common.rejects import Reject, check_rejects, to_frame
from data_prep.common.run import Run, Settings, describe_source, find_finished, identify, run_once
from data_prep.common.splits import SPLITS
from data_prep.pose.sequences import human36m, humaneva, mpi_inf_3dhp
from data_prep.pose.sequences.clips import describe_cameras, make_clips
from data_prep.pose.sequences.records import Asked, Found, Listing, Recording, Remark, Source, Stage, slug
from data_prep.pose.sequences.splitting import (
    REMARKS,
    Kept,
    count,
    divide,
    find_pairs,
    refuse_pairs,
    to_parquet,
    write_index,
)

TOOLS = ("sequences 1", np.__version__, pl.__version__, safetensors.__version__)
CLIPS = "clips"
PAYLOAD = (*SPLITS, "predict", CLIPS, "rejects.parquet", "remarks.parquet", "duplicates.parquet")
REPAIRS = ("cut", "filled_keypoints", "filled_poses", "thinned", "left_out")
_TOLD = 8  # lines of one kind that are printed
SHORT = 9  # frames; the shortest window of published networks


@dataclass(frozen=True)
class Reader:
    """A data set.

    Args:
        find: its files.
        unpack: arrays of one file, as files of their own.
        join: recordings from what was unpacked.
        cameras: names.
        overlaps: why subjects are on both sides of the published split; empty: they are not.
    """

    find: Callable[[Sequence[Path], Asked, Path], Found]
    unpack: Callable[[Source, Path], dict[str, Any]]
    join: Callable[[Stage, Asked], Listing]
    cameras: tuple[str, ...]
    overlaps: str = ""


READERS = {
    "human36m": Reader(human36m.find, human36m.unpack, human36m.join, human36m.NAMES),
    "humaneva": Reader(
        humaneva.find,
        humaneva.unpack,
        humaneva.join,
        humaneva.NAMES,
        "the published split trains and tests on the same three subjects; --test-subjects keeps them apart",
    ),
    "mpi-inf-3dhp": Reader(mpi_inf_3dhp.find, mpi_inf_3dhp.unpack, mpi_inf_3dhp.join, mpi_inf_3dhp.NAMES),
}


@dataclass(frozen=True)
class Options:
    """Options of `prepare_sequences`, which see."""

    dataset: str
    asked: Asked
    rate: float
    valid_subjects: tuple[str, ...]
    test_subjects: tuple[str, ...]
    duplicates: str
    max_rejects: float

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        if self.dataset not in READERS:
            raise ConfigError(f"dataset {self.dataset!r}: there are {', '.join(READERS)}")
        names = READERS[self.dataset].cameras
        unknown = [name for name in self.asked.cameras if name not in names]
        if unknown:
            raise ConfigError(f"cameras: {self.dataset} has no camera {unknown[0]!r}; it has {', '.join(names)}")
        if self.asked.poses not in ("metric", "universal"):
            raise ConfigError(f"poses {self.asked.poses!r}: choose metric or universal")
        if self.asked.poses != "metric" and self.dataset != "mpi-inf-3dhp":
            raise ConfigError(f"poses: {self.dataset} has metric ones only")
        if self.asked.keypoints and self.dataset == "mpi-inf-3dhp":
            raise ConfigError("keypoints: those of mpi-inf-3dhp are in its own files; leave the option out")
        if not (0 <= self.rate < float("inf")) or not 0 <= self.max_rejects <= 1:
            raise ConfigError(
                f"rate {self.rate:g}, max_rejects {self.max_rejects}: give a rate of 0 (as recorded) or more, and "
                "max_rejects from 0 to 1"
            )
        if self.duplicates not in ("refuse", "report"):
            raise ConfigError(f"duplicates {self.duplicates!r}: choose refuse or report")

    def command(self) -> dict[str, Any]:
        """The `command` entry of `dataset.json`: everything that determines the result besides the files."""
        asked = {"cameras": list(self.asked.cameras), "actions": list(self.asked.actions)}
        return {
            **{"dataset": self.dataset, "keypoints": self.asked.keypoints, **asked, "poses": self.asked.poses},
            "convert": self.asked.convert,
            **{"rate": self.rate, "duplicates": self.duplicates},
            "valid_subjects": list(self.valid_subjects),
            "test_subjects": list(self.test_subjects),
        }


def run_preparation(
    options: Options,
    raw: tuple[Path, ...],
    out: Path,
    workers: int | None,
    executor: str,
    shard: str | None,
    shard_patience: float,
    progress: bool,
) -> dict[str, Any]:
    """Run a preparation, or find it finished."""
    options.check()
    check_raw(raw, out)
    found = READERS[options.dataset].find(list(dict.fromkeys(walk(raw))), options.asked, raw[0])
    files = [source.path for source in found.sources]
    command = options.command()
    finished = find_finished(out, {"command": command}, files)
    if finished is not None:
        return finished
    settings = Settings.of(executor, workers, shard, shard_patience, progress, files)
    fingerprint = {"command": command, **identify(files, *TOOLS)}
    return run_once(out, fingerprint, settings, PAYLOAD, lambda run: _prepare(run, found, options, raw[0]))


def say(lines: Sequence[str], rest: str) -> None:
    """Tell the user the first lines, and how many there are besides."""
    more = [f"... and {len(lines) - _TOLD:,} {rest}"] if len(lines) > _TOLD else []
    for line in [*lines[:_TOLD], *more]:
        print("".join(mark if mark.isprintable() else "?" for mark in line), file=sys.stderr)


def _choose(listing: Listing, actions: Sequence[str]) -> tuple[tuple[Recording, ...], int]:
    """Recordings of the actions that are asked for, and how many others there are."""
    there = sorted({recording.action for recording in listing.recordings})
    unknown = [name for name in actions if name not in there]
    if unknown and there:
        raise ConfigError(f"actions: there is no action {unknown[0]!r}; there are {', '.join(there)}")
    chosen = tuple(r for r in listing.recordings if not actions or r.action in actions)
    return chosen, len(listing.recordings) - len(chosen)


def _prepare(run: Run, found: Found, options: Options, where: Path) -> dict[str, Any]:
    reader = READERS[options.dataset]
    listing, recordings, done, unasked = _make(run, found, options)
    rejects = [*listing.rejects, *(Reject(*entry) for each in done for entry in each.info["rejects"])]
    remarks = [*listing.remarks, *(Remark(*entry) for each in done for entry in each.info["remarks"])]
    kept = _keep(recordings, done)
    total = len(rejects) + len(kept)
    files = _write_problems(run, rejects, remarks, total, options.max_rejects)
    if not kept:
        why = f"; the first reason: {rejects[0].source}: {rejects[0].field}: {rejects[0].reason}" if rejects else ""
        raise PrepError(f"{where}: no recording can be prepared{why}")
    names = {clip.recording.name: clip.recording for clip in kept}
    splits, rule = divide(list(names.values()), options.valid_subjects, options.test_subjects, reader.overlaps)
    digests = [(r.name, "pose", str(each.info["digest"])) for r, each in zip(recordings, done, strict=True)]
    digests += [(clip.recording.name, "keypoints", clip.row["digest"]) for clip in kept]
    pairs = find_pairs([entry for entry in digests if entry[0] in names], names, splits)
    if options.duplicates == "refuse":
        refuse_pairs(pairs)
    files["duplicates.parquet"] = run.scratch / "duplicates.parquet"
    write_atomic(files["duplicates.parquet"], to_parquet(pairs))
    index, entries = write_index(kept, splits, run.scratch)
    overlaps = reader.overlaps if not options.test_subjects else ""
    counts = {**_counts(kept, remarks, unasked), "rejected": len(rejects), "splits": count(kept, splits)}
    _tell(remarks, pairs, counts["splits"], overlaps)
    return run.publish(
        {**{clip.row["files"][0]: clip.path for clip in kept}, **index, **files},
        {
            **_describe(found, options, list(names.values()), kept),
            "command": options.command(),
            "group": {
                "name": "subject",
                "kept_apart": not overlaps,
                "groups": len({recording.subject for recording in names.values()}),
                "note": overlaps,
            },
            "split_rule": rule,
            "splits": entries,
            "counts": counts,
            "duplicates": {
                "pairs": pairs.height,
                "in_two_splits": pairs.filter(pl.col("first_split") != pl.col("second_split")).height,
                "rule": options.duplicates,
            },
            "rejects": {"count": len(rejects), "share": len(rejects) / max(total, 1)},
        },
    )


def _make(run: Run, found: Found, options: Options) -> tuple[Listing, tuple[Recording, ...], list[Done], int]:
    """Run both stages.

    Returns:
        What there is, the recordings that are asked for, their finished tasks, and how many are not asked for.
    """
    reader = READERS[options.dataset]
    unpacking = [
        Task(f"{at:05d}-{slug(source.label).replace('/', '_')}", reader.unpack, (source,))
        for at, source in enumerate(found.sources)
    ]
    listing = reader.join(list(zip(found.sources, run.stage("unpack", unpacking), strict=True)), options.asked)
    names = Counter(recording.name for recording in listing.recordings)
    twice = next((r for r in listing.recordings if names[r.name] > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice.source}: {twice.name} is there {names[twice.name]} times; give one of them as raw")
    recordings, unasked = _choose(listing, options.asked.actions)
    making = [
        Task(f"{at:05d}-{slug(r.name).replace('/', '_')[:80]}", make_clips, (r, found.skeleton, options.rate))
        for at, r in enumerate(recordings)
    ]
    return listing, recordings, run.stage("make", making), unasked


def _write_problems(
    run: Run, rejects: Sequence[Reject], remarks: Sequence[Remark], total: int, allowed: float
) -> dict[str, Path]:
    """Write the tables of rejects and remarks, and stop where there are too many rejects."""
    files = {name: run.scratch / name for name in ("rejects.parquet", "remarks.parquet")}
    table = to_frame(rejects)
    write_atomic(files["rejects.parquet"], to_parquet(table))
    write_atomic(files["remarks.parquet"], to_parquet(pl.DataFrame(remarks, schema=REMARKS, orient="row")))
    say([f"{entry.source}: {entry.field}: {entry.reason}" for entry in rejects], "more, see rejects.parquet")
    check_rejects(table, total, allowed, files["rejects.parquet"])
    return files


def _keep(recordings: Sequence[Recording], done: Sequence[Done]) -> list[Kept]:
    """Finished clips with their rows of the index."""
    kept: list[Kept] = []
    used: Counter[str] = Counter()
    for recording, each in zip(recordings, done, strict=True):
        base = slug(recording.name)
        used[base] += 1
        base += f"-{used[base]}" if used[base] > 1 else ""  # names that differ in signs only
        cameras = {track.camera.name: track.camera for track in recording.tracks}
        for clip in each.info["clips"]:
            camera = cameras[clip["camera"]]
            row = {
                **{"name": f"{recording.name}/{camera.name}", "subject": recording.subject},
                **{"action": recording.action, "sequence": recording.sequence, "recording": recording.name},
                **{"camera": camera.name, "frames": clip["frames"], "scored_frames": clip["scored"]},
                **{"fps": clip["fps"], **camera.describe(), "reprojection_pixels": clip["reprojection_pixels"]},
                "files": [f"{CLIPS}/{base}.{camera.name}.safetensors"],
                "digest": clip["digest"],
            }
            kept.append(Kept(recording, row, each.folder / clip["file"]))
    return kept


def _counts(kept: Sequence[Kept], remarks: Sequence[Remark], unasked: int) -> dict[str, Any]:
    """Clips, frames, and how often each repair was made and each suspicion was had."""
    kinds = Counter(remark.kind for remark in remarks)
    frames: Counter[str] = Counter()
    for remark in remarks:
        frames[remark.kind] += remark.frames
    told = {kind: {"remarks": kinds[kind], "frames": frames[kind]} for kind in sorted(kinds)}
    return {
        "recordings": len({clip.recording.name for clip in kept}),
        "clips": len(kept),
        "frames": sum(clip.row["frames"] for clip in kept),
        "short_clips": sum(clip.row["frames"] < SHORT for clip in kept),
        "recordings_of_other_actions": unasked,
        "repairs": {kind: told[kind] for kind in told if kind in REPAIRS},
        "suspicions": {kind: told[kind] for kind in told if kind not in REPAIRS},
    }


def _describe(found: Found, options: Options, recordings: list[Recording], kept: Sequence[Kept]) -> dict[str, Any]:
    """What `dataset.json` says of the data."""
    return {
        "domain": "pose",
        "kind": "sequences",
        "name": options.dataset,
        "version": tool_version(),
        "licence": found.licence,
        "sources": [describe_source(source.path) for source in found.sources],
        "units": {"keypoints_2d": "pixels", "pose_3d": "metres in the axes of the camera, z ahead", "translation": "m"},
        "layout": found.skeleton.describe(),
        "fps": sorted({clip.row["fps"] for clip in kept}),
        **found.notes,
        "cameras": describe_cameras(recordings),
        "preparation": {"kind": "sequences", "dataset": options.dataset, "rate": options.rate},
    }


def _tell(remarks: Sequence[Remark], pairs: pl.DataFrame, splits: dict[str, dict[str, int]], overlaps: str) -> None:
    """Say what the user should know."""
    lines = [
        f"{'/'.join(part for part in (r.recording, r.camera) if part)}: {r.kind}: {r.detail}"
        + (f" ({r.frames:,} frames)" if r.frames else "")
        for r in remarks
    ]
    say(lines, "more remarks, see remarks.parquet")
    same = [f"{row['first']} and {row['second']} have the same {row['kind']}" for row in pairs.iter_rows(named=True)]
    say(same, "more pairs, see duplicates.parquet")
    empty = [split for split, counted in splits.items() if not counted["clips"] and split != "valid"]
    say([f"split {split} is empty" for split in empty] + ([overlaps] if overlaps else []), "")
