"""One preparation of recordings: listed, looked at, decided about, prepared, divided, described."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy

from data_prep.common.anonymise import file_name, pseudonym, read_key
from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.files import translate_os_errors, write_atomic
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.mapping import Task
from data_prep.common.raw import check_raw
from data_prep.common.rejects import Reject, check_rejects, to_frame
from data_prep.common.run import Run, Settings, describe_source, identify, open_run, run_once
from data_prep.common.splits import SPLITS
from data_prep.ieeg.card import Prepared, channel_table, event_table, signal_files, to_parquet, write_index
from data_prep.ieeg.decide import Decided, Processing, decide, rename
from data_prep.ieeg.duplicates import describe_groups, find_duplicates, find_persons, group_subjects, refuse_duplicates
from data_prep.ieeg.listing import ONE_PATIENT, AskedToPredict, publish_labels, tell_unknown, withhold, withhold_reason
from data_prep.ieeg.records import Asked, Listing, Recording
from data_prep.ieeg.splitting import SplitRule, divide, subject_counts
from data_prep.ieeg.tasks import part_blocks, prepare_part, scan_part, scan_stretches

PAYLOAD = frozenset(
    {
        *("recordings", "train", "valid", "test", "predict", "channels.parquet", "events.parquet"),
        *("duplicates.parquet", "rejects.parquet"),
    }
)
# what the bytes depend on besides input and options
TOOLS = (pl.__version__, np.__version__, scipy.__version__)
MODULES = {
    "edf": "edf",
    "brainvision": "brainvision",
    "bids": "bids",
    "swec": "swec",
    "mayo-fnusa": "mayo_fnusa",
    "bonn": "bonn",
}
SIGNALS = "(signal files)"  # their entry in `sources`
_TOLD = 8  # lines of one kind that are printed


@dataclass(frozen=True)
class Options:
    """Options of `prepare`, which see."""

    dataset: str
    asked: Asked
    processing: Processing
    split: SplitRule
    duplicates: str
    anonymise: Path | None
    max_rejects: float
    reviewed: bool = False

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        if self.dataset not in MODULES:
            raise ConfigError(f"dataset {self.dataset!r}: there are {', '.join(MODULES)}")
        if self.duplicates not in ("auto", "report", "refuse"):
            raise ConfigError(f"duplicates {self.duplicates!r}: choose auto, report or refuse")
        if not 0 <= self.max_rejects <= 1:
            raise ConfigError(f"max_rejects {self.max_rejects}: give a share from 0 to 1")
        self.processing.check()

    def command(self, key: bytes | None) -> dict[str, Any]:
        """The `command` entry of `dataset.json`: everything that determines the result besides the files."""
        asked = {field.name: getattr(self.asked, field.name) for field in fields(Asked)}
        found = {"dataset": self.dataset, **asked, **vars(self.processing)}
        found |= {"ratios": list(self.split.ratios) if self.split.ratios else None, "seed": self.split.seed}
        found |= {"split": self.split.table, "duplicates": self.duplicates, "reviewed": self.reviewed}
        found["anonymise"] = pseudonym(key, "key", "") if key else None
        return {name: file_name(key, value) if isinstance(value, Path) else value for name, value in found.items()}


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
    asked = options.asked
    check_raw([*raw, *(path for path in (asked.labels, asked.events) if path is not None)], out)
    key = read_key(options.anonymise) if options.anonymise is not None else None
    listing = read_listing(options.dataset, raw, asked, key, options.reviewed)
    if options.split.table is not None and options.split.table.is_file():
        listing = replace(listing, lists=(*listing.lists, options.split.table))
    command = options.command(key)
    files = files_of(listing)
    settings = Settings.of(executor, workers, shard, shard_patience, progress, files)
    finished = find_prepared(out, command, listing, options.processing, settings, key)
    if finished is not None:
        return finished
    fingerprint = {"command": command, **identify(files, *TOOLS, key=key)}
    return run_once(out, fingerprint, settings, PAYLOAD, lambda run: _prepare(run, listing, options, key, raw[0]))


def read_listing(dataset: str, raw: Sequence[Path], asked: Asked, key: bytes | None, reviewed: bool = False) -> Listing:
    """List the recordings of a data set; under pseudonyms, and without text that may name people, where there is a key.

    Args:
        dataset: which reader.
        raw: as it was given.
        asked: options of the reader.
        key: of the pseudonyms; None: names stay.
        reviewed: whether all recordings were looked through for seizures.

    Raises:
        PrepError: there is none that could be prepared.
    """
    reader = importlib.import_module(f"data_prep.ieeg.{MODULES[dataset]}")
    listing: Listing = reader.read(raw, asked)
    told = [f"{entry.source}: {entry.reason}" for entry in listing.rejects]
    # With a key, this is the only place where all reasons are told.
    say_some(told, "more are rejected, see rejects.parquet", len(told) if key else _TOLD)
    say_some([line for r in listing.recordings for line in r.remarks], "more remarks")
    if not listing.recordings:
        first = listing.rejects[0] if listing.rejects else None
        why = f"; the first: {first.source}: {first.reason}" if first else ""
        raise PrepError(f"{raw[0]}: no recording can be prepared{why}")
    notes, others = publish_labels(listing.notes)
    recordings = tuple(replace(r, annotated=True) for r in listing.recordings) if reviewed else listing.recordings
    unknown = sum(not recording.annotated for recording in recordings)
    if not isinstance(asked, AskedToPredict):
        notes = {"recordings_without_annotation": unknown, **notes}
        say_some(tell_unknown(unknown, len(recordings), others), "")
    listing = replace(listing, recordings=recordings, notes=notes)
    if key is None:
        return listing
    renamed = [rename(r, pseudonym(key, "recording", r.name), pseudonym(key, "subject", r.subject)) for r in recordings]
    return withhold(replace(listing, recordings=tuple(renamed)), key)


def files_of(listing: Listing) -> list[Path]:
    """All files that are read."""
    return [*listing.lists, *_signal_files(listing)]


def find_prepared(
    out: Path,
    command: Mapping[str, Any],
    listing: Listing,
    wanted: Processing,
    settings: Settings,
    key: bytes | None = None,
) -> dict[str, Any] | None:
    """The manifest of `out` when it holds this preparation of exactly these files.

    Tables and sidecars are compared byte for byte, and all that headers and annotations say. Signals are read again
    only where a file, or its place in a folder, is newer than the prepared data: they may be days of reading.

    Args:
        out: output directory.
        command: the entry of `dataset.json`.
        listing: of the files as they are now.
        wanted: what is done to signals.
        settings: how to run.
        key: of pseudonyms.

    Raises:
        ConfigError: it holds prepared data of something else.
    """
    if not (out / NAME).exists():
        return None
    manifest = read_manifest(out)
    with translate_os_errors(out):
        same = manifest.get("command") == command and manifest.get("inputs") == _inputs(listing, key)
        *lists, signals = manifest.get("sources") or [None]
        same = same and lists == _describe_lists(listing, key)
        stats = [path.stat() for path in _signal_files(listing)] if same else []
        written = (out / NAME).stat().st_mtime_ns
    newer = any(max(stat.st_mtime_ns, stat.st_ctime_ns) >= written for stat in stats)
    if same and newer:
        with open_run(out, {"check": command}, replace(settings, shard=None), PAYLOAD) as run:
            chosen = [entry for entry in look_at(run, listing, wanted) if isinstance(entry, Decided)]
            same = signals["sha256"] == _digest(chosen)
            shutil.rmtree(run.scratch, ignore_errors=True)
    if same:
        return manifest
    raise ConfigError(
        f"{out}: holds prepared data of other options or other files; choose another output directory or remove it"
    )


def _signal_files(listing: Listing) -> list[Path]:
    return list(dict.fromkeys(path for r in listing.recordings for path in r.signal_files))


def _inputs(listing: Listing, key: bytes | None) -> str:
    """Digest of the names and sizes of all files, and of what they say about each recording, its signal aside."""
    digest = hashlib.sha256()
    for entry in sorted(f"{path.name}\0{path.stat().st_size}" for path in files_of(listing)):
        digest.update(f"{entry}\n".encode())
    for r in listing.recordings:
        said = (r.name, r.subject, r.session, r.rate, r.samples, r.events, r.annotated, r.power_line, r.split)
        digest.update(f"{said}{r.coordinate_system}{r.channels}\n".encode())
    # Without the key nobody can try out which names the files had.
    return pseudonym(key, "inputs", digest.hexdigest()) if key else digest.hexdigest()


def _describe_lists(listing: Listing, key: bytes | None) -> list[dict[str, Any]]:
    """Tables and sidecars for `sources`; pseudonyms are not in the order of what they stand for."""
    found = [{**describe_source(path), "path": file_name(key, path)} for path in listing.lists]
    return sorted(found, key=lambda entry: str(entry["path"])) if key else found


def _digest(decided: Iterable[Decided]) -> str:
    """Digest of the raw signals of recordings."""
    return hashlib.sha256("".join(entry.found.digest for entry in decided).encode()).hexdigest()


def say(line: str) -> None:
    """Tell the user one line."""
    print("".join(mark if mark.isprintable() else "?" for mark in line), file=sys.stderr)


def say_some(lines: Sequence[str], rest: str, most: int = _TOLD) -> None:
    """Tell the first lines, and how many there are besides."""
    for line in lines[:most]:
        say(line)
    if len(lines) > most:
        say(f"... and {len(lines) - most:,} {rest}")


def look_at(run: Run, listing: Listing, wanted: Processing) -> list[Decided | Reject]:
    """Scan all recordings, and decide about each."""
    stretches = [(r, scan_stretches(r)) for r in listing.recordings]
    tasks = [
        Task(f"{r.name}-{i:05d}", scan_part, (r, *stretch)) for r, parts in stretches for i, stretch in enumerate(parts)
    ]
    scanned = iter(run.stage("scan", tasks))
    return [decide(r, [next(scanned).info for _ in parts], wanted) for r, parts in stretches]


def make_recordings(run: Run, listing: Listing, wanted: Processing) -> tuple[list[Prepared], list[Reject]]:
    """Look at all recordings, decide, and prepare them.

    Returns:
        The prepared ones, in the order of the listing, and the rejects of listing and decisions.
    """
    decisions = look_at(run, listing, wanted)
    chosen = [entry for entry in decisions if isinstance(entry, Decided)]
    rejects = [*listing.rejects, *(entry for entry in decisions if isinstance(entry, Reject))]
    say_some([f"{e.source}: {e.reason}" for e in decisions if isinstance(e, Reject)], "more, see rejects.parquet")
    say_some([line for entry in chosen for line in entry.told], "more remarks")
    say_some(_doubtful(chosen, wanted), "more recordings with doubtful channels, see channels.parquet")
    work = [(entry, part_blocks(entry.work.recording, entry.work.rules)) for entry in chosen]
    tasks = [
        Task(f"{entry.work.recording.name}-{i:05d}", prepare_part, (entry.work, *blocks))
        for entry, parts in work
        for i, blocks in enumerate(parts)
    ]
    done = iter(run.stage("signal", tasks))
    return [Prepared(entry, tuple(next(done) for _ in parts)) for entry, parts in work], rejects


def _doubtful(chosen: Sequence[Decided], wanted: Processing) -> list[str]:
    averaged = ", but not in the average" if wanted.reference in ("common-average", "median") else ""
    lines = []
    for entry in chosen:
        for kept, what in ((True, f"kept{averaged}"), (False, "left out")):
            names = [
                f"{channel.name} ({reason})"
                for channel, reason, keep in zip(entry.work.recording.kept, entry.doubts, entry.work.keep, strict=True)
                if reason and keep == kept
            ]
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"{entry.work.recording.source}: doubtful channels, {what}: {', '.join(names[:3])}{more}")
    return lines


def _prepare(run: Run, listing: Listing, options: Options, key: bytes | None, where: Path) -> dict[str, Any]:
    prepared, rejects = make_recordings(run, listing, options.processing)
    total = len(listing.recordings) + len(listing.rejects)
    rejects_file = write_rejects(run, rejects, total, options.max_rejects, key)
    if not prepared:
        raise PrepError(f"{where}: no recording is left of {total:,}; the first reason: {rejects[0].reason}")
    recordings = [entry.decided.work.recording for entry in prepared]
    pairs = find_duplicates([entry.decided.fingerprint for entry in prepared], run.progress)
    persons = find_persons([r.subject for r in recordings], listing.notes.get(ONE_PATIENT, ()))
    if options.duplicates == "refuse":
        refuse_duplicates(pairs, persons)
    shared = (pairs, persons) if options.duplicates == "auto" else (pairs.clear(), [])
    groups = group_subjects([r.subject for r in recordings], *shared)
    splits, rule = divide(recordings, groups, options.split)
    command = options.command(key)
    if options.split.table is not None:
        rule["by"] = command["split"]
    files, entries = write_index(prepared, splits, SPLITS, run.scratch)
    tables = {
        "channels.parquet": channel_table(prepared),
        "events.parquet": event_table(prepared),
        "duplicates.parquet": pairs,
    }
    for name, table in tables.items():
        files[name] = run.scratch / name
        write_atomic(files[name], to_parquet(table))
    counts = subject_counts(recordings, splits)
    tell(counts, pairs, groups)
    crossing = pairs.filter(pl.col("first_subject") != pl.col("second_subject")).height
    return run.publish(
        {**signal_files(prepared), **files, "rejects.parquet": rejects_file},
        {
            **describe(prepared, listing, options.dataset, options.processing, key),
            "command": command,
            "group": describe_groups(groups, crossing, len(persons), options.duplicates),
            "split_rule": rule,
            "splits": entries,
            "counts": {**listing.notes, "splits": counts},
            "duplicates": {
                "pairs": pairs.height,
                "of_two_subjects": crossing,
                "groups_of_one_patient": len(persons),
                "rule": options.duplicates,
            },
            "rejects": {"count": len(rejects), "share": len(rejects) / max(total, 1)},
        },
    )


def write_rejects(run: Run, rejects: Sequence[Reject], total: int, allowed: float, key: bytes | None) -> Path:
    """Write the table of rejects, and stop where there are too many; with a key, without text of the data."""
    path = run.scratch / "rejects.parquet"
    table = to_frame(map(withhold_reason, rejects) if key else rejects)
    write_atomic(path, to_parquet(table))
    check_rejects(table, total, allowed, path)
    return path


def describe(
    prepared: Sequence[Prepared], listing: Listing, dataset: str, wanted: Processing, key: bytes | None
) -> dict[str, Any]:
    """What `dataset.json` says of any preparation of recordings."""
    recordings: list[Recording] = [entry.decided.work.recording for entry in prepared]
    size = sum(path.stat().st_size for r in recordings for path in r.signal_files)
    signals = {"path": SIGNALS, "bytes": size, "sha256": _digest(entry.decided for entry in prepared)}
    return {
        "domain": "ieeg",
        "kind": "recordings",
        "name": listing.name or dataset,
        "version": tool_version(),
        "licence": listing.licence,
        "sources": [*_describe_lists(listing, key), signals],
        "inputs": _inputs(listing, key),
        "sampling_rate": float(prepared[0].parts[0].info["rate"]) if len(prepared) == 1 else wanted.rate,
        "units": "uV",
        "coordinate_systems": sorted({r.coordinate_system for r in recordings} - {""}),
        "preparation": {"kind": "recordings", "dataset": dataset, **vars(wanted)},
    }


def tell(counts: Mapping[str, Mapping[str, float]], pairs: pl.DataFrame, groups: Mapping[str, str]) -> None:
    """Say what the user should know of splits and duplicates."""
    for split, found in counts.items():
        if not found["recordings"]:
            say(f"split {split} is empty: {len(set(groups.values()))} independent subjects are too few, or as asked")
        elif not found["seizures"]:
            say(f"split {split} has no seizure")
    for row in pairs.head(_TOLD).iter_rows(named=True):
        one, other = row["first_subject"], row["second_subject"]
        who = f"subjects {one} and {other} share it" if one != other else f"both of subject {one}"
        say(f"{row['first']} and {row['second']} hold the same signal ({row['kind']}): {who}")
    if pairs.height > _TOLD:
        say(f"... and {pairs.height - _TOLD:,} more pairs, see duplicates.parquet")
