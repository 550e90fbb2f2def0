"""The stages of a preparation over all chunks; `prepare` and `apply` are made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import collect_rejects
from data_prep.common.run import Run, describe_source
from data_prep.common.splits import SPLITS, check_time_order, refuse_leak, time_thresholds
from data_prep.ctr.chunks import Chunk, plan_source
from data_prep.ctr.digest import digest_chunk, read_times
from data_prep.ctr.encode import Encoding, encode_chunk
from data_prep.ctr.groups import merge_range, plan_ranges
from data_prep.ctr.job import Job
from data_prep.ctr.read import read_chunk
from data_prep.ctr.schema import Dataset, Schema, Sources, TextFormat
from data_prep.ctr.tokens import group_hashes


@dataclass(frozen=True)
class Plan:
    """The chunks of all sources.

    Args:
        chunks: in order.
        rows: number of the first record of each chunk over all sources.
        sources: path (name only), bytes and sha256 of each raw file.
        records: records in all.
        schema: the schema to read them with.
        side: folder of side tables.
        early: rejects found and records dropped before the plan, by sampling.
    """

    chunks: tuple[Chunk, ...]
    rows: tuple[int, ...]
    sources: list[dict[str, Any]]
    records: int
    schema: Schema
    side: Path | None
    early: Done | None


def plan(run: Run, dataset: Dataset | None, schema: Schema, found: Sources, seed: int, *, expand: bool) -> Plan:
    """Prepare side tables, sample, and cut the logs into chunks."""
    side = None
    sources: list[dict[str, Any]] = []
    if dataset and dataset.side and found.sides:
        side = run.stage("sides", [Task("sides", dataset.side, (found.sides,))])[0].folder
        sources += run.stage("sums", [Task("sums", _source_sums, (found.sides,))])[0].info["sources"]
    early, logs = None, found.logs
    if dataset and dataset.expand and expand:
        early = run.stage("sample", [Task("sample", dataset.expand, (found.logs, seed, schema))])[0]
        sources = early.info["sources"] + sources
        schema = replace(schema, text=TextFormat(separator="\t", header=True, quote=""))
        logs = (early.folder / "log.tsv",)
    planned = run.stage("plan", [Task(f"{i:05d}", plan_source, (path, schema)) for i, path in enumerate(logs)])
    chunks: list[Chunk] = []
    rows: list[int] = []
    row = 0
    for position, (path, done) in enumerate(zip(logs, planned, strict=True)):
        first = 0
        for piece, start, stop, records in done.info["chunks"]:
            place = done.folder / piece if piece else path
            chunks.append(Chunk(place, path.name, start, stop, first, records, tuple(done.info["columns"]), position))
            rows.append(row)
            first += records
            row += records
        if early is None:
            sources.insert(position, {"path": path.name, "bytes": done.info["bytes"], "sha256": done.info["sha256"]})
    return Plan(tuple(chunks), tuple(rows), sources, row, schema, side, early)


def _source_sums(paths: tuple[Path, ...], folder: Path) -> dict[str, Any]:
    return {"sources": [describe_source(path) for path in paths]}


def find_thresholds(run: Run, job: Job, planned: Plan) -> tuple[float, ...]:
    """First time of valid and of test, from the times of all chunks."""
    tasks = [Task(f"{i:05d}", read_times, (job, chunk)) for i, chunk in enumerate(planned.chunks)]
    done = run.stage("times", tasks)
    times = np.concatenate([np.load(item.folder / "times.npy") for item in done])
    counts = np.concatenate([np.load(item.folder / "counts.npy") for item in done])
    if not len(times):
        raise ConfigError(f"schema {job.schema.name}: column {job.schema.time!r} holds no time; choose another split")
    distinct, place = np.unique(times, return_inverse=True)
    total = np.bincount(place, weights=counts).astype(np.int64)
    return tuple(time_thresholds(distinct, total, job.split.ratios))


def digest(run: Run, job: Job, planned: Plan) -> list[Done]:
    """Read every chunk."""
    tasks = [
        Task(f"{i:05d}", digest_chunk, (job, chunk, row))
        for i, (chunk, row) in enumerate(zip(planned.chunks, planned.rows, strict=True))
    ]
    return run.stage("digest", tasks)


def gather_rejects(run: Run, planned: Plan, digests: list[Done], max_rejects: float) -> tuple[Path, dict[str, Any]]:
    """Write `rejects.parquet` of all chunks into scratch and check their share.

    Returns:
        The file, and the `rejects` entry of `dataset.json`.

    Raises:
        RejectsExceededError: there are too many.
    """
    folders = [planned.early.folder] if planned.early else []
    folders += [done.folder for done in digests if done.info["rejects"]] or [digests[0].folder]
    total = planned.early.info["records"] if planned.early else planned.records
    path = run.scratch / "rejects.parquet"
    count = collect_rejects([folder / "rejects.parquet" for folder in folders], total, max_rejects, path)
    return path, {"count": count, "share": count / max(total, 1)}


def check_groups(run: Run, job: Job, planned: Plan, digests: list[Done], *, refuse: bool) -> dict[str, Any]:
    """Count the users on more than one side of the split, over all rows that are written.

    Args:
        run: where to run.
        job: with the split rule.
        planned: the chunks, to find the name of a user.
        digests: of all chunks.
        refuse: such users are an error.

    Returns:
        The `group` entry of `dataset.json`.

    Raises:
        LeakError: naming one of them.
    """
    folders = tuple(done.folder for done in digests)
    ranges = plan_ranges(sum(done.info["groups"] for done in digests))
    tasks = [Task(f"{i:05d}", merge_range, (folders, first, last)) for i, (first, last) in enumerate(ranges)]
    merged = [done.info for done in run.stage("groups", tasks)]
    shared = sum(info["on_two_sides"] for info in merged)
    if shared and refuse:
        info = next(info for info in merged if info["on_two_sides"])
        users = read_chunk(planned.chunks[info["chunk"]], planned.schema, [], [job.schema.user])[0][job.schema.user]
        name = users.filter(pl.Series(group_hashes(users) == np.uint64(int(info["example"]))))[0]
        refuse_leak("user", str(name), shared, "this breaks the split by user" if job.split.kind == "user" else "")
    return {
        "name": job.schema.user,
        "kept_apart": shared == 0,
        "groups": sum(info["groups"] for info in merged),
        "groups_on_two_sides": shared,
    }


def check_times(digests: list[Done]) -> None:
    """Refuse rows of one split that are not later than all rows of the split before.

    Raises:
        LeakError: naming the two times.
    """
    ranges = []
    for index in range(len(SPLITS)):
        known = [span for done in digests if (span := done.info["times"][index]) is not None]
        if known:
            ranges.append((min(first for first, _ in known), max(last for _, last in known)))
    check_time_order([last for _, last in ranges], [first for first, _ in ranges])


def encode(run: Run, encoding: Encoding, digests: list[Done]) -> list[Done]:
    """Write the parts of every chunk."""
    return run.stage(
        "encode", [Task(f"{i:05d}", encode_chunk, (encoding, done.folder, i)) for i, done in enumerate(digests)]
    )


def summarise(job: Job, digests: list[Done]) -> dict[str, dict[str, Any]]:
    """Merge the statistics of all chunks in their order: counts add up, moments by Chan's parallel formula."""
    merged: dict[str, dict[str, Any]] = {}
    for item in job.schema.fields:
        parts = [done.info["statistics"][item.name] for done in digests]
        total: dict[str, Any] = {"missing": sum(part["missing"] for part in parts)}
        if item.kind == "multi":
            total["longest"] = max(part["longest"] for part in parts)
        if item.kind == "numerical":
            total |= _merge_moments([part for part in parts if part["n"]])
        merged[item.name] = total
    return merged


def _merge_moments(parts: list[dict[str, float]]) -> dict[str, float]:
    n, mean, m2 = 0.0, 0.0, 0.0
    for part in parts:
        delta, both = part["mean"] - mean, n + part["n"]
        m2 += part["m2"] + delta * delta * n * part["n"] / both
        mean += delta * part["n"] / both
        n = both
    return {
        "mean": mean,
        "std": (m2 / n) ** 0.5 if n else 0.0,
        "min": min((part["min"] for part in parts), default=0.0),
        "max": max((part["max"] for part in parts), default=0.0),
    }
