"""Splits which keep groups together, and a check which refuses leaks.

A group is whatever must not be on two sides: a patient, a subject, a person, a user. Assignments depend on
(seed, key) alone, so that they do not change with the order, the number of workers or rows added later.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.errors import ConfigError, LeakError
from data_prep.common.hashing import hash_numbers, hash_strings

SPLITS = ("train", "valid", "test")


def check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """Refuse ratios which are negative, have no training share, or do not add up to 1.

    Raises:
        ConfigError: naming what is wrong.
    """
    if (
        len(ratios) != len(SPLITS)
        or any(ratio < 0 for ratio in ratios)
        or abs(sum(ratios) - 1) > 1e-6
        or ratios[0] <= 0
    ):
        raise ConfigError(f"ratios {tuple(ratios)}: give three shares (train, valid, test) >= 0, train > 0, with sum 1")
    return tuple(float(ratio) for ratio in ratios)


def assign_hashed(hashes: npt.NDArray[np.uint64], ratios: Sequence[float], seed: int = 0) -> npt.NDArray[np.uint8]:
    """Split index of each key by a seeded hash; equal keys always fall together.

    Args:
        hashes: one number per row: its group's stable hash, or its row number.
        ratios: shares of train, valid, test.
        seed: another seed gives another split.

    Shape:
        hashes (N,) uint64 -> (N,) uint8, 0 = train, 1 = valid, 2 = test.
    """
    bounds = np.cumsum(check_ratios(ratios))[:-1]
    # 53 bits: the most a float64 holds exactly.
    uniform = (hash_numbers(hashes, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(bounds, uniform, side="right").astype(np.uint8)


def assign_groups(groups: Sequence[str], ratios: Sequence[float], seed: int = 0) -> list[str]:
    """Split name of each group key.

    Args:
        groups: one key per row; equal keys fall together.
        ratios: shares of train, valid, test, of the groups.
        seed: another seed gives another split.
    """
    return [SPLITS[index] for index in assign_hashed(hash_strings(list(groups)), ratios, seed)]


def time_thresholds(
    times: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], ratios: Sequence[float]
) -> list[float]:
    """First time of valid and first time of test, so that equal times stay together.

    Args:
        times: distinct times, ascending, in any unit.
        counts: rows at each time.
        ratios: shares of train, valid, test, of the rows; kept as nearly as equal times allow.

    Shape:
        times (T,) float64, counts (T,) int64 -> two numbers; infinity where a split stays empty.
    """
    before = np.concatenate([[0], np.cumsum(counts)])  # rows strictly before times[i]
    thresholds = []
    for share in np.cumsum(check_ratios(ratios))[:-1]:
        index = int(np.abs(before - share * before[-1]).argmin())
        thresholds.append(float(times[index]) if index < len(times) else float("inf"))
    return thresholds


def assign_times(times: npt.NDArray[np.float64], thresholds: Sequence[float]) -> npt.NDArray[np.uint8]:
    """Split index by time: before the first threshold train, before the second valid, else test.

    Shape:
        times (N,) float64 -> (N,) uint8.
    """
    return np.searchsorted(np.asarray(thresholds), times, side="right").astype(np.uint8)


def check_no_leak(groups: Sequence[str] | pl.Series, splits: Sequence[str] | pl.Series, what: str = "group") -> None:
    """Refuse a split which has one group on two sides.

    Args:
        groups: the group key of each row.
        splits: the split name of each row.
        what: what a group is, for the message: "patient", "user".

    Raises:
        LeakError: naming a group found in two splits and how many there are.
    """
    table = pl.DataFrame({"group": groups, "split": splits}, strict=False).unique()
    leaking = table.group_by("group").agg(pl.col("split").sort()).filter(pl.col("split").list.len() > 1).sort("group")
    if leaking.height:
        name, sides = leaking.row(0)
        raise LeakError(
            f"{what} {name!r} is in {' and '.join(sides)} ({leaking.height} such in all); "
            f"split by {what} so that each stays on one side"
        )


def check_time_order(last: Sequence[float], first: Sequence[float]) -> None:
    """Refuse a time split in which a later split begins before an earlier one ends.

    Args:
        last: latest time of each split, in order.
        first: earliest time of each split, in order.

    Raises:
        LeakError: naming the two times.
    """
    for (end, _), (_, begin) in pairwise(zip(last, first, strict=True)):
        if begin <= end:
            raise LeakError(
                f"a split begins at time {begin:g}, before the previous one ends ({end:g}); split by time again"
            )
