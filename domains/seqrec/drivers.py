"""Which past items a recommendation rests on: attention of each branch, and what is lost without an item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.attention import record
from domains.common.loader import Batch
from domains.seqrec.mqsa_ted import AttentiveNetwork, SequenceNetwork
from domains.seqrec.packing import Integers, lay_out, ragged_ranges
from domains.seqrec.ranking import rank_items
from domains.seqrec.training import SequenceModule
from domains.seqrec.transitions import TransitionMatrix

TOKENS = 1 << 15  # positions of shortened histories that are encoded at a time


@dataclass(frozen=True)
class Histories:
    """Inputs of a batch, one behind the other.

    Shape:
        items (N,) int64; lengths (B,) int64.
    """

    items: Integers
    lengths: Integers

    @property
    def owner(self) -> Integers:
        """User of each item, (N,)."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def distance(self) -> Integers:
        """How many steps each item lies before the newest one, which is 1, (N,)."""
        return np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(self.items))


def branch_names(net: SequenceNetwork) -> list[str]:
    """`short` and `long` for the branches that the network has."""
    if not isinstance(net, AttentiveNetwork):
        return []
    return ["short" if window == 1 else "long" for window in net.attention.windows]


@torch.no_grad()
def past_items(module: SequenceModule, batch: Batch, transitions: TransitionMatrix) -> pl.DataFrame:
    """Explain the best recommendation for each user of a batch by the items of the history that the model sees.

    Args:
        module: trained, in evaluation mode.
        batch: of a test split, in padded arrangement.
        transitions: observed in training.

    Returns:
        One line per past item, newest first: `row`, `user`, `recommended`, `target`, `rank` of the target, `distance`
        (1 = newest), `item`; `attention_short`, `attention_long` where the network has such a branch, the weight that
        the newest position gives to the item, mean over blocks and heads; `drop`, what the recommended item's score
        loses when the item is taken out of the history (null where it is the only one); `transitions`, how often the
        recommended item followed the item in training.
    """
    net, items = module.net, batch["items"]
    with record(net) as maps:
        users = net.represent(items, batch["slot"], batch["segment"])[:, -1]
    table = net.table()
    ranking = rank_items(users, table, batch["seen"], batch["target"], top=1, ties=module.ties)
    if ranking.rank is None:
        raise ValueError("a batch to explain needs targets")
    best = ranking.items[:, 0].clamp(max=net.n_items - 1)
    keep = items != net.n_items
    past = Histories(items[keep].numpy(), keep.sum(1).numpy())
    owner = past.owner
    recommended = best.numpy()[owner]
    columns: dict[str, NDArray[Any]] = {
        "row": batch["row"].numpy()[owner],
        "user": batch["user"].numpy()[owner],
        "recommended": recommended,
        "target": batch["target"].numpy()[owner],
        "rank": ranking.rank.numpy()[owner],
        "distance": past.distance,
        "item": past.items,
    }
    for branch, name in enumerate(branch_names(net)):
        prefix = f"attention.branches.{branch}."
        newest = [m.mean(1)[:, -1] for key, found in maps.items() if key.startswith(prefix) for m in found]
        columns[f"attention_{name}"] = torch.stack(newest).mean(0)[keep].numpy()
    columns["drop"] = score_drops(net, past, best, users)
    columns["transitions"] = observed_counts(transitions, past.items, recommended)
    frame = pl.DataFrame(columns).with_columns(pl.col("drop").fill_nan(None))
    return frame.sort("row", "distance")


@torch.no_grad()
def score_drops(net: SequenceNetwork, past: Histories, wanted: Tensor, users: Tensor) -> NDArray[np.float64]:
    """What the score of one item per user loses when each item of the history is taken out; older items move up.

    Args:
        net: in evaluation mode.
        past: histories.
        wanted: the scored items (B,).
        users: user vectors (B, D) of the whole histories.

    Returns:
        (N,), NaN for the only item of a history.
    """
    vectors = net.items(wanted[None])[0]
    whole = (users * vectors).sum(1)
    owner = torch.from_numpy(past.owner)
    drops = np.full(len(past.items), np.nan)
    possible = np.flatnonzero(past.lengths[past.owner] > 1)
    ends = np.cumsum(past.lengths)
    left = past.lengths[past.owner[possible]] - 1
    slices = np.cumsum(left) // TOKENS
    for chosen in np.split(possible, np.flatnonzero(np.diff(slices)) + 1) if len(possible) else []:
        user = past.owner[chosen]
        lengths = past.lengths[user] - 1
        first = ends[user] - past.lengths[user]
        at = ragged_ranges(first, lengths)
        at += at >= np.repeat(chosen, lengths)  # step over the item that is left out
        layout = lay_out(past.items[at], lengths, net.max_len, net.n_items, packed=True)
        represented = net.represent(layout.items, layout.slot, layout.segment).flatten(0, 1)
        newest = represented[layout.at[torch.from_numpy(np.cumsum(lengths) - 1)]]
        mine = owner[torch.from_numpy(chosen)]
        drops[chosen] = (whole[mine] - (newest * vectors[mine]).sum(1)).double().numpy()
    return drops


def observed_counts(matrix: TransitionMatrix, head: Integers, tail: Integers) -> Integers:
    """How often each tail followed each head: (n,), (n,) -> (n,)."""
    keys = np.repeat(np.arange(matrix.n_items), np.diff(matrix.start)) * matrix.n_items + matrix.tail
    wanted = head.astype(np.int64) * matrix.n_items + tail
    place = np.searchsorted(keys, wanted)
    found = place < len(keys)
    found[found] = keys[place[found]] == wanted[found]
    counts = np.zeros(len(wanted), dtype=np.int64)
    counts[found] = matrix.count[place[found]].astype(np.int64)
    return counts


def by_distance(past: pl.DataFrame) -> pl.DataFrame:
    """Means over users at each distance from the newest item, beside that of equal attention to all items.

    Returns:
        Columns `distance`, `users`, `uniform`, `attention_*`, `drop`.
    """
    attention = [name for name in past.columns if name.startswith("attention_")]
    return (
        past.with_columns(uniform=1 / pl.len().over("row"))
        .group_by("distance")
        .agg(pl.len().alias("users"), pl.col("uniform", *attention, "drop").mean())
        .sort("distance")
    )
