"""Prepared data whose rows are files: an index of Parquet parts that names them, read whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from domains.common.errors import PreparedDataError
from domains.common.loader import Batch


def read_index(root: Path, card: Mapping[str, Any], split: str, columns: Collection[str]) -> pl.DataFrame:
    """Read the index of a split.

    Args:
        root: prepared directory.
        card: its `dataset.json`.
        split: name of the split.
        columns: names that must be there.

    Returns:
        One row for each file, in the order of `row`.

    Raises:
        PreparedDataError: there is no such split, a part cannot be read, or a column is missing.
    """
    if split not in card["splits"]:
        raise PreparedDataError(f"{root}: has no split {split!r}, only {', '.join(card['splits'])}; prepare it again")
    tables = []
    for part in card["splits"][split]["parts"]:
        path = root / part["path"]
        try:
            tables.append(pl.read_parquet(path))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise PreparedDataError(f"{path}: cannot be read ({error}); prepare the data again") from None
        missing = [name for name in columns if name not in tables[-1].columns]
        if missing:
            raise PreparedDataError(f"{path}: lacks column {missing[0]!r}; prepare the data again")
    return pl.concat(tables) if tables else pl.DataFrame()


class IndexStore:
    """Rows of an index as one block: `row` and, where there are labels, `label`; files are read when batches are made.

    Args:
        root: prepared directory that relative paths start from.
        frame: rows, as `read_index` gives them.
        split: name of the split, for those who read more of some.

    Shape:
        `load` gives row (n,) int64 and label (n,) int64.
    """

    def __init__(self, root: Path, frame: pl.DataFrame, split: str = "") -> None:
        self.root, self.frame, self.split = root, frame, split
        self.sizes: Sequence[int] = [len(frame)]

    def load(self, block: int) -> Batch:
        """Return all rows."""
        del block
        batch: Batch = {"row": torch.arange(len(self.frame))}
        if "label" in self.frame.columns:
            batch["label"] = torch.from_numpy(self.frame["label"].to_numpy().astype("int64"))
        return batch

    def at(self, rows: Tensor) -> pl.DataFrame:
        """Return the index of some rows, in their order."""
        return self.frame[rows.numpy()]

    def path(self, name: str) -> Path:
        """Return where a file of the index lies."""
        return self.root / name
