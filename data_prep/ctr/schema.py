"""What a click log looks like: its text format, its columns, and the role of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from data_prep.common.errors import ConfigError

RawKind = Literal["numerical", "categorical", "multi"]
Transform = Literal["none", "log_square", "min_max", "standardise"]
KINDS = ("numerical", "categorical", "multi")
TRANSFORMS = ("none", "log_square", "min_max", "standardise")
RESERVED = ("row", "label", "group")  # columns of a prepared part


@dataclass(frozen=True)
class RawField:
    """One feature.

    Args:
        name: column of the prepared data.
        kind: numerical, categorical, or multi (a bag of tokens).
        column: column of the log, or made by `derive`; the name when empty.
        min_count: a token with fewer occurrences in the vocabulary scope becomes "unknown" (id 1).
        transform: of a numerical field; log_square: x > 2 -> int(ln(x)^2), else unchanged.
        separator: between the tokens of a bag.
    """

    name: str
    kind: RawKind
    column: str = ""
    min_count: int = 1
    transform: Transform = "none"
    separator: str = "|"

    @property
    def source(self) -> str:
        """The column read."""
        return self.column or self.name


@dataclass(frozen=True)
class TextFormat:
    """How records are written.

    Args:
        separator: between columns; may be longer than one character.
        header: the first record of each file names the columns.
        quote: character around values which hold separators or line ends; empty: none.
        encoding: of the text, utf-8 or latin-1.
        missing: values that mean "not there", besides the empty one.
    """

    separator: str = ","
    header: bool = True
    quote: str = '"'
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """Where the label is and how a number becomes 0 or 1.

    Args:
        column: of the log.
        threshold: None: the column holds 0 and 1. Else: above it 1, below it 0.
        drop_equal: leave out records exactly at the threshold; without it they count as 0.
    """

    column: str = "label"
    threshold: float | None = None
    drop_equal: bool = False

    @property
    def rule(self) -> str:
        """The rule in words."""
        if self.threshold is None:
            return f"{self.column} is 0 or 1"
        below = "< {0:g} -> 0, == {0:g} dropped" if self.drop_equal else "<= {0:g} -> 0"
        return f"{self.column} > {self.threshold:g} -> 1, " + below.format(self.threshold)


@dataclass(frozen=True)
class Schema:
    """One data set format.

    Args:
        name: of the data set.
        fields: the features; their order is the order of the prepared columns.
        label: the label rule.
        columns: names of the columns of the log, for logs without a header.
        text: how records are written; ignored for Parquet.
        user: column that names the user; empty: none.
        time: column of a number or an ISO 8601 time; empty: none.
        split: column that holds train, valid or test; empty: none.
        licence: of the data, and how to cite it.
    """

    name: str
    fields: tuple[RawField, ...]
    label: Label = field(default_factory=Label)
    columns: tuple[str, ...] = ()
    text: TextFormat = field(default_factory=TextFormat)
    user: str = ""
    time: str = ""
    split: str = ""
    licence: str = "not stated"

    def check(self, where: str) -> Schema:
        """Refuse a schema that contradicts itself.

        Args:
            where: the schema file or data set, for messages.

        Raises:
            ConfigError: naming the field and what is wrong with it.
        """
        names = [item.name for item in self.fields]
        if not names:
            raise ConfigError(f"{where}: no feature fields; give at least one")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{where}: field {name!r} is described twice; keep one")
            if name in RESERVED or not name or name.startswith("__"):
                raise ConfigError(
                    f"{where}: field name {name!r} is reserved; set `name` to another and `column` to {name!r}"
                )
        for item in self.fields:
            if item.kind not in KINDS or item.transform not in TRANSFORMS:
                raise ConfigError(
                    f"{where}: field {item.name!r}: type {item.kind!r}, transform {item.transform!r}; types are "
                    f"{', '.join(KINDS)}, transforms {', '.join(TRANSFORMS)}"
                )
            if item.min_count < 1:
                raise ConfigError(f"{where}: field {item.name!r}: min_count {item.min_count}; give at least 1")
            if item.kind == "multi" and not item.separator:
                raise ConfigError(f"{where}: field {item.name!r}: a multi field needs a separator")
            if self.columns and item.source == self.label.column and item.kind != "numerical":
                raise ConfigError(f"{where}: field {item.name!r} is the label column; leave it out of the features")
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for `dataset.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Schema:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: keys are missing or unknown.
        """
        try:
            return cls(
                **{
                    **values,
                    "fields": tuple(RawField(**item) for item in values["fields"]),
                    "label": Label(**values["label"]),
                    "columns": tuple(values["columns"]),
                    "text": TextFormat(**{**values["text"], "missing": tuple(values["text"]["missing"])}),
                }
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"prepared schema is damaged ({error}); prepare the data again") from error


Derive = Callable[[pl.DataFrame, Path | None], pl.DataFrame]
Purpose = Literal["train", "apply"]
Locate = Callable[[tuple[Path, ...], Purpose], "Sources"]


@dataclass(frozen=True)
class Sources:
    """Files of one data set.

    Args:
        logs: the click log, in order.
        sides: other files it needs (user profiles, item tables).
    """

    logs: tuple[Path, ...]
    sides: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A schema with the steps that only this data set needs.

    Args:
        schema: format and roles.
        locate: finds the files among what the user named, to train on or to be scored.
        derive: module-level function (records, folder) -> records with more columns; `folder` holds what
            `side` wrote. Runs in workers, once per chunk.
        derived: columns which `derive` makes.
        side: module-level function (side files, folder): turns side tables into files that workers map into memory.
        expand: module-level function (log files, seed, folder, schema) -> information; writes `log.tsv` (tab separated,
            with header) into `folder`, which is then read instead of the log files. For small logs that need
            sampling across records.
        needs: columns of tokens which `derive` needs though they are no field.
        unlabelled_columns: columns of a log without label and header; those of the schema but the label when empty.
            Fields whose column is not among them are missing there.
        split: default kind of split.
        ratios: default shares of train, valid, test.
    """

    schema: Schema
    locate: Locate
    derive: Derive | None = None
    derived: tuple[str, ...] = ()
    side: Callable[..., dict[str, Any]] | None = None
    expand: Callable[..., dict[str, Any]] | None = None
    needs: tuple[str, ...] = ()
    unlabelled_columns: tuple[str, ...] = ()
    split: str = "random"
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
