"""The stages of a preparation over all sources; `prepare` and `apply` are made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import PrepError
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import collect_rejects
from data_prep.common.run import Run
from data_prep.common.splits import check_time_order, time_thresholds
from data_prep.seqrec.events import read_events
from data_prep.seqrec.group import bucket_bounds, group, scatter
from data_prep.seqrec.layout import Rules
from data_prep.seqrec.sources import Source
from data_prep.seqrec.split import SplitRule
from data_prep.seqrec.vocabulary import merge_tokens
from data_prep.seqrec.write import count_times, write_rows, write_sequences, write_tables

Vocabularies = tuple[tuple[Path, int], tuple[Path, int]]


@dataclass(frozen=True)
class Log:
    """All events of the sources, read, coded and grouped by user.

    Args:
        sources: the raw files.
        read: per file, what was read.
        vocabularies: folder and size of the users' and the items' tokens.
        bounds: first user of each bucket, and the number of users.
        buckets: folders of grouped events.
        counts: records per rule of cleaning.
        rejects: `rejects.parquet`.
        rejected: the `rejects` entry of `dataset.json`.
    """

    sources: tuple[Source, ...]
    read: list[Done]
    vocabularies: Vocabularies
    bounds: list[int]
    buckets: tuple[Path, ...]
    counts: dict[str, int]
    rejects: Path
    rejected: dict[str, Any]

    @property
    def timed(self) -> bool:
        """Whether events have times of the clock."""
        return all(source.layout.timed for source in self.sources)

    @property
    def events(self) -> int:
        """Events in the buckets."""
        read = sum(sum(done.info["chunks"]) for done in self.read)
        return read - self.counts["exact_duplicates"] - self.counts["repeats_removed"]


def read_log(run: Run, sources: tuple[Source, ...], rules: Rules, max_rejects: float) -> Log:
    """Read, code and group all sources.

    Raises:
        RejectsExceededError: too many records are unusable.
        PrepError: none is left.
    """
    tasks = [Task(f"{i:05d}", read_events, (source, rules)) for i, source in enumerate(sources)]
    read = run.stage("read", tasks)
    records = sum(done.info["records"] for done in read)
    rejects = run.scratch / "rejects.parquet"
    count = collect_rejects([done.folder / "rejects.parquet" for done in read], records, max_rejects, rejects)
    counts = {"records": records, "rejected": count}
    for name in ("below_min_rating", "outside_years"):
        counts[name] = sum(done.info["counts"][name] for done in read)
    chunks = tuple(done.folder / f"chunk-{i:05d}" for done in read for i in range(len(done.info["chunks"])))
    if not chunks:
        told = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in counts.items())
        raise PrepError(f"{sources[0].path}: no event is left ({told}); check the file and the options")
    found, seeds = _merge_tokens(run, chunks)
    bounds = bucket_bounds(found[0][1], sum(sum(done.info["chunks"]) for done in read))
    vocabularies = tuple((folder, seed) for (folder, _), seed in zip(found, seeds, strict=True))
    scattered = run.stage(
        "scatter", [Task(f"{i:05d}", scatter, (chunk, vocabularies, bounds)) for i, chunk in enumerate(chunks)]
    )
    pieces = [
        tuple((done.folder, done.info["offsets"][at], done.info["offsets"][at + 1]) for done in scattered)
        for at in range(len(bounds) - 1)
    ]
    grouped = run.stage("group", [Task(f"{i:05d}", group, (item, rules.duplicates)) for i, item in enumerate(pieces)])
    for name in ("exact_duplicates", "repeats_removed"):
        counts[name] = sum(done.info[name] for done in grouped)
    return Log(
        sources,
        read,
        found,
        bounds,
        tuple(done.folder for done in grouped),
        counts,
        rejects,
        {"count": count, "share": count / max(records, 1)},
    )


def _merge_tokens(run: Run, chunks: tuple[Path, ...]) -> tuple[Vocabularies, tuple[int, int]]:
    """Folder and size of the users' and the items' tokens, and the seeds of their hashes."""
    # One chunk is one task, so that a small log needs no other process.
    groups = [("users",), ("items",)] if len(chunks) > 1 else [("users", "items")]
    tasks = [Task("-".join(sides), merge_tokens, (chunks, sides)) for sides in groups]
    merged = {
        side: (done.folder / side, done.info[side])
        for sides, done in zip(groups, run.stage("tokens", tasks), strict=True)
        for side in sides
    }
    (users, known), (items, catalogue) = merged["users"], merged["items"]
    return ((users, known["count"]), (items, catalogue["count"])), (known["seed"], catalogue["seed"])


def find_thresholds(run: Run, log: Log, ids: Path, rule: SplitRule) -> SplitRule:
    """Thresholds of a split by time: first second of valid and of test, from the ratios."""
    tasks = [Task(f"{i:05d}", count_times, (bucket, ids)) for i, bucket in enumerate(log.buckets)]
    done = run.stage("times", tasks)
    times = np.concatenate([np.load(item.folder / "times.npy") for item in done])
    counts = np.concatenate([np.load(item.folder / "counts.npy") for item in done])
    distinct, place = np.unique(times, return_inverse=True)
    total = np.bincount(place, weights=counts).astype(np.int64)
    return replace(rule, thresholds=tuple(time_thresholds(distinct.astype(np.float64), total, rule.ratios)))


@dataclass(frozen=True)
class Written:
    """Finished files and what they hold.

    Args:
        files: path inside the prepared directory -> file.
        entry: entries of `dataset.json`: counts of users and events, sequences, splits.
        counts: numbers for the card.
        tables: what `write_tables` returned, and the files it wrote.
    """

    files: dict[str, Path]
    entry: dict[str, Any]
    counts: dict[str, Any]
    tables: Done


def write_log(run: Run, log: Log, ids: Path, rule: SplitRule) -> Written:
    """Write sequences, splits and tables.

    Raises:
        LeakError: a target of a split by time is not later than what is trained on.
    """
    made = run.stage(
        "write",
        [
            Task(f"{i:05d}", write_sequences, (bucket, ids, log.vocabularies[0][0], bounds, rule, log.timed))
            for i, (bucket, bounds) in enumerate(zip(log.buckets, pairwise(log.bounds), strict=True))
        ],
    )
    names = tuple(made[0].info["rows"])
    firsts = dict.fromkeys(names, 0)
    tasks = []
    for i, done in enumerate(made):
        tasks.append(Task(f"{i:05d}", write_rows, (done.folder, dict(firsts))))
        firsts = {name: first + done.info["rows"][name] for name, first in firsts.items()}
    rows = run.stage("rows", tasks)
    held = tuple(name for name in names if name not in ("train", "predict"))
    folders = tuple(done.folder for done in made)
    tables = run.stage("tables", [Task("tables", write_tables, (folders, ids, held))])[0]
    _check_times(made, names)
    files = {name: tables.folder / name for name in tables.files}
    splits: dict[str, Any] = {name: {"rows": firsts[name], "parts": []} for name in names}
    sequences: dict[str, Any] = {"parts": []}
    for i, (one, other) in enumerate(zip(made, rows, strict=True)):
        part = f"part-{i:05d}.parquet"
        files[f"sequences/{part}"] = one.folder / "sequences.parquet"
        numbers = {"rows": one.info["users"], "events": one.info["events"]}
        sequences["parts"].append(_part(f"sequences/{part}", one, "sequences.parquet", **numbers))
        for name in names:
            files[f"{name}/{part}"] = other.folder / f"{name}.parquet"
            splits[name]["parts"].append(_part(f"{name}/{part}", other, f"{name}.parquet", rows=one.info["rows"][name]))
    entry = {
        "n_users": sum(done.info["users"] for done in made),
        "n_events": sum(done.info["events"] for done in made),
        "sequences": sequences,
        "splits": splits,
        "repeat_targets": {name: sum(done.info["repeat_targets"][name] for done in made) for name in held},
    }
    counts = {
        "events": entry["n_events"],
        "train_events": sum(done.info["train_events"] for done in made),
        "users_with_one_event": sum(done.info["lengths"]["one"] for done in made),
        "users_with_two_events": sum(done.info["lengths"]["two"] for done in made),
        "repeats": sum(done.info["repeats"] for done in made),
    }
    return Written(files, entry, counts, tables)


def _part(path: str, done: Done, name: str, **numbers: int) -> dict[str, Any]:
    return {"path": path, **numbers, "sha256": done.files[name][1]}


def _check_times(made: list[Done], names: tuple[str, ...]) -> None:
    spans = [[done.info["times"][name] for done in made if name in done.info["times"]] for name in names]
    spans = [span for span in spans if span]
    check_time_order([max(last for _, last in span) for span in spans], [min(low for low, _ in span) for span in spans])


def describe_sources(log: Log) -> list[dict[str, Any]]:
    """The `sources` entry of `dataset.json`: files, and how each was understood."""
    found = []
    for source, done in zip(log.sources, log.read, strict=True):
        layout = source.layout
        columns = {name: getattr(layout, name) for name in ("user", "item", "time", "rating") if getattr(layout, name)}
        unit = None if not layout.time else "ISO 8601" if layout.textual else layout.unit
        entry = {"path": source.path.name, "bytes": done.info["bytes"], "sha256": done.info["sha256"]}
        found.append(
            {**entry, "records": done.info["records"], "format": layout.kind, "columns": columns, "time_unit": unit}
        )
    return found
