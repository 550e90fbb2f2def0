"""Points of ROC and precision-recall curves as functions of row weights: sorted once, for any number of resamples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.common.intervals import Floats


class Ranking:
    """Rows by falling score; equal scores are one point of every curve.

    Args:
        positive: which rows are positive.
        scores: the higher, the more positive.

    Attributes:
        rows: how many there are.
        scores: the distinct scores, falling.

    Shape:
        positive bool (N,), scores (N,).
    """

    def __init__(self, positive: NDArray[np.bool_], scores: NDArray[Any]) -> None:
        values = np.asarray(scores, dtype=np.float64)
        self.rows = len(values)
        self._order = np.argsort(-values, kind="stable")
        ranked = values[self._order]
        self._ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True]) if len(ranked) else np.zeros(0, np.int64)
        self._positive = positive[self._order].astype(np.float64)
        self.scores: Floats = ranked[self._ends]

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of the positives, and of the negatives, down to each distinct score."""
        ordered = weights[self._order]
        hits, rows = np.cumsum(ordered * self._positive), np.cumsum(ordered)
        if len(self._ends) < len(rows):
            hits, rows = hits[self._ends], rows[self._ends]
        return hits, rows - hits


def auroc(hits: Floats, misses: Floats) -> float:
    """Area under the ROC curve through the points of `Ranking.counts`; NaN where one class has no weight."""
    area = hits[0] * misses[0] + np.diff(misses) @ (hits[1:] + hits[:-1])
    return ratio(area / 2, hits[-1] * misses[-1])


def average_precision(hits: Floats, misses: Floats) -> float:
    """Precision averaged over the positives, each at its own threshold (as in scikit-learn, without interpolation)."""
    rows = hits + misses
    precision = np.divide(hits, rows, out=np.zeros_like(hits), where=rows > 0)
    return ratio(np.diff(hits, prepend=0.0) @ precision, hits[-1])


def sensitivity_at(hits: Floats, misses: Floats, specificity: float) -> float:
    """Highest sensitivity of any threshold whose specificity is at least the given one; no interpolation."""
    if not hits[-1] or not misses[-1]:
        return float("nan")
    allowed = (1 - specificity) * misses[-1] + 1e-9 * misses[-1]
    last = int(np.searchsorted(misses, allowed, side="right")) - 1
    return float(hits[last] / hits[-1]) if last >= 0 else 0.0


def ratio(numerator: Any, denominator: Any) -> float:
    """Quotient of two numbers; NaN over 0."""
    return float(numerator / denominator) if denominator else float("nan")
