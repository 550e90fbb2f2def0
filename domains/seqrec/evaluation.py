"""Ranking metrics."""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.common.intervals import Estimate, Floats, group_bootstrap

CUTOFFS = (5, 10, 20)
METRICS = tuple(f"{metric}@{k}" for metric in ("ndcg", "hr", "mrr") for k in CUTOFFS)


def ranking_values(rank: Tensor) -> dict[str, Tensor]:
    """Metrics of single users from the rank of their wanted item, counted from 0: name -> (B,) float64."""
    gain, reciprocal = torch.log2(rank + 2).reciprocal(), (rank + 1).reciprocal()
    values: dict[str, Tensor] = {}
    for k in CUTOFFS:
        hit = (rank < k).to(rank.dtype)
        values |= {f"ndcg@{k}": gain * hit, f"hr@{k}": hit, f"mrr@{k}": reciprocal * hit}
    return values


def evaluate_rankings(
    predictions: pl.DataFrame, n_items: int, *, replicates: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Metrics with intervals over users."""
    values = ranking_values(torch.from_numpy(predictions["rank"].to_numpy().copy()))
    metrics = {name: partial(_mean, value.numpy()) for name, value in values.items()}
    return group_bootstrap(metrics, len(predictions), replicates=replicates, seed=seed)


def _mean(values: Floats, weights: Floats) -> float:
    return float(np.dot(weights, values) / weights.sum())
