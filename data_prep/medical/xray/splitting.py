"""Which split each image is in: as the data say, or drawn so that every patient stays on one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.image_duplicates import BORDERS, Border
from data_prep.common.splits import SPLITS, assign_stratified, check_ratios, refuse_shared

RATIOS = (0.8, 0.1, 0.1)
VALID_SHARE = 0.1


@dataclass(frozen=True)
class SplitRule:
    """What the user asked for.

    Args:
        ratios: shares of patients in train, valid, test, where the data have no split; None: 0.8, 0.1, 0.1.
        valid_share: share of the training patients that become the validation split, where the data have none; None:
            0.1.
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
    """

    splits: tuple[str, ...]
    entry: dict[str, Any]
    drawn: tuple[Border, ...]


def check_rule(rule: SplitRule) -> None:
    """Refuse shares that cannot be.

    Raises:
        ConfigError: naming them.
    """
    if rule.ratios is not None:
        check_ratios(rule.ratios)
    if rule.valid_share is not None and not 0 <= rule.valid_share < 1:
        raise ConfigError(f"valid_share {rule.valid_share}: give a share from 0 up to, not including, 1")


def divide(frame: pl.DataFrame, rule: SplitRule, where: str) -> Split:
    """Divide images; draws are stratified by label and source, patient by patient.

    Args:
        frame: images with the columns name, label, patient, source, and split ("" where none is given).
        rule: shares and seed.
        where: the file or folder that given splits come from, for messages.

    Raises:
        LeakError: a given split has one patient on two sides.
        ConfigError: an option does not go with the data.
        PrepError: nothing is left to train on.
    """
    given = frame["split"].to_list()
    if not any(given):
        if rule.valid_share is not None:
            raise ConfigError("valid_share: goes with data that have a split without validation; here, give ratios")
        split = _draw(frame, rule)
    else:
        if rule.ratios is not None:
            raise ConfigError("ratios: the data come with a split of their own; see valid_share for validation")
        split = _keep(frame, given, rule)
    refuse_shared("patient", frame["patient"].to_list(), split.splits, frame["name"].to_list(), "image", where)
    if "train" not in split.splits:
        raise PrepError(f"{where}: no image is left in the training split; check the list, the options and the rejects")
    return split


def _draw(frame: pl.DataFrame, rule: SplitRule) -> Split:
    ratios = check_ratios(rule.ratios if rule.ratios is not None else RATIOS)
    names = [name for name, share in zip(SPLITS, ratios, strict=True) if share > 0]
    parts = _assign(frame, [share for share in ratios if share > 0], rule.seed)
    entry = {"kind": "drawn", "ratios": list(ratios), "seed": rule.seed, "stratified_by": ["label", "source"]}
    return Split(tuple(names[part] for part in parts), entry, BORDERS)


def _keep(frame: pl.DataFrame, given: list[str], rule: SplitRule) -> Split:
    if "valid" in given:
        if rule.valid_share is not None:
            raise ConfigError("valid_share: the data come with a validation split of their own")
        return Split(tuple(given), {"kind": "given"}, ())
    share = VALID_SHARE if rule.valid_share is None else rule.valid_share
    entry = {"kind": "given", "valid_share_of_train": share, "seed": rule.seed, "stratified_by": ["label", "source"]}
    splits = np.array(given, dtype=object)
    train = np.flatnonzero(splits == "train")
    if share and len(train):
        parts = _assign(frame[train], [1 - share, share], rule.seed)
        splits[train[parts == 1]] = "valid"
    return Split(tuple(splits.tolist()), entry, (("train", "valid"),))


def _assign(frame: pl.DataFrame, shares: Sequence[float], seed: int) -> Any:
    groups, labels = frame["patient"].to_list(), frame["label"].to_list()
    return assign_stratified(groups, labels, shares, sites=frame["source"].to_list(), seed=seed)
