"""What the columns with a role say about each record: its label, its time, its split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.splits import SPLITS, assign_hashed, assign_times
from data_prep.ctr.chunks import Chunk
from data_prep.ctr.job import Job
from data_prep.ctr.read import RECORD
from data_prep.ctr.tokens import group_hashes

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
Bad = list[tuple[int, str, str]]  # record number inside the chunk, field, reason
_ISO_8601 = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
# A time of day, then Z or an offset: +05:30, +0530 or +05. The sign of a date alone is no offset.
_OFFSET = r"^(.*\d:\d\d(?:[:.,\d]*))\s*(?:[Zz]|([+-])(\d\d):?(\d\d)?)$"


def train_labels(job: Job, table: pl.DataFrame) -> tuple[pl.DataFrame, U8, Bad, int]:
    """Records with a usable label, their labels, the others, and how many lie exactly at the threshold."""
    rule = job.schema.label
    values = table[rule.column].fill_null(np.nan).to_numpy()
    label, wrong = _threshold(values, rule.threshold)
    bad: Bad = []
    if wrong.any():
        found = table[RECORD].to_numpy()
        for index in np.flatnonzero(wrong).tolist():
            reason = "label is missing" if np.isnan(values[index]) else "label is not 0 or 1"
            bad.append((int(found[index]), rule.column, reason))
    keep, dropped = ~wrong, 0
    if rule.threshold is not None and rule.drop_equal:
        equal = values == rule.threshold
        dropped = int(equal.sum())
        keep &= ~equal
    if not keep.all():
        table, label = table.filter(pl.Series(keep)), label[keep]
    return table, label.astype(np.uint8), bad, dropped


def score_labels(job: Job, table: pl.DataFrame) -> tuple[U8, int]:
    """Labels of records to be scored, 0 where unusable, and how many are; a label at the threshold is 0."""
    if not job.labelled:
        return np.zeros(table.height, dtype=np.uint8), 0
    column = table[job.schema.label.column]
    if column.dtype == pl.String:
        text = column.str.strip_chars().str.to_lowercase().replace({"true": "1", "false": "0"})
        column = text.cast(pl.Float64, strict=False)
    values = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    label, wrong = _threshold(values, job.schema.label.threshold)
    return (label & ~wrong).astype(np.uint8), int(wrong.sum())


def _threshold(values: F64, threshold: float | None) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether each label is positive, and whether it cannot be used."""
    if threshold is None:
        return values == 1, ~((values == 0) | (values == 1))
    return values > threshold, np.isnan(values)


def read_time(column: pl.Series) -> F64:
    """Times as float64: numbers as they are, ISO 8601 as seconds since 1970 (UTC where it names no offset); else NaN.

    Shape:
        column (N,) of numbers or String -> (N,) float64.
    """
    if column.dtype != pl.String:
        return column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    values = column.cast(pl.Float64, strict=False)
    if values.null_count() > column.null_count():
        parts = (
            column.str.strip_chars()
            .to_frame("text")
            .with_columns(*(pl.col("text").str.extract(_OFFSET, group).alias(str(group)) for group in range(1, 5)))
        )
        hours, minutes = (pl.col(name).cast(pl.Int64).fill_null(0) for name in ("3", "4"))
        parts = parts.with_columns(
            pl.coalesce("1", "text").str.replace("[Tt]", " ").str.replace(",", ".", literal=True).alias("plain"),
            (pl.when(pl.col("2") == "-").then(-1).otherwise(1) * (hours * 3600 + minutes * 60)).alias("ahead"),
        )
        for form in _ISO_8601:
            found = parts["plain"].str.to_datetime(form, strict=False, time_unit="us")
            values = values.fill_null(found.dt.epoch("us").cast(pl.Float64) / 1e6 - parts["ahead"])
    return values.fill_null(np.nan).to_numpy()


def assign_splits(job: Job, chunk: Chunk, table: pl.DataFrame, first_row: int) -> tuple[U8, Bad]:
    """Split index of each record, and the records for which there is none.

    Args:
        job: has the rule.
        chunk: where the records are.
        table: the records.
        first_row: number of the chunk's first record over all sources.
    """
    rule, schema = job.split, job.schema
    bad: Bad = []
    if rule.kind == "random":
        split = assign_hashed(table[RECORD].to_numpy().astype(np.uint64) + np.uint64(first_row), rule.ratios, rule.seed)
    elif rule.kind == "user":
        split = assign_hashed(group_hashes(table[schema.user]), rule.ratios, rule.seed)
    elif rule.kind == "time":
        times = read_time(table[schema.time])
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
    return split, bad


def _unusable(table: pl.DataFrame, wrong: npt.NDArray[np.bool_], name: str, reason: str) -> Bad:
    return [(int(record), name, reason) for record in table[RECORD].to_numpy()[wrong]]


def time_ranges(times: F64, split: U8) -> list[list[float] | None]:
    """Earliest and latest time of each split; None for one without records."""
    parts = [times[split == index] for index in range(len(SPLITS))]
    return [[float(part.min()), float(part.max())] if len(part) else None for part in parts]
