"""What every task of a preparation knows, and the columns of the log it has to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import ConfigError
from data_prep.ctr.schema import Dataset, Schema


@dataclass(frozen=True)
class SplitRule:
    """How rows are assigned to train, valid and test.

    Args:
        kind: random, user, time, file, column, or none (everything is test: `apply`).
        ratios: shares of train, valid, test.
        seed: of random and user.
        thresholds: of time: first time of valid, first time of test.
        files: of file: split index of each source.
    """

    kind: str
    ratios: tuple[float, ...] = (0.8, 0.1, 0.1)
    seed: int = 0
    thresholds: tuple[float, ...] = ()
    files: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """What every task of a preparation knows.

    Args:
        dataset: name, to find its `derive` step.
        schema: format and roles.
        split: the split rule.
        count_all: count tokens of all splits, not of train alone.
        labelled: the log has a label.
        side: folder of prepared side tables.
        scoring: new logs are to be scored: no record is left out for its label.
        absent: columns which logs to be scored may lack; their fields are missing there.
    """

    dataset: str
    schema: Schema
    split: SplitRule
    count_all: bool = False
    labelled: bool = True
    side: Path | None = None
    scoring: bool = False
    absent: tuple[str, ...] = ()


def columns_to_read(job: Job, dataset: Dataset | None) -> tuple[list[str], list[str]]:
    """Columns of the log which hold numbers, and columns which hold tokens.

    Raises:
        ConfigError: a column would be both.
    """
    schema = job.schema
    numbers = [item.source for item in schema.fields if item.kind == "numerical"]
    strings = [item.source for item in schema.fields if item.kind != "numerical"]
    if job.labelled:
        # In a log to be scored anything may stand in the place of the label.
        (strings if job.scoring and schema.label.column not in numbers else numbers).insert(0, schema.label.column)
    roles = (
        schema.user,
        schema.time if schema.time not in numbers else "",
        schema.split if job.split.kind == "column" else "",
    )
    strings += [name for name in roles if name]
    strings += dataset.needs if dataset else ()
    derived = dataset.derived if dataset else ()
    if both := sorted(set(numbers) & set(strings)):
        raise ConfigError(f"schema {schema.name}: column {both[0]!r} is described as number and as token; choose one")

    def wanted(names: list[str]) -> list[str]:
        return [name for name in dict.fromkeys(names) if name not in derived]

    return wanted(numbers), wanted(strings)
