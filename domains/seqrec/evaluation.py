"""Ranking metrics of single users, of strata of them, and of everything that is recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.intervals import Estimate, Floats, WeightedMetric, group_bootstrap, ratio_bootstrap

CUTOFFS = (5, 10, 20)
METRICS = tuple(f"{metric}@{k}" for metric in ("ndcg", "hr", "mrr") for k in CUTOFFS)
HEAD = 0.1  # share of the catalogue that counts as popular
LENGTHS = (1, 5, 10, 20, 50)  # first length of each stratum of histories
COUNTS = (0, 1, 5, 10, 20, 50, 100)  # first training frequency of each stratum of targets
# from here on the bootstrap's error is far below the interval's width; 1,000 resamples would take minutes
LARGE = 300_000


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
    """Metrics with intervals over users; each target counts once, all targets of a user are drawn together.

    `ndcg@K`, `hr@K` (with one wanted item also recall), `mrr@K`; `coverage@K`, the share of the catalogue that is
    recommended to anybody; `popularity@K`, the share of recommendations among the tenth of the catalogue with the most
    events; `hr_ceiling`, the share of targets that are not left out of the ranking as seen; `cold_targets`, the share
    that training never saw. Coverage, and above 300,000 rows everything, has at most 200 resamples.

    Args:
        predictions: columns `user`, `rank`, `items`, and `seen_target`, `target_count`.
        n_items: size V of the catalogue, numbered by falling frequency.
        replicates: bootstrap resamples.
        seed: of the bootstrap.
    """
    rows, users = len(predictions), predictions["user"].to_numpy()
    items = predictions["items"].to_numpy()
    ones = np.ones(rows)
    ratios = {name: (values, ones) for name, values in _values(predictions).items()}
    for k in CUTOFFS:
        shown = items[:, :k]
        popular = (shown < HEAD * n_items).sum(axis=1).astype(np.float64)
        ratios[f"popularity@{k}"] = (popular, (shown < n_items).sum(axis=1).astype(np.float64))
    ratios["hr_ceiling"] = (1.0 - predictions["seen_target"].to_numpy(), ones)
    ratios["cold_targets"] = ((predictions["target_count"].to_numpy() == 0).astype(np.float64), ones)
    coverage: dict[str, WeightedMetric] = {
        f"coverage@{k}": partial(_coverage, np.ascontiguousarray(items[:, :k]), n_items) for k in CUTOFFS
    }
    if rows > LARGE:
        replicates = min(replicates, 200)
    found = ratio_bootstrap(ratios, rows, users, replicates=replicates, seed=seed)
    # a resample has fewer distinct users than the data
    draws = min(replicates, 200)
    covered = group_bootstrap(coverage, rows, users, replicates=draws, seed=seed, recentre=tuple(coverage))
    found |= {name: replace(estimate, high=min(estimate.high, 1.0)) for name, estimate in covered.items()}
    order = [*METRICS, *coverage, *ratios]
    return {name: found[name] for name in dict.fromkeys(order)}


def evaluate_strata(
    predictions: pl.DataFrame, *, cutoff: int = 10, replicates: int = 200, seed: int = 0
) -> pl.DataFrame:
    """NDCG and hit rate of targets by length of the history and by frequency of the target in training.

    Args:
        predictions: columns `user`, `rank`, `length`, `target_count`.
        cutoff: K of both metrics.
        replicates: bootstrap resamples over users.
        seed: of the bootstrap.

    Returns:
        Columns `by` (`length` or `target_count`), `stratum`, `targets`, and `ndcg`, `hr`, each with `_low`, `_high`;
        only strata that have targets.
    """
    values = _values(predictions)
    ratios: dict[str, tuple[Floats, Floats]] = {}
    rows: list[dict[str, Any]] = []
    for by, starts in (("length", LENGTHS), ("target_count", COUNTS)):
        place = np.searchsorted(starts, predictions[by].to_numpy(), side="right") - 1
        for i, stratum in enumerate(stratum_names(starts)):
            inside = (place == i).astype(np.float64)
            if inside.any():
                rows.append({"by": by, "stratum": stratum, "targets": int(inside.sum())})
                for metric in ("ndcg", "hr"):
                    ratios[f"{by} {stratum} {metric}"] = (values[f"{metric}@{cutoff}"] * inside, inside)
    estimates = ratio_bootstrap(
        ratios, len(predictions), predictions["user"].to_numpy(), replicates=replicates, seed=seed
    )
    for row in rows:
        for metric in ("ndcg", "hr"):
            found = estimates[f"{row['by']} {row['stratum']} {metric}"]
            row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
    return pl.DataFrame(rows)


def stratum_names(starts: Sequence[int]) -> list[str]:
    """(0, 1, 5) -> 0, 1-4, 5+."""
    closed = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(starts)]
    return [*closed, f"{starts[-1]}+"]


def report_tables(
    predictions: pl.DataFrame, metrics: Mapping[str, Estimate]
) -> dict[str, list[dict[str, float | int | str]]]:
    """Tables of a test's report: heading -> rows."""
    del metrics
    strata = evaluate_strata(predictions)
    headings = {
        "length": ("By length of the history", "events"),
        "target_count": ("By frequency of the wanted item", "events in training"),
    }
    tables: dict[str, list[dict[str, float | int | str]]] = {}
    for by, (heading, column) in headings.items():
        tables[heading] = [
            {
                column: row["stratum"],
                "targets": row["targets"],
                "NDCG@10": row["ndcg"],
                "95 % of NDCG": f"[{row['ndcg_low']:.5f}, {row['ndcg_high']:.5f}]",
                "HR@10": row["hr"],
                "95 % of HR": f"[{row['hr_low']:.5f}, {row['hr_high']:.5f}]",
            }
            for row in strata.filter(pl.col("by") == by).iter_rows(named=True)
        ]
    return tables


def _values(predictions: pl.DataFrame) -> dict[str, Floats]:
    values = ranking_values(torch.from_numpy(predictions["rank"].to_numpy().copy()))
    return {name: tensor.numpy() for name, tensor in values.items()}


def _coverage(items: NDArray[Any], n_items: int, weights: Floats) -> float:
    shown = np.zeros(n_items + 1, dtype=bool)  # padding falls behind the catalogue
    shown[items if weights.all() else items[weights > 0]] = True
    return float(shown[:n_items].sum() / n_items)
