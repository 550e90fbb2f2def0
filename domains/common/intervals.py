"""Bootstrap intervals over independent units: patients, subjects, users, not the rows they left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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


# resampled units of one slice of replicates in `ratio_bootstrap`: 32 MB of counts
_SLICE = 1 << 22


def ratio_bootstrap(
    ratios: Mapping[str, tuple[Floats, Floats]],
    rows: int,
    groups: NDArray[Any] | None = None,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`group_bootstrap` of metrics that are ratios of sums over rows, all of them in one matrix product.

    The resamples are those that `group_bootstrap` draws with the same seed.

    Args:
        ratios: name -> numerator and denominator of each row; a mean over some rows has ones there and zeros elsewhere.
        rows: number of rows.
        groups: unit of each row. None: every row is its own unit.
        replicates: number of resamples.
        level: probability of the interval.
        seed: of the resampling.

    Shape:
        numerators and denominators (rows,) float64.

    Returns:
        name -> estimate, NaN where the denominator is 0.
    """
    sums = np.stack([side for ratio in ratios.values() for side in ratio], axis=1)  # (rows, 2 M)
    if groups is not None:
        owner = np.unique(groups, return_inverse=True)[1]
        sums = np.stack([np.bincount(owner, column) for column in sums.T], axis=1)
    units = len(sums)
    values = _divide(sums.sum(axis=0, keepdims=True))[0]
    if units < 2:
        bounds = np.full((2, len(values)), np.nan)
    else:
        generator = np.random.default_rng(seed)
        draws = np.empty((replicates, len(values)))
        size = max(_SLICE // units, 1)
        for start in range(0, replicates, size):
            part = draws[start : start + size]
            counts = np.stack([_resample(generator, units) for _ in part])
            part[:] = _divide(counts @ sums)
        tail = 50 * (1 - level)
        bounds = np.full((2, len(values)), np.nan)
        for i, column in enumerate(draws.T):
            finite = column[np.isfinite(column)]
            if len(finite):
                bounds[:, i] = np.percentile(finite, [tail, 100 - tail])
    return {
        name: Estimate(float(value), float(low), float(high), units, level)
        for name, value, low, high in zip(ratios, values, *bounds, strict=True)
    }


def _divide(sums: Floats) -> Floats:
    """(R, 2 M) numerators and denominators in turn -> (R, M)."""
    above, below = sums[:, ::2], sums[:, 1::2]
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def _resample(generator: np.random.Generator, units: int) -> Floats:
    """How often each unit is drawn."""
    return np.bincount(generator.integers(units, size=units), minlength=units).astype(np.float64)


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

    def together(weights: Floats) -> list[float]:
        return [float(metric(weights)) for metric in metrics.values()]

    return joint_bootstrap(
        list(metrics), together, rows, groups, replicates=replicates, level=level, seed=seed, recentre=recentre
    )


def joint_bootstrap(
    names: Sequence[str],
    metrics: Callable[[Floats], Sequence[float] | Floats],
    rows: int,
    groups: NDArray[Any] | None = None,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    recentre: Collection[str] = (),
) -> dict[str, Estimate]:
    """`group_bootstrap` of metrics that share their work: one function of the weights returns all of them.

    Args:
        names: of the metrics.
        metrics: function of one weight per row that returns one number per name.
        rows: number of rows.
        groups: unit of each row. None: every row is its own unit.
        replicates: number of resamples.
        level: probability of the interval.
        seed: of the resampling.
        recentre: see `group_bootstrap`.

    Returns:
        name -> estimate.
    """
    values = [float(value) for value in metrics(np.ones(rows))]
    if groups is None:
        units, owner = rows, None
    else:
        unique, owner = np.unique(groups, return_inverse=True)
        units = len(unique)
    if units < 2:
        nan = float("nan")
        return {name: Estimate(value, nan, nan, units, level) for name, value in zip(names, values, strict=True)}
    generator = np.random.default_rng(seed)
    draws = np.empty((replicates, len(values)))
    for draw in draws:
        counts = _resample(generator, units)
        draw[:] = metrics(counts if owner is None else counts[owner])
    tail = 50 * (1 - level)
    result = {}
    for name, value, column in zip(names, values, draws.T, strict=True):
        finite = column[np.isfinite(column)]
        low, high = np.percentile(finite, [tail, 100 - tail]) if len(finite) else (float("nan"), float("nan"))
        if name in recentre and len(finite):
            bias = float(np.median(finite)) - value
            low, high = max(low - bias, 0.0), high - bias
        result[name] = Estimate(value, float(low), float(high), units, level)
    return result
