"""New raw logs -> ids of a saved preparation, for prediction: nothing is learned, a label may be absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.files import sha256_file
from data_prep.common.manifest import NAME, read_manifest, tool_version, verify_files
from data_prep.common.mapping import Done
from data_prep.common.run import Run, Settings, find_finished, identify, is_large, open_run
from data_prep.ctr.chunks import Chunk, single
from data_prep.ctr.datasets import find_dataset
from data_prep.ctr.describe import PAYLOAD, describe_fields, describe_splits, list_files
from data_prep.ctr.encode import Encoding
from data_prep.ctr.engine import Plan, digest, encode, gather_rejects, plan
from data_prep.ctr.job import Job, SplitRule
from data_prep.ctr.locate import text_logs
from data_prep.ctr.prepare import TOOLS
from data_prep.ctr.scan import scan
from data_prep.ctr.schema import Dataset, Schema, Sources

_LOOK = 1 << 16  # bytes looked at to count the columns of a log without header


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
    """Encode new logs with a saved vocabulary and saved statistics.

    Every usable record becomes one row of the split "test", whatever its label. Only the columns of features are
    needed. Tokens never seen in training are "unknown" (id 1). The `label` column is written when all records have a
    usable one, the `group` column when the logs name the user.

    Args:
        preparation: prepared directory of the training data.
        raw: raw files in order, side files among them, or a folder, in which a test log is preferred.
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
    saved = manifest["preparation"]
    vocabulary = preparation / "vocabulary.parquet"
    verify_files(preparation, {"vocabulary.parquet": saved["vocabulary_sha256"]})
    schema = Schema.from_dict(saved["schema"])
    known = find_dataset(saved["dataset"])
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    found = known.locate(paths, "apply") if known else Sources(text_logs(paths))
    sources = (*found.logs, *found.sides)
    command = {
        "dataset": saved["dataset"],
        "apply": saved["vocabulary_sha256"],
        "preparation": sha256_file(preparation / NAME),
    }
    finished = find_finished(out, {"command": command}, sources)
    if finished is not None:
        return finished
    settings = Settings(executor, workers, None, progress, eager=is_large(sources))
    with open_run(out, {"command": command, **identify(sources, *TOOLS)}, settings, PAYLOAD) as run:
        planned = _name_columns(plan(run, known, schema, found, 0, expand=False), schema, known)
        job = _scoring_job(saved["dataset"], schema, known, planned)
        return _score(run, job, planned, manifest, vocabulary, command, max_rejects)


def _score(
    run: Run,
    job: Job,
    planned: Plan,
    manifest: dict[str, Any],
    vocabulary: Path,
    command: dict[str, Any],
    max_rejects: float,
) -> dict[str, Any]:
    saved = manifest["preparation"]
    digests = digest(run, job, planned)
    rejects, rejected = gather_rejects(run, planned, digests, max_rejects)
    scales = {name: (float(shift), float(factor)) for name, (shift, factor) in saved["scales"].items()}
    labelled = job.labelled and not any(done.info["unusable_labels"] for done in digests)
    encoding = Encoding(job.schema.fields, vocabulary, int(saved["hash_buckets"]), None, scales, labelled)
    encoded = encode(run, encoding, digests)
    now = describe_fields(job, digests, encoded, _sizes(manifest), encoding.buckets)
    described = _describe(manifest, job, planned, command, labelled) | {
        "fields": _merge_fields(manifest["fields"], now),
        "splits": _splits(encoded, digests, labelled),
        "rejects": rejected,
        "dropped": 0,
        "preparation": saved,
    }
    return run.publish(list_files(encoded, vocabulary, rejects), described)


def _name_columns(planned: Plan, schema: Schema, known: Dataset | None) -> Plan:
    """Logs without header: each file has the columns of the schema, or those of a log without label."""
    if schema.text.header or not schema.columns:
        return planned
    bare = known.unlabelled_columns if known else ()
    bare = bare or tuple(column for column in schema.columns if column != schema.label.column)
    columns: dict[int, tuple[str, ...]] = {}
    for chunk in planned.chunks:
        if chunk.position not in columns:
            parquet = chunk.columns != schema.columns
            unlabelled = not parquet and _count_columns(chunk, schema) == len(bare)
            columns[chunk.position] = bare if unlabelled else chunk.columns
    return replace(planned, chunks=tuple(replace(item, columns=columns[item.position]) for item in planned.chunks))


def _count_columns(chunk: Chunk, schema: Schema) -> int:
    """The commonest number of values in the first records of a chunk, so that one damaged record does not matter."""
    text = schema.text
    with chunk.path.open("rb") as stream:
        stream.seek(chunk.start)
        data = stream.read(min(_LOOK, chunk.stop - chunk.start))
    data = data[: data.rfind(b"\n") + 1] or data
    records = scan(data.replace(text.separator.encode(), single(text).encode()), single(text), text.quote)
    return int(np.bincount(records.separators).argmax()) + 1


def _scoring_job(dataset: str, schema: Schema, known: Dataset | None, planned: Plan) -> Job:
    """A job that needs the columns of features alone; label and user are read where all logs have them."""
    present = set.intersection(*(set(chunk.columns) for chunk in planned.chunks))
    schema = replace(schema, user=schema.user if schema.user in present else "", time="", split="")
    bare = known.unlabelled_columns if known else ()
    return Job(
        dataset,
        schema,
        SplitRule("none"),
        labelled=schema.label.column in present,
        side=planned.side,
        scoring=True,
        absent=tuple(column for column in schema.columns if bare and column not in bare),
    )


def _splits(encoded: list[Done], digests: list[Done], labelled: bool) -> dict[str, Any]:
    """The `splits` entry; nobody knows the positives of a log without labels."""
    splits = describe_splits(encoded, digests)
    return splits if labelled else {name: {**entry, "positives": None} for name, entry in splits.items()}


def _sizes(manifest: dict[str, Any]) -> dict[str, int]:
    return {item["name"]: item["size"] - 2 for item in manifest["fields"] if "size" in item}


def _merge_fields(saved: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything as saved with the training data; only missing and unknown are counted anew."""
    return [
        {**old, **{key: new[key] for key in ("missing", "unknown") if key in new}}
        for old, new in zip(saved, now, strict=True)
    ]


def _describe(
    manifest: dict[str, Any], job: Job, planned: Plan, command: dict[str, Any], labelled: bool
) -> dict[str, Any]:
    return {
        "domain": "ctr",
        "name": manifest["name"],
        "version": tool_version(),
        "command": command,
        "licence": manifest["licence"],
        "sources": planned.sources,
        "label": manifest["label"] if labelled else None,
        "group": {"name": job.schema.user, "kept_apart": False} if job.schema.user else None,
        "time": manifest["time"],
        "split_rule": {"kind": "none", "ratios": None, "seed": None, "thresholds": []},
    }
