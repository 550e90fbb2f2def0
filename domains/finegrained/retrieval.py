"""Queries of a table of pictures: scored against its gallery, and their nearest pictures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.finegrained.reid_metrics import JUNK, Identified, RetrievalScores, describe_unmatched, score_features
from domains.finegrained.reranking import Reranking
from domains.finegrained.search import BLOCK, Nearest, Search, nearest, nearest_counted

QUERY, GALLERY = 1, 2
SHEET = 10  # nearest pictures that are kept of each query


class Sides(NamedTuple):
    """Queries and gallery of a table of pictures.

    Attributes:
        rows: numbers of the pictures in the table, of queries and of the gallery.
        features: likewise.
        who: likewise.
    """

    rows: tuple[Tensor, Tensor]
    features: tuple[Tensor, Tensor]
    who: tuple[Identified, Identified]


def find_sides(table: pl.DataFrame) -> Sides:
    """Part a table of pictures.

    Args:
        table: `role` (1 query, 2 gallery), `embedding`, and where known `label` and `camera`; for messages `name`,
            `identity` and `camera_name`.
    """
    features = torch.from_numpy(np.array(table["embedding"].to_numpy(), dtype=np.float32))
    roles = torch.from_numpy(table["role"].to_numpy().astype(np.int64))
    unknown = pl.Series(np.zeros(len(table), np.int64))
    labels, cameras = (
        torch.from_numpy(table.get_column(name, default=unknown).to_numpy().astype(np.int64))
        for name in ("label", "camera")
    )
    rows = tuple((roles == role).nonzero().squeeze(1) for role in (QUERY, GALLERY))
    pictures = table["name"].to_list() if "name" in table.columns else []
    names = _names(table, "label", "identity"), _names(table, "camera", "camera_name")
    who = tuple(
        Identified(labels[some], cameras[some], [pictures[row] for row in some.tolist()] if pictures else (), *names)
        for some in rows
    )
    return Sides(rows, tuple(features[some] for some in rows), who)  # type: ignore[arg-type]


def _names(table: pl.DataFrame, code: str, name: str) -> dict[int, str]:
    """What the data call each code."""
    if not {code, name} <= set(table.columns):
        return {}
    return dict(table.select(code, name).unique().iter_rows())


def score_sides(
    sides: Sides, *, ignore_camera: bool = False, reranking: Reranking | None = None
) -> tuple[RetrievalScores, str]:
    """Score queries against the gallery, see `score_features`; the second is what is to be said of those left out."""
    scores = score_features(*sides.features, *sides.who, ignore_camera=ignore_camera, reranking=reranking)
    return scores, describe_unmatched(scores, *sides.who)


def mean_margin(sides: Sides, *, ignore_camera: bool = False) -> float:
    """How much farther the nearest picture of another identity is than the true matches, the mean over queries.

    Of each query the distance to the nearest picture of another identity minus the mean distance to its true matches;
    without a picture of another identity, that distance counts as 0. Where all queries find their matches first, mAP
    and ranks are 1 and stay there; this number goes on. Queries without a true match are left out, and junk.

    Args:
        sides: queries and gallery, features of length 1.
        ignore_camera: pictures by the query's own camera count, too.

    Returns:
        Between -2 and 2; NaN where no query has a true match.
    """
    (query, gallery), (own, others) = sides.features, sides.who
    kept = others.identities != JUNK
    gallery, identities, cameras = gallery[kept].double(), others.identities[kept], others.cameras[kept]
    margins = []
    for part in torch.split(torch.arange(len(query)), max(BLOCK // max(len(gallery), 1), 1)):
        distances = torch.cdist(query[part].double(), gallery)
        same = own.identities[part, None] == identities
        true = same if ignore_camera else same & (own.cameras[part, None] != cameras)
        nearest_other = distances.masked_fill(same, torch.inf).amin(1)
        nearest_other = torch.where(same.all(1), 0.0, nearest_other)
        margins.append((nearest_other - (distances * true).sum(1) / true.sum(1))[true.any(1)])
    return float(torch.cat(margins).mean()) if margins else float("nan")


def score_queries(
    table: pl.DataFrame, *, ignore_camera: bool = False, reranking: Reranking | None = None
) -> tuple[pl.DataFrame, str]:
    """Add the scores of each query to a table of pictures.

    Args:
        table: see `find_sides`.
        ignore_camera: pictures by the query's own camera count, too.
        reranking: score again after re-ranking.

    Returns:
        The table with `matches`, `first_rank`, `ap_mean`, `ap_trapezoid`, `inp` (null where it is no query), and with
        `reranked_` before their names those after re-ranking; and a line about queries without a true match.

    Raises:
        NoTrueMatchError: no query has one.
    """
    sides = find_sides(table)
    said = ""
    for prefix, asked in (("", None), ("reranked_", reranking)):
        if prefix and asked is None:
            continue
        scores, found = score_sides(sides, ignore_camera=ignore_camera, reranking=asked)
        said = said or found
        columns = {
            "first_rank": scores.first_rank,
            "ap_mean": scores.ap_mean,
            "ap_trapezoid": scores.ap_trapezoid,
            "inp": scores.inp,
        }
        if not prefix:
            columns = {"matches": scores.matches} | columns
        for name, values in columns.items():
            table = table.with_columns(_spread(prefix + name, values, sides.rows[0], len(table)))
    return table, said


def _spread(name: str, values: Tensor, rows: Tensor, total: int) -> pl.Series:
    """Values at some rows, null elsewhere."""
    column: list[float | int | None] = [None] * total
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        column[row] = value
    return pl.Series(name, column, dtype=pl.Float64 if values.is_floating_point() else pl.Int64)


def add_neighbours(
    table: pl.DataFrame, *, ignore_camera: bool = False, labelled: bool = True, search: Search = "auto"
) -> pl.DataFrame:
    """Add to queries the rows of their nearest pictures of the gallery, `neighbours`, and `neighbour_distances`.

    Where no picture is a query, every one is, and all others are its gallery.

    Args:
        table: see `find_sides`, and `row`.
        ignore_camera: pictures by the query's own camera count, too.
        labelled: whether identities are known; else nothing is left out.
        search: see `nearest`.
    """
    sides = find_sides(table)
    asked, given = sides.rows
    if not len(asked) or not len(given):
        features = torch.from_numpy(np.array(table["embedding"].to_numpy(), dtype=np.float32))
        asked = given = torch.arange(len(table))
        found = nearest(features, features, SHEET + 1, search)
        own = found.places == asked[:, None]
        order = own.long().sort(dim=1, stable=True).indices[:, : min(SHEET, len(table) - 1)]
        found = Nearest(found.places.gather(1, order), found.distance.gather(1, order))
    elif labelled:
        query, gallery = zip(sides.features, sides.who, strict=True)
        found = nearest_counted(query, gallery, SHEET, ignore_camera=ignore_camera, search=search)
    else:
        found = nearest(*sides.features, SHEET, search)
    rows = torch.from_numpy(table["row"].to_numpy().astype(np.int64))
    places: list[list[int] | None] = [None] * len(table)
    distances: list[list[float] | None] = [None] * len(table)
    for own_row, index, distance in zip(asked.tolist(), found.places, found.distance, strict=True):
        known = index >= 0
        places[own_row] = rows[given[index[known]]].tolist()
        distances[own_row] = distance[known].tolist()
    return table.with_columns(
        pl.Series("neighbours", places, dtype=pl.List(pl.Int64)),
        pl.Series("neighbour_distances", distances, dtype=pl.List(pl.Float32)),
    )


def list_neighbours(table: pl.DataFrame) -> pl.DataFrame:
    """A row for each query and nearest picture: query, rank, neighbour, distance (by the names of pictures)."""
    names = table.select(pl.col("row").cast(pl.Int64).alias("neighbours"), pl.col("name").alias("neighbour"))
    asked = table.filter(pl.col("neighbours").is_not_null() & (pl.col("neighbours").list.len() > 0))
    each = asked.select(
        "name", "neighbours", "neighbour_distances", pl.int_ranges(1, pl.col("neighbours").list.len() + 1).alias("rank")
    )
    each = each.explode("neighbours", "neighbour_distances", "rank")
    joined = each.join(names, on="neighbours", how="left", maintain_order="left")
    return joined.select(
        pl.col("name").alias("query"), "rank", "neighbour", pl.col("neighbour_distances").alias("distance")
    )
