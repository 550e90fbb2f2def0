"""Pictures of a test: confusion, recall of each class, calibration before and after balancing, balance of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from domains.common.classification import class_names
from domains.common.classification_figures import (
    confusion,
    precision_recall_curves,
    reliability,
    score_distribution,
)
from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, dots, plain
from domains.common.intervals import Estimate
from domains.expression.evaluation import TITLES, arrays, distribution

COLOURS = {"train": GREY, "valid": ORANGE, "test": BLUE}
BINS = 5  # of the confidence


def figures(
    predictions: pl.DataFrame, metrics: Mapping[str, Estimate], card: Mapping[str, Any] | None = None
) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: see `evaluate_expressions`.
        metrics: as it returns them; they tell the names of the classes.
        card: `dataset.json` of the data.
    """
    labels, values = arrays(predictions)
    predicted = predictions["predicted"].to_numpy().astype(np.int64)
    classes = class_names(metrics, values.shape[1])
    pictures = [confusion(labels, predicted, classes), _recalls(classes, metrics)]
    for name, title in TITLES.items():
        known = {"ece": metrics[f"ece_{name}"]} if f"ece_{name}" in metrics else {}
        drawn = reliability(labels, distribution(predictions, name), classes, known)
        pictures.append(replace(drawn, title=f"Calibration {title}"))
    pictures.append(_by_confidence(predictions, labels))
    pictures.append(score_distribution(labels, values, classes))
    if len(np.unique(labels)) > 1:
        pictures.append(precision_recall_curves(labels, values, classes, metrics))
    counts = (card or {}).get("counts", {}).get("classes", {})
    if counts and (card or {}).get("used", {}).get("fold") is not None:  # its sides are others than those of the split
        counts = {"all": {name: sum(split[name] for split in counts.values()) for name in next(iter(counts.values()))}}
    balance = class_balance(counts)
    return pictures + ([balance] if balance is not None else [])


def _recalls(classes: Sequence[str], metrics: Mapping[str, Estimate]) -> Picture:
    found = [(name, metrics[f"sensitivity_{name}"]) for name in classes if f"sensitivity_{name}" in metrics]
    found = [(name, estimate) for name, estimate in found if estimate.value == estimate.value]
    overall = metrics["balanced_accuracy"].value if "balanced_accuracy" in metrics else None
    figure = dots(found, label="recall", overall=overall, chance=1 / max(len(classes), 1))
    caption = "Share of the images of each class that is found, with 95 % intervals; dashed, the mean; grey, guessing."
    return Picture("Recall of each class", caption, figure)


def _by_confidence(predictions: pl.DataFrame, labels: Any) -> Picture:
    """Accuracy of both distributions where the primary one is unsure, and where it is sure."""
    sure = predictions["confidence"].to_numpy().astype(np.float64)
    count = int(np.clip(len(sure) // 10, 1, BINS))
    edges = np.quantile(sure, np.linspace(0, 1, count + 1)[1:-1])
    place = np.searchsorted(edges, sure, side="right")
    filled = [b for b in range(count) if (place == b).any()]
    figure, panel = axes(6.0, 3.6)
    for shift, (name, colour) in zip((-0.2, 0.2), (("primary", GREY), ("corrected", BLUE)), strict=True):
        right = distribution(predictions, name).argmax(1) == labels
        heights = [float(right[place == b].mean()) for b in filled]
        panel.bar(np.arange(len(filled)) + shift, heights, 0.4, color=colour, label=name)
    names = [f"{sure[place == b].min():.2f} to {sure[place == b].max():.2f}\n{(place == b).sum():,}" for b in filled]
    panel.set_xticks(range(len(filled)), names, fontsize=8)
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("confidence of the primary distribution, and images")
    panel.set_ylabel("accuracy")
    panel.legend(frameon=False, loc="upper left", ncols=2)
    return Picture("Accuracy by confidence", "Balancing corrects the more the less confident the network is.", figure)


def class_balance(counts: Mapping[str, Mapping[str, int]]) -> Picture | None:
    """Draw how many images each class has in each split; None without counts.

    Args:
        counts: split -> class -> images.
    """
    shown = {split: images for split, images in counts.items() if any(images.values())}
    if not shown:
        return None
    classes = list(next(iter(shown.values())))
    figure, panel = axes(6.4, max(2.4, 0.34 * len(classes) + 1.2))
    height = 0.8 / len(shown)
    for i, (split, images) in enumerate(shown.items()):
        total = sum(images.values())
        shares = [images[name] / total for name in classes]
        places = np.arange(len(classes)) + (i - (len(shown) - 1) / 2) * height
        panel.barh(places, shares, height, color=COLOURS.get(split, BLUE), label=f"{split} ({total:,})")
        for place, share, name in zip(places, shares, classes, strict=True):
            panel.text(share + 0.004, place, f"{images[name]:,}", va="center", fontsize=7)
    panel.set_yticks(range(len(classes)), [plain(name) for name in classes])
    panel.invert_yaxis()
    panel.margins(x=0.08)
    panel.set_xlabel("share of the split's images; numbers are images")
    panel.legend(frameon=False, fontsize=8)
    return Picture("Balance of the classes", "What the prepared data hold, before an epoch draws from it.", figure)
