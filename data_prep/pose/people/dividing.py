"""Which split each image is in, and images that are there more than once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, LeakError
from data_prep.common.splits import SPLITS, assign_stratified, check_ratios, refuse_shared

RATIOS = (0.8, 0.1, 0.1)
VALID_SHARE = 0.1
DUPLICATES = ("auto", "report", "drop", "refuse")
Border = tuple[str, str]  # an earlier and a later split
BORDERS: tuple[Border, ...] = tuple(combinations(SPLITS, 2))
PAIRS = {
    "first": pl.String,
    "first_split": pl.String,
    "first_dropped": pl.Boolean,
    "second": pl.String,
    "second_split": pl.String,
    "second_dropped": pl.Boolean,
}


@dataclass(frozen=True)
class SplitRule:
    """What the user asked for.

    Args:
        ratios: shares of train, valid, test where the data have no split; None: 0.8, 0.1, 0.1.
        valid_share: share of the training groups that become the validation split; None: 0.1 where the data have a
            test split and no validation, else none.
        seed: of what is drawn.
    """

    ratios: Sequence[float] | None = None
    valid_share: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """How images were divided.

    Args:
        splits: name for each image.
        entry: the `split_rule` entry of `dataset.json`.
        drawn: borders that were drawn here.
        test_is_valid: there is no test split of its own: that for validation is taken for both.
    """

    splits: tuple[str, ...]
    entry: dict[str, Any]
    drawn: tuple[Border, ...]
    test_is_valid: bool = False


def divide(images: pl.DataFrame, rule: SplitRule, group: str, where: str, *, spare: bool) -> Split:
    """Divide images group by group; splits that come with the data are kept.

    Args:
        images: with the columns split (empty: to be drawn), group, path.
        rule: what the user asked for.
        group: what a group is, for messages.
        where: the file that given splits come from, for messages.
        spare: whether training images may be spared for validation although nobody asks for it.

    Raises:
        ConfigError: an option does not go with the data.
        LeakError: a group is in two given splits.
    """
    given = images["split"].to_list()
    if any(given):
        if rule.ratios is not None:
            raise ConfigError("ratios: the data come with a split of their own; see valid_share for validation")
        split = _keep(images, given, rule, spare=spare)
    else:
        if rule.valid_share is not None:
            raise ConfigError("valid_share: goes with data that have a split; here, give ratios")
        split = _draw(images, rule)
    refuse_shared(group, images["group"].to_list(), split.splits, images["path"].to_list(), "image", where)
    return split


def _draw(images: pl.DataFrame, rule: SplitRule) -> Split:
    ratios = check_ratios(rule.ratios if rule.ratios is not None else RATIOS)
    names = [name for name, share in zip(SPLITS, ratios, strict=True) if share > 0]
    parts = _assign(images, [share for share in ratios if share > 0], rule.seed)
    entry = {"kind": "drawn", "ratios": list(ratios), "seed": rule.seed}
    return Split(tuple(names[part] for part in parts), entry, BORDERS)


def _keep(images: pl.DataFrame, given: list[str], rule: SplitRule, *, spare: bool) -> Split:
    has = {name: name in given for name in SPLITS}
    share = rule.valid_share
    if share is None:
        share = VALID_SHARE if spare and has["train"] and has["test"] and not has["valid"] else 0.0
    splits = np.array(given, dtype=object)
    if share and has["valid"]:
        if has["test"]:
            raise ConfigError("valid_share: the data come with splits for validation and for test of their own")
        splits[splits == "valid"] = "test"  # what results are published on
    if not share:
        alone = has["valid"] and not has["test"]
        entry: dict[str, Any] = {"kind": "given", **({"test": "the validation split"} if alone else {})}
        return Split(tuple(given), entry, (), alone)
    train = np.flatnonzero(splits == "train")
    if len(train):
        parts = _assign(images[train], [1 - share, share], rule.seed)
        splits[train[parts == 1]] = "valid"
    entry = {"kind": "given", "valid_share_of_train": share, "seed": rule.seed}
    return Split(tuple(splits.tolist()), entry, (("train", "valid"),))


def _assign(images: pl.DataFrame, shares: Sequence[float], seed: int) -> Any:
    groups = images["group"].to_list()
    return assign_stratified(groups, [""] * len(groups), shares, seed=seed)


@dataclass(frozen=True)
class Duplicates:
    """Images of the same pixels.

    Args:
        table: of k copies k - 1 pairs with the first of them.
        dropped: images that are left out.
        summary: the `duplicates` entry of `dataset.json`.
    """

    table: pl.DataFrame
    dropped: pl.Series
    summary: dict[str, Any]


def find_duplicates(images: pl.DataFrame, rule: str, drawn: Sequence[Border]) -> Duplicates:
    """Find images with the same digest, and decide which are left out.

    An image that is in a later split, too, is dropped from the earlier one, so that what is tested stays whole: at
    borders that were drawn here (`auto`), at all (`drop`), or at none (`report`).

    Args:
        images: with the columns path, split, digest.
        rule: one of `DUPLICATES`.
        drawn: borders of splits that were not given with the data.

    Raises:
        LeakError: under the rule `refuse`, one image is in two splits.
    """
    rows = images.select("path", "split", "digest").with_row_index("at")
    several = rows.filter(pl.len().over("digest") > 1)
    members: dict[bytes, list[tuple[int, str, str]]] = {}
    for at, path, split, digest in several.iter_rows():
        members.setdefault(digest, []).append((at, path, split))
    borders = {"auto": tuple(drawn), "drop": BORDERS}.get(rule, ())
    dropped = np.zeros(len(images), bool)
    across: Counter[str] = Counter()
    for copies in members.values():
        held = {split for _, _, split in copies}
        across.update("-".join(border) for border in BORDERS if held.issuperset(border))
        for earlier, later in borders:
            if later in held:
                dropped[[at for at, _, split in copies if split == earlier]] = True
    pairs = [
        (copies[0][1], copies[0][2], bool(dropped[copies[0][0]]), path, split, bool(dropped[at]))
        for copies in members.values()
        for at, path, split in copies[1:]
    ]
    table = pl.DataFrame(pairs, schema=PAIRS, orient="row")
    crossing = table.filter(pl.col("first_split") != pl.col("second_split"))
    if rule == "refuse" and len(crossing):
        one = crossing.row(0, named=True)
        raise LeakError(
            f"image {one['first']!r} ({one['first_split']}) and {one['second']!r} ({one['second_split']}) have the same"
            f" pixels ({len(crossing):,} such pairs in all); use --duplicates drop, or mend the split"
        )
    lost = Counter(images["split"].filter(pl.Series(dropped)).to_list())
    summary = {
        "rule": rule,
        "copies": len(pairs),
        "across": dict(sorted(across.items())),
        "dropped": {split: lost[split] for split in SPLITS if lost[split]},
    }
    return Duplicates(table, pl.Series(dropped), summary)
