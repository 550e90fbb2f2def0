"""First stage: each chunk of raw records -> numbers, codes, and the chunk's own dictionary with counts.

Tokens are looked at once, here. Later stages handle codes and the distinct tokens of a chunk only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data_prep.common.rejects import Reject, to_frame
from data_prep.common.splits import SPLITS
from data_prep.ctr.chunks import Chunk, check_columns
from data_prep.ctr.groups import write_sides
from data_prep.ctr.job import Job, columns_to_read
from data_prep.ctr.read import RECORD, read_bytes, read_chunk, reject_records
from data_prep.ctr.roles import F64, U8, Bad, assign_splits, read_time, score_labels, time_ranges, train_labels
from data_prep.ctr.schema import Dataset, RawField
from data_prep.ctr.tokens import Codes, sorted_dictionary, write_tokens


def read_times(job: Job, chunk: Chunk, folder: Path) -> dict[str, Any]:
    """Count the rows at each time of a chunk: `times.npy`, `counts.npy`. Needed before rows can be split by time."""
    name = job.schema.time
    check_columns(chunk.source, chunk.columns, [name], job.schema)
    table, _ = read_chunk(chunk, job.schema, [], [name])
    times, counts = np.unique(read_time(table[name]), return_counts=True)
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
    table, rejects = _read_columns(job, dataset, chunk)
    if dataset and dataset.derive:
        table = dataset.derive(table, job.side)
    counts: dict[str, Any] = {"dropped": 0}
    bad: Bad = []
    if job.scoring:
        label, counts["unusable_labels"] = score_labels(job, table)
    else:
        table, label, bad, counts["dropped"] = train_labels(job, table)
    split, lost = assign_splits(job, chunk, table, first_row)
    if lost:
        keep = ~table[RECORD].is_in([item[0] for item in lost]).to_numpy()
        table, label, split = table.filter(pl.Series(keep)), label[keep], split[keep]
    if bad := bad + lost:
        raw = None if chunk.path.suffix == ".parquet" else (read_bytes(chunk, job.schema.text), job.schema.text)
        rejects = rejects + reject_records(chunk, raw, bad)
    to_frame(sorted(rejects, key=lambda item: item.record)).write_parquet(folder / "rejects.parquet")
    if job.split.kind == "time":
        counts["times"] = time_ranges(read_time(table[job.schema.time]), split)
    return _write_rows(job, table, label, split, first_row, folder) | counts | {"rejects": len(rejects)}


def _read_columns(job: Job, dataset: Dataset | None, chunk: Chunk) -> tuple[pl.DataFrame, list[Reject]]:
    numbers, strings = columns_to_read(job, dataset)
    absent = [name for name in job.absent if name not in chunk.columns and name in numbers + strings]
    here = [[name for name in names if name not in absent] for names in (numbers, strings)]
    check_columns(chunk.source, chunk.columns, here[0] + here[1], job.schema)
    table, rejects = read_chunk(chunk, job.schema, *here)
    nothing = [pl.lit(None, pl.Float64 if name in numbers else pl.String).alias(name) for name in absent]
    return table.with_columns(nothing), rejects


def _write_rows(job: Job, table: pl.DataFrame, label: U8, split: U8, first_row: int, folder: Path) -> dict[str, Any]:
    schema = job.schema
    train = split == 0
    scope = np.ones_like(train) if job.count_all else train
    rows: dict[str, Any] = {
        "__split__": split,
        "row": table[RECORD].to_numpy().astype(np.uint64) + np.uint64(first_row),
        "label": label,
    }
    groups = 0
    if schema.user:
        rows["group"], groups = write_sides(table[schema.user], split, folder)
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
        "groups": groups,
    }


def _bag(item: RawField, column: pl.Series) -> tuple[pl.Series, npt.NDArray[np.int64]]:
    """All tokens of all bags, one behind the other, and the number of each bag."""
    # Parquet files may hold lists; text is split.
    split = column if column.dtype == pl.List else column.str.split(item.separator)
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


def _numerical(item: RawField, column: pl.Series, train: npt.NDArray[np.bool_]) -> tuple[pl.Series, dict[str, float]]:
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
