"""Which split each slide is in: by lists, by a column, by the names of CAMELYON16, or divided by patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, LabelError
from data_prep.common.files import sha256_file
from data_prep.common.hashing import hash_strings
from data_prep.common.splits import SPLITS, assign_hashed, assign_stratified, check_ratios, refuse_shared
from data_prep.medical.wsi.bags.split_files import match_lists, read_lists
from data_prep.medical.wsi.bags.table import SlideTable

RATIOS = (0.7, 0.1, 0.2)
VALID_SHARE = 0.1
RULES = ("stratified", "hashed", "column", "camelyon")
NAMES = 5  # slides named in a line


@dataclass(frozen=True)
class SplitRule:
    """How slides are divided.

    Args:
        splits: stratified, hashed, column, camelyon, or a file or folder of lists; empty: by the column of splits if
            the table has one, else stratified.
        ratios: shares of train, valid, test, of the patients.
        valid_share: share of the training patients for validation where lists name no slides for it.
        seed: of everything random.
        by_site: stratify by site, too, where sites are known.
        n_shot: training slides of each class; 0 is all.
    """

    splits: str = ""
    ratios: tuple[float, ...] = RATIOS
    valid_share: float = VALID_SHARE
    seed: int = 0
    by_site: bool = True
    n_shot: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", check_ratios(self.ratios))
        if not 0 <= self.valid_share < 1 or self.seed < 0 or self.n_shot < 0:
            raise ConfigError(
                f"valid_share {self.valid_share}, seed {self.seed}, n_shot {self.n_shot}: give a valid_share from 0 to "
                "below 1, and no negative numbers"
            )

    @property
    def lists(self) -> Path | None:
        """The file or folder of lists, if one was given."""
        return Path(self.splits) if self.splits and self.splits not in RULES else None


@dataclass(frozen=True)
class Assigned:
    """Slides with their splits.

    Args:
        frame: the table's, `split` filled in; null: in no split.
        entry: the `split_rule` of `dataset.json`.
        unknown: names in the lists that are no slides of the table.
        told: lines for the user.
    """

    frame: pl.DataFrame
    entry: dict[str, Any]
    unknown: list[str]
    told: list[str]


def assign_splits(table: SlideTable, rule: SplitRule) -> Assigned:
    """Put each slide into a split, all slides of a patient into the same.

    Args:
        table: slides.
        rule: how.

    Raises:
        LeakError: lists or a column put one patient on two sides.
        LabelError: training slides of fewer than two classes.
        ConfigError: there are no lists, no column, or no slide that they name.
    """
    kind = "list" if rule.lists else rule.splits or ("column" if table.frame["split"].count() else "stratified")
    where, unknown = str(table.path), list[str]()
    if kind in ("stratified", "hashed"):
        sides = divide(table.frame, rule.ratios, rule) if kind == "stratified" else _hash(table.frame, rule)
    elif kind == "list" and rule.lists:
        where = str(rule.lists)
        sides, unknown = match_lists(read_lists(rule.lists, table.slide_of), table.frame)
    elif kind == "column":
        sides = {slide: split for slide, split in table.frame.select("slide", "split").iter_rows() if split}
    else:
        # The organisers' names: test_001 ... are the test set.
        sides = {slide: "test" if "test" in slide.lower() else "train" for slide in table.frame["slide"]}
    if not sides or (kind == "camelyon" and "test" not in sides.values()):
        what = "no slide has test in its name" if kind == "camelyon" else "no slide of the table is in any split"
        raise ConfigError(f"{where}: {what}; check that both name slides alike, or choose splits stratified")
    frame = with_splits(table.frame, sides)
    _refuse_leak(frame, where)
    told = [f"{where}: names {_some(unknown)} that are not among those that can be used"] if unknown else []
    if kind not in ("stratified", "hashed"):
        told.append(f"splits: by {'the list ' + where if kind == 'list' else kind}")
        left_out = frame.filter(pl.col("split").is_null())["slide"].to_list()
        told += [f"in no split: {_some(left_out)}"] if left_out else []
        if rule.valid_share and not frame.filter(split="valid").height:
            frame = hold_out_valid(frame, rule)
            told.append(f"no validation slides are named: {rule.valid_share:.0%} of the training patients are taken")
    frame = keep_shots(frame, rule)
    told += check_splits(frame, table, where)
    entry = {
        "kind": kind,
        "ratios": list(rule.ratios) if kind in ("stratified", "hashed") else None,
        "valid_share": rule.valid_share if kind not in ("stratified", "hashed") else None,
        "seed": rule.seed,
        "by_site": kind == "stratified" and rule.by_site and frame["site"].count() > 0,
        "n_shot": rule.n_shot,
        "not_found": unknown,
        "file": rule.lists.name if rule.lists else None,
        "sha256": sha256_file(rule.lists) if rule.lists and rule.lists.is_file() else None,
    }
    return Assigned(frame, entry, unknown, told)


def divide(
    frame: pl.DataFrame, shares: Sequence[float], rule: SplitRule, names: Sequence[str] = SPLITS
) -> dict[str, str]:
    """Split of each slide: patients divided by shares, stratified by label and site.

    Args:
        frame: slide, patient, label, site.
        shares: one for each name; 0 leaves it empty.
        rule: seed, and whether sites count.
        names: of the parts.
    """
    used = [index for index, share in enumerate(shares) if share > 0]
    parts = assign_stratified(
        frame["patient"].to_list(),
        frame["label"].cast(pl.String).to_list(),
        [shares[index] for index in used],
        sites=frame["site"].fill_null("").to_list() if rule.by_site else None,
        seed=rule.seed,
    )
    return {slide: names[used[part]] for slide, part in zip(frame["slide"], parts.tolist(), strict=True)}


def _hash(frame: pl.DataFrame, rule: SplitRule) -> dict[str, str]:
    parts = assign_hashed(hash_strings(frame["patient"].to_list()), rule.ratios, rule.seed)
    return {slide: SPLITS[part] for slide, part in zip(frame["slide"], parts.tolist(), strict=True)}


def with_splits(frame: pl.DataFrame, sides: dict[str, str]) -> pl.DataFrame:
    """The table with another column `split`."""
    return frame.with_columns(pl.Series("split", [sides.get(slide) for slide in frame["slide"]], dtype=pl.String))


def hold_out_valid(frame: pl.DataFrame, rule: SplitRule) -> pl.DataFrame:
    """Take `valid_share` of the training patients for validation."""
    train = frame.filter(split="train")
    sides = dict(frame.drop_nulls("split").select("slide", "split").iter_rows())
    shares = (1 - rule.valid_share, rule.valid_share)
    return with_splits(frame, {**sides, **divide(train, shares, rule, ("train", "valid"))})


def keep_shots(frame: pl.DataFrame, rule: SplitRule) -> pl.DataFrame:
    """Leave `n_shot` training slides of each class, of as many patients as possible; the others are in no split.

    Raises:
        ConfigError: a class has fewer.
    """
    if not rule.n_shot:
        return frame
    draw = pl.Series(hash_strings(frame["slide"].to_list(), rule.seed))
    train = frame.with_columns(draw.alias("draw")).filter(split="train").sort("draw", "slide")
    # First one slide of every patient, then the second of those who have one, ...
    train = train.with_columns(pl.int_range(pl.len()).over("patient", "label").alias("turn"))
    chosen = train.sort("turn", "draw", "slide").group_by("label", maintain_order=True).head(rule.n_shot)
    counts = chosen.group_by("label").len().sort("label")
    short = counts.filter(pl.col("len") < rule.n_shot)
    if short.height:
        label, count = short.row(0)
        raise ConfigError(f"n_shot {rule.n_shot}: class {label} has only {count} training slides; lower n_shot")
    left = set(train["slide"]) - set(chosen["slide"])
    return frame.with_columns(pl.when(pl.col("slide").is_in(sorted(left))).then(None).otherwise("split").alias("split"))


def check_splits(frame: pl.DataFrame, table: SlideTable, where: str) -> list[str]:
    """Make sure that no patient is on two sides and that the training slides can be learned from.

    Returns:
        Lines about splits that are empty, and classes that are missing in one.

    Raises:
        LeakError: naming the patient and the slides.
        LabelError: the training slides are of fewer than two classes.
    """
    _refuse_leak(frame, where)
    told = []
    for split in SPLITS:
        held = frame.filter(split=split)["label"].unique().to_list()
        lacking = [repr(name) for code, name in enumerate(table.classes) if code not in held]
        if split == "train" and len(held) < 2:
            what = f"only slides of {table.classes[held[0]]!r}" if held else "no slides"
            raise LabelError(f"{where}: the training split has {what}; two classes are needed, choose another split")
        if lacking:
            told.append(f"split {split} " + (f"has no slide of {', '.join(lacking)}" if held else "is empty"))
    return told


def _refuse_leak(frame: pl.DataFrame, where: str) -> None:
    used = frame.drop_nulls("split")
    patients, sides, slides = (used[name].to_list() for name in ("patient", "split", "slide"))
    refuse_shared("patient", patients, sides, slides, "slide", where)


def count_splits(frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Slides, patients, and slides of each class and site, in each split."""
    counted: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        part = frame.filter(split=split)
        labels = Counter(part["label"].to_list())
        sites = Counter(site for site in part["site"] if site is not None)
        counted[split] = {
            "slides": part.height,
            "patients": part["patient"].n_unique(),
            "classes": {name: labels[code] for code, name in enumerate(classes)},
            "sites": {site: sites[site] for site in sorted(sites)},
        }
    return counted


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES])
    return f"{len(names):,} slides ({shown}{', ...' if len(names) > NAMES else ''})"
