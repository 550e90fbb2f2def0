"""Splits which keep groups together, and a check which refuses leaks.

A group is whatever must not be on two sides: a patient, a subject, a person, a user. Assignments depend on
(seed, key) alone, so that they do not change with the order, the number of workers or rows added later.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, LeakError
from data_prep.common.hashing import hash_numbers, hash_strings

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


def assign_stratified(
    groups: Sequence[str],
    classes: Sequence[str],
    shares: Sequence[float],
    *,
    sites: Sequence[str] | None = None,
    seed: int = 0,
) -> npt.NDArray[np.int64]:
    """Part of each row, so that every group stays whole and all parts have the same mixture of classes and sites.

    The rarest class is divided first. Its groups, ordered by site and size, go one after another to the part which has
    the fewest groups of the class for its share (highest averages, Sainte-Lague), of equal ones to that with the fewest
    rows: so every site and every size is spread, too. A part that has none of a class gets one before there are
    too few left. This is iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011) over groups; it depends on
    seed, names, classes and sites alone, not on the order of rows. scikit-learn's `StratifiedGroupKFold` depends on
    that order, takes no shares, and can leave a part without a class.

    Args:
        groups: group of each row.
        classes: class of each row; a group may have rows of several.
        shares: share of each part, > 0; equal ones make folds.
        sites: site of each row, if known; a group counts for the first of its sites by name.
        seed: another seed gives another division.

    Returns:
        (N,) int64, index into `shares`. A class whose groups all have no other class is in every part, if it has at
        least as many groups as there are parts.
    """
    rows, held, place = Counter(groups), defaultdict[str, set[str]](set), dict[str, str]()
    for index, group in enumerate(groups):
        held[group].add(classes[index])
        site = sites[index] if sites is not None else ""
        place[group] = min(place.get(group, site), site)
    names = sorted(rows)
    draw = dict(zip(names, hash_strings(names, seed).tolist(), strict=True))
    # By powers of two: groups of about one size change places with the seed.
    names.sort(key=lambda name: (place[name], -rows[name].bit_length(), draw[name], name))
    lots = hash_numbers(np.arange(len(shares), dtype=np.uint64), seed).tolist()
    total = [0] * len(shares)
    counts = {name: [0] * len(shares) for name in sorted(set(classes))}
    found: dict[str, int] = {}
    rarity = Counter(name for group in names for name in held[group])
    for name in sorted(counts, key=lambda name: (rarity[name], name)):
        left = [group for group in names if name in held[group] and group not in found]
        for position, group in enumerate(left):
            empty = [part for part in range(len(shares)) if not counts[name][part]]
            open_parts = empty if empty and len(left) - position <= len(empty) else range(len(shares))
            found[group] = min(
                open_parts,
                key=lambda part: (
                    round((counts[name][part] + 0.5) / shares[part], 9),
                    round(total[part] / shares[part], 9),
                    lots[part],
                ),
            )
            total[found[group]] += rows[group]
            for other in held[group]:
                counts[other][found[group]] += 1
    return np.array([found[group] for group in groups], dtype=np.int64)


def refuse_shared(
    what: str, groups: Sequence[str], sides: Sequence[str], members: Sequence[str], member: str, where: str = ""
) -> None:
    """Refuse a split which has a group on two sides, and say which of its members are where.

    Args:
        what: what a group is, for the message: "patient", "subject".
        groups: group of each row.
        sides: split of each row; rows without one ("") do not count.
        members: name of each row.
        member: what a row is, for the message: "slide", "image".
        where: the file or rule that the split comes from, for the message.

    Raises:
        LeakError: naming the first such group with its members, and how many groups there are.
    """
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for group, side, name in zip(groups, sides, members, strict=True):
        if side:
            found[group][side].append(name)
    shared = sorted(group for group, split in found.items() if len(split) > 1)
    if shared:
        places = [
            f"{side} ({member}{'s' if len(names) > 1 else ''} {_few(names)})"
            for side, names in sorted(found[shared[0]].items(), key=lambda item: _rank(item[0]))
        ]
        begin = f"{where}: " if where else ""
        raise LeakError(
            f"{begin}{what} {shared[0]!r} is in {' and in '.join(places)}; {len(shared):,} of {len(found):,} {what}s "
            f"are in more than one split: put all {member}s of a {what} into one split, or let heptad split by {what}"
        )


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(sorted(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _rank(side: str) -> tuple[int, str]:
    return (SPLITS.index(side) if side in SPLITS else len(SPLITS), side)
