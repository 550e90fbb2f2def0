"""Splits which keep groups together, and a check which refuses leaks.

A group is whatever must not be on two sides: a patient, a subject, a person, a user. Assignments depend on
(seed, key) alone, so that they do not change with the order, the number of workers or rows added later.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, LeakError
from data_prep.common.hashing import hash_numbers

SPLITS = ("train", "valid", "test")


def check_ratios(ratios: Sequence[float] | str) -> tuple[float, ...]:
    """Refuse ratios which are negative, have no training share, or do not add up to 1.

    Args:
        ratios: three numbers, or a text such as "0.8,0.1,0.1".

    Raises:
        ConfigError: naming what is wrong.
    """
    given = ratios.strip("[]() ").replace(",", " ").split() if isinstance(ratios, str) else ratios
    try:
        shares = tuple(float(ratio) for ratio in given)
    except (TypeError, ValueError):
        shares = ()
    # Written so that a share which is not a number fails, too.
    if len(shares) != len(SPLITS) or not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6 and shares[0] > 0):
        raise ConfigError(
            f"ratios {ratios!r}: give three shares (train, valid, test) >= 0, train > 0, with sum 1, as in 0.8,0.1,0.1"
        )
    return shares


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


def merge_sides(
    hashes: Sequence[npt.NDArray[np.uint64]], sides: Sequence[npt.NDArray[np.uint8]]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Distinct groups of several tables, and all splits each of them is in.

    Args:
        hashes: per table the hash of each group.
        sides: per table the splits of each group: bit k stands for split k.

    Shape:
        hashes (N,) uint64, sides (N,) uint8 -> (G,) uint64 ascending, (G,) uint8.
    """
    joined = np.concatenate([np.zeros(0, np.uint64), *hashes])
    order = np.argsort(joined, kind="stable")
    joined = joined[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(joined), 1), bool), joined[1:] != joined[:-1]]))
    if not len(starts):
        return joined, np.zeros(0, np.uint8)
    return joined[starts], np.bitwise_or.reduceat(np.concatenate(sides)[order], starts)


def refuse_leak(what: str, name: str, count: int, advice: str = "") -> None:
    """Refuse a split which has groups on two sides.

    Args:
        what: what a group is, for the message: "patient", "user".
        name: one group which is on two sides.
        count: how many are; 0 is fine.
        advice: what to do instead of splitting by group.

    Raises:
        LeakError: naming the group and how many there are.
    """
    if count:
        raise LeakError(
            f"{what} {name!r} is in more than one of {', '.join(SPLITS)} ({count:,} such in all); "
            f"{advice or f'split by {what} so that each stays on one side'}"
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
