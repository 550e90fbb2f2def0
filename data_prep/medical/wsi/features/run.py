"""From planned slides to a published directory of features, and what it takes over from an earlier one."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, RejectsExceededError
from data_prep.common.executors import SerialExecutor
from data_prep.common.files import canonical_json, sha256_file
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import Reject, to_frame
from data_prep.common.run import Run, describe_source
from data_prep.medical.wsi.features.extract import FEATURES, REJECTS, Job, extract_slide, reuse_slide
from data_prep.medical.wsi.features.plan import STATUS, Earlier, Planned, failure

PAYLOAD = frozenset({"features", "slides.parquet", "rejects.parquet"})
SHOWN = 5  # failed slides that the message names


def find_earlier(out: Path, command: dict[str, Any]) -> Earlier | None:
    """What a finished directory of the same options holds.

    Raises:
        ConfigError: it was made with other options.
    """
    if not (out / NAME).exists():
        return None
    if read_manifest(out).get("command") != command:
        raise ConfigError(
            f"{out}: holds features made with other options; choose another output directory or remove it"
        )
    return Earlier.read(out)


def take_over(run: Run, planned: Sequence[Planned], earlier: Earlier) -> None:
    """Begin from a finished directory: what is still true of it counts as done.

    Args:
        run: of the same directory.
        planned: slides.
        earlier: what the directory holds.
    """
    before = (run.out / NAME).read_bytes()
    tasks = []
    for item in planned:
        path, row = run.out / "features" / f"{item.slide}.h5", earlier.rows.get(item.slide, {})
        if earlier.holds(item) and path.is_file() and sha256_file(path) == row["sha256"]:
            info = {name: row[name] for name in STATUS if name not in (*item.identity, "sha256")}
            tasks.append(Task(item.key, reuse_slide, (path, earlier.rejects.get(item.path.name, []), info)))
    # All of them in each shard: once `dataset.json` is gone, nobody else can.
    _here(run).stage("features", tasks)
    # From here on the directory is unfinished, unless another shard has finished it meanwhile.
    if (run.out / NAME).exists() and (run.out / NAME).read_bytes() == before:
        (run.out / NAME).unlink()


def encode(
    run: Run, job: Job, planned: Sequence[Planned], failed: Sequence[dict[str, Any]], about: dict[str, Any]
) -> dict[str, Any]:
    """Encode what is not done, and publish.

    Args:
        run: where.
        job: how.
        planned: slides.
        failed: rows of the status table for slides that cannot be tried.
        about: entries of `dataset.json` that tell of the encoder.

    Returns:
        The content of `dataset.json`.
    """
    tasks = [Task(item.key, extract_slide, (job, item.slide, item.path, item.coords)) for item in planned]
    done = run.stage("features", tasks)
    rows = sorted((*map(_row, planned, done), *failed), key=lambda row: str(row["slide"]))
    key = hashlib.sha256(canonical_json(rows)).hexdigest()[:12]
    arguments = (rows, [result.folder / REJECTS for result in done])
    tables = _here(run).stage("tables", [Task(key, write_tables, arguments)])[0]
    good = [(item, result) for item, result in zip(planned, done, strict=True) if result.info["status"] == "done"]
    files = {f"features/{item.slide}.h5": result.folder / FEATURES for item, result in good}
    files |= {name: tables.folder / name for name in ("slides.parquet", "rejects.parquet")}
    failures = [{"slide": row["slide"], "reason": row["reason"]} for row in rows if row["status"] != "done"]
    counts = {
        "slides": len(rows),
        "failed": len(failures),
        "patches": sum(row["patches"] for row in rows),
        "bad_patches": sum(row["bad"] for row in rows),
        "retried_patches": sum(row["retried"] for row in rows),
        "float32_slides": sum(row["dtype"] == "float32" for row in rows) if job.dtype == "float16" else 0,
    }
    manifest = {
        "domain": "medical",
        "kind": "features",
        "name": "features",
        "version": tool_version(),
        "licence": "not stated",
        "sources": [describe_source(item.coords) for item in planned],
        **about,
        "mpp": one_value(row["mpp"] for row in rows if row["status"] == "done"),
        "patch_size": one_value(row["patch_size"] for row in rows if row["status"] == "done"),
        "dtype": job.dtype,
        "counts": counts,
        "failures": failures,
        "rejects": {"count": len(failures) + counts["bad_patches"], "share": len(failures) / len(rows)},
    }
    return run.publish(files, manifest)


def write_tables(rows: list[dict[str, Any]], rejects: list[Path], folder: Path) -> dict[str, Any]:
    """Task: the status of all slides, and all patches and slides that could not be used."""
    pl.DataFrame(rows, schema=STATUS, orient="row").write_parquet(folder / "slides.parquet", statistics=False)
    failed = [row for row in rows if row["status"] != "done"]
    lost = [Reject(row["file"] or row["slide"], 0, "slide", row["reason"], "") for row in failed]
    tables = [to_frame(lost), *(pl.read_parquet(path, memory_map=False) for path in rejects)]
    pl.concat(tables).write_parquet(folder / "rejects.parquet", compression="zstd", statistics=False)
    return {}


def summary(out: Path, card: dict[str, Any]) -> str:
    """Say in a few lines what was encoded."""
    counts = card["counts"]
    lines = [
        f"features: {out}",
        f"slides: {counts['slides'] - counts['failed']:,} of {counts['slides']:,}; patches: {counts['patches']:,}, "
        f"{card['feature_dim']:,} features of each",
    ]
    if counts["bad_patches"] or counts["retried_patches"]:
        lines.append(
            f"unreadable patches left out: {counts['bad_patches']:,} (listed in {out / 'rejects.parquet'}); "
            f"read from the next level: {counts['retried_patches']:,}"
        )
    if counts["float32_slides"]:
        lines.append(f"stored in float32, because their features exceed float16: {counts['float32_slides']:,} slides")
    return "\n".join(lines)


def check_failures(out: Path, card: dict[str, Any], max_rejects: float) -> None:
    """Fail when more slides failed than the user allows, else only tell them.

    Raises:
        RejectsExceededError: naming the first of them.
    """
    failures, total = card["failures"], card["counts"]["slides"]
    if not failures:
        return
    shown = "; ".join(item["reason"] for item in failures[:SHOWN])
    more = f"; and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
    message = (
        f"{out}: {len(failures)} of {total} slides have no features: {shown}{more}. All others are finished; "
        f"{out / 'slides.parquet'} lists all: repair these slides and run again, or raise max_rejects"
    )
    if len(failures) > max_rejects * total:
        raise RejectsExceededError(message)
    sys.stderr.write(f"{message}\n")


def _here(run: Run) -> Run:
    """For small work, which whoever comes first does in its own process."""
    return replace(run, executor=SerialExecutor(), shard=None, progress=False)


def _row(item: Planned, result: Done) -> dict[str, Any]:
    if result.info["status"] != "done":
        return failure(item.identity, result.info["reason"])
    return {**dict.fromkeys(STATUS), **item.identity, **result.info, "sha256": result.files[FEATURES][1]}


def one_value(values: Iterable[Any]) -> Any:
    """The value that all slides share; None if they do not."""
    found = set(values)
    return found.pop() if len(found) == 1 else None
