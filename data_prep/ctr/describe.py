"""What `dataset.json` says about fields and splits, and which files are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.common.mapping import Done
from data_prep.common.splits import SPLITS
from data_prep.ctr.engine import summarise
from data_prep.ctr.job import Job
from data_prep.ctr.schema import RawField
from data_prep.ctr.vocabulary import FIRST

PAYLOAD = frozenset({*SPLITS, "vocabulary.parquet", "rejects.parquet"})  # what is published beside dataset.json


def list_files(encoded: list[Done], vocabulary: Path, rejects: Path) -> dict[str, Path]:
    """Path inside the prepared directory -> finished file."""
    files = {"vocabulary.parquet": vocabulary, "rejects.parquet": rejects}
    for split, rows in list_parts(encoded).items():
        files |= {f"{split}/{name}": source for name, source, _, _ in rows}
    return files


def list_parts(encoded: list[Done]) -> dict[str, list[tuple[str, Path, int, str]]]:
    """Per split: (name, file, rows, sha256) of each part, in raw order; splits without rows are left out."""
    parts: dict[str, list[tuple[str, Path, int, str]]] = {}
    for index, split in enumerate(SPLITS):
        for done in encoded:
            if rows := done.info["rows"][index]:
                known = parts.setdefault(split, [])
                name = f"{split}.parquet"
                known.append((f"part-{len(known):05d}.parquet", done.folder / name, rows, done.files[name][1]))
    return parts


def describe_splits(encoded: list[Done], digests: list[Done]) -> dict[str, Any]:
    """The `splits` entry of `dataset.json`."""
    positives = [sum(done.info["positives"][index] for done in digests) for index in range(len(SPLITS))]
    parts = list_parts(encoded)
    return {
        split: {
            "rows": sum(row[2] for row in parts[split]),
            "positives": positives[index],
            "parts": [
                {"path": f"{split}/{name}", "rows": rows, "sha256": digest} for name, _, rows, digest in parts[split]
            ],
        }
        for index, split in enumerate(SPLITS)
        if split in parts
    }


def describe_fields(
    job: Job, digests: list[Done], encoded: list[Done], sizes: dict[str, int], buckets: int
) -> list[dict[str, Any]]:
    """The `fields` entry of `dataset.json`."""
    statistics = summarise(job, digests)
    described = []
    for item in job.schema.fields:
        found = statistics[item.name]
        entry: dict[str, Any] = {"name": item.name, "kind": item.kind, "missing": found["missing"]}
        if item.kind == "numerical":
            entry |= {"transform": item.transform, **scaled_moments(item, found)}
            entry["statistics"] = {key: found[key] for key in ("mean", "std", "min", "max")}
        else:
            entry["size"] = FIRST + (buckets or sizes[item.name])
            entry["min_count"] = 1 if buckets else item.min_count
            entry["hashed"] = bool(buckets)
            entry["unknown"] = sum(done.info["unknown"][item.name] for done in encoded)
        if item.kind == "multi":
            entry["max_length"] = found["longest"]
        described.append(entry)
    return described


def scale_of(item: RawField, statistics: dict[str, Any]) -> tuple[float, float] | None:
    """(shift, factor) of a transform that needs statistics: (x - shift) * factor; constant columns become 0."""
    if item.transform == "min_max":
        width = statistics["max"] - statistics["min"]
        return statistics["min"], 1.0 / width if width > 0 else 0.0
    if item.transform == "standardise":
        return statistics["mean"], 1.0 / statistics["std"] if statistics["std"] > 0 else 0.0
    return None


def scaled_moments(item: RawField, statistics: dict[str, Any]) -> dict[str, float]:
    """Moments of the training values as they are stored, that is after the transform."""
    scale = scale_of(item, statistics)
    if scale is None:
        return {key: statistics[key] for key in ("mean", "std", "min", "max")}
    shift, factor = scale
    moved = {key: (statistics[key] - shift) * factor for key in ("mean", "min", "max")}
    return {"mean": moved["mean"], "std": statistics["std"] * factor, "min": moved["min"], "max": moved["max"]}
