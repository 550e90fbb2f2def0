"""Last stages: the sequences of a bucket, their splits, and the tables of users and items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data_prep.seqrec.split import Rows, SplitRule, repeated, split_rows
from data_prep.seqrec.times import MICRO
from data_prep.seqrec.vocabulary import read_tokens


def count_times(bucket: Path, ids: Path, folder: Path) -> dict[str, Any]:
    """Events of a bucket at each second: `times.npy`, `counts.npy`."""
    _, _, seconds = _load(bucket, ids)
    if seconds is None:
        raise ValueError(f"{bucket}: no times")
    times, counts = np.unique(seconds, return_counts=True)
    np.save(folder / "times.npy", times)
    np.save(folder / "counts.npy", counts)
    return {"events": len(seconds)}


def write_sequences(
    bucket: Path, ids: Path, vocabulary: Path, bounds: tuple[int, int], rule: SplitRule, timed: bool, folder: Path
) -> dict[str, Any]:
    """One row per user of a bucket: `sequences.parquet`, `users.parquet`; rows of the splits as `SPLIT.npy`.

    Also `counts.npy` (training events) and `SPLIT-targets.npy`, both as pairs of item and number.

    Args:
        bucket: folder of its events.
        ids: folder of the new ids of users and items.
        vocabulary: folder of the users' tokens.
        bounds: codes of its first and last + 1 user.
        rule: how to split.
        timed: events have times of the clock.
        folder: where to write.
    """
    users, items, seconds = _load(bucket, ids)
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(users), 1), bool), users[1:] != users[:-1]]))
    lengths = np.diff(np.append(starts, len(users)))
    owners = users[starts]
    columns = {"user": pl.Series(owners, dtype=pl.Int32), "items": _lists(items, starts)}
    if timed and seconds is not None:
        columns["times"] = _lists(seconds, starts)
    _write(pl.DataFrame(columns), folder / "sequences.parquet")
    numbers = np.load(ids / "users.npy", mmap_mode="r")[bounds[0] : bounds[1]]
    tokens = read_tokens(vocabulary, *bounds).filter(pl.Series(numbers >= 0))
    counted = pl.Series(lengths, dtype=pl.Int32)
    _write(pl.DataFrame({"user": columns["user"], "token": tokens, "events": counted}), folder / "users.parquet")
    rows, ends = split_rows(rule, lengths, seconds)
    again = repeated(users, items)
    position = np.arange(len(items)) - np.repeat(starts, lengths)
    np.save(folder / "counts.npy", _pairs(items[position < np.repeat(ends, lengths)]))
    repeats: dict[str, int] = {}
    for name, table in rows.items():
        np.save(folder / f"{name}.npy", np.stack([owners[table.sequence].astype(np.int64), *table]))
        if name not in ("train", "predict"):
            targets = starts[table.sequence] + table.end
            np.save(folder / f"{name}-targets.npy", _pairs(items[targets]))
            repeats[name] = int(again[targets].sum())
    return {
        "rows": {name: len(table.end) for name, table in rows.items()},
        "users": len(starts),
        "events": len(items),
        "train_events": int(ends.sum()),
        "repeats": int(again.sum()),
        "repeat_targets": repeats,
        "lengths": {"one": int((lengths == 1).sum()), "two": int((lengths == 2).sum())},
        "times": _ranges(rule, rows, starts, ends, lengths, seconds),
    }


def _ranges(
    rule: SplitRule, rows: dict[str, Rows], starts: Any, ends: Any, lengths: Any, seconds: Any
) -> dict[str, list[int]]:
    """First and last second of the training events and of the targets of each split."""
    if rule.kind != "time" or seconds is None or not len(starts):
        return {}
    position = np.arange(len(seconds)) - np.repeat(starts, lengths)
    found = {"train": seconds[position < np.repeat(ends, lengths)]}
    found |= {name: seconds[starts[table.sequence] + table.end] for name, table in rows.items() if name != "train"}
    return {name: [int(values.min()), int(values.max())] for name, values in found.items() if len(values)}


def write_rows(made: Path, firsts: dict[str, int], folder: Path) -> dict[str, Any]:
    """The splits of a bucket with row numbers over all buckets: `SPLIT.parquet`."""
    for name, first in firsts.items():
        user, sequence, train_end, end = np.load(made / f"{name}.npy")
        columns = {"row": pl.Series(first + np.arange(len(end)), dtype=pl.Int64)}
        for column, values in (("user", user), ("sequence", sequence), ("train_end", train_end), ("end", end)):
            columns[column] = pl.Series(values, dtype=pl.Int32)
        _write(pl.DataFrame(columns), folder / f"{name}.parquet")
    return {}


def write_tables(made: tuple[Path, ...], ids: Path, splits: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """`items.parquet` with training counts, and `users.parquet`.

    Args:
        made: folders of all buckets.
        ids: folder with `items.arrow`; without it (new logs) no table of items is written.
        splits: splits that have targets.
        folder: where to write.

    Returns:
        Per split, targets that never occur in training; and items that never do.
    """
    _write(pl.concat([pl.read_parquet(path / "users.parquet") for path in made]), folder / "users.parquet")
    if not (ids / "items.arrow").exists():
        return {}
    known = pl.read_ipc(ids / "items.arrow")
    counts = _total(made, "counts", known.height)
    columns = {"item": pl.Series(np.arange(known.height), dtype=pl.Int32), "token": known["token"]}
    _write(pl.DataFrame({**columns, "count": pl.Series(counts, dtype=pl.Int64)}), folder / "items.parquet")
    cold = {name: int(_total(made, f"{name}-targets", known.height)[counts == 0].sum()) for name in splits}
    return {"cold_targets": cold, "items_never_trained": int((counts == 0).sum())}


def _load(bucket: Path, ids: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64] | None]:
    """Events that are left, with new ids: user, item, seconds (None where there are no times)."""
    users = np.load(ids / "users.npy", mmap_mode="r")[np.load(bucket / "users.npy")]
    items = np.load(ids / "items.npy", mmap_mode="r")[np.load(bucket / "items.npy")]
    keep = (users >= 0) & (items >= 0)
    path = bucket / "times.npy"
    return users[keep], items[keep], np.load(path)[keep] // MICRO if path.exists() else None


def _total(made: tuple[Path, ...], name: str, size: int) -> npt.NDArray[np.int64]:
    total = np.zeros(size, np.int64)
    for path in made:
        item, number = np.load(path / f"{name}.npy")
        total[item] += number
    return total


def _pairs(items: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    counts = np.bincount(items) if len(items) else np.zeros(0, np.int64)
    found = np.flatnonzero(counts)
    return np.stack([found, counts[found]])


def _lists(values: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> pl.Series:
    offsets = pa.array(np.append(starts, len(values)), pa.int64())
    column = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, pa.array(values)))
    if not isinstance(column, pl.Series):
        raise TypeError("a list column became a table")
    return column


def _write(table: pl.DataFrame, path: Path) -> None:
    table.write_parquet(path, compression="zstd", statistics=False)
