"""New raw logs -> histories in the ids of a saved preparation, for prediction: nothing is learned or filtered."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from data_prep.common.errors import ManifestError, PrepError
from data_prep.common.files import sha256_file
from data_prep.common.manifest import NAME, read_manifest, tool_version, verify_files
from data_prep.common.mapping import Task
from data_prep.common.run import Run, Settings, find_finished, identify, is_large, open_run
from data_prep.seqrec.core import match_items
from data_prep.seqrec.datasets import Asked
from data_prep.seqrec.engine import describe_sources, read_log, write_log
from data_prep.seqrec.layout import Rules
from data_prep.seqrec.prepare import TOOLS, say_units, time_entry
from data_prep.seqrec.sources import Source, find_sources
from data_prep.seqrec.split import PREDICT, SplitRule

PAYLOAD = frozenset({"sequences", PREDICT, "items.parquet", "users.parquet", "rejects.parquet"})


def apply(
    preparation: Path,
    raw: list[Path] | Path,
    out: Path,
    *,
    workers: int | None = None,
    executor: str = "local",
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Encode new logs with the items of a preparation.

    Each user with at least one known item becomes one row of the split "predict" whose whole history is the input.
    Items that the preparation does not know are left out and counted. Users may be new: they are numbered anew.
    Columns, unit of time, `min_rating` and `duplicates` are those of the preparation; neither k-core nor years apply.

    Args:
        preparation: prepared directory of the training data.
        raw: raw files in order, or a folder, in a format of the same data set.
        out: output directory; new, empty, or holding the same logs encoded by the same preparation.
        workers: processes; all cores by default.
        executor: as in `prepare`.
        max_rejects: share of unusable records that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    manifest = read_manifest(preparation)
    saved = manifest.get("preparation")
    if not isinstance(saved, dict) or "items_sha256" not in saved:
        raise ManifestError(f"{preparation / NAME}: no preparation of an interaction log; prepare the data again")
    verify_files(preparation, {"items.parquet": saved["items_sha256"]})
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    rated = saved["min_rating"] is not None
    sources = find_sources(saved["dataset"], paths, Asked(**saved["columns"]), saved["time_unit"], rated=rated)
    files = [source.path for source in sources]
    command = {
        "dataset": saved["dataset"],
        "apply": saved["items_sha256"],
        "preparation": sha256_file(preparation / NAME),
    }
    finished = find_finished(out, {"command": command}, files)
    if finished is not None:
        return finished
    if progress:
        say_units(sources)
    settings = Settings(executor, workers, None, progress, eager=is_large(files))
    with open_run(out, {"command": command, **identify(files, *TOOLS)}, settings, PAYLOAD) as run:
        return _encode(run, sources, manifest, preparation / "items.parquet", command, max_rejects)


def _encode(
    run: Run,
    sources: tuple[Source, ...],
    manifest: dict[str, Any],
    items: Path,
    command: dict[str, Any],
    max_rejects: float,
) -> dict[str, Any]:
    saved = manifest["preparation"]
    log = read_log(run, sources, Rules(saved["min_rating"], None, saved["duplicates"]), max_rejects)
    vocabulary, n_items = log.vocabularies[1]
    task = Task("match", match_items, (log.buckets, log.bounds, vocabulary, n_items, items))
    left = run.stage("match", [task])[0]
    before = log.events
    if not left.info["events"]:
        raise PrepError(
            f"{sources[0].path}: none of its {n_items:,} items is known to the preparation; "
            "check the column of items, and that both logs name items alike"
        )
    lost = log.bounds[-1] - left.info["users"]
    if lost:
        sys.stderr.write(f"{lost:,} users have no item that the preparation knows: they get no row\n")
    written = write_log(run, log, left.folder, SplitRule(PREDICT))
    described = {
        "domain": "seqrec",
        "name": manifest["name"],
        "version": tool_version(),
        "command": command,
        "licence": manifest["licence"],
        "sources": describe_sources(log),
        "group": {"name": "user", "kept_apart": False, "groups": written.entry["n_users"]},
        "time": time_entry(sources[0]),
        "split_rule": {"kind": PREDICT, "targets": None, "ratios": None, "thresholds": []},
        "n_users": written.entry["n_users"],
        "n_items": manifest["n_items"],
        **{name: written.entry[name] for name in ("n_events", "sequences", "splits")},
        "counts": {
            **log.counts,
            "unknown_items": left.info["unknown_items"],
            "events_of_unknown_items": before - left.info["events"],
            "users_without_known_items": lost,
            **written.counts,
        },
        "cold_targets": {},
        "repeat_targets": {},
        "rejects": log.rejected,
        "preparation": saved,
    }
    return run.publish({**written.files, "items.parquet": items, "rejects.parquet": log.rejects}, described)
