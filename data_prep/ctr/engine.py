"""The stages of a preparation over all chunks; `prepare` and `apply` are made of them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError
from data_prep.common.executors import Executor, open_executor
from data_prep.common.files import canonical_json, translate_os_errors, write_atomic
from data_prep.common.lock import own
from data_prep.common.manifest import NAME
from data_prep.common.mapping import Done, Shard, Task, run_stage
from data_prep.common.rejects import check_rejects
from data_prep.common.splits import time_thresholds
from data_prep.ctr.chunks import Chunk, plan_source
from data_prep.ctr.digest import Job, digest_chunk, read_times
from data_prep.ctr.encode import Encoding, encode_chunk
from data_prep.ctr.schema import Dataset, Schema, Sources, TextFormat

WORK = ".work"  # scratch folder inside the output directory


@dataclass(frozen=True)
class Run:
    """Where and how stages run.

    Args:
        scratch: folder for intermediate files.
        executor: runs the tasks.
        shard: share of this process, if any.
        progress: show bars.
    """

    scratch: Path
    executor: Executor
    shard: Shard | None
    progress: bool

    def stage(self, name: str, tasks: list[Task]) -> list[Done]:
        """Run one stage to its end."""
        return run_stage(name, tasks, self.scratch, self.executor, shard=self.shard, progress=self.progress)


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


@contextlib.contextmanager
def open_run(
    out: Path, fingerprint: dict[str, Any], executor: str, workers: int | None, shard: Shard | None, progress: bool
) -> Iterator[Run]:
    """Own the output directory and its scratch folder; scratch of other options is thrown away.

    Args:
        out: output directory.
        fingerprint: everything that determines the result.
        executor: name, see `open_executor`.
        workers: number of processes.
        shard: share of this process.
        progress: show bars.

    Raises:
        BusyError: another preparation writes here.
        ConfigError: the folder holds something else.
    """
    scratch = out / WORK
    with translate_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        strangers = sorted(path.name for path in out.iterdir() if path.name not in _OURS)
    if strangers:
        raise ConfigError(
            f"{out}: holds {strangers[0]!r}, which is no prepared data; choose an empty or new output directory"
        )
    with own(out, scratch / "lock", shared=shard is not None):
        _match_fingerprint(scratch, canonical_json(fingerprint), shard)
        with open_executor(executor, workers, scratch / "executor") as opened:
            yield Run(scratch, opened, shard, progress)


_OURS = {WORK, NAME, "vocabulary.parquet", "rejects.parquet", "train", "valid", "test"}


def _match_fingerprint(scratch: Path, wanted: bytes, shard: Shard | None) -> None:
    path = scratch / "fingerprint.json"
    with translate_os_errors(path):
        if path.exists() and path.read_bytes() == wanted:
            return
        stale = [item for item in scratch.iterdir() if item.name != "lock" and not item.name.startswith(".")]
        if stale and shard is not None and path.exists():
            raise ConfigError(
                f"{scratch}: holds work of other options or files; remove this folder, then start all shards again"
            )
        if shard is None:
            for item in stale:
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        write_atomic(path, wanted)


def plan(run: Run, dataset: Dataset | None, schema: Schema, found: Sources, seed: int, *, expand: bool) -> Plan:
    """Prepare side tables, sample, and cut the logs into chunks."""
    side = None
    sources: list[dict[str, Any]] = []
    if dataset and dataset.side and found.sides:
        side = run.stage("sides", [Task("sides", dataset.side, (found.sides,))])[0].folder
        hashed = run.stage("side-sums", [Task(f"{i:03d}", _source_sum, (path,)) for i, path in enumerate(found.sides)])
        sources += [done.info for done in hashed]
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


def _source_sum(path: Path, folder: Path) -> dict[str, Any]:
    from data_prep.common.files import sha256_file

    return {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


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
    return run.stage("read", tasks)


def collect_rejects(run: Run, planned: Plan, digests: list[Done], max_rejects: float) -> tuple[Path, int, int]:
    """Write `rejects.parquet` of all chunks into scratch and check their share.

    Returns:
        The file, the number of rejects, and the number of records.

    Raises:
        RejectsExceededError: there are too many.
    """
    folders = [planned.early.folder] if planned.early else []
    folders += [done.folder for done in digests if done.info["rejects"]] or [digests[0].folder]
    table = pl.concat([pl.read_parquet(folder / "rejects.parquet", memory_map=False) for folder in folders])
    path = run.scratch / "rejects.parquet"
    with translate_os_errors(path):
        table.write_parquet(path, compression="zstd", statistics=False)
    total = planned.early.info["records"] if planned.early else planned.records
    check_rejects(table, total, max_rejects, path)
    return path, table.height, total


def encode(run: Run, encoding: Encoding, digests: list[Done]) -> list[Done]:
    """Write the parts of every chunk."""
    return run.stage(
        "write", [Task(f"{i:05d}", encode_chunk, (encoding, done.folder, i)) for i, done in enumerate(digests)]
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
