"""Raw click log -> prepared directory.

| stage | module | what it leaves for the stages behind it |
|---|---|---|
| sides | `Dataset.side` of the data set | side tables (user profiles, items) as files that workers map into memory |
| sums | engine | SHA-256 of the side files |
| sample | `Dataset.expand` of the data set | frappe: `log.tsv` with sampled negatives, read instead of the log |
| plan | chunks | where each chunk of records begins and ends, SHA-256 of the log; text of packed files |
| times | digest | split by time: the times of each chunk and how often each occurs |
| digest | digest (read, roles, groups, tokens) | per chunk: numbers, codes, dictionary with counts, users, rejects |
| groups | groups | how many users are on more than one side of the split, one range of user hashes at a time |
| merge | vocabulary | the frequent tokens of a slice of a field over all chunks |
| vocabulary | vocabulary | `vocabulary.parquet`, and the id of each token |
| encode | encode | per chunk: `train.parquet`, `valid.parquet`, `test.parquet` |
| (last) | common.publish | files under their final names, then `dataset.json` |

Memory is that of a few chunks and of the vocabulary, whatever the size of the log; killed work continues; the bytes
written depend on the input and the options alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from data_prep.common.errors import ConfigError, LabelError, LeakError
from data_prep.common.files import canonical_json, sha256_file
from data_prep.common.manifest import tool_version
from data_prep.common.mapping import Done, Task
from data_prep.common.run import Run, Settings, find_finished, identify, run_once
from data_prep.common.splits import check_ratios
from data_prep.ctr.chunks import CHUNK_BYTES, CHUNK_ROWS
from data_prep.ctr.datasets import DATASETS, GENERIC
from data_prep.ctr.describe import PAYLOAD, describe_fields, describe_splits, list_files, scale_of
from data_prep.ctr.encode import Encoding
from data_prep.ctr.engine import (
    Plan,
    check_groups,
    check_times,
    digest,
    encode,
    find_thresholds,
    gather_rejects,
    plan,
    summarise,
)
from data_prep.ctr.generic import load_schema
from data_prep.ctr.job import Job, SplitRule
from data_prep.ctr.locate import text_logs
from data_prep.ctr.reproduction import prepare_reproduction
from data_prep.ctr.schema import Dataset, Schema, Sources
from data_prep.ctr.vocabulary import merge_slices, plan_merge, write_vocabulary

TOOLS = (pl.__version__, CHUNK_BYTES, CHUNK_ROWS)  # what the bytes depend on besides input and options
SPLIT_KINDS = ("random", "time", "user", "file", "column")
Slices = tuple[tuple[tuple[Path, int], ...], ...]
_FILE_NAMES = ((r"train", 0), (r"valid|val|dev", 1), (r"test", 2))


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Args:
        dataset: its steps; None for a log described by a schema file.
        found: raw files.
        command: the `command` entry of `dataset.json`.
        buckets: hash buckets; 0: a vocabulary.
        max_rejects: share of unusable records that is tolerated.
        apart: users on more than one side are an error.
    """

    dataset: Dataset | None
    found: Sources
    command: dict[str, Any]
    buckets: int
    max_rejects: float
    apart: bool


def prepare(
    dataset: str,
    raw: list[Path] | Path,
    out: Path,
    *,
    schema: Path | None = None,
    split: Literal["default", "random", "time", "user", "file", "column"] = "default",
    ratios: tuple[float, float, float] | None = None,
    seed: int = 0,
    min_count: int | None = None,
    hash_buckets: int | None = None,
    vocabulary_scope: Literal["train", "all"] = "train",
    require_groups_apart: bool = False,
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    layout: Literal["native", "reproduction"] = "native",
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare a click log for training.

    Args:
        dataset: criteo, avazu, kdd12, movielens-1m, movielens-100k, frappe, or generic (described by `schema`).
        raw: raw files in order, or a folder; plain, gzip or Parquet.
        out: output directory; new, empty, or of the same preparation begun before.
        schema: YAML description of a generic log.
        split: random rows, time (equal times stay together), user (each on one side), file (train, valid, test in the
            file names), column (a column says it), or the data set's usual one.
        ratios: shares of train, valid and test.
        seed: of the random and user split, and of sampled negatives.
        min_count: replaces the threshold of every field; a rarer token is "unknown".
        hash_buckets: hash tokens into so many ids per field instead of keeping a vocabulary; without `min_count`.
        vocabulary_scope: rows whose tokens are counted; "all" lets valid and test leak into the vocabulary.
        require_groups_apart: stop when a user is on more than one side of the split.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of unusable records that is tolerated.
        layout: native, or reproduction: the index and value files of the official scripts.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    if layout == "reproduction":
        return prepare_reproduction(dataset, paths, out)
    known, described, found = resolve(dataset, paths, schema)
    described = _override(described, min_count)
    rule = _split_rule(known, described, found, split, ratios, seed)
    _check_options(hash_buckets, min_count, max_rejects, vocabulary_scope, layout)
    if require_groups_apart and not described.user:
        raise ConfigError(f"require_groups_apart: data set {described.name} has no column with the role user")
    command = {
        "dataset": dataset,
        "split": rule.kind,
        "ratios": list(rule.ratios),
        "seed": seed,
        "min_count": min_count,
        "hash_buckets": hash_buckets,
        "vocabulary_scope": vocabulary_scope,
        "layout": layout,
    }
    sources = (*found.logs, *found.sides)
    request = Request(known, found, command, hash_buckets or 0, max_rejects, require_groups_apart)
    finished = _find_finished(out, described, request)
    if finished is not None:
        return finished
    fingerprint = {"command": command, "schema": described.to_dict(), **identify(sources, *TOOLS)}
    job = Job(dataset, described, rule, count_all=vocabulary_scope == "all")
    settings = Settings.of(executor, workers, shard, shard_patience, progress, sources)
    return run_once(out, fingerprint, settings, PAYLOAD, lambda run: _prepare(run, job, request))


def _find_finished(out: Path, schema: Schema, request: Request) -> dict[str, Any] | None:
    """The manifest of `out` when it holds exactly what is asked for."""
    saved = json.loads(canonical_json(_saved_schema(request.dataset, schema)))
    expected = {"command": request.command, "preparation": {"schema": saved}}
    finished = find_finished(out, expected, (*request.found.logs, *request.found.sides))
    if finished is not None and request.apart and not finished["group"]["kept_apart"]:
        count = finished["group"].get("groups_on_two_sides", 1)
        raise LeakError(f"{out}: {count:,} users or more are on several sides of the split; split by user")
    return finished


def _prepare(run: Run, job: Job, request: Request) -> dict[str, Any]:
    planned = plan(run, request.dataset, job.schema, request.found, request.command["seed"], expand=True)
    asked = job.schema
    job = replace(job, side=planned.side, schema=planned.schema)
    if job.split.kind == "time":
        job = replace(job, split=replace(job.split, thresholds=find_thresholds(run, job, planned)))
    digests = digest(run, job, planned)
    rejects, rejected = gather_rejects(run, planned, digests, request.max_rejects)
    _check_labels(job, digests, request.found)
    group = None
    if job.schema.user:
        group = check_groups(run, job, planned, digests, refuse=request.apart or job.split.kind == "user")
    if job.split.kind == "time":
        check_times(digests)
    vocabulary, sizes, slices = _merge(run, job, digests, hashed=bool(request.buckets))
    statistics = summarise(job, digests)
    scales = {
        item.name: scale for item in job.schema.fields if (scale := scale_of(item, statistics[item.name])) is not None
    }
    encoding = Encoding(job.schema.fields, vocabulary, request.buckets, slices, scales, labelled=True)
    encoded = encode(run, encoding, digests)
    manifest = _manifest(job, planned, request.command, digests, encoded) | {
        "group": group,
        "fields": describe_fields(job, digests, encoded, sizes, request.buckets),
        "rejects": rejected,
        "preparation": {
            "dataset": job.dataset,
            "schema": _saved_schema(request.dataset, asked),
            "hash_buckets": request.buckets,
            "scales": {name: list(scale) for name, scale in scales.items()},
            "vocabulary_sha256": sha256_file(vocabulary),
        },
    }
    return run.publish(list_files(encoded, vocabulary, rejects), manifest)


def _saved_schema(known: Dataset | None, schema: Schema) -> dict[str, Any]:
    # New logs of a sampled data set come in its raw format, not in that of the sampled table.
    return known.schema.to_dict() if known and known.expand else schema.to_dict()


def _manifest(
    job: Job, planned: Plan, command: dict[str, Any], digests: list[Done], encoded: list[Done]
) -> dict[str, Any]:
    schema, rule = job.schema, job.split
    early_dropped = planned.early.info["dropped"] if planned.early else 0
    return {
        "domain": "ctr",
        "name": schema.name,
        "version": tool_version(),
        "command": command,
        "licence": schema.licence,
        "sources": planned.sources,
        "label": {"name": schema.label.column, "rule": schema.label.rule},
        "group": None,
        "time": {"name": schema.time} if schema.time else None,
        "split_rule": {
            "kind": rule.kind,
            "ratios": list(rule.ratios) if rule.kind in ("random", "time", "user") else None,
            "seed": rule.seed if rule.kind in ("random", "user") else None,
            # Infinity (an empty split) has no place in JSON.
            "thresholds": [value if value < float("inf") else None for value in rule.thresholds],
        },
        "splits": describe_splits(encoded, digests),
        "dropped": early_dropped + sum(done.info["dropped"] for done in digests),
    }


def _merge(run: Run, job: Job, digests: list[Done], *, hashed: bool) -> tuple[Path, dict[str, int], Slices]:
    """Vocabulary file, number of own ids per field, and where the slices of each field are."""
    fields = [item for item in job.schema.fields if item.kind != "numerical"]
    groups = plan_merge([done.info["entries"] for done in digests], fields) if fields and not hashed else []
    folders = tuple(done.folder for done in digests)
    merged = run.stage("merge", [Task(f"{i:05d}", merge_slices, (group, folders)) for i, group in enumerate(groups)])
    slices: list[list[tuple[Path, int]]] = [[] for _ in fields]
    for group, done in zip(groups, merged, strict=True):
        for number, piece in enumerate(group):
            slices[piece.field].append((done.folder, number))
    frozen = tuple(tuple(items) for items in slices)
    done = run.stage("vocabulary", [Task("vocabulary", write_vocabulary, (tuple(fields), frozen))])[0]
    return done.folder / "vocabulary.parquet", dict(done.info["sizes"]), frozen


def _check_labels(job: Job, digests: list[Done], found: Sources) -> None:
    rows = sum(done.info["rows"][0] for done in digests)
    positives = sum(done.info["positives"][0] for done in digests)
    name = found.logs[0]
    if rows == 0:
        raise LabelError(f"{name}: the training split has no rows; check the split, the ratios and rejects")
    if positives in (0, rows):
        raise LabelError(
            f"{name}: all {rows:,} training rows have label {int(positives > 0)} (column {job.schema.label.column!r}); "
            "a model needs both classes: check the label column, its threshold and the split"
        )


def resolve(dataset: str, raw: tuple[Path, ...], schema: Path | None) -> tuple[Dataset | None, Schema, Sources]:
    """Schema and files of a data set.

    Raises:
        ConfigError: the name is unknown, or a schema is missing or not wanted.
    """
    if dataset == GENERIC:
        if schema is None:
            raise ConfigError("data set generic: --schema FILE.yaml is missing; it describes the columns of the log")
        return None, load_schema(schema), Sources(text_logs(raw))
    known = DATASETS.get(dataset)
    if known is None:
        raise ConfigError(
            f"data set {dataset!r} is unknown; choose {', '.join(DATASETS)}, or generic with --schema FILE.yaml"
        )
    if schema is not None:
        raise ConfigError(f"--schema goes with data set generic; {dataset} has its own")
    return known, known.schema.check(dataset), known.locate(raw, "train")


def _override(schema: Schema, min_count: int | None) -> Schema:
    if min_count is None:
        return schema
    if min_count < 1:
        raise ConfigError(f"min_count {min_count}: give at least 1")
    return replace(
        schema,
        fields=tuple(
            replace(item, min_count=min_count) if item.kind != "numerical" else item for item in schema.fields
        ),
    )


def _split_rule(
    known: Dataset | None, schema: Schema, found: Sources, split: str, ratios: Sequence[float] | None, seed: int
) -> SplitRule:
    kind = split if split != "default" else known.split if known else "column" if schema.split else "random"
    if kind not in SPLIT_KINDS:
        raise ConfigError(f"split {split!r} is unknown; choose {', '.join(SPLIT_KINDS)}")
    for wanted, column, role in (
        ("user", schema.user, "user"),
        ("time", schema.time, "time"),
        ("column", schema.split, "split"),
    ):
        if kind == wanted and not column:
            raise ConfigError(
                f"split {kind}: data set {schema.name} has no column with the role {role}; choose another split"
            )
    shares = check_ratios(ratios if ratios is not None else known.ratios if known else (0.8, 0.1, 0.1))
    files = tuple(_split_of_file(path) for path in found.logs) if kind == "file" else ()
    return SplitRule(kind, shares, seed, files=files)


def _split_of_file(path: Path) -> int:
    for pattern, index in _FILE_NAMES:
        if re.search(pattern, path.name.lower()):
            return index
    raise ConfigError(
        f"{path}: split file: the name has none of train, valid, val, dev, test; rename it or choose another split"
    )


def _check_options(
    hash_buckets: int | None, min_count: int | None, max_rejects: float, vocabulary_scope: str, layout: str
) -> None:
    if hash_buckets is not None and min_count is not None:
        raise ConfigError(
            f"hash_buckets {hash_buckets} and min_count {min_count}: hashing counts no tokens; leave one of them out"
        )
    if hash_buckets is not None and not 1 <= hash_buckets < 1 << 31:
        raise ConfigError(f"hash_buckets {hash_buckets}: give 1 to 2,147,483,647")
    if not 0 <= max_rejects <= 1:
        raise ConfigError(f"max_rejects {max_rejects}: give a share from 0 to 1")
    if vocabulary_scope not in ("train", "all") or layout != "native":
        raise ConfigError(
            f"vocabulary_scope {vocabulary_scope!r}, layout {layout!r}: choose train or all, native or reproduction"
        )
