"""Everybody gets the most frequent items: what every other model has to beat."""

from __future__ import annotations

import polars as pl
import torch

from domains.common.intervals import Estimate
from domains.seqrec.data import SequenceData
from domains.seqrec.evaluation import CUTOFFS, evaluate_rankings
from domains.seqrec.ranking import rank_items


def evaluate_popularity(data: SequenceData, *, replicates: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Metrics of the test split when items are ranked by how often they occur in training.

    Args:
        data: prepared log; which items are left out as seen is its option.
        replicates: bootstrap resamples.
        seed: of the bootstrap.
    """
    table = torch.from_numpy(data.item_counts).float()[:, None]
    parts = []
    for batch in data.test_dataloader():
        users = torch.ones(len(batch["row"]), 1)
        ranking = rank_items(users, table, batch["seen"], batch["target"], top=max(CUTOFFS))
        if ranking.rank is None:
            continue
        known = {name: batch[name].numpy() for name in ("row", "user", "target_count")}
        seen = (batch["seen"] == batch["target"][:, None]).any(1).numpy()
        parts.append(
            pl.DataFrame(
                {**known, "seen_target": seen, "rank": ranking.rank.numpy(), "items": ranking.items.int().numpy()}
            )
        )
    return evaluate_rankings(pl.concat(parts), data.n_items, replicates=replicates, seed=seed)
