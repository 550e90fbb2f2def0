"""An interaction log with planted transitions, whose best achievable ranking is therefore known."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

N_CLUSTERS = 10
N_SUCCESSORS = 4
FOLLOW = 0.65  # share of events that follow from the item before
WEIGHTS = (0.55, 0.25, 0.12, 0.08)  # of the successors of an item
DRIFT = 0.06  # chance per event that the taste moves to the next cluster
F64 = npt.NDArray[np.float64]


class Planted(NamedTuple):
    """What is known about a generated log.

    Args:
        path: the log, `interactions.csv` with columns user, item, time.
        hit_rate: share of test targets (last event of each user) that a model which knows the generator, the history
            and the hidden taste ranks among the first K; nobody can do better on average.
        ndcg: the same as NDCG at K.
    """

    path: Path
    hit_rate: dict[int, float]
    ndcg: dict[int, float]


def write_planted_log(directory: Path, users: int = 2000, items: int = 300, seed: int = 0) -> Planted:
    """Write `interactions.csv`: Markov transitions, a slowly drifting taste, popular and rare items.

    Each event follows, with weight `FOLLOW`, from the item before (one of `N_SUCCESSORS` per item, in another cluster
    as a rule), and else is a popular item of the cluster that the user likes at the moment; nobody takes an item
    twice. Counting items finds only popularity; the order of events is what tells.

    Args:
        directory: made if absent.
        users: sequences, of 5 to 30 events.
        items: the catalogue; at least 100, so that nobody runs out of items.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    successors = np.stack([rng.permutation(items)[:N_SUCCESSORS] for _ in range(items)])
    popular = _popularity(rng, items)
    lengths = rng.integers(5, 31, size=users)
    taste = rng.integers(N_CLUSTERS, size=users)
    current = np.array([rng.choice(items, p=popular[cluster]) for cluster in taste])
    seen = np.zeros((users, items), bool)
    seen[np.arange(users), current] = True
    rows: list[pl.DataFrame] = [_events(np.arange(users), current.copy(), 0)]  # `current` changes below
    ranks = np.zeros(users, np.int64)
    for step in range(1, int(lengths.max())):
        live = np.flatnonzero(lengths > step)
        moves = rng.random(len(live)) < DRIFT
        taste[live] = (taste[live] + moves) % N_CLUSTERS
        chances = (1 - FOLLOW) * popular[taste[live]]
        np.add.at(chances, (np.arange(len(live))[:, None], successors[current[live]]), FOLLOW * np.array(WEIGHTS))
        chances[seen[live]] = 0
        drawn = _draw(rng, chances)
        seen[live, drawn] = True
        at = np.arange(len(live))
        better = (chances > chances[at, drawn][:, None]).sum(axis=1)
        ranks[live] = better  # the last event of a user has the last word
        current[live] = drawn
        rows.append(_events(live, drawn, step))
    frame = pl.concat(rows).join(
        pl.DataFrame({"user": np.arange(users), "start": rng.integers(0, 300 * 86400, size=users)}), on="user"
    )
    begin = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())
    gap = 6 * 3600
    noise = pl.Series("noise", rng.integers(0, gap, size=frame.height))
    frame = frame.with_columns((begin + pl.col("start") + pl.col("step") * gap + noise).alias("time"))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "interactions.csv"
    # In the order of time, users mixed, as logs are.
    frame = frame.sort("time", "user").select(pl.format("u{}", "user"), pl.format("i{}", "item"), "time")
    frame.write_csv(path)
    hits = {k: float((ranks < k).mean()) for k in (5, 10, 20)}
    gains = 1 / np.log2(ranks + 2)
    return Planted(path, hits, {k: float(np.where(ranks < k, gains, 0).mean()) for k in (5, 10, 20)})


def _popularity(rng: np.random.Generator, items: int) -> F64:
    """Chance of each item in each cluster: Zipf within the cluster.

    Shape:
        -> (N_CLUSTERS, items) float64, rows with sum 1.
    """
    cluster = rng.permutation(items) % N_CLUSTERS
    chances = np.zeros((N_CLUSTERS, items))
    for index in range(N_CLUSTERS):
        members = rng.permutation(np.flatnonzero(cluster == index))
        weights = 1 / (np.arange(len(members)) + 2.0)
        chances[index, members] = weights / weights.sum()
    return chances


def _draw(rng: np.random.Generator, chances: F64) -> npt.NDArray[np.int64]:
    """One item per row, in proportion to the chances; never one whose chance is 0.

    Shape:
        chances (N, items) float64 -> (N,) int64.
    """
    bounds = np.cumsum(chances, axis=1)
    drawn: npt.NDArray[np.int64] = (bounds <= rng.random(len(chances))[:, None] * bounds[:, -1:]).sum(axis=1)
    return drawn


def _events(users: npt.NDArray[np.int64], items: npt.NDArray[np.int64], step: int) -> pl.DataFrame:
    return pl.DataFrame({"user": users, "item": items, "step": np.full(len(users), step)})
