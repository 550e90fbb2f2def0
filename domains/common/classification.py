"""Metrics of classifiers with intervals over independent units, from labels and probabilities alone.

Every metric is a function of row weights, so that a bootstrap resample needs neither a sort nor a copy of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.common.curves import Ranking, auroc, average_precision, ratio, sensitivity_at
from domains.common.errors import PreparedDataError
from domains.common.intervals import Estimate, Floats, WeightedMetric, joint_bootstrap

SPECIFICITIES = (0.90, 0.95)
CALIBRATION_BINS = 15
BIN_ROWS = 10  # rows that a calibration bin has at least
SHOWN_CLASSES = 20  # up to so many classes have metrics of their own
# rows times classes but one: from here on 1,000 resamples would take long, and their error is far below the interval
LARGE = 300_000


def evaluate_classification(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    groups: NDArray[Any] | None = None,
    classes: Sequence[str] = (),
    *,
    predicted: NDArray[Any] | None = None,
    threshold: float | None = None,
    extra: Mapping[str, WeightedMetric] | None = None,
    per_class: bool | None = None,
    prefix: str = "",
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of `ClassificationScores` with percentile bootstrap intervals over groups.

    Where all resamples of a proportion agree on 0 or 1 (20 of 20 found), its interval is the exact one of Clopper and
    Pearson (1934) for as many trials as there are groups in its denominator. Means over classes and areas that agree so
    are taken as such proportions of the rarest class, which is cautious.
    Above 300,000 rows (or fewer of many classes) at most 200 resamples are drawn.

    Args:
        labels: true classes, 0 .. C-1.
        probabilities: of the classes; rows sum to 1.
        groups: independent unit of each row (patient, subject, ...); None: every row is its own.
        classes: names; without them `class_0` and so on. Of two classes the second is the positive one.
        predicted: the class decided for each row. By default `decide(probabilities, threshold)`.
        threshold: of the second of two classes, chosen on validation data.
        extra: further metrics, measured on the same resamples.
        per_class: measure each class by itself; by default up to 20 classes.
        prefix: put before each name.
        replicates: bootstrap resamples.
        seed: of the bootstrap.

    Shape:
        labels, groups, predicted (N,); probabilities (N, C).

    Raises:
        PreparedDataError: no rows, labels outside the classes, or probabilities that are not numbers.
    """
    decided = decide(probabilities, threshold) if predicted is None else np.asarray(predicted)
    scores = ClassificationScores(labels, probabilities, decided, classes, per_class=per_class)
    more = dict(extra or {})
    rows = len(scores.labels)
    if rows * (len(scores.classes) - 1) > LARGE:
        replicates = min(replicates, 200)
    names = [*scores(np.ones(rows)), *more]

    def together(weights: Floats) -> list[float]:
        return [*scores(weights).values(), *(float(metric(weights)) for metric in more.values())]

    found = joint_bootstrap(names, together, rows, groups, replicates=replicates, seed=seed, recentre=("ece",))
    for name, members in scores.denominators().items():
        found[name] = _exact_at_the_edge(found[name], members, groups)
    return {f"{prefix}{name}": estimate for name, estimate in found.items()}


def decide(probabilities: NDArray[Any], threshold: float | None = None) -> NDArray[np.int64]:
    """The most probable class (the first of equals); with a threshold, the second of two where it is reached."""
    if threshold is not None and probabilities.shape[1] == 2:
        return np.asarray(probabilities[:, 1] >= threshold, dtype=np.int64)
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def choose_threshold(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Threshold with the largest sensitivity + specificity (Youden, 1950), that is, balanced accuracy.

    A row is positive where its score reaches the threshold. The threshold lies half-way between two neighbouring
    scores; of several with the same sum that nearest to 0.5 is taken, then the lower one. 0.5 where no threshold beats
    chance, or one class is absent.

    Args:
        labels: 0 or 1, of validation data.
        scores: of class 1.

    Shape:
        labels, scores (N,).
    """
    positive = np.asarray(labels) == 1
    if positive.all() or not positive.any():
        return 0.5
    ranking = Ranking(positive, scores)
    hits, misses = ranking.counts(np.ones(len(positive)))
    gain = hits[:-1] / hits[-1] - misses[:-1] / misses[-1]
    if not len(gain) or gain.max() <= 1e-12:
        return 0.5
    above, below = ranking.scores[:-1], ranking.scores[1:]
    middle = (above + below) / 2
    # float32 scores are compared in float32, where the middle of two neighbours may be the lower one
    middle = np.where(middle.astype(np.float32) <= below.astype(np.float32), above, middle)
    best = middle[gain >= gain.max() - 1e-12]
    return float(min(best, key=lambda value: (abs(value - 0.5), value)))


class ClassificationScores:
    """All metrics of one set of predictions as one function of row weights.

    `accuracy` (and `f1_micro`, which is the same number: the "F1" of programs that average over rows); `macro_f1` over
    the classes that occur or are predicted; `balanced_accuracy`, the mean sensitivity of the classes that occur;
    `auroc` and `average_precision`, of the second of two classes, or the mean one-against-rest value of the classes
    that occur beside others; `brier`, the squared error of the second of two classes, or summed over more;
    `log_loss` in nats, probabilities clipped at 1e-7; `ece`, the expected calibration error (Naeini et al., 2015) of
    the second of two classes, or of the most probable of more (Guo et al., 2017), over 15 bins of equal mass, fewer
    where that leaves less than 10 rows in each.

    With two classes also `sensitivity`, `specificity` and `sensitivity_at_specificity_0.90`, `_0.95`. Of each class
    `sensitivity_NAME` and `ppv_NAME` (0 where it occurs but is never predicted); of more than two also
    `specificity_NAME`, `auroc_NAME` and `sensitivity_at_specificity_0.90_NAME`.

    Args:
        labels: true classes.
        probabilities: of the classes.
        predicted: decided classes.
        classes: names, or nothing.
        per_class: measure each class by itself; by default up to 20 classes.

    Shape:
        labels, predicted (N,); probabilities (N, C).

    Raises:
        PreparedDataError: no rows, labels outside the classes, or probabilities that are not numbers.
    """

    def __init__(
        self,
        labels: NDArray[Any],
        probabilities: NDArray[Any],
        predicted: NDArray[Any],
        classes: Sequence[str] = (),
        *,
        per_class: bool | None = None,
    ) -> None:
        self.labels = np.asarray(labels).astype(np.int64)
        values = np.asarray(probabilities, dtype=np.float64)
        count = values.shape[1]
        self.classes = check_predictions(self.labels, values, classes)
        self.predicted = np.asarray(predicted).astype(np.int64)
        self.per_class = count <= SHOWN_CLASSES if per_class is None else per_class
        self._cells = self.labels * count + self.predicted
        ranked = (1,) if count == 2 else range(count)
        self._rankings = [Ranking(self.labels == k, values[:, k]) for k in ranked]
        own = values[np.arange(len(values)), self.labels]
        self._losses = -np.log(own.clip(1e-7, 1 - 1e-7))
        if count == 2:
            outcome, confidence = (self.labels == 1).astype(np.float64), values[:, 1]
            self._squares = (confidence - outcome) ** 2
        else:
            outcome = (values.argmax(axis=1) == self.labels).astype(np.float64)
            confidence = values.max(axis=1)
            self._squares = (values**2).sum(axis=1) - 2 * own + 1
        self._bins, self._gaps = calibration_bins(confidence), outcome - confidence

    def __call__(self, weights: Floats) -> dict[str, float]:
        """Name -> value; NaN where a metric is undefined.

        Shape:
            weights (N,): how often each row counts.
        """
        count, total = len(self.classes), weights.sum()
        confusion = np.bincount(self._cells, weights, count * count).astype(np.float64).reshape(count, count)
        actual, called, right = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
        recall, f1 = _ratios(right, actual), _ratios(2 * right, actual + called)
        curves = [ranking.counts(weights) for ranking in self._rankings]
        areas = [auroc(*curve) for curve in curves]
        accuracy = ratio(right.sum(), total)
        values = {
            "accuracy": accuracy,
            "balanced_accuracy": _mean(recall),
            "macro_f1": _mean(f1),
            "f1_micro": accuracy,
            "auroc": _mean(areas),
            "average_precision": _mean(average_precision(*curve) for curve in curves),
        }
        if count == 2:
            values |= {"sensitivity": float(recall[1]), "specificity": float(recall[0])}
            values |= {_fixed(level): sensitivity_at(*curves[0], level) for level in SPECIFICITIES}
        values["brier"] = ratio(weights @ self._squares, total)
        values["log_loss"] = ratio(weights @ self._losses, total)
        values["ece"] = ratio(np.abs(np.bincount(self._bins, weights * self._gaps)).sum(), total)
        if self.per_class:
            precision = np.where((called == 0) & (actual > 0), 0.0, _ratios(right, called))
            others = total - actual
            specificity = _ratios(others - called + right, others)
            for k, name in enumerate(self.classes):
                values |= {f"sensitivity_{name}": float(recall[k]), f"ppv_{name}": float(precision[k])}
                if count > 2:
                    values |= {f"specificity_{name}": float(specificity[k]), f"auroc_{name}": areas[k]}
                    values |= {f"{_fixed(level)}_{name}": sensitivity_at(*curves[k], level) for level in SPECIFICITIES}
        return values

    def denominators(self) -> dict[str, NDArray[np.bool_]]:
        """Which rows each proportion among the metrics counts, or what stands for one: name -> (N,) bool."""
        every = np.ones(len(self.labels), dtype=bool)
        found = {"accuracy": every, "f1_micro": every}
        sizes = np.bincount(self.labels, minlength=len(self.classes))
        rarest = int(np.argmin(np.where(sizes > 0, sizes, len(self.labels) + 1)))
        means = ("balanced_accuracy", "macro_f1", "auroc", "average_precision")
        found |= {name: self.labels == rarest for name in means}
        if len(self.classes) == 2:
            found |= {"sensitivity": self.labels == 1, "specificity": self.labels == 0}
            found |= {_fixed(level): self.labels == 1 for level in SPECIFICITIES}
        if self.per_class:
            for k, name in enumerate(self.classes):
                found |= {f"sensitivity_{name}": self.labels == k, f"ppv_{name}": self.predicted == k}
                if len(self.classes) > 2:
                    found[f"specificity_{name}"] = self.labels != k
                    rarer = sizes[k] * 2 <= len(self.labels)
                    found[f"auroc_{name}"] = (self.labels == k) == rarer
                    found |= {f"{_fixed(level)}_{name}": self.labels == k for level in SPECIFICITIES}
        return found


def class_names(metrics: Iterable[str], count: int) -> list[str]:
    """The names of the classes that metrics were measured with; `class_0` and so on where they do not tell."""
    names = [name.removeprefix("ppv_") for name in metrics if name.startswith("ppv_")]
    return names if len(names) == count else [f"class_{k}" for k in range(count)]


def calibration_bins(probabilities: Floats) -> NDArray[np.int64]:
    """Bin of each row: at most 15 of equal mass, with 10 rows or more in each."""
    bins = min(max(len(probabilities) // BIN_ROWS, 1), CALIBRATION_BINS)
    edges = np.quantile(probabilities, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, probabilities, side="right").astype(np.int64)


def check_predictions(labels: NDArray[np.int64], probabilities: Floats, classes: Sequence[str] = ()) -> list[str]:
    """Return the names of the classes.

    Raises:
        PreparedDataError: no rows, labels outside the classes, names that do not fit, or no numbers.
    """
    rows, count = probabilities.shape
    names = list(classes) or [f"class_{k}" for k in range(count)]
    if len(names) != count or len(set(names)) != count:
        raise PreparedDataError(f"{count} probabilities and the classes {names}: give each a name of its own")
    if not rows:
        raise PreparedDataError("no predictions to evaluate: the split has no rows")
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        raise PreparedDataError(
            f"{len(wrong)} labels are none of the {count} classes, first {labels[wrong[0]]} in row {wrong[0]};"
            " test on data prepared with the classes the model was trained for"
        )
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(broken):
        raise PreparedDataError(
            f"probabilities of {len(broken)} of {rows} rows are not numbers, first in row {broken[0]}; the training"
            " diverged, or the inputs hold values that are no numbers"
        )
    return names


def _exact_at_the_edge(estimate: Estimate, members: NDArray[np.bool_], groups: NDArray[Any] | None) -> Estimate:
    if estimate.value not in (0.0, 1.0) or not estimate.low == estimate.high == estimate.value:
        return estimate
    trials = int(members.sum()) if groups is None else len(np.unique(np.asarray(groups)[members]))
    gap = 1 - math.pow((1 - estimate.level) / 2, 1 / max(trials, 1))
    return replace(estimate, low=1 - gap) if estimate.value else replace(estimate, high=gap)


def _fixed(specificity: float) -> str:
    return f"sensitivity_at_specificity_{specificity:.2f}"


def _ratios(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _mean(values: Iterable[float] | Floats) -> float:
    defined = [value for value in values if value == value]
    return sum(defined) / len(defined) if defined else float("nan")
