"""Events in file order -> events of each user in the order of time, one range of users (a bucket) at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.seqrec.times import MICRO
from data_prep.seqrec.vocabulary import codes_of

BUCKET_EVENTS = 1 << 20  # events per bucket, on average
Piece = tuple[Path, int, int]  # folder of a scattered chunk, first and last + 1 event


def bucket_bounds(users: int, events: int) -> list[int]:
    """First user of each bucket, and the number of users."""
    count = max(1, min(users, -(-events // BUCKET_EVENTS)))
    return [-(-index * users // count) for index in range(count)] + [users]


def scatter(chunk: Path, vocabularies: tuple[tuple[Path, int], ...], bounds: list[int], folder: Path) -> dict[str, Any]:
    """Events of a chunk with codes of the vocabularies, ordered by bucket.

    Args:
        chunk: its folder.
        vocabularies: folder and seed of users and of items.
        bounds: of the buckets.
        folder: gets `users.npy`, `items.npy` and `times.npy`.

    Returns:
        offsets: first event of each bucket, and the number of events.
    """
    columns: dict[str, npt.NDArray[Any]] = {}
    for side, (vocabulary, seed) in zip(("users", "items"), vocabularies, strict=True):
        tokens = pl.read_ipc(chunk / f"{side}.arrow")["token"]
        columns[side] = codes_of(tokens, vocabulary, seed)[np.load(chunk / f"{side}.npy")]
    if (chunk / "times.npy").exists():
        columns["times"] = np.load(chunk / "times.npy")
    bucket = np.searchsorted(np.asarray(bounds[1:-1]), columns["users"], side="right")
    if len(bounds) > 2:
        # 16 bits are sorted by radix, in a time that grows with their number alone.
        order = np.argsort(bucket.astype(np.uint16 if len(bounds) < 1 << 16 else np.uint32), kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=len(bounds) - 1))])
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)
    return {"offsets": offsets.tolist()}


def group(pieces: tuple[Piece, ...], duplicates: str, folder: Path) -> dict[str, Any]:
    """Events of one bucket by user, time and file order, without duplicates: `users.npy`, `items.npy`, `times.npy`.

    Args:
        pieces: where the events are, in file order.
        duplicates: see `prepare`.
        folder: where to write.

    Returns:
        How many events are left, and how many each rule took out.
    """
    names = ["users", "items"] + (["times"] if pieces and (pieces[0][0] / "times.npy").exists() else [])
    types = {"users": np.int32, "items": np.int32, "times": np.int64}
    columns = {name: _gather(pieces, name, types[name]) for name in names}
    order = _order(columns["users"], columns.get("times"))
    columns = {name: values[order] for name, values in columns.items()}
    counts = {"exact_duplicates": 0, "repeats_removed": 0}
    if duplicates != "all":
        keep, counts = _without_duplicates(columns, duplicates)
        if not keep.all():
            columns = {name: values[keep] for name, values in columns.items()}
    for name in names:
        np.save(folder / f"{name}.npy", columns[name])
    return {"events": len(columns["users"]), **counts}


def _order(users: npt.NDArray[np.int32], times: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """The order by user, time and place.

    Shape:
        users, times (N,) -> (N,) int64.
    """
    key = users.astype(np.int64)
    if times is not None and len(times):
        low = int(times.min())
        steps = times - low
        if not (steps % MICRO).any():
            steps //= MICRO
        bits, base = int(steps.max()).bit_length(), int(users.min())
        if bits + (int(users.max()) - base).bit_length() > 63:
            return np.lexsort((times, users))
        key = ((key - base) << bits) | steps  # one number sorts several times as fast as two
    return _stable_order(key)


def _stable_order(key: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The stable order of numbers: a fast sort which is not stable, then equal numbers are put back in place.

    Shape:
        key (N,) int64 -> (N,) int64.
    """
    order = np.argsort(key)
    ascending = key[order]
    same = ascending[1:] == ascending[:-1]
    tied = np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same])) if len(key) else order
    order[tied] = order[tied][np.lexsort((order[tied], ascending[tied]))]
    return order


def _without_duplicates(
    columns: dict[str, npt.NDArray[Any]], duplicates: str
) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Which of the ordered events stay, and how many each rule took out."""
    pairs = (columns["users"].astype(np.int64) << 32) | columns["items"]
    ascending = np.sort(pairs)
    repeated = ascending[1:][ascending[1:] == ascending[:-1]]
    keep = np.ones(len(pairs), bool)
    counts = {"exact_duplicates": 0, "repeats_removed": 0}
    # Few events, mostly: only those whose user and item meet more than once.
    among = np.flatnonzero(np.isin(pairs, repeated, kind="sort")) if len(repeated) else np.zeros(0, np.int64)
    table = pl.DataFrame({"place": among, "pair": pairs[among]})
    if "times" in columns:
        table = table.with_columns(pl.Series("time", columns["times"][among]))
        table = table.filter(pl.struct("pair", "time").is_first_distinct())
        counts["exact_duplicates"] = len(among) - table.height
    if duplicates in ("first", "last"):
        before = table.height
        pair = pl.col("pair")
        table = table.filter(pair.is_first_distinct() if duplicates == "first" else pair.is_last_distinct())
        counts["repeats_removed"] = before - table.height
    keep[among] = False
    keep[table["place"].to_numpy()] = True
    return keep, counts


def _gather(pieces: tuple[Piece, ...], name: str, kind: type) -> npt.NDArray[Any]:
    parts = [np.load(folder / f"{name}.npy", mmap_mode="r")[start:stop] for folder, start, stop in pieces]
    return np.concatenate([np.zeros(0, kind), *parts])
