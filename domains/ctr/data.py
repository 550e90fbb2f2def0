"""Prepared click logs as batches: the only place of this domain that knows their layout on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.common.card import read_card
from domains.common.data import HeptadData
from domains.common.errors import PreparedDataError
from domains.common.loader import Batch
from domains.ctr.fields import FieldLayout

Missing = Literal["zero", "learned"]


class ClickStore:
    """The parts of one split; `load` gives `ids` (n, S) int32 table rows, `num` (n, n_numerical) float32, `row`, ...

    A missing number is 0, a missing category its field's first row; both are what their value 0 makes the zero vector.

    Args:
        root: prepared directory.
        card: its `dataset.json`.
        split: name of the split.
        layout: where the fields live in the table.

    Raises:
        PreparedDataError: there is no such split, or a part lacks a field.
    """

    def __init__(self, root: Path, card: Mapping[str, Any], split: str, layout: FieldLayout) -> None:
        if split not in card["splits"]:
            raise PreparedDataError(
                f"{root}: has no split {split!r}, only {', '.join(card['splits'])}; prepare it again"
            )
        parts = card["splits"][split]["parts"]
        self.paths = [root / part["path"] for part in parts]
        self.sizes = [int(part["rows"]) for part in parts]
        self.layout = layout
        self.slots = [1] * len(layout)
        bags = [layout.fields[i].name for i in layout.of_kind("multi")]
        if bags and self.paths:
            lengths = self._longest(bags)
            for i, length in zip(layout.of_kind("multi"), lengths, strict=True):
                self.slots[i] = max(1, length or 0)

    @property
    def slot_field(self) -> Tensor | None:
        """Field of each slot (S,) int64, or None where no field is a bag."""
        if not self.layout.of_kind("multi"):
            return None
        return torch.repeat_interleave(torch.arange(len(self.slots)), torch.tensor(self.slots))

    def _longest(self, bags: list[str]) -> list[int | None]:
        lengths = [_read(path, bags).select(pl.col(bags).list.len().max()).row(0) for path in self.paths]
        return [max(found, default=None, key=lambda length: length or 0) for found in zip(*lengths, strict=True)]

    def load(self, block: int) -> Batch:
        """Read one part."""
        frame = _read(self.paths[block], self.layout.names, more=("row", "label", "group"))
        ids = np.empty((len(frame), sum(self.slots)), dtype=np.int32)
        start, numbers = 0, []
        for field, offset, slots in zip(self.layout.fields, self.layout.offsets, self.slots, strict=True):
            column = frame[field.name]
            target = ids[:, start : start + slots]
            if field.kind == "numerical":
                target[:] = offset
                numbers.append(column.fill_null(0.0).to_numpy())
            elif field.kind == "categorical":
                np.add(column.to_numpy(), offset, out=target[:, 0], casting="unsafe")
            else:
                target[:] = offset
                _scatter(column, target, offset)
            start += slots
        batch = {"ids": torch.from_numpy(ids), "row": torch.from_numpy(frame["row"].to_numpy().astype(np.int64))}
        if numbers:
            batch["num"] = torch.from_numpy(np.stack(numbers, axis=1))
        if "label" in frame.columns:
            batch["label"] = torch.from_numpy(frame["label"].to_numpy().astype(np.float32))
        if "group" in frame.columns:
            batch["group"] = torch.from_numpy(frame["group"].to_numpy().astype(np.int64))
        return batch


def _read(path: Path, columns: list[str], more: Sequence[str] = ()) -> pl.DataFrame:
    try:
        present = pl.read_parquet_schema(path)
        lacking = [name for name in columns if name not in present]
        if lacking:
            raise PreparedDataError(f"{path}: lacks field {lacking[0]!r}; prepare the data again")
        return pl.read_parquet(path, columns=[*columns, *(name for name in more if name in present)])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise PreparedDataError(f"{path}: cannot be read ({error}); prepare the data again") from None


def _scatter(column: pl.Series, target: np.ndarray[Any, np.dtype[np.int32]], offset: int) -> None:
    """Write lists of different lengths into the rows of `target`, left-aligned."""
    lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    values = column.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    rows = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.arange(len(values)) - np.repeat(lengths.cumsum() - lengths, lengths)
    target[rows, positions] = values + offset


class ClickData(HeptadData):
    """A click log prepared by `heptad ctr prep`.

    A batch has `ids` (B, S) int64 rows of the one table, `values` (B, S) float32 (1 category, x number, 0 missing),
    `label` (B,) float32, `row` (B,) int64, and, where the log has them, `group` (B,) int64 and `slot_field` (S,) int64
    (bags take several slots). Whole columns are read and sliced; no row is touched by Python.

    Args:
        root: prepared directory.
        batch_size: rows of a global batch over all processes (1,024 in the paper).
        seed: seed of the order of rows.
        pool_rows: rows gathered before they are permuted; two such pools are held in memory (about 230 bytes a row
            for 39 fields), whatever the size of the log.
        drop_last: leave the incomplete last batch of an epoch out (the official program does).
        missing: a missing category is the `zero` vector (official), or a `learned` one of its field.
        predict_root: directory of newly encoded logs to predict; default the test split of `root`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another domain.
    """

    domain = "ctr"

    def __init__(
        self,
        root: str,
        batch_size: int = 1024,
        seed: int = 0,
        pool_rows: int = 524_288,
        drop_last: bool = False,
        missing: Missing = "zero",
        predict_root: str | None = None,
    ) -> None:
        super().__init__(root, batch_size, seed, pool_rows, drop_last=drop_last, predict_root=predict_root)
        self.card = read_card(self.root, self.domain)
        # what a model must know of the fields: plain values, linked to its constructor
        self.fields: list[dict[str, Any]] = [
            {key: entry[key] for key in ("name", "kind", "size") if key in entry} for entry in self.card["fields"]
        ]
        self.layout = FieldLayout(self.fields)
        self.missing: Missing = missing

    def store(self, split: str) -> ClickStore:
        """Parts of one split; `predict` is `predict_root`, or else the test split."""
        if split != "predict" or self.predict_root is None:
            return ClickStore(self.root, self.card, "test" if split == "predict" else split, self.layout)
        card = read_card(self.predict_root, self.domain)
        names = [entry["name"] for entry in card["fields"]]
        if names != self.layout.names:
            raise PreparedDataError(
                f"{self.predict_root}: its fields are not those of {self.root}; encode the log with that preparation"
            )
        return ClickStore(self.predict_root, card, next(iter(card["splits"])), self.layout)

    def collate_for(self, store: ClickStore) -> Collate:
        """Make what turns rows of a store into a batch."""
        return Collate(store, self.missing)


class Collate:
    """Rows of a `ClickStore` -> batch for the network."""

    def __init__(self, store: ClickStore, missing: Missing) -> None:
        layout = store.layout
        owner = torch.repeat_interleave(torch.arange(len(layout)), torch.tensor(store.slots))
        zero_rows = torch.tensor(layout.offsets)[owner]
        if missing == "learned":  # padding of bags stays nothing; only single categories may lack
            zero_rows[torch.isin(owner, torch.tensor(layout.of_kind("categorical")))] = -1
        self.zero_rows = zero_rows
        self.numerical = torch.isin(owner, torch.tensor(layout.of_kind("numerical")))
        self.slot_field = store.slot_field

    def __call__(self, batch: Batch) -> Batch:
        """Widen ids, make values."""
        result = dict(batch)
        ids = result["ids"] = batch["ids"].long()
        values = (ids != self.zero_rows).float()
        if "num" in result:
            values[:, self.numerical] = result.pop("num")
        result["values"] = values
        if self.slot_field is not None:
            result["slot_field"] = self.slot_field
        return result
