"""Pictures of a recommender's test: hits by cutoff, by history, by frequency; ranks; what is recommended to whom."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes
from domains.common.intervals import Estimate, ratio_bootstrap
from domains.seqrec.evaluation import evaluate_strata

DEPTH = 20  # cutoffs of the curve of hits
RESAMPLES = 200


def figures(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: columns `user`, `target`, `rank`, `length`, `target_count`, `items`.
        metrics: as `evaluate_rankings` returns them.
    """
    strata = evaluate_strata(predictions, replicates=RESAMPLES)
    return [
        _hits(predictions, metrics),
        _strata(
            strata.filter(pl.col("by") == "length"), "NDCG@10 by length of the history", "events before the target"
        ),
        _strata(
            strata.filter(pl.col("by") == "target_count"),
            "NDCG@10 by frequency of the wanted item",
            "events of the wanted item in training",
        ),
        _ranks(predictions),
        _long_tail(predictions, metrics),
    ]


def _hits(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> Picture:
    rank, ones = predictions["rank"].to_numpy(), np.ones(len(predictions))
    users = predictions["user"].to_numpy()
    depths = range(1, DEPTH + 1)
    ratios = {str(k): ((rank < k).astype(np.float64), ones) for k in depths}
    found = list(ratio_bootstrap(ratios, len(rank), users, replicates=RESAMPLES).values())
    figure, panel = axes(5.6, 3.8)
    panel.fill_between(
        list(depths), [e.low for e in found], [e.high for e in found], color=BLUE, alpha=0.2, linewidth=0
    )
    panel.plot(list(depths), [e.value for e in found], "o-", color=BLUE, markersize=3.5)
    panel.set_xlabel("length K of the list of recommendations")
    panel.set_ylabel("HR@K")
    panel.set_xticks([1, 5, 10, 15, 20])
    panel.set_ylim(0, None)
    ceiling, cold = metrics["hr_ceiling"].value, metrics["cold_targets"].value
    caption = (
        f"Share of targets among the K best items, with 95 % intervals over users. {1 - ceiling:.2%} of the targets are"
        f" left out of the ranking as seen and {cold:.2%} never occur in training; neither kind can be learned."
    )
    return Picture("Hit rate by cutoff", caption, figure)


def _strata(table: pl.DataFrame, title: str, label: str) -> Picture:
    figure, panel = axes(5.6, 3.6)
    value = table["ndcg"].to_numpy()
    errors = np.stack([value - table["ndcg_low"].to_numpy(), table["ndcg_high"].to_numpy() - value])
    panel.bar(range(len(value)), value, color=BLUE, width=0.7, yerr=np.nan_to_num(errors).clip(0), ecolor=GREY)
    names = [f"{row['stratum']}\n{row['targets']:,}" for row in table.iter_rows(named=True)]
    panel.set_xticks(range(len(value)), names, fontsize=9)
    panel.set_xlabel(f"{label}; below, the number of targets")
    panel.set_ylabel("NDCG@10")
    return Picture(title, "Lines are 95 % intervals over users.", figure)


def _ranks(predictions: pl.DataFrame) -> Picture:
    rank = predictions["rank"].to_numpy()
    finite = rank[np.isfinite(rank)] + 1
    figure, panel = axes(5.6, 3.6)
    highest = float(finite.max(initial=2.0))
    edges = np.unique(np.round(np.geomspace(1, highest + 1, 31)))
    panel.hist(finite, bins=edges.tolist(), weights=np.full(len(finite), 1 / max(len(rank), 1)), color=BLUE)
    panel.axvline(DEPTH + 0.5, color=ORANGE, linewidth=1)
    panel.set_xscale("log")
    panel.set_xlabel("place of the wanted item among all items, 1 = best")
    panel.set_ylabel("share of targets")
    median = f"{float(np.median(finite)):,.0f}" if len(finite) else "none"
    caption = f"Median place {median}. Left of the orange line the target is among the {DEPTH} recommended items."
    return Picture("Place of the wanted item", caption, figure)


def _long_tail(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> Picture:
    items = predictions["items"].to_numpy()
    real = predictions["scores"].to_numpy() > -np.inf if "scores" in predictions.columns else np.ones_like(items, bool)
    figure, panel = axes(5.6, 3.8)
    for name, chosen, colour in (
        ("recommended, 10 best", items[:, :10][real[:, :10]], BLUE),
        ("wanted", predictions["target"].to_numpy(), ORANGE),
    ):
        share = _cumulative(chosen)
        panel.plot(np.arange(1, len(share) + 1), share, color=colour, label=name)
    panel.set_xscale("log")
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("most frequent items of the catalogue")
    panel.set_ylabel("cumulative share")
    panel.legend(frameon=False)
    caption = (
        "Share of all recommendations, and of all wanted items, that the most frequent items have; a recommender whose"
        f" curve runs above prefers what is popular. {metrics['coverage@10'].value:.1%} of the catalogue are among the"
        f" 10 best of somebody; {metrics['popularity@10'].value:.1%} of these recommendations are items of"
        " the most frequent tenth."
    )
    return Picture("Popularity of recommendations", caption, figure)


def _cumulative(items: NDArray[np.int64]) -> NDArray[np.float64]:
    counts = np.bincount(items) if len(items) else np.zeros(1)
    share: NDArray[np.float64] = np.cumsum(counts) / max(counts.sum(), 1)
    return share
