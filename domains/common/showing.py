"""Rows of a test that `explain` looks at: the first batches, single rows, and maps of them in one file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from domains.common.loader import Batch


class Shown(Protocol):
    """A data module whose `finish` makes a batch ready for the network, as on a device."""

    def test_dataloader(self) -> Any:
        """Batches of the test split, in their order."""

    def store(self, split: str) -> Any:
        """Rows of a split."""

    def collate_for(self, store: Any) -> Any:
        """What makes a batch of rows."""

    def finish(self, batch: Batch) -> Batch:
        """Make a batch ready."""


def first_batches(data: Shown, rows: int) -> Iterator[Batch]:
    """Ready batches of the test split, until they hold so many rows."""
    seen = 0
    for batch in data.test_dataloader():
        yield data.finish(batch)
        seen += len(batch["row"])
        if seen >= rows:
            return


def batch_of(data: Shown, row: int) -> Batch:
    """One row of the test split as a ready batch."""
    store = data.store("test")
    chosen = {name: values[row : row + 1] for name, values in store.load(0).items()}
    return data.finish(data.collate_for(store)(chosen))


def archive(maps: Mapping[int, Mapping[str, Any]]) -> bytes:
    """Arrays of several rows as one npz file, each under `row/name`."""
    buffer = io.BytesIO()
    arrays = {f"{row}/{name}": values for row, found in maps.items() for name, values in found.items()}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
