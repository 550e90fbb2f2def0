"""Which split each picture is in: as the data say, or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.hashing import hash_strings
from data_prep.common.image_duplicates import BORDERS, Border
from data_prep.common.splits import SPLITS, assign_stratified, check_ratios, refuse_shared
from data_prep.finegrained.records import GALLERY, QUERY
from data_prep.finegrained.roles import Seen, draw_roles

RATIOS = (0.8, 0.1, 0.1)  # of the pictures of each class
IDENTITY_RATIOS = (0.5, 0.0, 0.5)  # of identities, as in the usual benchmarks
VALID_SHARE = 0.1
FEW_IDENTITIES = 10  # a tenth of which is too little to validate on


@dataclass(frozen=True)
class SplitRule:
    """What the user asked for.

    Args:
        ratios: shares of train, valid, test where the data have no split: of the pictures of each class, or of
            identities.
        valid_share: classes: share of the training pictures that become the validation split; None: 0.1.
        valid_identities: identities: so many training identities are held out for validation; None: see
            `held_out_of`.
        queries: of each identity and camera, where the data do not say which pictures are queries; None: 1, and of
            identities of the validation half of their pictures where cameras play no part.
        ignore_camera: pictures of one camera match, too.
        seed: of what is drawn.
    """

    ratios: Sequence[float] | None = None
    valid_share: float | None = None
    valid_identities: int | None = None
    queries: int | None = None
    ignore_camera: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        if self.ratios is not None:
            check_ratios(self.ratios)
        if self.valid_share is not None and not 0 <= self.valid_share < 1:
            raise ConfigError(f"valid_share {self.valid_share}: give a share from 0 up to, not including, 1")
        if self.valid_identities is not None and self.valid_identities < 0:
            raise ConfigError(f"valid_identities {self.valid_identities}: give 0 or more")
        if self.queries is not None and self.queries < 1:
            raise ConfigError(f"queries {self.queries}: give at least 1")


@dataclass(frozen=True)
class Split:
    """How pictures were divided.

    Args:
        splits: train, valid or test for each picture.
        roles: query or gallery of those of identities that are not trained on, else empty.
        entry: the `split_rule` entry of `dataset.json`.
        drawn: borders that were drawn here.
        ignore_camera: whether pictures of one camera match; why, or empty.
        remarks: lines to be told.
    """

    splits: tuple[str, ...]
    roles: tuple[str, ...]
    entry: dict[str, Any]
    drawn: tuple[Border, ...]
    ignore_camera: str = ""
    remarks: tuple[str, ...] = ()


def divide_classes(frame: pl.DataFrame, rule: SplitRule, where: str) -> Split:
    """Divide pictures so that each class has its share of each split, and groups stay whole.

    Args:
        frame: with the columns name, label, group, split.
        rule: what the user asked for.
        where: file or folder that given splits come from, for messages.

    Raises:
        LeakError: a given split has one group on two sides.
        ConfigError: an option does not go with the data.
        PrepError: nothing is left to train on.
    """
    if rule.valid_identities is not None:
        raise ConfigError("valid_identities: goes with identities; see valid_share")
    given = frame["split"].to_list()
    # A picture without a group is a group of its own.
    names = frame["name"].to_list()
    groups = [group or f"\0{name}" for group, name in zip(frame["group"].to_list(), names, strict=True)]
    if any(given):
        split = _keep_classes(frame, given, groups, rule)
    else:
        if rule.valid_share is not None:
            raise ConfigError("valid_share: goes with data that have a split without validation; here, give ratios")
        ratios = check_ratios(rule.ratios if rule.ratios is not None else RATIOS)
        sides = [name for name, share in zip(SPLITS, ratios, strict=True) if share > 0]
        shares = [share for share in ratios if share > 0]
        parts = assign_stratified(groups, frame["label"].to_list(), shares, seed=rule.seed)
        entry = {"kind": "drawn", "ratios": list(ratios), "seed": rule.seed, "stratified_by": ["label"]}
        split = Split(tuple(sides[part] for part in parts), ("",) * len(frame), entry, BORDERS)
    refuse_shared("group", groups, split.splits, names, "picture", where)
    if "train" not in split.splits:
        raise PrepError(f"{where}: no picture is left in the training split; check the lists and rejects.parquet")
    return split


def _keep_classes(frame: pl.DataFrame, given: list[str], groups: list[str], rule: SplitRule) -> Split:
    if rule.ratios is not None:
        raise ConfigError("ratios: the data come with a split of their own; see valid_share for validation")
    roles = ("",) * len(given)
    if "valid" in given:
        if rule.valid_share is not None:
            raise ConfigError("valid_share: the data come with a validation split of their own")
        return Split(tuple(given), roles, {"kind": "given"}, ())
    share = VALID_SHARE if rule.valid_share is None else rule.valid_share
    splits = np.array(given, dtype=object)
    train = np.flatnonzero(splits == "train")
    if share and len(train):
        labels = frame["label"].gather(train).to_list()
        parts = assign_stratified([groups[row] for row in train], labels, [1 - share, share], seed=rule.seed)
        splits[train[parts == 1]] = "valid"
    entry = {"kind": "given", "valid_share_of_train": share, "seed": rule.seed, "stratified_by": ["label"]}
    return Split(tuple(splits.tolist()), roles, entry, (("train", "valid"),))


def divide_identities(frame: pl.DataFrame, rule: SplitRule, where: str) -> Split:
    """Divide identities: no identity that is tested or validated on is trained on (an open set).

    Args:
        frame: with the columns name, label (empty: junk or distractor), camera, split.
        rule: what the user asked for.
        where: file or folder that given splits come from, for messages.

    Raises:
        LeakError: an identity is in training and in test.
        ConfigError: an option does not go with the data.
    """
    if rule.valid_share is not None:
        raise ConfigError("valid_share: goes with classes; see valid_identities")
    names, identities = frame["name"].to_list(), frame["label"].to_list()
    given = frame["split"].to_list()
    why = _ignore_why(frame, rule)
    splits, roles, entry = _draw_identities(frame, given, rule, where)
    # Junk and distractors are of nobody; they cannot be on two sides.
    known = [side if identity else "" for side, identity in zip(splits, identities, strict=True)]
    refuse_shared("identity", identities, known, names, "picture", where)
    seen = Seen(identities, frame["camera"].to_list(), bool(why))
    drawn: tuple[Border, ...] = () if any(given) else BORDERS
    remarks: tuple[str, ...] = ()
    if "valid" in splits:
        if rule.valid_identities is not None:
            raise ConfigError("valid_identities: the data, or the ratios, give a validation split already")
    else:
        held = _hold_out(seen, splits, rule, where)
        remarks = _tell_held(held, identities, splits, rule)
        splits = ["valid" if name in held else side for name, side in zip(identities, splits, strict=True)]
        entry["valid_identities_of_train"] = len(held)
        drawn = drawn or ((("train", "valid"),) if held else ())
    queries = rule.queries or 1
    chosen = {"train": [""] * len(names), "test": draw_roles(seen, names, queries, rule.seed)}
    # with cameras, each of them asks; without, one query of an identity would leave little to measure by
    halved = rule.queries is None and seen.ignore_camera
    chosen["valid"] = draw_roles(seen, names, None, rule.seed) if halved else chosen["test"]
    roles = [role or chosen[side][row] for row, (role, side) in enumerate(zip(roles, splits, strict=True))]
    entry |= {"queries": "given" if QUERY in given else "drawn", "queries_per_identity_and_camera": queries}
    if "valid" in splits:
        drawn_of = f"{queries} of each identity and camera"
        entry["valid_queries"] = "half of the pictures of each identity" if halved else drawn_of
    if not why and QUERY in given and not seen.with_match(roles):
        why = "no query has a picture of its identity in another camera"
    entry |= {"seed": rule.seed, "open_set": True}
    return Split(tuple(splits), tuple(roles), entry, drawn, why, remarks)


def _ignore_why(frame: pl.DataFrame, rule: SplitRule) -> str:
    """Why cameras play no part in the test; empty: they do."""
    if rule.ignore_camera:
        return "asked for"
    cameras = frame["camera"].unique().to_list()
    if cameras == [""]:
        return "the cameras are not known"
    seen = Seen(frame["label"].to_list(), frame["camera"].to_list(), False)
    if not seen.usable():
        return f"no identity is seen by two cameras ({len(cameras)} in all)"
    return ""


def _draw_identities(
    frame: pl.DataFrame, given: list[str], rule: SplitRule, where: str
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Splits, roles that are given, and the beginning of the entry."""
    if any(given):
        if rule.ratios is not None:
            raise ConfigError("ratios: the data come with a split of their own; see valid_identities for validation")
        searched = GALLERY in given or (QUERY in given and "test" in given)
        if (QUERY in given) != searched:
            missing = GALLERY if QUERY in given else QUERY
            raise ConfigError(f"{where}: no picture is left in the {missing}; check the lists and rejects.parquet")
        # Beside queries, test is the gallery.
        roles = [
            name if name in (QUERY, GALLERY) else GALLERY if name == "test" and QUERY in given else "" for name in given
        ]
        return ["test" if role else name for name, role in zip(given, roles, strict=True)], roles, {"kind": "given"}
    ratios = check_ratios(rule.ratios if rule.ratios is not None else IDENTITY_RATIOS)
    sides = [name for name, share in zip(SPLITS, ratios, strict=True) if share > 0]
    identities = frame["label"].to_list()
    shares = [share for share in ratios if share > 0]
    parts = assign_stratified(identities, [""] * len(identities), shares, seed=rule.seed)
    splits = [sides[part] for part in parts]
    return splits, [""] * len(splits), {"kind": "drawn", "ratios": list(ratios)}


def held_out_of(trained: int, usable: int) -> int:
    """How many identities are held out for validation where nobody says: a tenth, but of few a fifth, up to ten.

    Among one identity, every picture is a match; of fewer than five, more would be lost to training than is gained.

    Args:
        trained: training identities.
        usable: those of them that can be found again.
    """
    wanted = max(trained // 10, min(FEW_IDENTITIES, trained // 5))
    wanted = min(max(wanted, 2), usable) if wanted else 0
    return wanted if wanted > 1 else 0


def _tell_held(held: set[str], identities: Sequence[str], splits: Sequence[str], rule: SplitRule) -> tuple[str, ...]:
    """What is to be told of the identities that are held out."""
    train = len({identity for identity, side in zip(identities, splits, strict=True) if side == "train"})
    if held:
        return (
            f"{len(held):,} of {train:,} training identities are held out for validation; published results are of "
            "--valid_identities 0",
        )
    if train and rule.valid_identities is None:
        return (
            f"none of {train:,} training identities is held out for validation, as too few could be found again; "
            "--valid_identities holds some out",
        )
    return ()


def _hold_out(seen: Seen, splits: Sequence[str], rule: SplitRule, where: str) -> set[str]:
    """Training identities that are kept for validation."""
    train = {identity for identity, side in zip(seen.identities, splits, strict=True) if side == "train"}
    usable = sorted(train & seen.usable())
    wanted = rule.valid_identities if rule.valid_identities is not None else held_out_of(len(train), len(usable))
    if wanted > len(usable) or (wanted and wanted >= len(train)):
        how = "pictures" if seen.ignore_camera else "cameras"
        raise ConfigError(
            f"valid_identities {wanted}: {where} has {len(train):,} training identities, {len(usable):,} of them with "
            f"two {how}; give fewer"
        )
    lots = dict(zip(usable, hash_strings(usable, rule.seed).tolist(), strict=True))
    return set(sorted(usable, key=lambda name: (lots[name], name))[:wanted])
