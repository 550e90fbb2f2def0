"""First stage: each chunk of raw records -> numbers, codes, and the chunk's own dictionary with counts.

Tokens are looked at once, here. Later stages handle codes and the distinct tokens of a chunk only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data_prep.common.errors import ConfigError
from data_prep.common.rejects import to_frame
from data_prep.common.splits import SPLITS, assign_hashed, assign_times
from data_prep.ctr.chunks import Chunk, check_columns
from data_prep.ctr.read import RECORD, read_bytes, read_chunk, reject_records
from data_prep.ctr.schema import Dataset, Field, Schema
from data_prep.ctr.tokens import Codes, group_hashes, sorted_dictionary, write_tokens

_ISO_8601 = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SplitRule:
    """How rows are assigned to train, valid and test.

    Args:
        kind: random, user, time, file, column, or none (everything is test: `apply`).
        ratios: shares of train, valid, test.
        seed: of random and user.
        thresholds: of time: first time of valid, first time of test.
        files: of file: split index of each source.
    """

    kind: str
    ratios: tuple[float, ...] = (0.8, 0.1, 0.1)
    seed: int = 0
    thresholds: tuple[float, ...] = ()
    files: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """What every task of a preparation knows.

    Args:
        dataset: name, to find its `derive` step.
        schema: format and roles.
        split: the split rule.
        count_all: count tokens of all splits, not of train alone.
        labelled: the log has a label.
        side: folder of prepared side tables.
    """

    dataset: str
    schema: Schema
    split: SplitRule
    count_all: bool = False
    labelled: bool = True
    side: Path | None = None


def columns_to_read(job: Job, dataset: Dataset | None) -> tuple[list[str], list[str]]:
    """Columns of the log which hold numbers, and columns which hold tokens.

    Raises:
        ConfigError: a column would be both.
    """
    schema = job.schema
    numbers = [item.source for item in schema.fields if item.kind == "numerical"]
    numbers = ([schema.label.column] if job.labelled else []) + numbers
    strings = [item.source for item in schema.fields if item.kind != "numerical"]
    roles = (
        schema.user,
        schema.time if schema.time not in numbers else "",
        schema.split if job.split.kind == "column" else "",
    )
    strings += [name for name in roles if name]
    strings += dataset.needs if dataset else ()
    derived = dataset.derived if dataset else ()
    if both := sorted(set(numbers) & set(strings)):
        raise ConfigError(f"schema {schema.name}: column {both[0]!r} is described as number and as token; choose one")

    def wanted(names: list[str]) -> list[str]:
        return [name for name in dict.fromkeys(names) if name not in derived]

    return wanted(numbers), wanted(strings)


def read_times(job: Job, chunk: Chunk, folder: Path) -> dict[str, Any]:
    """Count the rows at each time of a chunk: `times.npy`, `counts.npy`. Needed before rows can be split by time."""
    name = job.schema.time
    check_columns(chunk.source, chunk.columns, [name], job.schema)
    table, _ = read_chunk(chunk, job.schema, [], [name])
    times, counts = np.unique(_times(table, name), return_counts=True)
    known = ~np.isnan(times)
    np.save(folder / "times.npy", times[known])
    np.save(folder / "counts.npy", counts[known].astype(np.int64))
    return {"times": int(known.sum())}


def digest_chunk(job: Job, chunk: Chunk, first_row: int, folder: Path) -> dict[str, Any]:
    """Read one chunk and write `rows.arrow`, the token files, `offsets.npy` and `rejects.parquet`.

    Args:
        job: what is prepared.
        chunk: what to read.
        first_row: number of its first record over all sources.
        folder: where to write.

    Returns:
        Counts and statistics to be merged.
    """
    from data_prep.ctr.datasets import find_dataset  # the registry imports every format, and they import this package

    dataset = find_dataset(job.dataset)
    numbers, strings = columns_to_read(job, dataset)
    check_columns(chunk.source, chunk.columns, numbers + strings, job.schema)
    table, rejects = read_chunk(chunk, job.schema, numbers, strings)
    if dataset and dataset.derive:
        table = dataset.derive(table, job.side)
    table, label, bad, dropped = _labels(job, table)
    table, label, bad_split, split = _splits(job, chunk, table, label, first_row)
    bad += bad_split
    if bad:
        raw = None if chunk.path.suffix == ".parquet" else (read_bytes(chunk, job.schema.text), job.schema.text)
        rejects = rejects + reject_records(chunk, raw, bad)
    to_frame(sorted(rejects, key=lambda item: item.record)).write_parquet(folder / "rejects.parquet")
    return _write_rows(job, table, label, split, first_row, folder) | {"rejects": len(rejects), "dropped": dropped}


def _labels(job: Job, table: pl.DataFrame) -> tuple[pl.DataFrame, U8, list[tuple[int, str, str]], int]:
    if not job.labelled:
        return table, np.zeros(table.height, dtype=np.uint8), [], 0
    rule = job.schema.label
    raw = table[rule.column]
    values = raw.fill_null(np.nan).to_numpy()
    bad: list[tuple[int, str, str]] = []
    if rule.threshold is None:
        wrong = ~((values == 0) | (values == 1))
        label, dropped = values == 1, 0
    else:
        wrong = np.isnan(values)
        label, dropped = values > rule.threshold, 0
    if wrong.any():
        found = table[RECORD].to_numpy()
        for index in np.flatnonzero(wrong).tolist():
            reason = "label is missing" if np.isnan(values[index]) else "label is not 0 or 1"
            bad.append((int(found[index]), rule.column, reason))
    keep = ~wrong
    if rule.threshold is not None and rule.drop_equal:
        equal = values == rule.threshold
        dropped = int(equal.sum())
        keep &= ~equal
    if not keep.all():
        table, label = table.filter(pl.Series(keep)), label[keep]
    return table, label.astype(np.uint8), bad, dropped


def _times(table: pl.DataFrame, name: str) -> F64:
    """Time column as float64: numbers as they are, ISO 8601 as seconds since 1970; NaN where it is neither."""
    column = table[name]
    if column.dtype != pl.String:
        return column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    values = column.cast(pl.Float64, strict=False)
    if values.null_count() > column.null_count():
        plain = column.str.replace("T", " ", literal=True).str.strip_suffix("Z")
        for form in _ISO_8601:
            found = plain.str.to_datetime(form, strict=False, time_unit="us")
            values = values.fill_null(found.dt.epoch("us").cast(pl.Float64) / 1e6)
    return values.fill_null(np.nan).to_numpy()


def _splits(
    job: Job, chunk: Chunk, table: pl.DataFrame, label: U8, first_row: int
) -> tuple[pl.DataFrame, U8, list[tuple[int, str, str]], U8]:
    rule, schema = job.split, job.schema
    bad: list[tuple[int, str, str]] = []
    if rule.kind == "random":
        split = assign_hashed(table[RECORD].to_numpy().astype(np.uint64) + np.uint64(first_row), rule.ratios, rule.seed)
    elif rule.kind == "user":
        split = assign_hashed(group_hashes(table[schema.user]), rule.ratios, rule.seed)
    elif rule.kind == "time":
        times = _times(table, schema.time)
        split = assign_times(times, rule.thresholds)
        bad = _unusable(table, np.isnan(times), schema.time, "time is missing, or neither a number nor ISO 8601")
    elif rule.kind == "column":
        names = table[schema.split].str.strip_chars().str.to_lowercase()
        known = names.replace_strict(
            {"train": 0, "valid": 1, "validation": 1, "val": 1, "test": 2}, default=None, return_dtype=pl.UInt8
        )
        split = known.fill_null(0).to_numpy()
        bad = _unusable(table, known.is_null().to_numpy(), schema.split, "split is not train, valid or test")
    else:
        split = np.full(table.height, rule.files[chunk.position] if rule.kind == "file" else 2, dtype=np.uint8)
    if bad:
        keep = ~table[RECORD].is_in([item[0] for item in bad]).to_numpy()
        table, label, split = table.filter(pl.Series(keep)), label[keep], split[keep]
    return table, label, bad, split


def _unusable(table: pl.DataFrame, wrong: npt.NDArray[np.bool_], name: str, reason: str) -> list[tuple[int, str, str]]:
    return [(int(record), name, reason) for record in table[RECORD].to_numpy()[wrong]]


def _write_rows(job: Job, table: pl.DataFrame, label: U8, split: U8, first_row: int, folder: Path) -> dict[str, Any]:
    schema = job.schema
    train = split == 0
    scope = np.ones_like(train) if job.count_all else train
    rows: dict[str, Any] = {
        "__split__": split,
        "row": table[RECORD].to_numpy().astype(np.uint64) + np.uint64(first_row),
        "label": label,
    }
    if schema.user:
        rows["group"] = group_hashes(table[schema.user])
    parts: list[pa.Array] = []
    counts: list[npt.NDArray[np.int64]] = []
    offsets: list[npt.NDArray[np.int64]] = []
    statistics: dict[str, dict[str, float]] = {}
    for item in schema.fields:
        column = table[item.source]
        if item.kind == "numerical":
            rows[item.name], statistics[item.name] = _numerical(item, column, train)
            continue
        lengths = None
        if item.kind == "multi":
            column, lengths = _bag(item, column)
            statistics[item.name] = {
                "missing": int((lengths == 0).sum()),
                "longest": int(lengths[train].max(initial=0)),
            }
        codes, tokens, bounds = sorted_dictionary(column)
        used = np.repeat(scope, lengths) if lengths is not None else scope
        counts.append(np.bincount(codes[used], minlength=len(tokens) + 1)[1:])
        parts.append(tokens)
        offsets.append(bounds)
        if lengths is None:
            statistics[item.name] = {"missing": int((codes == 0).sum())}
            rows[item.name] = codes
        else:
            rows[item.name] = _lists(codes, lengths)
    pl.DataFrame(rows).write_ipc(folder / "rows.arrow", compression="uncompressed")
    write_tokens(parts, counts, offsets, folder)
    return {
        "rows": [int((split == index).sum()) for index in range(len(SPLITS))],
        "positives": [int(label[split == index].sum()) for index in range(len(SPLITS))],
        "statistics": statistics,
        "entries": [len(tokens) for tokens in parts],
    }


def _bag(item: Field, column: pl.Series) -> tuple[pl.Series, npt.NDArray[np.int64]]:
    """All tokens of all bags, one behind the other, and the number of each bag."""
    # Lists of a Parquet file arrive joined by the record separator.
    nested = bool(column.str.contains("\x1e", literal=True).any())
    split = column.str.split("\x1e" if nested else item.separator)
    split = split.list.eval(pl.element().filter(pl.element().str.strip_chars() != "")).fill_null([])
    lengths = split.list.len().to_numpy().astype(np.int64)
    return split.explode(empty_as_null=False) if len(split) else pl.Series([], dtype=pl.String), lengths


def _lists(codes: Codes, lengths: npt.NDArray[np.int64]) -> pl.Series:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(codes.astype(np.uint32))))


def log_square(values: F64) -> F64:
    """X > 2 -> int(ln(x)^2), else unchanged (AutoInt's `scale.py`; the winners of the Criteo challenge before it).

    Shape:
        values (N,) float64 -> (N,) float64; NaN stays NaN.
    """
    large = values > 2
    return np.where(large, np.trunc(np.log(np.where(large, values, 1.0)) ** 2), values)


def _numerical(item: Field, column: pl.Series, train: npt.NDArray[np.bool_]) -> tuple[pl.Series, dict[str, float]]:
    """The column (null = missing) and the moments of its training values."""
    missing = column.is_null()
    values = column.fill_null(np.nan).to_numpy()
    if item.transform == "log_square":
        values = log_square(values)
    # Scaling by statistics comes later and from the full precision: a time in seconds does not fit float32.
    exact = item.transform in ("min_max", "standardise")
    stored = pl.Series(item.name, values if exact else values.astype(np.float32))
    if missing.any():
        stored = stored.fill_nan(None)
    known = values[train] if not missing.any() else values[train & ~missing.to_numpy()]
    mean = float(known.mean()) if len(known) else 0.0
    return stored, {
        "missing": int(missing.sum()),
        "n": len(known),
        "mean": mean,
        "m2": float(np.square(known - mean).sum()),
        "min": float(known.min(initial=np.inf)) if len(known) else 0.0,
        "max": float(known.max(initial=-np.inf)) if len(known) else 0.0,
    }
