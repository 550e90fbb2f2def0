"""Images that occur more than once: which, in which splits, and what becomes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.errors import LeakError
from data_prep.common.fingerprints import I64, U8, find_near
from data_prep.common.splits import SPLITS

RULES = ("auto", "report", "drop", "refuse")
Border = tuple[str, str]  # an earlier and a later split
BORDERS: tuple[Border, ...] = tuple(combinations(SPLITS, 2))
UNIT = "patient"
SCHEMA = {
    "group": pl.UInt32,  # images that are duplicates of each other, over several steps too
    "kind": pl.String,  # exact or near
    "first": pl.String,
    "first_split": pl.String,
    "first_label": pl.String,
    "first_dropped": pl.Boolean,
    "second": pl.String,
    "second_split": pl.String,
    "second_label": pl.String,
    "second_dropped": pl.Boolean,
    "same_unit": pl.Boolean,  # named after the unit: same_patient, same_subject, ...
    "distance": pl.UInt8,  # bits of the perceptual hash
    "correlation": pl.Float32,  # of the ranks of the thumbnails' pixels
}


class Duplicates(NamedTuple):
    """What was found.

    Args:
        table: one row for each pair; of k exact copies k - 1 pairs with the first of them.
        dropped: rows that are to be left out.
        summary: the `duplicates` entry of `dataset.json`.
    """

    table: pl.DataFrame
    dropped: npt.NDArray[np.bool_]
    summary: dict[str, Any]


def find_duplicates(
    frame: pl.DataFrame,
    thumbnails: Callable[[I64], U8],
    rule: str,
    drawn: Collection[Border],
    unit: str = UNIT,
) -> Duplicates:
    """Find exact and near duplicates, and decide which images are left out.

    An image that is in a later split, too, is dropped from the earlier one (train, valid, test in this order), so what
    is tested stays whole: at borders that were drawn here (`auto`), at all (`drop`), or at none (`report`).

    Args:
        frame: images with the columns name, split, label, digest, hash, and one for whom or what they show.
        thumbnails: gives those of some rows.
        rule: one of `RULES`.
        drawn: borders of splits that were not given with the data.
        unit: name of that column.

    Raises:
        LeakError: under the rule `refuse`, one image is in two splits.
    """
    digests = frame["digest"].rank("dense").to_numpy().astype(np.int64) if len(frame) else np.zeros(0, np.int64)
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[group] != np.arange(len(frame)))
    exact = np.stack([first[group][copies], copies], axis=1)
    near = find_near(frame["hash"].to_numpy()[first], lambda rows: thumbnails(first[rows]))
    close = np.sort(np.stack([first[near.first], first[near.second]], axis=1), axis=1)
    pairs = np.concatenate([exact, close]).astype(np.int64)
    component = _components(len(frame), pairs)
    split = np.array([SPLITS.index(name) for name in frame["split"]], dtype=np.int64)
    borders = {"auto": tuple(drawn), "drop": BORDERS}.get(rule, ())
    dropped = _drop(component, split, borders)
    values = {
        "kind": ["exact"] * len(exact) + ["near"] * len(close),
        "distance": np.concatenate([np.zeros(len(exact), np.uint8), near.distance]),
        "correlation": np.concatenate([np.ones(len(exact), np.float32), near.correlation]),
    }
    table = _table(frame, pairs, component, dropped, values, unit)
    across = table.filter(pl.col("first_split") != pl.col("second_split"))
    if rule == "refuse" and len(across):
        one = across.row(0, named=True)
        raise LeakError(
            f"image {one['first']!r} ({one['first_split']}) and {one['second']!r} ({one['second_split']}) are "
            f"{one['kind']} duplicates ({len(across):,} such pairs in all); use --duplicates drop, or mend the split"
        )
    return Duplicates(table, dropped, _summarise(table, frame, group, rule, dropped))


def _components(count: int, pairs: I64) -> I64:
    """Smallest row of the set that each row belongs to, pairs being links."""
    root = np.arange(count)
    while True:
        low = np.minimum(root[pairs[:, 0]], root[pairs[:, 1]])
        after = root.copy()
        np.minimum.at(after, pairs[:, 0], low)
        np.minimum.at(after, pairs[:, 1], low)
        after = after[after]
        if np.array_equal(after, root):
            return after
        root = after


def _drop(component: I64, split: I64, borders: Collection[Border]) -> npt.NDArray[np.bool_]:
    held = np.zeros((len(component), len(SPLITS)), bool)
    held[component, split] = True
    dropped = np.zeros(len(component), bool)
    for earlier, later in borders:
        dropped |= (split == SPLITS.index(earlier)) & held[component, SPLITS.index(later)]
    return dropped


def _table(
    frame: pl.DataFrame,
    pairs: I64,
    component: I64,
    dropped: npt.NDArray[np.bool_],
    values: dict[str, Any],
    unit: str,
) -> pl.DataFrame:
    sides: dict[str, Any] = {}
    for name, rows in (("first", pairs[:, 0]), ("second", pairs[:, 1])):
        part = frame[rows]
        sides |= {name: part["name"], f"{name}_split": part["split"], f"{name}_label": part["label"]}
        sides |= {f"{name}_dropped": dropped[rows], f"{name}_unit": part[unit]}
    _, number = np.unique(component[pairs[:, 0]], return_inverse=True)
    table = pl.DataFrame({"group": number, **sides, **values})
    table = table.with_columns(same_unit=pl.col("first_unit") == pl.col("second_unit"))
    table = table.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    return table.sort("group", "kind", "first", "second").rename({"same_unit": f"same_{unit}"})


def _summarise(
    table: pl.DataFrame, frame: pl.DataFrame, group: I64, rule: str, dropped: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    counts = pl.DataFrame({"group": group, "split": frame["split"]}).group_by("group", "split").len()
    wide: dict[int, dict[str, int]] = {}
    for number, split, copies in counts.iter_rows():
        wide.setdefault(number, {})[split] = copies
    within: Counter[str] = Counter()
    across: dict[str, Counter[str]] = {"-".join(border): Counter() for border in BORDERS}
    for held in wide.values():
        within.update({split: copies - 1 for split, copies in held.items()})
        for border in BORDERS:
            if all(split in held for split in border):
                across["-".join(border)].update({split: held[split] for split in border})
    near: Counter[str] = Counter()
    for one, other in table.filter(pl.col("kind") == "near").select("first_split", "second_split").iter_rows():
        near["-".join(sorted({one, other}, key=SPLITS.index))] += 1
    conflicts = table.filter(pl.col("first_label") != pl.col("second_label"))["group"].n_unique()
    lost = Counter(frame["split"].filter(pl.Series(dropped)).to_list())
    return {
        "rule": rule,
        "exact": {
            "repeats_within": {split: within[split] for split in SPLITS},
            "images_across": {name: dict(sorted(found.items())) for name, found in across.items() if found},
        },
        "near_pairs": dict(sorted(near.items())),
        "groups_with_several_labels": conflicts,
        "dropped": {split: lost[split] for split in SPLITS if lost[split]},
    }


def tell(summary: dict[str, Any]) -> str:
    """One line about what crosses the borders of the splits, or "" if nothing does."""
    crossing = [
        f"{' and '.join(f'{count:,} of {split}' for split, count in found.items())} are the same"
        for found in summary["exact"]["images_across"].values()
    ]
    crossing += [f"{count:,} near pairs {name}" for name, count in summary["near_pairs"].items() if "-" in name]
    if not crossing:
        return ""
    dropped = ", ".join(f"{count:,} of {split}" for split, count in summary["dropped"].items())
    return f"duplicates across splits: {'; '.join(crossing)}; left out: {dropped or 'none'}; see duplicates.parquet"
