"""Which split each recording is in: as the data or a file say, or drawn so that every subject stays on one side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, DatasetNotFoundError, PrepError
from data_prep.common.splits import SPLITS, assign_stratified, check_ratios, refuse_shared
from data_prep.ieeg.records import Recording

RATIOS = (0.6, 0.2, 0.2)


@dataclass(frozen=True)
class SplitRule:
    """What the user asked for.

    Args:
        ratios: shares of subjects in train, valid, test; None: 0.6, 0.2, 0.2.
        table: CSV with the columns subject and split.
        seed: of what is drawn.
    """

    ratios: Sequence[float] | None = None
    table: Path | None = None
    seed: int = 0


def divide(
    recordings: Sequence[Recording], groups: Mapping[str, str], rule: SplitRule
) -> tuple[list[str], dict[str, Any]]:
    """Split of each recording, and the `split_rule` entry of `dataset.json`.

    Drawn splits are stratified by whether a subject has seizures.

    Args:
        recordings: those that are kept.
        groups: subject -> name of the group of subjects that share content.
        rule: what the user asked for.

    Raises:
        LeakError: subjects that share content are on two sides of a given split.
        ConfigError: options contradict each other or the data.
    """
    given = _from_table(recordings, rule.table) if rule.table else [recording.split for recording in recordings]
    if any(given):
        if rule.ratios is not None:
            raise ConfigError("ratios: the split is given already; leave them out, or the given split")
        entry: dict[str, Any] = {"kind": "given", "by": rule.table.name if rule.table else "the data"}
        splits = given
    else:
        ratios = check_ratios(rule.ratios if rule.ratios is not None else RATIOS)
        names = [name for name, share in zip(SPLITS, ratios, strict=True) if share > 0]
        units = [groups[recording.subject] for recording in recordings]
        sick = {unit for unit, recording in zip(units, recordings, strict=True) if recording.events}
        classes = ["seizures" if unit in sick else "none" for unit in units]
        # by subjects, not by recordings: one row each
        first = {unit: at for at, unit in reversed(list(enumerate(units)))}
        order = sorted(first)
        parts = assign_stratified(
            order, [classes[first[unit]] for unit in order], [share for share in ratios if share > 0], seed=rule.seed
        )
        side = {unit: names[part] for unit, part in zip(order, parts, strict=True)}
        splits = [side[unit] for unit in units]
        entry = {"kind": "drawn", "ratios": list(ratios), "seed": rule.seed, "stratified_by": ["seizures"]}
    where = str(rule.table) if rule.table else ""
    names = [recording.name for recording in recordings]
    refuse_shared("subject", [groups[r.subject] for r in recordings], splits, names, "recording", where)
    return splits, entry


def _from_table(recordings: Sequence[Recording], path: Path) -> list[str]:
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such split file; give a CSV with the columns subject and split")
    try:
        table = pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise PrepError(f"{path}: is no CSV ({str(error).splitlines()[0]})") from None
    missing = {"subject", "split"} - set(table.columns)
    if missing:
        raise PrepError(f"{path}: lacks the column {min(missing)}; give the columns subject and split")
    found: dict[str, str] = {}
    for row, (subject, split) in enumerate(table.select("subject", "split").iter_rows()):
        if split not in SPLITS:
            raise PrepError(f"{path}: row {row}: split {split!r} is none of {', '.join(SPLITS)}")
        if found.setdefault(str(subject), split) != split:
            raise PrepError(f"{path}: row {row}: subject {subject} is in {found[str(subject)]} and in {split}")
    unknown = [recording.subject for recording in recordings if recording.subject not in found]
    if unknown:
        raise PrepError(f"{path}: does not name subject {unknown[0]!r} ({len(set(unknown)):,} subjects in all)")
    return [found[recording.subject] for recording in recordings]


def subject_counts(recordings: Sequence[Recording], splits: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of each split: subjects, recordings, hours, seizures."""
    found = {}
    for split in SPLITS:
        chosen = [recording for recording, side in zip(recordings, splits, strict=True) if side == split]
        found[split] = {
            "subjects": len({recording.subject for recording in chosen}),
            "recordings": len(chosen),
            "hours": round(float(np.sum([recording.duration for recording in chosen])) / 3600, 4),
            "seizures": sum(len(recording.events) for recording in chosen),
        }
    return found
