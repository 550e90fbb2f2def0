"""Metrics of tests of fine-grained classes and of retrieval, with intervals over what is independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.classification import evaluate_classification
from domains.common.curves import ratio
from domains.common.errors import PreparedDataError
from domains.common.figures import WARNINGS
from domains.common.intervals import Estimate, Floats, WeightedMetric, ratio_bootstrap
from domains.finegrained.reid_metrics import JUNK

RANKS = (1, 5, 10)
BRANCHES = ("sa", "glca")
SHOWN = 30  # rows of a table
FEW_MATCHES = 2  # true matches of a query on the average, of which fewer are warned of
FEW_IDENTITIES = 10  # likewise


def evaluate_classes(
    predictions: pl.DataFrame, classes: Sequence[str], *, replicates: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Metrics of a classifier, intervals over pictures.

    Args:
        predictions: `label`, `probability_0` and so on, `predicted`, and where both branches ran `predicted_sa` and
            `predicted_glca`.
        classes: names.
        replicates: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        What `evaluate_classification` measures; `accuracy` is the top-1 accuracy of publications. Of six classes and
        more `top5_accuracy`; of both branches alone `accuracy_sa` and `accuracy_glca`.
    """
    if "label" not in predictions.columns:
        raise PreparedDataError("the pictures have no labels to compare with; `predict` needs none")
    labels, probabilities = arrays(predictions)
    extra: dict[str, WeightedMetric] = {}
    if len(classes) > 5:
        own = probabilities[np.arange(len(labels)), labels]
        extra["top5_accuracy"] = _share((probabilities > own[:, None]).sum(axis=1) < 5)
    for branch in BRANCHES:
        if f"predicted_{branch}" in predictions.columns:
            extra[f"accuracy_{branch}"] = _share(predictions[f"predicted_{branch}"].to_numpy() == labels)
    return evaluate_classification(
        labels,
        probabilities,
        None,
        classes,
        predicted=predictions["predicted"].to_numpy(),
        extra=extra,
        replicates=replicates,
        seed=seed,
    )


def arrays(predictions: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels (N,) and probabilities (N, C)."""
    columns = [name for name in predictions.columns if name.startswith("probability_")]
    return predictions["label"].to_numpy().astype(np.int64), predictions.select(columns).to_numpy().astype(np.float64)


def _share(right: NDArray[np.bool_]) -> WeightedMetric:
    values = right.astype(np.float64)

    def share(weights: Floats) -> float:
        return ratio(weights @ values, weights.sum())

    return share


def evaluate_retrieval(
    predictions: pl.DataFrame, *, trapezoid: bool = False, replicates: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Means over the queries that have a true match, intervals over the identities of queries.

    Args:
        predictions: with the columns that `score_queries` adds to queries.
        trapezoid: `mAP` by the trapezoid rule of Market-1501's own tool.
        replicates: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        `mAP`, `rank1`, `rank5`, `rank10`, `mINP`, the mAP by the other rule, and with `reranked_` before their names
        those after re-ranking.
    """
    queries = valid_queries(predictions)
    rule, other = ("ap_trapezoid", "ap_mean") if trapezoid else ("ap_mean", "ap_trapezoid")
    measured = {"mAP": rule, "mINP": "inp", f"mAP_{other.removeprefix('ap_')}": other}
    ones = np.ones(len(queries))
    found: dict[str, tuple[Floats, Floats]] = {}
    for prefix in ("", "reranked_"):
        if f"{prefix}first_rank" not in queries.columns:
            continue
        for name, column in measured.items():
            found[prefix + name] = queries[prefix + column].to_numpy(), ones
        first = queries[f"{prefix}first_rank"].to_numpy()
        for rank in RANKS:
            found[f"{prefix}rank{rank}"] = (first <= rank).astype(np.float64), ones
    names = sorted(found, key=lambda name: (name.startswith("reranked_"), name != "mAP", "rank" not in name))
    return ratio_bootstrap(
        {name: found[name] for name in names},
        len(queries),
        queries["label"].to_numpy(),
        replicates=replicates,
        seed=seed,
    )


def valid_queries(predictions: pl.DataFrame) -> pl.DataFrame:
    """Queries that have a true match in the gallery."""
    return predictions.filter((pl.col("role") == 1) & (pl.col("matches") > 0))


def report_tables(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> dict[str, list[dict[str, Any]]]:
    """Tables of the report: the weakest classes or identities, and what a reader must be warned of."""
    if "role" in predictions.columns:
        return _retrieval_tables(predictions)
    tables: dict[str, list[dict[str, Any]]] = {}
    table = predictions.with_columns(right=pl.col("predicted") == pl.col("label"))
    each = table.group_by("label").agg(
        pl.len().alias("pictures"), pl.col("right").sum().alias("right"), pl.col("class").first()
    )
    each = each.with_columns(accuracy=pl.col("right") / pl.col("pictures")).sort("accuracy", "label").head(SHOWN)
    wrong = table.filter(~pl.col("right")).group_by("class", "predicted_class").len("pictures")
    wrong = wrong.sort(["pictures", "class", "predicted_class"], descending=[True, False, False]).head(SHOWN)
    tables["Weakest classes"] = each.select("class", "pictures", "right", "accuracy").to_dicts()
    if len(wrong):
        tables["Most frequent mistakes"] = wrong.rename({"predicted_class": "taken for"}).to_dicts()
    chance = 1 / max(sum(name.startswith("probability_") for name in predictions.columns), 1)
    accuracy = metrics.get("accuracy")
    if accuracy is not None and accuracy.low <= chance:
        said = f"the accuracy {accuracy.value:.4f} is not above chance ({chance:.4f}): nothing was learned"
        tables[WARNINGS] = [{"warning": f"{said}; check the learning rate, the batch size and the pretrained weights"}]
    return tables


def _retrieval_tables(predictions: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    queries = predictions.filter(pl.col("role") == 1)
    valid = valid_queries(predictions)
    each = valid.group_by("label").agg(
        pl.col("identity").first(),
        pl.len().alias("queries"),
        pl.col("ap_mean").mean().alias("mean AP"),
        (pl.col("first_rank") == 1).mean().alias("rank-1"),
    )
    weakest = each.sort("mean AP", "label").head(SHOWN).drop("label").to_dicts()
    tables: dict[str, list[dict[str, Any]]] = {"Identities that are hardest to find": weakest}
    missing = queries.filter(pl.col("matches") == 0)
    if len(missing):
        named = missing.select("name", "identity", pl.col("camera_name").alias("camera")).head(SHOWN)
        tables["Queries without a true match in the gallery"] = named.to_dicts()
    warnings = _retrieval_warnings(predictions, queries, valid)
    if warnings:
        tables[WARNINGS] = [{"warning": warning} for warning in warnings]
    return tables


def _retrieval_warnings(predictions: pl.DataFrame, queries: pl.DataFrame, valid: pl.DataFrame) -> list[str]:
    """What makes scores hard to compare, or hardly anything."""
    gallery = len(predictions.filter((pl.col("role") == 2) & (pl.col("label") != JUNK)))
    missing, identities = len(queries) - len(valid), valid["label"].n_unique()
    matches = float(valid["matches"].to_numpy().mean())
    found = []
    if missing:
        found.append(
            f"{missing:,} of {len(queries):,} queries have no true match in the gallery and are left out of all means;"
            " pictures of their identity are by their own camera only, which --data.ignore_camera true counts, or"
            " there is none"
        )
    if gallery < len(queries):
        found.append(
            f"the gallery has {gallery:,} pictures, fewer than the {len(queries):,} queries that are searched in it:"
            " much is found by chance, and the scores are not those of a search; prepare the data with fewer --queries"
            " or a larger gallery"
        )
    if matches < FEW_MATCHES:
        found.append(
            f"a query has {matches:.2f} true matches in the gallery on the average: mAP and mINP are hardly more than"
            " ranks of single pictures; prepare the data with more pictures in the gallery"
        )
    if identities < FEW_IDENTITIES:
        found.append(
            f"the queries are of {identities:,} identities, too few for intervals that are resampled over them to be"
            " believed; test on more"
        )
    return found
