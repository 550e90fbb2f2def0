"""Which split each image is in, and folds: as the data say, or drawn so that every subject stays on one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.image_duplicates import BORDERS, Border
from data_prep.common.splits import SPLITS, assign_stratified, check_ratios, refuse_shared

RATIOS = (0.8, 0.1, 0.1)
VALID_SHARE = 0.1
BY = ("subject", "image")


@dataclass(frozen=True)
class SplitRule:
    """What the user asked for.

    Args:
        ratios: shares of subjects in train, valid, test, where the data have no split; None: 0.8, 0.1, 0.1.
        valid_share: share of the training subjects that become the validation split, where the data have none; None:
            0.1.
        by: what stays on one side: subject, or image, so that faces of one subject may be on two.
        seed: of what is drawn.
    """

    ratios: Sequence[float] | None = None
    valid_share: float | None = None
    by: str = "subject"
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
        if self.by not in BY:
            raise ConfigError(f"split_by {self.by!r}: choose {', '.join(BY)}")

    def groups(self, frame: pl.DataFrame) -> list[str]:
        """What stays on one side, of each image."""
        return [str(group) for group in frame["subject" if self.by == "subject" else "name"]]


@dataclass(frozen=True)
class Split:
    """How images were divided.

    Args:
        splits: name for each image.
        entry: the `split_rule` entry of `dataset.json`.
        drawn: borders that were drawn here.
    """

    splits: tuple[str, ...]
    entry: dict[str, Any]
    drawn: tuple[Border, ...]


def divide(frame: pl.DataFrame, rule: SplitRule, group: str, where: str) -> Split:
    """Divide images; draws are stratified by label, subject by subject.

    Args:
        frame: images with the columns name, label, subject, and split ("" where none is given).
        rule: shares and seed.
        group: what a subject is, for messages.
        where: file or folder that given splits come from, for messages.

    Raises:
        LeakError: a given split has one subject on two sides.
        ConfigError: an option does not go with the data.
        PrepError: nothing is left to train on.
    """
    given = frame["split"].to_list()
    if any(given) and not all(given):
        raise ConfigError(f"{where}: image {frame['name'][given.index('')]!r} has no split, and others have one")
    drawn = not any(given)
    if drawn and rule.valid_share is not None:
        raise ConfigError("valid_share: is for data that come with a test split; here, give ratios")
    if not drawn and rule.ratios is not None:
        raise ConfigError("ratios: the data come with a split of their own; see valid_share for validation")
    split = _draw(frame, rule) if drawn else _keep(frame, given, rule)
    if rule.by == "subject":
        refuse_shared(group, frame["subject"].to_list(), split.splits, frame["name"].to_list(), "image", where)
    if "train" not in split.splits:
        raise PrepError(f"{where}: no image is left in the training split; check the list, the options and the rejects")
    return split


def _draw(frame: pl.DataFrame, rule: SplitRule) -> Split:
    ratios = check_ratios(rule.ratios if rule.ratios is not None else RATIOS)
    names = [name for name, share in zip(SPLITS, ratios, strict=True) if share > 0]
    shares = [share for share in ratios if share > 0]
    parts = assign_stratified(rule.groups(frame), frame["label"].to_list(), shares, seed=rule.seed)
    entry = {"kind": "drawn", "by": rule.by, "ratios": list(ratios), "seed": rule.seed, "stratified_by": ["label"]}
    return Split(tuple(names[part] for part in parts), entry, BORDERS)


def _keep(frame: pl.DataFrame, given: list[str], rule: SplitRule) -> Split:
    if "valid" in given:
        if rule.valid_share is not None:
            raise ConfigError("valid_share: the data come with a validation split of their own")
        return Split(tuple(given), {"kind": "given"}, ())
    share = VALID_SHARE if rule.valid_share is None else rule.valid_share
    entry = {"kind": "given", "by": rule.by, "valid_share_of_train": share, "seed": rule.seed}
    splits = np.array(given, dtype=object)
    train = np.flatnonzero(splits == "train")
    if share and len(train):
        part = frame[train]
        sides = assign_stratified(rule.groups(part), part["label"].to_list(), [1 - share, share], seed=rule.seed)
        splits[train[sides == 1]] = "valid"
    return Split(tuple(splits.tolist()), entry, (("train", "valid"),))


class Folds(NamedTuple):
    """Cross-validation.

    Args:
        files: path inside the prepared directory -> file.
        across: of each fold, images that have an exact copy on another side of it.
    """

    files: dict[str, Path]
    across: list[int]


def write_folds(frame: pl.DataFrame, pairs: pl.DataFrame, count: int, rule: SplitRule, folder: Path) -> Folds:
    """Write `folds/splits_K.csv` of cross-validation: fold K is the test, the next one validates, the others train.

    Images that are duplicates of each other stay on one side, as do those of one subject.

    Args:
        frame: images with the columns name, label, subject, digest.
        pairs: duplicates, with the columns first and second; images among them that are not in `frame` join others.
        count: folds.
        rule: what else stays on one side, and the seed.
        folder: where to write.

    Raises:
        ConfigError: there are fewer subjects than folds, or a fold stays empty.
    """
    groups = join_copies(frame["name"].to_list(), rule.groups(frame), list(pairs.select("first", "second").iter_rows()))
    found = len(set(groups))
    if found < count:
        raise ConfigError(f"folds {count}: there are only {found} {rule.by}s that have no copies of each other")
    parts = assign_stratified(groups, frame["label"].to_list(), [1 / count] * count, seed=rule.seed)
    sizes = np.bincount(parts, minlength=count)
    if not sizes.all():
        raise ConfigError(f"folds {count}: {found} {rule.by}s leave fold {int(sizes.argmin())} empty; give fewer folds")
    names = np.array(frame["name"].to_list(), dtype=object)
    copies = frame["digest"].rank("dense").to_numpy()
    files, across = {}, []
    for fold in range(count):
        valid = (fold + 1) % count
        places = np.where(parts == fold, 2, np.where(parts == valid, 1, 0))
        sides = {side: names[places == place].tolist() for place, side in enumerate(("train", "val", "test"))}
        longest = max(map(len, sides.values()))
        table = pl.DataFrame(
            {side: [*members, *[None] * (longest - len(members))] for side, members in sides.items()},
            schema=dict.fromkeys(sides, pl.String),
        )
        path = f"folds/splits_{fold}.csv"
        files[path] = folder / path.replace("/", "-")
        table.write_csv(files[path])
        several = pl.col("side").n_unique().over("copies") > 1
        across.append(pl.DataFrame({"side": places, "copies": copies}).filter(several).height)
    return Folds(files, across)


def join_copies(names: Sequence[str], units: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """What must stay on one side, of each image: subjects, joined where they have copies of each other's images.

    Args:
        names: of the images.
        units: subject of each.
        pairs: names of two images that are duplicates; of images that were left out, too.

    Returns:
        The least of the units that are joined.
    """
    above: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while (up := above.get(node, node)) != node:
            above[node] = above.get(up, up)
            node = up
        return node

    paired = {name for pair in pairs for name in pair}
    links = [(("image", one), ("image", other)) for one, other in pairs]
    links += [(("image", name), ("unit", unit)) for name, unit in zip(names, units, strict=True) if name in paired]
    for one, other in links:
        above[root(one)] = root(other)
    least: dict[tuple[str, str], str] = {}
    for unit in sorted(set(units)):
        least.setdefault(root(("unit", unit)), unit)
    return [least[root(("unit", unit))] for unit in units]
