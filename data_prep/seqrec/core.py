"""The k-core: the largest set of users and items in which each has at least k events with the others of the set."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.seqrec.vocabulary import I32, read_tokens

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
_REWRITE = 0.8  # a bucket is written anew when so little of it is left, so that later rounds read less


@dataclass
class Core:
    """A fixed point.

    Args:
        users: events of each user.
        items: events of each item; 0 for those left out.
        rounds: rounds until nothing changed.
    """

    users: I64
    items: I64
    rounds: int


def k_core(buckets: list[Path], bounds: list[int], n_items: int, k: int, scratch: Path) -> Core:
    """Remove users and items with fewer than k events until none is left that has.

    Memory is that of the counts and of one bucket. The fixed point is unique, whatever the order of removal.

    Args:
        buckets: folders with `users.npy` and `items.npy`.
        bounds: first user of each bucket, and the number of users.
        n_items: items in all.
        k: events needed; 0 or 1 keeps everything.
        scratch: folder for what is left of a bucket.
    """
    users = np.zeros(bounds[-1], np.int64)
    alive = np.ones(n_items, bool)
    places = list(buckets)
    rounds = 0
    while True:
        rounds += 1
        items = np.zeros(n_items, np.int64)
        for index, (low, high) in enumerate(pairwise(bounds)):
            user, item = (np.load(places[index] / f"{name}.npy", mmap_mode="r") for name in ("users", "items"))
            size = len(user)
            user, item, users[low:high] = _one_round(user - np.int32(low), item, alive, high - low, k)
            items += np.bincount(item, minlength=n_items)
            if len(user) < _REWRITE * size:
                places[index] = scratch / f"{rounds:04d}-{index:05d}"
                places[index].mkdir(parents=True)
                np.save(places[index] / "users.npy", user + np.int32(low))
                np.save(places[index] / "items.npy", item)
        alive = items >= max(k, 1)
        # Users were counted before the items of this round were: it ends when no item goes.
        if not (items[~alive] > 0).any():
            return Core(users, items, rounds)


def _one_round(user: I32, item: I32, alive: Bool, n_users: int, k: int) -> tuple[I32, I32, I64]:
    keep = alive[item]
    user, item = user[keep], item[keep]
    counts = np.bincount(user, minlength=n_users)
    enough = counts >= max(k, 1)
    keep = enough[user]
    return user[keep], item[keep], counts * enough


def find_core(
    buckets: tuple[Path, ...], bounds: list[int], vocabulary: Path, n_items: int, k: int, folder: Path
) -> dict[str, Any]:
    """Filter, and number what is left: `users.npy` and `items.npy` (new id or -1 per code), `items.arrow`.

    Items are numbered by count descending, then token; users in the order of their tokens.

    Args:
        buckets: folders of the grouped events.
        bounds: first user of each bucket, and the number of users.
        vocabulary: folder of the items' vocabulary.
        n_items: its size.
        k: of the core.
        folder: where to write.
    """
    scratch = folder / "left"
    core = k_core(list(buckets), bounds, n_items, k, scratch)
    for path in sorted(scratch.rglob("*.npy")):
        path.unlink()
    number_users(core.users > 0, folder)
    # A stable sort of codes in token order leaves tokens ascending where counts are equal.
    order = np.argsort(-core.items, kind="stable")[: int((core.items > 0).sum())]
    ids = np.full(n_items, -1, np.int32)
    ids[order] = np.arange(len(order), dtype=np.int32)
    np.save(folder / "items.npy", ids)
    tokens = read_tokens(vocabulary).gather(order)
    pl.DataFrame({"token": tokens, "events": core.items[order]}).write_ipc(folder / "items.arrow")
    return {
        "users": int((core.users > 0).sum()),
        "items": len(order),
        "events": int(core.users.sum()),
        "rounds": core.rounds,
    }


def number_users(alive: Bool, folder: Path) -> None:
    """Write `users.npy`: the new id of each user that is left, -1 for the others."""
    ids = np.where(alive, np.cumsum(alive) - 1, -1).astype(np.int32)
    np.save(folder / "users.npy", ids)


def match_items(
    buckets: tuple[Path, ...], bounds: list[int], vocabulary: Path, n_items: int, saved: Path, folder: Path
) -> dict[str, Any]:
    """Number items as a preparation did, and users with at least one of them: `users.npy`, `items.npy`.

    Args:
        buckets: folders of the grouped events.
        bounds: first user of each bucket, and the number of users.
        vocabulary: folder of the new log's items.
        n_items: its size.
        saved: `items.parquet` of the preparation.
        folder: where to write.
    """
    tokens = read_tokens(vocabulary).to_frame()
    found = tokens.join(
        pl.read_parquet(saved, columns=["item", "token"], memory_map=False),
        on="token",
        how="left",
        maintain_order="left",
    )
    ids = found["item"].fill_null(-1).to_numpy().astype(np.int32)
    np.save(folder / "items.npy", ids)
    users = np.zeros(bounds[-1], np.int64)
    for bucket in buckets:
        user, item = (np.load(bucket / f"{name}.npy", mmap_mode="r") for name in ("users", "items"))
        users += np.bincount(user[ids[item] >= 0], minlength=bounds[-1])
    number_users(users > 0, folder)
    return {
        "users": int((users > 0).sum()),
        "unknown_items": int((ids < 0).sum()),
        "events": int(users.sum()),
    }
