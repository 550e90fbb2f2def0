"""Raw interaction log -> prepared directory.

| stage | module | what it leaves for the stages behind it |
|---|---|---|
| read | events, and what it imports | per file: chunks of events with their own dictionaries, rejects, SHA-256 |
| tokens | vocabulary | all users, all items: tokens in byte order, and a table to find the code of a token |
| scatter | group | per chunk: events as codes, ordered by bucket (a range of users) |
| group | group | per bucket: events by user, time and file order, without duplicates |
| core | core | k-core; new ids of the users and items that are left |
| times | write | split by time: how many events there are at each second |
| write | write (split) | per bucket: sequences, rows of the splits, counts |
| rows | write | per bucket: `train.parquet`, `valid.parquet`, `test.parquet` with row numbers over all buckets |
| tables | write | `items.parquet`, `users.parquet` |
| (last) | common.publish | files under their final names, then `dataset.json` |

Memory is that of a few blocks, of one bucket, and of the distinct users and items; killed work continues; the bytes
written depend on the input and the options alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.files import sha256_file
from data_prep.common.manifest import tool_version
from data_prep.common.mapping import Task
from data_prep.common.run import Run, Settings, find_finished, identify, run_once
from data_prep.common.splits import check_ratios
from data_prep.seqrec.core import find_core
from data_prep.seqrec.datasets import DATASETS, Asked
from data_prep.seqrec.engine import Written, describe_sources, find_thresholds, read_log, write_log
from data_prep.seqrec.events import CHUNK_EVENTS
from data_prep.seqrec.group import BUCKET_EVENTS
from data_prep.seqrec.layout import Rules
from data_prep.seqrec.sources import Source, find_sources
from data_prep.seqrec.split import SplitRule
from data_prep.seqrec.times import MICRO, to_micros

TOOLS = (pl.__version__, CHUNK_EVENTS, BUCKET_EVENTS)  # what the bytes depend on besides input and options
PAYLOAD = frozenset({"sequences", "train", "valid", "test", "items.parquet", "users.parquet", "rejects.parquet"})
DUPLICATES = ("keep", "first", "last", "all")


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Args:
        dataset: its name.
        sources: raw files with their layouts.
        asked: columns named by the user.
        rules: which records count.
        core: of the k-core filter.
        rule: how to split.
        command: the `command` entry of `dataset.json`.
        max_rejects: share of unusable records that is tolerated.
    """

    dataset: str
    sources: tuple[Source, ...]
    asked: Asked
    rules: Rules
    core: int
    rule: SplitRule
    command: dict[str, Any]
    max_rejects: float


def prepare(
    dataset: str,
    raw: list[Path] | Path,
    out: Path,
    *,
    user: str = "",
    item: str = "",
    time: str = "",
    rating: str = "",
    time_unit: Literal["auto", "s", "ms", "us", "ns", "position"] = "auto",
    core: int | None = None,
    min_rating: float | None = None,
    years: str | None = None,
    duplicates: Literal["keep", "first", "last", "all"] = "keep",
    split: Literal["leave-one-out", "time"] = "leave-one-out",
    ratios: tuple[float, float, float] | None = None,
    thresholds: str | None = None,
    targets: Literal["last", "first", "all"] = "last",
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare an interaction log for sequential recommendation.

    Every record is an implicit interaction. Events of a user are ordered by time, equal times by their place in the
    files as given. Formats, order of columns and units of time are found by looking at the beginning of each file.

    Args:
        dataset: amazon, yelp, movielens-1m, movielens-100k, movielens-20m, recbole, s3rec, mqsa-ted, or generic (CSV,
            TSV, JSON lines or Parquet with named columns).
        raw: raw files in order, or a folder; plain or gzip.
        out: output directory; new, empty, or of the same preparation begun before.
        user: generic and recbole: column of the user; a number (from 0) for files without header.
        item: column of the item.
        time: column of the time: numbers, ISO 8601, or positions in the sequence; without it file order is the order.
        rating: column of the rating, for min_rating.
        time_unit: of numbers: by their magnitude, or seconds, milliseconds, ... since 1970, or mere positions.
        core: users and items need so many events, repeatedly until all have them; 0 keeps all. 5 unless the data set
            comes filtered (s3rec, mqsa-ted).
        min_rating: leave out records with a lower rating.
        years: keep only events of these calendar years (UTC), such as 2019 or 2017-2019.
        duplicates: keep: copies (same user, item and time) are one event, later repeats of an item stay; first or
            last: of every user and item only that event; all: remove nothing.
        split: leave-one-out (last event test, the one before valid), or time: no training event is later than, or at
            the second of, an event that is predicted.
        ratios: shares of events in the periods of train, valid and test, for the split by time; 0.8, 0.1, 0.1.
        thresholds: instead of ratios, first moment of valid and of test: two times (ISO 8601 or seconds), by a comma.
        targets: split by time: which events of a user in a period are predicted; the history is all before.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of unusable records that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    asked = Asked(user, item, time, rating)
    rules = Rules(min_rating, _parse_years(years), duplicates)
    rule = _split_rule(split, ratios, thresholds, targets)
    known = DATASETS.get(dataset)
    k = core if core is not None else known.core if known else 5
    if k < 0 or not 0 <= max_rejects <= 1 or duplicates not in DUPLICATES:
        raise ConfigError(
            f"core {k}, max_rejects {max_rejects}, duplicates {duplicates!r}: give core >= 0, max_rejects from 0 to 1, "
            f"duplicates {', '.join(DUPLICATES)}"
        )
    sources = find_sources(dataset, paths, asked, time_unit, rated=min_rating is not None)
    _check_times(sources, split, rules)
    command = {
        "dataset": dataset,
        **{"user": user, "item": item, "time": time, "rating": rating, "time_unit": time_unit, "core": k},
        **{"min_rating": min_rating, "years": years, "duplicates": duplicates, "split": split},
        **{"ratios": list(rule.ratios), "thresholds": thresholds, "targets": targets},
    }
    request = Request(dataset, sources, asked, rules, k, rule, command, max_rejects)
    files = [source.path for source in sources]
    finished = find_finished(out, {"command": command}, files)
    if finished is not None:
        return finished
    if progress:
        say_units(sources)
    settings = Settings.of(executor, workers, shard, shard_patience, progress, files)
    fingerprint = {"command": command, **identify(files, *TOOLS)}
    return run_once(out, fingerprint, settings, PAYLOAD, lambda run: _prepare(run, request))


def _prepare(run: Run, request: Request) -> dict[str, Any]:
    log = read_log(run, request.sources, request.rules, request.max_rejects)
    vocabulary, n_items = log.vocabularies[1]
    task = Task("core", find_core, (log.buckets, log.bounds, vocabulary, n_items, request.core))
    left = run.stage("core", [task])[0]
    before = log.events
    if not left.info["events"]:
        raise PrepError(
            f"{request.sources[0].path}: nothing is left of {before:,} events: no users and items with {request.core} "
            f"events each remain; lower core (now {request.core}; 0 keeps all) or give more data"
        )
    rule = request.rule
    if rule.kind == "time" and not rule.thresholds:
        rule = find_thresholds(run, log, left.folder, rule)
    written = write_log(run, log, left.folder, rule)
    if not written.entry["splits"]["train"]["rows"]:
        raise PrepError(
            f"{request.sources[0].path}: no user has two training events, nothing can be learned from "
            f"{written.entry['n_events']:,} events; check the columns, the split and its thresholds"
        )
    for name, entry in written.entry["splits"].items():
        if not entry["rows"]:
            sys.stderr.write(f"split {name} is empty: no user has a target there; choose another split or thresholds\n")
    manifest = {
        "domain": "seqrec",
        "name": request.dataset,
        "version": tool_version(),
        "command": request.command,
        "licence": DATASETS[request.dataset].licence if request.dataset in DATASETS else "not stated",
        "sources": describe_sources(log),
        "group": {"name": "user", "kept_apart": False, "groups": written.entry["n_users"]},
        "time": time_entry(request.sources[0]),
        "split_rule": {
            "kind": rule.kind,
            "targets": rule.targets if rule.kind == "time" else "last",
            "ratios": list(rule.ratios) if rule.kind == "time" and not request.rule.thresholds else None,
            # Infinity (an empty split) has no place in JSON.
            "thresholds": [int(value) if value < float("inf") else None for value in rule.thresholds],
        },
        "n_users": written.entry["n_users"],
        "n_items": left.info["items"],
        **{name: written.entry[name] for name in ("n_events", "sequences", "splits")},
        "counts": {
            **log.counts,
            "core": request.core,
            "core_rounds": left.info["rounds"],
            "core_removed_events": before - left.info["events"],
            "core_removed_users": log.bounds[-1] - left.info["users"],
            "core_removed_items": n_items - left.info["items"],
            **written.counts,
            "items_never_trained": written.tables.info["items_never_trained"],
        },
        "cold_targets": written.tables.info["cold_targets"],
        "repeat_targets": written.entry["repeat_targets"],
        "rejects": log.rejected,
        "preparation": _preparation(request, written),
    }
    return run.publish({**written.files, "rejects.parquet": log.rejects}, manifest)


def _preparation(request: Request, written: Written) -> dict[str, Any]:
    """What `apply` needs to read new logs in the same way."""
    return {
        "dataset": request.dataset,
        "columns": {name: getattr(request.asked, name) for name in ("user", "item", "time", "rating")},
        "time_unit": request.command["time_unit"],
        "min_rating": request.rules.min_rating,
        "duplicates": request.rules.duplicates,
        "items_sha256": sha256_file(written.files["items.parquet"]),
    }


def time_entry(source: Source) -> dict[str, Any] | None:
    """The `time` entry of `dataset.json`; None when events have an order only."""
    layout = source.layout
    return {"name": layout.time, "unit": "seconds since 1970, UTC"} if layout.timed else None


def say_units(sources: tuple[Source, ...]) -> None:
    """Tell how the times of each file are understood."""
    names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    for source in sources:
        layout = source.layout
        said = "no column of times: file order is the order"
        if layout.time:
            unit = "ISO 8601" if layout.textual else f"{names.get(layout.unit, 'positions, not times')}"
            said = f"column {layout.time!r} in {unit}"
        sys.stderr.write(f"{source.path.name}: {layout.kind}; {said}\n")


def _check_times(sources: tuple[Source, ...], split: str, rules: Rules) -> None:
    odd = next((source for source in sources if not source.layout.timed), None)
    if odd is not None and (split == "time" or rules.years is not None):
        why = "holds positions" if odd.layout.time else "is not named, or not in this format"
        raise ConfigError(
            f"{odd.path}: the column of times {why}: split time and years need times of the clock (see --time, "
            "--time-unit)"
        )


def _parse_years(years: str | None) -> tuple[int, int] | None:
    if years is None:
        return None
    first, _, last = str(years).partition("-")
    if not first.isdigit() or not (last or first).isdigit() or int(first) > int(last or first):
        raise ConfigError(f"years {years!r}: give a year or a range, as in 2019 or 2017-2019")
    return int(first), int(last or first)


def _split_rule(split: str, ratios: Any, thresholds: str | None, targets: str) -> SplitRule:
    if split not in ("leave-one-out", "time") or targets not in ("last", "first", "all"):
        raise ConfigError(f"split {split!r}, targets {targets!r}: choose leave-one-out or time, and last, first or all")
    if split != "time" and (ratios is not None or thresholds is not None or targets != "last"):
        raise ConfigError(f"split {split}: ratios, thresholds and targets go with the split by time")
    shares = check_ratios(ratios if ratios is not None else (0.8, 0.1, 0.1))
    if thresholds is None:
        return SplitRule(split, targets, shares)
    if ratios is not None:
        raise ConfigError("ratios and thresholds: give one of them")
    found, _ = to_micros(pl.Series([part.strip() for part in thresholds.split(",")]), "s", exact=True)
    if found.len() != 2 or found.null_count() or found[0] > found[1]:
        raise ConfigError(
            f"thresholds {thresholds!r}: give two times in order, as in 2014-01-01,2014-04-01 or 1388534400,1396310400"
        )
    # Whole seconds, rounded up: an event belongs to a period by the second it is in.
    return SplitRule(split, targets, shares, tuple(float(-(-int(value) // MICRO)) for value in found))
