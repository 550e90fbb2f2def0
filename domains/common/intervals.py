"""Bootstrap intervals over independent units: patients, subjects, users, not the rows they left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
WeightedMetric = Callable[[Floats], float]


@dataclass(frozen=True)
class Estimate:
    """A metric and its interval.

    Args:
        value: on the data as they are.
        low: lower bound.
        high: upper bound.
        units: number of independent units resampled.
        level: probability the interval aims at.
    """

    value: float
    low: float
    high: float
    units: int
    level: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for metrics.json (NaN, which JSON lacks, as null)."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def group_bootstrap(
    metrics: Mapping[str, WeightedMetric],
    rows: int,
    groups: NDArray[Any] | None = None,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    recentre: Collection[str] = (),
) -> dict[str, Estimate]:
    """Percentile bootstrap (Efron and Tibshirani, 1993, chapter 13) that resamples whole groups.

    All metrics see the same resamples, so that differences between them are paired.

    Args:
        metrics: name -> function of one weight per row; a weight says how often the row was drawn.
        rows: number of rows.
        groups: unit of each row, any dtype; rows of one unit are drawn together. None: every row is its own unit.
        replicates: number of resamples.
        level: probability of the interval.
        seed: of the resampling.
        recentre: metrics that resampling biases, such as a calibration error, to which every resample adds noise in
            every bin; their intervals are shifted so that the median resample lies on the value, not below 0.

    Returns:
        name -> estimate; bounds are NaN where fewer than two units exist, and ignore resamples in which the metric is
        undefined (NaN), such as one without positives.
    """
    values = {name: float(metric(np.ones(rows))) for name, metric in metrics.items()}
    if groups is None:
        units, owner = rows, None
    else:
        unique, owner = np.unique(groups, return_inverse=True)
        units = len(unique)
    if units < 2:
        return {name: Estimate(value, float("nan"), float("nan"), units, level) for name, value in values.items()}
    generator = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(replicates):
        counts = np.bincount(generator.integers(units, size=units), minlength=units).astype(np.float64)
        weights = counts if owner is None else counts[owner]
        for name, metric in metrics.items():
            draws[name].append(float(metric(weights)))
    tail = 50 * (1 - level)
    result = {}
    for name, value in values.items():
        finite = np.asarray([draw for draw in draws[name] if np.isfinite(draw)])
        low, high = np.percentile(finite, [tail, 100 - tail]) if len(finite) else (float("nan"), float("nan"))
        if name in recentre and len(finite):
            bias = float(np.median(finite)) - value
            low, high = max(low - bias, 0.0), high - bias
        result[name] = Estimate(value, float(low), float(high), units, level)
    return result
