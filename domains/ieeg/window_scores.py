"""Scores of single windows from sums over subjects, so that a bootstrap resample touches no window."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.common.classification import calibration_bins
from domains.common.curves import Ranking, auroc, average_precision, ratio
from domains.common.intervals import Floats
from domains.ieeg.timeline import Ints

# scores of one class between which no distinction is made in resamples: moves areas by less than 1e-4
RESOLUTION = 2048
RATES = ("f1", "cohen_kappa", "sensitivity", "specificity", "precision", "balanced_accuracy")
POOLED = (*RATES, "auroc", "average_precision", "log_loss", "brier", "ece")
BY_SUBJECT = (*RATES, "auroc", "average_precision")


def rates(confusion: NDArray[Any]) -> dict[str, Floats]:
    """What is a function of the counts of decisions; NaN where it is undefined.

    Args:
        confusion: true negatives, false positives, false negatives, true positives.

    Shape:
        confusion (..., 4) -> each value (...).
    """
    tn, fp, fn, tp = np.moveaxis(confusion.astype(np.float64), -1, 0)
    total = tn + fp + fn + tp
    sensitivity, specificity = _divide(tp, tp + fn), _divide(tn, tn + fp)
    observed = _divide(tp + tn, total)
    chance = _divide((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp), total * total)
    return {
        "f1": _divide(2 * tp, 2 * tp + fp + fn),
        "cohen_kappa": _divide(observed - chance, 1 - chance),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": _divide(tp, tp + fp),
        "balanced_accuracy": (sensitivity + specificity) / 2,
    }


def _divide(above: Floats, below: Floats) -> Floats:
    result = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=result, where=np.asarray(below) != 0)
    return result


class WindowScores:
    """Scores of all windows as functions of how often each subject is drawn, and of each subject.

    `f1`, `cohen_kappa`, `sensitivity`, `specificity`, `precision`, `balanced_accuracy` of the decisions; `auroc`,
    `average_precision` (the area under the precision-recall curve, without interpolation), `log_loss` in nats
    (probabilities clipped at 1e-7), `brier` and `ece` (15 bins of equal mass) of the probabilities.

    Args:
        labels: 0 or 1.
        probabilities: of 1.
        positive: decisions.
        subject: number of each window's subject.
        count: of subjects S.

    Shape:
        labels, probabilities, positive, subject (N,).
    """

    def __init__(
        self, labels: Ints, probabilities: Floats, positive: NDArray[np.bool_], subject: Ints, count: int
    ) -> None:
        true = labels == 1
        cells = subject * 4 + 2 * true + positive
        self.confusion = np.bincount(cells, minlength=4 * count).reshape(count, 4)
        own = np.where(true, probabilities, 1 - probabilities)
        self._rows = np.bincount(subject, minlength=count).astype(np.float64)
        self._losses = np.bincount(subject, -np.log(own.clip(1e-7, 1 - 1e-7)), count)
        self._squares = np.bincount(subject, (1 - own) ** 2, count)
        bins = calibration_bins(probabilities)
        width = int(bins.max()) + 1
        self._gaps = np.bincount(subject * width + bins, true - probabilities, count * width).reshape(count, width)
        ranking = Ranking(true, probabilities)
        curve = ranking.counts(np.ones(len(labels)))
        self.exact = {"auroc": auroc(*curve), "average_precision": average_precision(*curve)}
        place, width = _bins(ranking, curve[0], curve[1], probabilities)
        self._hits = np.bincount(subject[true] * width + place[true], minlength=count * width)
        self._misses = np.bincount(subject[~true] * width + place[~true], minlength=count * width)
        self._hits = self._hits.reshape(count, width).astype(np.float64)
        self._misses = self._misses.reshape(count, width).astype(np.float64)
        self.by_subject = rates(self.confusion) | _areas_by_subject(true, probabilities, subject, count)

    def __call__(self, weights: Floats) -> dict[str, float]:
        """Name -> value.

        Shape:
            weights (S,): how often each subject counts.
        """
        values = {name: float(value) for name, value in rates(weights @ self.confusion).items()}
        hits, misses = np.cumsum(weights @ self._hits), np.cumsum(weights @ self._misses)
        rows = weights @ self._rows
        values |= {"auroc": auroc(hits, misses), "average_precision": average_precision(hits, misses)}
        values["log_loss"] = ratio(weights @ self._losses, rows)
        values["brier"] = ratio(weights @ self._squares, rows)
        values["ece"] = ratio(np.abs(weights @ self._gaps).sum(), rows)
        return values


def _bins(ranking: Ranking, hits: Floats, misses: Floats, probabilities: Floats) -> tuple[Ints, int]:
    """Bin of each window by falling score: each distinct score, or steps of equal mass of either class."""
    edges = ranking.scores  # falling
    if len(edges) > 2 * RESOLUTION:
        steps = [np.searchsorted(side, np.linspace(0, side[-1], RESOLUTION + 1)[1:]) for side in (hits, misses)]
        edges = edges[np.unique(np.r_[np.concatenate(steps).clip(max=len(edges) - 1), len(edges) - 1])]
    place = np.searchsorted(-edges, -probabilities, side="left")
    return place.astype(np.int64), len(edges)


def _areas_by_subject(true: NDArray[np.bool_], probabilities: Floats, subject: Ints, count: int) -> dict[str, Floats]:
    order = np.argsort(subject, kind="stable")
    bounds = np.searchsorted(subject[order], np.arange(count + 1))
    areas = np.full((2, count), np.nan)
    for i in range(count):
        rows = order[bounds[i] : bounds[i + 1]]
        if 0 < true[rows].sum() < len(rows):
            curve = Ranking(true[rows], probabilities[rows]).counts(np.ones(len(rows)))
            areas[:, i] = auroc(*curve), average_precision(*curve)
    return {"auroc": areas[0], "average_precision": areas[1]}
