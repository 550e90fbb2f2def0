"""Raw click log -> prepared directory.

Stages: plan (cut the files into chunks) -> read (parse each chunk once; codes and counts) -> merge (vocabulary) ->
write (ids, one part per chunk and split). Memory is that of a few chunks and of the vocabulary, whatever the size of
the log; killed work continues; the bytes written depend on the input and the options alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from data_prep.common.errors import BusyError, ConfigError, LabelError, PrepError
from data_prep.common.files import sha256_file
from data_prep.common.lock import own
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.mapping import Done, Shard, Task
from data_prep.common.splits import check_ratios
from data_prep.ctr.chunks import CHUNK_BYTES, CHUNK_ROWS
from data_prep.ctr.datasets import DATASETS, GENERIC
from data_prep.ctr.digest import Job, SplitRule
from data_prep.ctr.encode import Encoding
from data_prep.ctr.engine import Plan, Run, collect_rejects, digest, encode, find_thresholds, open_run, plan, summarise
from data_prep.ctr.generic import load_schema
from data_prep.ctr.locate import text_logs
from data_prep.ctr.publish import describe_fields, describe_splits, publish, scale_of
from data_prep.ctr.reproduction import prepare_reproduction
from data_prep.ctr.schema import Dataset, Schema, Sources
from data_prep.ctr.vocabulary import merge_slices, plan_merge, write_vocabulary

SPLIT_KINDS = ("random", "time", "user", "file", "column")
Slices = tuple[tuple[tuple[Path, int], ...], ...]
_FILE_NAMES = ((r"train", 0), (r"valid|val|dev", 1), (r"test", 2))


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
        hash_buckets: hash tokens into so many ids per field instead of keeping a vocabulary.
        vocabulary_scope: rows whose tokens are counted; "all" lets valid and test leak into the vocabulary.
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
    _check_options(hash_buckets, max_rejects, vocabulary_scope, layout)
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
    finished = _already(out, command, described, found)
    if finished is not None:
        return finished
    fingerprint = {"command": command, "schema": described.to_dict(), **identity(found)}
    share = Shard.parse(shard, shard_patience) if shard else None
    job = Job(dataset, described, rule, count_all=vocabulary_scope == "all")
    try:
        with open_run(out, fingerprint, executor, workers, share, progress) as run:
            return _prepare(run, out, known, job, found, command, hash_buckets or 0, max_rejects)
    except (PrepError, OSError):
        # Another shard may have finished, and removed the scratch folder, while this one looked at it.
        if share is not None and (out / NAME).exists():
            return read_manifest(out)
        raise


def _prepare(
    run: Run,
    out: Path,
    known: Dataset | None,
    job: Job,
    found: Sources,
    command: dict[str, Any],
    buckets: int,
    max_rejects: float,
) -> dict[str, Any]:
    planned = plan(run, known, job.schema, found, command["seed"], expand=True)
    job = replace(job, side=planned.side, schema=planned.schema)
    if job.split.kind == "time":
        job = replace(job, split=replace(job.split, thresholds=find_thresholds(run, job, planned)))
    digests = digest(run, job, planned)
    rejects, reject_count, total = collect_rejects(run, planned, digests, max_rejects)
    _check_labels(job, digests, found)
    vocabulary, sizes, slices = _merge(run, job, digests, hashed=bool(buckets))
    statistics = summarise(job, digests)
    scales = {
        item.name: scale for item in job.schema.fields if (scale := scale_of(item, statistics[item.name])) is not None
    }
    encoded = encode(run, Encoding(job.schema.fields, vocabulary, buckets, slices, scales, labelled=True), digests)
    manifest = _manifest(job, planned, command, digests, encoded) | {
        "fields": describe_fields(job, digests, encoded, sizes, buckets),
        "rejects": {"count": reject_count, "share": reject_count / max(total, 1)},
        "preparation": {
            "dataset": job.dataset,
            "schema": job.schema.to_dict() if planned.early is None else _raw_schema(known),
            "hash_buckets": buckets,
            "scales": {name: list(scale) for name, scale in scales.items()},
            "vocabulary_sha256": sha256_file(vocabulary),
        },
    }
    return _publish(run, out, encoded, vocabulary, rejects, manifest)


def _publish(
    run: Run, out: Path, encoded: list[Done], vocabulary: Path, rejects: Path, manifest: dict[str, Any]
) -> dict[str, Any]:
    if run.shard is None:
        publish(out, encoded, vocabulary, rejects, manifest)
        return read_manifest(out)
    try:
        with own(out, run.scratch / "publish.lock"):
            publish(out, encoded, vocabulary, rejects, manifest)
    except BusyError:
        return manifest  # another shard is publishing the same
    return read_manifest(out)


def _raw_schema(known: Dataset | None) -> dict[str, Any]:
    # New logs of a sampled data set come in its raw format, not in that of the sampled table.
    return known.schema.to_dict() if known else {}


def _manifest(
    job: Job, planned: Plan, command: dict[str, Any], digests: list[Done], encoded: list[Done]
) -> dict[str, Any]:
    schema, rule = job.schema, job.split
    apart = rule.kind == "user"
    early_dropped = planned.early.info["dropped"] if planned.early else 0
    return {
        "domain": "ctr",
        "name": schema.name,
        "version": tool_version(),
        "command": command,
        "licence": schema.licence,
        "sources": planned.sources,
        "label": {"name": schema.label.column, "rule": schema.label.rule},
        "group": {"name": schema.user, "kept_apart": apart} if schema.user else None,
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
    done = run.stage("sort", [Task("vocabulary", write_vocabulary, (tuple(fields), frozen))])[0]
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
    return known, known.schema.check(dataset), known.locate(raw)


def identity(found: Sources) -> dict[str, Any]:
    """What tells one set of sources, and one version of the tools, from another."""
    stats = [(path, path.stat()) for path in (*found.logs, *found.sides)]
    return {
        "sources": [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in stats],
        "tools": [tool_version(), pl.__version__, CHUNK_BYTES, CHUNK_ROWS],
    }


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


def _check_options(hash_buckets: int | None, max_rejects: float, vocabulary_scope: str, layout: str) -> None:
    if hash_buckets is not None and not 1 <= hash_buckets < 1 << 31:
        raise ConfigError(f"hash_buckets {hash_buckets}: give 1 to 2,147,483,647")
    if not 0 <= max_rejects <= 1:
        raise ConfigError(f"max_rejects {max_rejects}: give a share from 0 to 1")
    if vocabulary_scope not in ("train", "all") or layout != "native":
        raise ConfigError(
            f"vocabulary_scope {vocabulary_scope!r}, layout {layout!r}: choose train or all, native or reproduction"
        )


def _already(out: Path, command: dict[str, Any], schema: Schema, found: Sources) -> dict[str, Any] | None:
    """The manifest when `out` holds exactly what is asked for."""
    if not (out / NAME).exists():
        return None
    manifest = read_manifest(out)
    files = sorted((path.name, path.stat().st_size) for path in (*found.logs, *found.sides))
    same = (
        manifest.get("command") == command
        and sorted((item["path"], item["bytes"]) for item in manifest["sources"]) == files
    )
    fields = manifest.get("preparation", {}).get("schema", {}).get("fields")
    if same and fields == [asdict(item) for item in schema.fields] and _same_bytes(manifest, found):
        return manifest
    raise ConfigError(
        f"{out}: holds prepared data of other options or other files; choose another output directory or remove it"
    )


def _same_bytes(manifest: dict[str, Any], found: Sources) -> bool:
    recorded = sorted(item["sha256"] for item in manifest["sources"])
    return recorded == sorted(sha256_file(path) for path in (*found.logs, *found.sides))
