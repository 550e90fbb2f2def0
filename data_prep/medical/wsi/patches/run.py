"""One run over many slides: what is taken over from before, the stages of the others, and publication."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import tifffile

from data_prep.common.files import canonical_json
from data_prep.common.manifest import NAME, tool_version
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import Reject
from data_prep.common.run import Run, Settings, identify, open_run
from data_prep.medical.wsi.patches.job import Facts, Job, Wanted, look
from data_prep.medical.wsi.patches.outcome import BAD, Outcome, count, gather, skipped, tables, write_tables
from data_prep.medical.wsi.patches.tasks import chunks, decode, find, plan_bands, shrink, write
from data_prep.medical.wsi.patches.update import keep, list_files, put_aside, put_back, read_previous, unchanged
from data_prep.medical.wsi.slides.identity import identify_file

PAYLOAD = frozenset({"patches", "thumbnails", "contours", "images", "slides.parquet", "slides.csv", "rejects.parquet"})
# What the bytes depend on besides input and options.
TOOLS = (
    *(cv2.__version__, np.__version__, openslide.__library_version__),
    *(tifffile.__version__, imagecodecs.__version__),  # tiles of TIFFs are decoded without OpenSlide
)
Part = tuple[Path, Facts]


def patch_slides(
    jobs: Sequence[Job], wanted: Wanted, out: Path, command: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    """Tile slides into an output directory.

    Args:
        jobs: the slides, in order.
        wanted: what patches.
        out: output directory.
        command: the `command` entry of `dataset.json`.
        settings: how to run.

    Returns:
        The content of `dataset.json`.
    """
    previous = read_previous(out, command)
    recorded = {entry["slide"]: entry for entry in previous["sources"]} if previous else {}
    sources = {job.slide: describe(job) for job in jobs if _may_be(recorded.get(job.slide), job)}
    same = {slide for slide, source in sources.items() if unchanged(recorded[slide], source)}
    # What failed is tried again, a disk may be back; but not by each shard of a finished run.
    kept = {slide for slide in same if recorded[slide]["status"] != "failed"}
    done = same if settings.shard else kept
    if previous is not None and len(done) == len(jobs) == len(recorded) and (out / NAME).exists():
        return previous
    # The slides are no part of the fingerprint: each task is called after its slide, and finished ones stay when
    # another slide is added or repaired.
    with open_run(out, {"command": command, **identify([], *TOOLS)}, settings, PAYLOAD) as run:
        put_aside(out, run.scratch, previous)
        outcomes = {**_take_over(run, [job for job in jobs if job.slide in kept], sources)}
        outcomes |= _process(run, [job for job in jobs if job.slide not in kept], wanted)
        ordered = [outcomes[job.slide] for job in jobs]
        card = _describe_run(ordered, wanted, command)
        if previous is not None and run.shard is None and {"format": previous["format"], **card} == previous:
            put_back(out, run.scratch)
            return previous
        content = tables(ordered)
        task = Task(f"tables-{_digest(content)}", write_tables, (content,))
        written = run.stage("tables", [task])[0]
        files = {name: path for outcome in ordered for name, path in outcome.files.items()}
        files |= {name: written.folder / name for name in written.files}
        return run.publish(files, card)


def describe(job: Job) -> dict[str, Any]:
    """A slide's entry of `sources`, without what became of it."""
    return {"slide": job.slide, **identify_file(job.path), "settings": job.settings}


def _may_be(recorded: dict[str, Any] | None, job: Job) -> bool:
    """Whether it pays to compute a checksum."""
    return (
        recorded is not None
        and recorded["bytes"] == job.path.stat().st_size
        and recorded["settings"] == job.settings
        and recorded["path"] == job.path.name
        and recorded["default_mpp"] in (None, job.default_mpp)
    )


def _digest(value: Any) -> str:
    return hashlib.blake2b(canonical_json(value), digest_size=12).hexdigest()


def _key(job: Job) -> str:
    stat = job.path.stat()
    return _digest([job.slide, job.path.name, stat.st_size, stat.st_mtime_ns, job.settings, job.default_mpp])


def _take_over(run: Run, jobs: Sequence[Job], sources: dict[str, dict[str, Any]]) -> dict[str, Outcome]:
    tasks = []
    for job in jobs:
        names = [f"patches/{job.slide}.h5", f"thumbnails/{job.slide}.jpg", f"contours/{job.slide}.geojson"]
        names += list_files(run.out, f"images/{job.slide}")
        tasks.append(Task(_key(job), keep, (run.out, job.slide, job.path.name, names)))
    found = {}
    for job, done in zip(jobs, run.stage("keep", tasks) if tasks else [], strict=True):
        files = {name: done.folder / name for name in done.info["files"]}
        rejects = [Reject(*row) for row in done.info["rejects"]]
        row = {**done.info["row"], "path": str(job.path)}
        found[job.slide] = Outcome(job, sources[job.slide], row, rejects, files)
    return found


def _process(run: Run, jobs: Sequence[Job], wanted: Wanted) -> dict[str, Outcome]:
    found = {job.slide: skipped(job, describe(job)) for job in jobs if not job.options.process}
    active = [job for job in jobs if job.options.process]
    keys = {job.slide: _key(job) for job in active}
    looked = _stage(run, "look", {job.slide: Task(keys[job.slide], look, (job, wanted)) for job in active})
    facts = {slide: done.info for slide, done in looked.items()}
    sound = [job for job in active if "error" not in facts[job.slide]]
    bands = _shrink(run, sound, facts, keys)
    tissue = {
        job.slide: Task(keys[job.slide], find, (job, wanted, facts[job.slide], bands[job.slide])) for job in sound
    }
    tiled = _stage(run, "tissue", tissue)
    sound = [job for job in sound if "error" not in tiled[job.slide].info]
    decoded = _decode(run, sound, wanted, facts, tiled, keys)
    writing = {}
    for job in sound:
        parts = (tiled[job.slide].folder, decoded[job.slide], bands[job.slide])
        writing[job.slide] = Task(keys[job.slide], write, (job, wanted, facts[job.slide], *parts))
    written = _stage(run, "write", writing)
    for job in active:
        answers = [facts[job.slide]]
        answers += [stage[job.slide].info for stage in (tiled, written) if job.slide in stage]
        source = {"slide": job.slide, **facts[job.slide]["source"], "settings": job.settings}
        files = _files(job, tiled, written, decoded, wanted)
        found[job.slide] = gather(job, source, answers, files)
    return found


def _stage(run: Run, name: str, tasks: dict[str, Task]) -> dict[str, Done]:
    return dict(zip(tasks, run.stage(name, list(tasks.values())) if tasks else [], strict=True))


def _shrink(run: Run, jobs: Sequence[Job], facts: dict[str, Facts], keys: dict[str, str]) -> dict[str, list[Part]]:
    """Small pictures of slides that have no low level, in bands: one huge slide is work for all cores."""
    owners, tasks = [], []
    for job in jobs:
        for number, (first, last) in enumerate(plan_bands(facts[job.slide])):
            owners.append(job.slide)
            key = f"{keys[job.slide]}-{number:05}"
            tasks.append(Task(key, shrink, (job, facts[job.slide], first, last)))
    return _collect(jobs, owners, run.stage("shrink", tasks) if tasks else [])


def _decode(
    run: Run,
    jobs: Sequence[Job],
    wanted: Wanted,
    facts: dict[str, Facts],
    tiled: dict[str, Done],
    keys: dict[str, str],
) -> dict[str, list[Part]]:
    owners, tasks = [], []
    for job in jobs if wanted.decodes else []:
        for number, first in enumerate(chunks(tiled[job.slide].info["patches"])):
            owners.append(job.slide)
            key, place = f"{keys[job.slide]}-{number:05}", tiled[job.slide].folder
            tasks.append(Task(key, decode, (job, wanted, facts[job.slide], place, first)))
    return _collect(jobs, owners, run.stage("decode", tasks) if tasks else [])


def _collect(jobs: Sequence[Job], owners: Sequence[str], done: Sequence[Done]) -> dict[str, list[Part]]:
    parts: dict[str, list[Part]] = {job.slide: [] for job in jobs}
    for owner, task in zip(owners, done, strict=True):
        parts[owner].append((task.folder, task.info))
    return parts


def _files(
    job: Job,
    tiled: dict[str, Done],
    written: dict[str, Done],
    decoded: dict[str, list[Part]],
    wanted: Wanted,
) -> dict[str, Path]:
    files: dict[str, Path] = {}
    if job.slide in written:
        files[f"contours/{job.slide}.geojson"] = tiled[job.slide].folder / "contours.geojson"
        names = {"patches.h5": f"patches/{job.slide}.h5", "thumbnail.jpg": f"thumbnails/{job.slide}.jpg"}
        done = written[job.slide]
        files |= {name: done.folder / inside for inside, name in names.items() if inside in done.files}
    if wanted.images != "none":
        for folder, _ in decoded.get(job.slide, []):
            files |= {f"images/{job.slide}/{path.name}": path for path in sorted((folder / "images").glob("*"))}
    return files


def _describe_run(outcomes: Sequence[Outcome], wanted: Wanted, command: dict[str, Any]) -> dict[str, Any]:
    bad = [outcome for outcome in outcomes if outcome.status in BAD]
    return {
        "domain": "medical",
        "kind": "patches",
        "name": "patches",
        "version": tool_version(),
        "command": command,
        "licence": "not stated",
        "sources": [outcome.entry for outcome in outcomes],
        "patch": {"mpp": wanted.mpp, "level": wanted.level, "size": wanted.size, "step": wanted.step},
        "units": {"coords": "level-0 pixels", "mpp": "micrometres per pixel"},
        "counts": count(outcomes),
        "failures": [{"slide": outcome.job.slide, "reason": outcome.row["reason"]} for outcome in bad],
        "rejects": {"count": len(bad), "share": len(bad) / max(len(outcomes), 1)},
    }
