"""Prepared interaction logs as batches: the only place of this domain that knows their layout on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from domains.common.card import read_card
from domains.common.data import HeptadData
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.loader import Batch
from domains.seqrec.packing import Integers, lay_out, ragged_ranges
from domains.seqrec.transitions import TransitionMatrix, count_transitions

Seen = Literal["recent", "all", "none"]
Arrangement = Literal["packed", "padded"]


@dataclass(frozen=True)
class Histories:
    """All events of all users, one behind the other; four bytes an event.

    Shape:
        items (events,) int32; start (users + 1,) int64; first (parts + 1,) int64, where each part's users begin.
    """

    items: NDArray[np.int32]
    start: Integers
    first: Integers

    @classmethod
    def read(cls, root: Path, card: Mapping[str, Any]) -> Histories:
        """Read the sequences of a prepared directory.

        Raises:
            PreparedDataError: a part is missing, damaged, or names an item outside the catalogue.
        """
        items, lengths, first = [], [], [0]
        for part in card["sequences"]["parts"]:
            column = _read(root / part["path"], ["items"])["items"]
            lengths.append(column.list.len().to_numpy().astype(np.int64))
            items.append(column.explode(empty_as_null=False, keep_nulls=False).to_numpy().astype(np.int32, copy=False))
            if len(items[-1]) and not 0 <= items[-1].min() <= items[-1].max() < card["n_items"]:
                raise PreparedDataError(
                    f"{root / part['path']}: an item outside 0..{card['n_items'] - 1}; prepare the data again"
                )
            first.append(first[-1] + len(column))
        empty = np.zeros(0, dtype=np.int64)
        start = np.concatenate([[0], np.cumsum(np.concatenate([empty, *lengths]))])
        return cls(np.concatenate([empty.astype(np.int32), *items]), start, np.asarray(first))


class SequenceStore:
    """Rows of one split: where in the histories the input of each ends. `load` touches no item.

    Args:
        root: prepared directory.
        card: its `dataset.json`.
        split: name of the split.
        histories: what the rows refer to.

    Raises:
        PreparedDataError: there is no such split, or a part is damaged.
    """

    def __init__(self, root: Path, card: Mapping[str, Any], split: str, histories: Histories) -> None:
        if split not in card["splits"]:
            raise PreparedDataError(
                f"{root}: has no split {split!r}, only {', '.join(card['splits'])}; prepare it again"
            )
        parts = card["splits"][split]["parts"]
        self.split, self.histories = split, histories
        self.paths = [root / part["path"] for part in parts]
        self.sizes: Sequence[int] = [int(part["rows"]) for part in parts]

    def load(self, block: int) -> Batch:
        """Read one part: `row`, `user`, and flat positions `start`, `train_end`, `end` in the histories, all (n,)."""
        frame = _read(self.paths[block], ["row", "user", "sequence", "train_end", "end"])
        columns = {name: frame[name].to_numpy().astype(np.int64) for name in frame.columns}
        start = self.histories.start[self.histories.first[block] + columns["sequence"]]
        ends = {name: start + columns[name] for name in ("train_end", "end")}
        kept = {"row": columns["row"], "user": columns["user"], "start": start, **ends}
        return {name: torch.from_numpy(column) for name, column in kept.items()}


class WholeStore:
    """One row per user with any event, whose input is everything known of them: what `predict` continues."""

    def __init__(self, histories: Histories) -> None:
        self.split, self.histories = "predict", histories
        self.users = np.flatnonzero(np.diff(histories.start))
        self.sizes: Sequence[int] = [len(self.users)]

    def load(self, block: int) -> Batch:
        """All of them."""
        start, end = self.histories.start[self.users], self.histories.start[self.users + 1]
        columns = {"row": np.arange(len(start)), "user": self.users, "start": start, "train_end": end, "end": end}
        return {name: torch.from_numpy(column.copy()) for name, column in columns.items()}


def _read(path: Path, columns: list[str]) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, columns=columns)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise PreparedDataError(f"{path}: cannot be read ({error}); prepare the data again") from None


class SequenceData(HeptadData):
    """An interaction log prepared by `heptad seqrec prep`.

    A batch has `items`, `slot`, `segment` (R, W) int64, see `packing.Layout`. For training also `at` (N,) flat
    positions with a next item, `target` (N,), and the rows of the transition matrix `head`, `count`, `edge_start`,
    `edge_tail`, `edge_count`; otherwise `last` (B,) flat positions of the latest items, `row`, `user`, `length` (B,),
    `seen` (B, S) items to leave out, padded, and, where it is known, `target` and its
    frequency in training `target_count` (B,).

    Args:
        root: prepared directory.
        batch_size: users of a global batch over all processes.
        seed: seed of the order of users.
        max_len: latest events of a user that are used (official: 50).
        span: largest distance of a transition (official: 1).
        mask_seen: which items cannot be recommended: the `recent` ones, that is the last `max_len` of training and what
            came later (official), `all` earlier ones, or `none`.
        arrangement: several sequences `packed` in a row, or each `padded` in its own; the results are the same.
        pool_rows: rows gathered before they are permuted.
        drop_last: leave the incomplete last batch of an epoch out.
        predict_root: directory of a newly encoded log to predict; default the whole histories of `root`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another domain.
    """

    domain = "seqrec"

    def __init__(
        self,
        root: str,
        batch_size: int = 256,
        seed: int = 0,
        max_len: int = 50,
        span: int = 1,
        mask_seen: Seen = "recent",
        arrangement: Arrangement = "packed",
        pool_rows: int = 4_194_304,
        drop_last: bool = False,
        predict_root: str | None = None,
    ) -> None:
        super().__init__(root, batch_size, seed, pool_rows, drop_last=drop_last, predict_root=predict_root)
        if max_len < 2 or span < 1:  # of one event none is left to predict
            raise ConfigError(f"data.max_len is {max_len} and data.span {span}; at least 2 and 1 are needed")
        self.card = read_card(self.root, self.domain)
        self.n_items = int(self.card["n_items"])
        self.max_len, self.span, self.mask_seen = max_len, span, mask_seen
        self.arrangement = arrangement
        self._known: dict[Path, pl.Series] = {}

    @cached_property
    def histories(self) -> Histories:
        """Events of all users."""
        return Histories.read(self.root, self.card)

    def store(self, split: str) -> SequenceStore | WholeStore:
        """Rows of one split; `predict` is `predict_root`, or else all users with all that is known of them."""
        if split != "predict":
            return SequenceStore(self.root, self.card, split, self.histories)
        if self.predict_root is None:
            return WholeStore(self.histories)
        card = read_card(self.predict_root, self.domain)
        if card["n_items"] != self.n_items:
            raise PreparedDataError(
                f"{self.predict_root}: its items are not those of {self.root}; encode the log with that preparation"
            )
        return WholeStore(Histories.read(self.predict_root, card))

    def collate_for(self, store: Any) -> TrainingCollate | RankingCollate:
        """Make what turns rows of a store into a batch."""
        if store.split == "train":
            return TrainingCollate(self, store.histories)
        return RankingCollate(self, store.histories, targets=store.split != "predict")

    @cached_property
    def transitions(self) -> TransitionMatrix:
        """Transitions in the training sequences, their latest `max_len` events."""
        store = self.store("train")
        histories, parts = store.histories, [store.load(block) for block in range(len(store.sizes))]
        start, end = (np.concatenate([part[name].numpy() for part in parts]) for name in ("start", "end"))
        start = np.maximum(start, end - self.max_len)
        items = histories.items[ragged_ranges(start, end - start)]
        return count_transitions(items, end - start, self.n_items, span=self.span)

    @cached_property
    def item_counts(self) -> Integers:
        """How often each item occurs in training, (V,)."""
        frame = _read(self.root / "items.parquet", ["item", "count"]).sort("item")
        return frame["count"].to_numpy().astype(np.int64)

    def decode(self, predictions: pl.DataFrame, split: str) -> pl.DataFrame:
        """Name users and items as the log does; their numbers become `user_id`, `target_id`, `item_ids`.

        Lists of items are as long as there were items to recommend.
        """
        root = self.predict_root if split == "predict" and self.predict_root is not None else self.root
        users, items = self._tokens(root / "users.parquet", "user"), self._tokens(self.root / "items.parquet", "item")
        named: list[pl.Series] = []
        for column in predictions:
            if column.name == "user":
                named += [users.gather(column).alias("user"), column.alias("user_id")]
            elif column.name in ("target", "item"):
                named += [items.gather(column).alias(column.name), column.alias(f"{column.name}_id")]
            elif column.name == "items":
                ids = pl.Series(column.to_numpy().ravel(), dtype=pl.Int32)
                ids = ids.set(ids == self.n_items, None)
                shape = (len(column), column.dtype.shape[0])  # type: ignore[attr-defined]
                lists = {"items": items.gather(ids), "item_ids": ids}
                named += [_without_null(flat.reshape(shape), name) for name, flat in lists.items()]
            elif column.name == "scores":
                flat = pl.Series(column.to_numpy().ravel())
                shape = (len(column), column.dtype.shape[0])  # type: ignore[attr-defined]
                named.append(_without_null(flat.set(flat == -np.inf, None).reshape(shape), "scores"))
            else:
                named.append(column)
        return pl.DataFrame(named)

    @property
    def item_tokens(self) -> pl.Series:
        """Names of the items as in the log, (V,)."""
        return self._tokens(self.root / "items.parquet", "item")

    @property
    def user_tokens(self) -> pl.Series:
        """Names of the users as in the log."""
        return self._tokens(self.root / "users.parquet", "user")

    def _tokens(self, path: Path, name: str) -> pl.Series:
        if path not in self._known:
            self._known[path] = _read(path, [name, "token"]).sort(name)["token"]
        return self._known[path]


def _without_null(column: pl.Series, name: str) -> pl.Series:
    return column.arr.to_list().list.drop_nulls().alias(name)


class TrainingCollate:
    """Users -> their training sequences, each position with its next item."""

    def __init__(self, data: SequenceData, histories: Histories) -> None:
        self.items, self.max_len, self.n_items = histories.items, data.max_len, data.n_items
        self.packed, self.transitions = data.arrangement == "packed", data.transitions

    def __call__(self, batch: Batch) -> Batch:
        """Arrange sequences, look up the transitions of their items."""
        start, end = batch["start"].numpy(), batch["end"].numpy()
        start = np.maximum(start, end - self.max_len)
        lengths = end - start - 1
        at = ragged_ranges(start, lengths)
        inputs, targets = self.items[at].astype(np.int64), self.items[at + 1].astype(np.int64)
        layout = lay_out(inputs, lengths, self.max_len, self.n_items, packed=self.packed)
        rows = self.transitions.rows(inputs)
        return {
            "items": layout.items,
            "slot": layout.slot,
            "segment": layout.segment,
            "at": layout.at,
            "target": torch.from_numpy(targets),
            "head": rows.head,
            "count": rows.count,
            "edge_start": rows.start,
            "edge_tail": rows.tail,
            "edge_count": rows.transitions,
        }


class RankingCollate:
    """Users -> their latest events, what they have seen, and the item to be found."""

    def __init__(self, data: SequenceData, histories: Histories, *, targets: bool) -> None:
        self.items, self.max_len, self.n_items = histories.items, data.max_len, data.n_items
        self.packed, self.mask_seen = data.arrangement == "packed", data.mask_seen
        self.counts = data.item_counts if targets else None

    def __call__(self, batch: Batch) -> Batch:
        """Arrange inputs, gather what is left out of the ranking."""
        begin, train_end, end = (batch[name].numpy() for name in ("start", "train_end", "end"))
        start = np.maximum(begin, end - self.max_len)
        lengths = end - start
        inputs = self.items[ragged_ranges(start, lengths)].astype(np.int64)
        layout = lay_out(inputs, lengths, self.max_len, self.n_items, packed=self.packed)
        result = {
            "items": layout.items,
            "slot": layout.slot,
            "segment": layout.segment,
            "last": layout.at[torch.from_numpy(np.cumsum(lengths) - 1)],
            "row": batch["row"],
            "user": batch["user"],
            "length": batch["end"] - batch["start"],
            "seen": torch.from_numpy(self._seen(begin, train_end, end)),
        }
        if self.counts is not None:
            target = self.items[end].astype(np.int64)
            result["target"] = torch.from_numpy(target)
            result["target_count"] = torch.from_numpy(self.counts[target])
        return result

    def _seen(self, begin: Integers, train_end: Integers, end: Integers) -> Integers:
        if self.mask_seen == "none":
            return np.full((len(begin), 0), self.n_items)
        start = begin if self.mask_seen == "all" else np.maximum(begin, train_end - self.max_len)
        lengths = end - start
        width = int(lengths.max()) if len(lengths) else 0
        seen = np.full(len(begin) * width, self.n_items)
        seen[ragged_ranges(np.arange(len(begin)) * width, lengths)] = self.items[ragged_ranges(start, lengths)]
        return seen.reshape(len(begin), width)
