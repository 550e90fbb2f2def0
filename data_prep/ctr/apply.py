"""New raw logs -> ids of a saved preparation, for prediction: nothing is learned, a label may be absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError
from data_prep.common.files import sha256_file
from data_prep.common.manifest import NAME, read_manifest, tool_version, verify_files
from data_prep.ctr.datasets import find_dataset
from data_prep.ctr.digest import Job, SplitRule
from data_prep.ctr.encode import Encoding
from data_prep.ctr.engine import Plan, collect_rejects, digest, encode, open_run, plan
from data_prep.ctr.locate import text_logs
from data_prep.ctr.prepare import identity
from data_prep.ctr.publish import describe_fields, describe_splits, publish
from data_prep.ctr.schema import Schema, Sources


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

    Every usable record becomes one row of the split "test". Tokens never seen in training are "unknown" (id 1). The
    `label` column is written when the log has one.

    Args:
        preparation: prepared directory of the training data.
        raw: raw files in order, or a folder.
        out: output directory, new or empty.
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
    # `locate` prefers the training file of a folder; files named one by one are taken as they are.
    found = known.locate(paths) if known else Sources(text_logs(paths))
    command = {
        "dataset": saved["dataset"],
        "apply": saved["vocabulary_sha256"],
        "preparation": sha256_file(preparation / NAME),
    }
    if (out / NAME).exists():
        raise ConfigError(f"{out}: holds prepared data already; choose another output directory or remove it")
    fingerprint = {"command": command, **identity(found)}
    with open_run(out, fingerprint, executor, workers, None, progress) as run:
        planned = plan(run, known, schema, found, 0, expand=False)
        labelled, planned = _drop_label(planned, schema)
        job = Job(saved["dataset"], schema, SplitRule("none"), labelled=labelled, side=planned.side)
        digests = digest(run, job, planned)
        rejects, count, total = collect_rejects(run, planned, digests, max_rejects)
        scales = {name: (float(shift), float(factor)) for name, (shift, factor) in saved["scales"].items()}
        encoding = Encoding(schema.fields, vocabulary, int(saved["hash_buckets"]), None, scales, labelled)
        encoded = encode(run, encoding, digests)
        described = _describe(manifest, job, planned, command, labelled) | {
            "fields": _merge_fields(
                manifest["fields"], describe_fields(job, digests, encoded, _sizes(manifest), encoding.buckets)
            ),
            "splits": describe_splits(encoded, digests),
            "rejects": {"count": count, "share": count / max(total, 1)},
            "dropped": sum(done.info["dropped"] for done in digests),
            "preparation": saved,
        }
        publish(out, encoded, vocabulary, rejects, described)
    return read_manifest(out)


def _drop_label(planned: Plan, schema: Schema) -> tuple[bool, Plan]:
    """Whether the logs have the label column; headerless logs without it have one value less per record."""
    name = schema.label.column
    if schema.text.header or not schema.columns:
        return all(name in chunk.columns for chunk in planned.chunks), planned
    chunk = planned.chunks[0]
    with chunk.path.open("rb") as stream:
        stream.seek(chunk.start)
        line = stream.readline()
    if line.count(schema.text.separator.encode()) + 1 != len(schema.columns) - 1:
        return True, planned
    columns = tuple(column for column in schema.columns if column != name)
    return False, replace(planned, chunks=tuple(replace(item, columns=columns) for item in planned.chunks))


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
