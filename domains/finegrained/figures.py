"""Pictures of a test: of classes confusion, calibration and mistakes; of retrieval CMC, precision and sheets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from domains.common.classification_figures import confusion, reliability, score_distribution, wilson
from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, plain
from domains.common.intervals import Estimate
from domains.finegrained.evaluation import arrays, valid_queries
from domains.finegrained.sheets import mistake_sheet, retrieval_sheet

MISTAKES = 18  # pictures of a sheet
QUERIES = 5  # rows of a sheet
WEAKEST = 20  # classes of a picture
DEPTH = 20  # ranks of a CMC curve


def figures(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: as `complete` of the modules leaves them.
        metrics: of `evaluate`.
    """
    return _retrieval(predictions, metrics) if "role" in predictions.columns else _classes(predictions, metrics)


def _classes(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    labels, probabilities = arrays(predictions)
    predicted = predictions["predicted"].to_numpy().astype(np.int64)
    names = dict(predictions.select("predicted", "predicted_class").iter_rows())
    names |= dict(predictions.select("label", "class").iter_rows())
    classes = [names.get(k, f"class_{k}") for k in range(probabilities.shape[1])]
    pictures = [_weakest(labels, predicted, classes), confusion(labels, predicted, classes)]
    pictures.append(reliability(labels, probabilities, classes, metrics))
    if len(classes) <= 2 * WEAKEST:
        pictures.append(score_distribution(labels, probabilities, classes))
    table = predictions.with_columns(confidence=pl.Series(probabilities.max(axis=1)))
    wrong = table.filter(pl.col("predicted") != pl.col("label")).sort("confidence", "row", descending=[True, False])
    if len(wrong):
        caption = "The wrong decisions that the model was surest of: true class → decided class, its probability."
        pictures.append(Picture("Surest mistakes", caption, mistake_sheet(wrong.head(MISTAKES).to_dicts())))
    return pictures


def _weakest(labels: np.ndarray, predicted: np.ndarray, classes: list[str]) -> Picture:
    present = np.unique(labels)
    counts = np.array([(labels == k).sum() for k in present])
    rates = np.array([(predicted[labels == k] == k).mean() for k in present])
    order = np.lexsort((present, rates))[:WEAKEST]
    figure, panel = axes(6.4, max(2.0, 0.3 * len(order) + 1.0))
    places = np.arange(len(order))
    errors = wilson(rates[order], counts[order])
    panel.errorbar(rates[order], places, xerr=errors, fmt="o", color=BLUE, ecolor=GREY, markersize=5)
    panel.axvline(float((labels == predicted).mean()), color=BLUE, linewidth=0.8, linestyle="--")
    panel.set_yticks(places, [f"{plain(classes[present[k]], 32)} ({counts[k]:,})" for k in order])
    panel.set_ylim(len(order) - 0.5, -0.5)
    panel.set_xlim(-0.02, 1.02)
    panel.set_xlabel("share of the class that is decided right")
    whole = "All" if len(order) == len(present) else f"The {len(order)} weakest of {len(present)}"
    return Picture("Accuracy by class", f"{whole} classes, 95 % Wilson bars; dashed: of all pictures.", figure)


def _retrieval(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    valid = valid_queries(predictions)
    pictures = [_cmc(valid, metrics), _precisions(valid)]
    order = valid.sort("ap_mean", "row")
    middle = max(0, len(order) // 2 - QUERIES // 2)
    chosen = {
        "Worst queries": order.head(QUERIES),
        "Middling queries": order.slice(middle, QUERIES),
        "Best queries": order.tail(QUERIES),
    }
    caption = (
        "Left the query; behind it the nearest pictures of the gallery that count, with their distances. Green: of its"
        " identity; red: of another."
    )
    for title, queries in chosen.items():
        some = [row for row in queries.to_dicts() if row["neighbours"]]
        if some:
            pictures.append(Picture(title, caption, retrieval_sheet(predictions, some)))
    return pictures


def _cmc(valid: pl.DataFrame, metrics: Mapping[str, Estimate]) -> Picture:
    figure, panel = axes(5.6, 3.8)
    ranks = np.arange(1, DEPTH + 1)
    for column, colour, name in (
        ("first_rank", BLUE, "distances"),
        ("reranked_first_rank", ORANGE, "after re-ranking"),
    ):
        if column in valid.columns:
            first = valid[column].to_numpy()
            panel.plot(ranks, [(first <= rank).mean() for rank in ranks], "o-", color=colour, markersize=3, label=name)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xticks([1, 5, 10, 15, 20])
    panel.set_xlabel("rank")
    panel.set_ylabel("queries with a true match so far")
    if "reranked_first_rank" in valid.columns:
        panel.legend(frameon=False, loc="lower right")
    mean = metrics.get("mAP")
    said = "" if mean is None else f" mAP {mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}]."
    return Picture("Cumulative matching characteristic", f"{len(valid):,} queries with a true match.{said}", figure)


def _precisions(valid: pl.DataFrame) -> Picture:
    figure, panel = axes(5.6, 3.4)
    values = valid["ap_mean"].to_numpy()
    panel.hist(values, bins=np.linspace(0, 1, 21).tolist(), color=BLUE, alpha=0.8)
    panel.axvline(float(values.mean()), color=ORANGE, linewidth=1.4)
    panel.set_xlabel("average precision of a query")
    panel.set_ylabel("queries")
    return Picture("Average precision of queries", "The orange line is their mean, the mAP.", figure)
