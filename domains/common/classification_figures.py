"""Pictures of a classifier's test: ROC, precision-recall, reliability, confusion, scores by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from domains.common.classification import SHOWN_CLASSES, calibration_bins
from domains.common.curves import Ranking
from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, plain
from domains.common.intervals import Estimate, Floats

# after the house's blue and orange; told apart under the common colour blindnesses, and in print
COLOURS = (BLUE, ORANGE, "#2f8f6b", "#a8457f", "#6b5bb5", "#8c6d31", "#3aa0c4", "#c2452d", "#7f8f2a", GREY)
NAMED_CLASSES = 60  # up to so many have their names at a confusion matrix
POINTS = 2000  # of a curve
BESIDE = 5  # from more classes on, their names stand beside the picture
STYLES = ("-", "--", ":", "-.")


def roc_curves(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    predicted: NDArray[Any],
    classes: Sequence[str],
    metrics: Mapping[str, Estimate],
) -> Picture:
    """Draw the ROC curve of the second of two classes with the operating point, or one curve per class of more.

    Args:
        labels: true classes; two of them occur.
        probabilities: of the classes.
        predicted: decided classes; they are the operating point.
        classes: names.
        metrics: of `evaluate_classification`.

    Shape:
        labels, predicted (N,); probabilities (N, C).
    """
    figure, panel = axes(_width(classes), 4.6)
    for k, style in _drawn(labels, classes):
        hits, misses = _thinned(Ranking(labels == k, probabilities[:, k]))
        area = metrics.get(f"auroc_{classes[k]}" if len(classes) > 2 else "auroc")
        panel.plot(misses / misses[-1], hits / hits[-1], label=_named(classes[k], area), **style)
    panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    overall = metrics.get("auroc")
    if len(classes) == 2:
        _operating_point(panel, labels, predicted, metrics)
        panel.legend(frameon=False, loc="lower right")
        caption = f"Area {_interval(overall)}; the diagonal is chance. Bars are the intervals at the operating point."
    else:
        _legend(panel, "lower right")
        caption = f"Each class against all others; mean area {_interval(overall)}. The diagonal is chance."
    panel.set_xlabel("1 - specificity")
    panel.set_ylabel("sensitivity")
    return Picture("Receiver operating characteristic", caption, figure)


def _operating_point(
    panel: Axes, labels: NDArray[Any], predicted: NDArray[Any], metrics: Mapping[str, Estimate]
) -> None:
    found, spared = float((predicted[labels == 1] == 1).mean()), float((predicted[labels == 0] == 0).mean())
    up, across = _gaps(found, metrics.get("sensitivity")), _gaps(spared, metrics.get("specificity"))
    across = across if across is None else across[::-1]  # the axis shows 1 - specificity
    label = f"decisions: sensitivity {found:.3f}, specificity {spared:.3f}"
    panel.errorbar(
        1 - spared, found, xerr=across, yerr=up, fmt="o", color=ORANGE, markersize=6, elinewidth=1.2, label=label
    )


def _gaps(value: float, estimate: Estimate | None) -> Floats | None:
    if estimate is None or estimate.low != estimate.low:
        return None
    return np.array([[value - estimate.low], [estimate.high - value]]).clip(0)


def precision_recall_curves(
    labels: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str], metrics: Mapping[str, Estimate]
) -> Picture:
    """Draw precision over recall of the second of two classes, or one curve per class of more.

    Args:
        labels: true classes; two of them occur.
        probabilities: of the classes.
        classes: names.
        metrics: of `evaluate_classification`.

    Shape:
        labels (N,); probabilities (N, C).
    """
    figure, panel = axes(_width(classes), 4.6)
    binary = len(classes) == 2
    for k, style in _drawn(labels, classes):
        hits, misses = _thinned(Ranking(labels == k, probabilities[:, k]))
        rows = np.maximum(hits + misses, 1e-12)
        panel.plot(hits[1:] / hits[-1], (hits / rows)[1:], label=plain(classes[k]), **style)
        if binary:
            rate = float((labels == k).mean())
            panel.axhline(rate, color=GREY, linewidth=0.8, label=f"chance: {rate:.3f} of the rows are {classes[k]}")
    panel.set_xlabel("recall (sensitivity)")
    panel.set_ylabel("precision (positive predictive value)")
    panel.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.05)
    _legend(panel, "best")
    mean = "Average precision" if binary else "Each class against all others; mean average precision"
    caption = f"{mean} {_interval(metrics.get('average_precision'))}. Precision depends on how common the class is."
    return Picture("Precision and recall", caption, figure)


def reliability(
    labels: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str], metrics: Mapping[str, Estimate]
) -> Picture:
    """Draw how often what is predicted with a probability happens.

    Args:
        labels: true classes.
        probabilities: of the classes.
        classes: names.
        metrics: of `evaluate_classification`.

    Shape:
        labels (N,); probabilities (N, C).
    """
    if len(classes) == 2:
        outcome, confidence = (labels == 1).astype(np.float64), probabilities[:, 1].astype(np.float64)
        across, up = f"mean predicted probability of {plain(classes[1])}", f"share of {plain(classes[1])}"
    else:
        outcome = (probabilities.argmax(axis=1) == labels).astype(np.float64)
        confidence = probabilities.max(axis=1).astype(np.float64)
        across, up = "mean probability of the most probable class", "share of correct rows"
    index = calibration_bins(confidence)
    rows = np.bincount(index)
    kept = rows > 0
    rows = rows[kept]
    rates, centres = np.bincount(index, outcome)[kept] / rows, np.bincount(index, confidence)[kept] / rows
    figure, panel = axes(5.2, 4.6)
    panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    panel.errorbar(centres, rates, yerr=wilson(rates, rows), fmt="o-", color=BLUE, markersize=4, linewidth=1)
    panel.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    caption = (
        f"Bins of equal size ({len(rows)}) with 95 % Wilson bars; on the grey line probabilities are right on average."
        f" Expected calibration error {_interval(metrics.get('ece'))}."
    )
    return Picture("Calibration", caption, figure)


def confusion(labels: NDArray[Any], predicted: NDArray[Any], classes: Sequence[str]) -> Picture:
    """Draw how often each class was taken for which; colours are shares of the row.

    Args:
        labels: true classes.
        predicted: decided classes.
        classes: names.

    Shape:
        labels, predicted (N,).
    """
    count = len(classes)
    table = np.zeros((count, count), dtype=np.int64)
    np.add.at(table, (labels, predicted), 1)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    size = max(3.8, 0.55 * count + 2.2) if count <= SHOWN_CLASSES else 8.0
    figure, panel = axes(size + 0.9, size)
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    panel.spines[:].set_visible(False)
    if count <= NAMED_CLASSES:
        names = [plain(name, 18) for name in classes]
        upright = max(map(len, names)) * 0.08 + 0.06 > (size - 1.4) / count  # inches
        points = None if count <= SHOWN_CLASSES else 6
        panel.set_xticks(range(count), names, rotation=90 if upright else 0, fontsize=points)
        panel.set_yticks(range(count), names, fontsize=points)
    else:  # numbers of classes would say nothing
        panel.set_xticks([])
        panel.set_yticks([])
    if count <= SHOWN_CLASSES:
        size_of_text = 10 if count <= 5 else 8
        for (row, column), rows in np.ndenumerate(table):
            text = f"{rows:,}\n{shares[row, column]:.1%}" if count <= 8 else f"{rows:,}"
            colour = "white" if shares[row, column] > 0.55 else "#1c2430"
            panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=size_of_text)
    panel.set_xlabel("decided")
    panel.set_ylabel("true")
    figure.colorbar(image, ax=panel, label="share of the true class", shrink=0.8)
    return Picture("Confusion matrix", "Rows of the table sum to the size of the true class.", figure)


def score_distribution(
    labels: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str], threshold: float | None = None
) -> Picture:
    """Draw the probability of the second of two classes by true class, or of the true class of more.

    Args:
        labels: true classes.
        probabilities: of the classes.
        classes: names.
        threshold: of the second of two classes.

    Shape:
        labels (N,); probabilities (N, C).
    """
    if len(classes) == 2:
        return _histograms(labels, probabilities[:, 1], classes, threshold)
    present = [k for k in range(len(classes)) if (labels == k).any()]
    shown = present[: 2 * SHOWN_CLASSES]
    figure, panel = axes(6.4, max(2.4, 0.34 * len(shown) + 1.2))
    groups = [probabilities[labels == k, k] for k in shown]
    places = np.arange(len(shown))
    low, left, middle, right, high = np.array([np.quantile(group, (0.05, 0.25, 0.5, 0.75, 0.95)) for group in groups]).T
    panel.hlines(places, low, high, color=GREY, linewidth=1)
    panel.barh(places, right - left, left=left, height=0.6, color=BLUE, alpha=0.65)
    panel.vlines(middle, places - 0.3, places + 0.3, color=ORANGE, linewidth=1.8)
    names = [f"{plain(classes[k])} ({len(group):,})" for k, group in zip(shown, groups, strict=True)]
    panel.set_yticks(places, names)
    panel.invert_yaxis()
    panel.set_xlim(-0.02, 1.02)
    panel.axvline(1 / len(classes), color=GREY, linewidth=0.8)
    panel.set_xlabel("probability of the true class")
    caption = "Boxes are quartiles, lines 5 to 95 %, orange the median, upright grey a model that knows nothing."
    return Picture("Probability of the true class", caption, figure)


def _histograms(labels: NDArray[Any], scores: NDArray[Any], classes: Sequence[str], threshold: float | None) -> Picture:
    figure, panel = axes(6.0, 3.6)
    edges = np.linspace(0, 1, 41)
    for k, colour in ((0, GREY), (1, ORANGE)):
        chosen = scores[labels == k]
        if len(chosen):
            weights = np.full(len(chosen), 1 / len(chosen))
            label = f"{plain(classes[k])} ({len(chosen):,})"
            panel.hist(chosen, bins=edges.tolist(), weights=weights, alpha=0.65, color=colour, label=label)
    if threshold is not None:
        panel.axvline(threshold, color=BLUE, linewidth=1.2, label=f"threshold {threshold:.3f}")
    panel.set_xlabel(f"probability of {plain(classes[1])}")
    panel.set_ylabel("share of the class")
    panel.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return Picture("Probabilities by class", "Well separated histograms rank well.", figure)


def wilson(rates: Floats, rows: NDArray[Any]) -> Floats:
    """Distances (2, n) to the bounds of the 95 % interval of Wilson (1927), which stays inside [0, 1]."""
    centre = (rates + 1.92 / rows) / (1 + 3.84 / rows)
    half = 1.96 / (1 + 3.84 / rows) * np.sqrt(rates * (1 - rates) / rows + 0.96 / rows**2)
    return np.stack([rates - (centre - half), centre + half - rates]).clip(0)


def _drawn(labels: NDArray[Any], classes: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """The classes whose curves exist, and how each is drawn."""
    count = len(labels)
    wanted = [1] if len(classes) == 2 else range(len(classes))
    present = [k for k in wanted if 0 < (labels == k).sum() < count]
    if len(present) > SHOWN_CLASSES:
        return [(k, {"color": BLUE, "alpha": 0.25, "linewidth": 0.7}) for k in present]
    return [
        (k, {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS)], "linewidth": 1.4})
        for i, k in enumerate(present)
    ]


def _thinned(ranking: Ranking) -> tuple[Floats, Floats]:
    hits, misses = ranking.counts(np.ones(ranking.rows))
    kept = np.unique(np.linspace(0, len(hits) - 1, min(len(hits), POINTS)).round().astype(np.int64))
    return np.r_[0.0, hits[kept]], np.r_[0.0, misses[kept]]


def _width(classes: Sequence[str]) -> float:
    """Inches; the names of many classes stand beside the picture."""
    return 8.0 if BESIDE < len(classes) <= SHOWN_CLASSES else 5.6


def _legend(panel: Axes, place: Literal["best", "lower right"]) -> None:
    handles = panel.get_legend_handles_labels()[0]
    if len(handles) > BESIDE:
        if len(handles) <= SHOWN_CLASSES:  # of more, curves have no names
            panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        panel.legend(frameon=False, fontsize=9, loc=place)


def _named(name: str, estimate: Estimate | None) -> str:
    return plain(name) if estimate is None else f"{plain(name)}, area {estimate.value:.3f}"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not measured"
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
