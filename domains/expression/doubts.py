"""What a report says before its numbers: why they may be better than they are, or worse than they need be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from domains.common.intervals import Estimate

TABLE = "see duplicates.parquet of the prepared data."


def doubts(
    predictions: pl.DataFrame,
    classes: Sequence[str],
    card: Mapping[str, Any],
    metrics: Mapping[str, Estimate] | None = None,
) -> list[str]:
    """Sentences about copies, contradicting labels, subjects, classes, and what balancing did.

    Args:
        predictions: see `evaluate_expressions`.
        classes: names in order.
        card: `dataset.json` of the data, and under `used` how `ExpressionData` used them.
        metrics: as `evaluate_expressions` returns them.
    """
    used = card.get("used") or {}
    found = _copies(card.get("duplicates") or {}, used.get("fold"))
    group = card.get("group") or {}
    unknown = group.get("images_of_unknown_subjects") or 0
    if unknown:
        found.append(f"The {group.get('name', 'subject')} of {unknown:,} images is not known: one may be on two sides.")
    elif group and not group.get("kept_apart"):
        found.append("Faces of one subject are in training and test: these are the results of known faces.")
    return found + _classes(predictions, classes, used) + _decisions(predictions, classes, metrics or {})


def _copies(duplicates: Mapping[str, Any], fold: int | None) -> list[str]:
    """Images on two sides of the split, or of the fold that takes its place."""
    found = []
    if fold is None:
        kept = ", ".join(f"{count:,} of {split}" for split, count in (duplicates.get("dropped") or {}).items())
        kept = f" (left out: {kept})" if kept else ""
        across = (duplicates.get("exact") or {}).get("images_across") or {}
        for border, images in sorted(across.items()):
            both = border.replace("-", " and ")
            total = sum(images.values())
            found.append(f"{total:,} images of {both} are copies of each other{kept}; {TABLE}")
        for border, pairs in sorted((duplicates.get("near_pairs") or {}).items()):
            if "-" in border:
                both = border.replace("-", " and ")
                found.append(f"{pairs:,} pairs of images of {both} are nearly copies of each other{kept}; {TABLE}")
    elif duplicates:
        counts = duplicates.get("folds") or []
        if fold >= len(counts):
            found.append(
                f"Whether images of fold {fold} have copies on its other sides was not counted: prepare the data again."
            )
        elif counts[fold]:
            found.append(f"{counts[fold]:,} images of fold {fold} have copies across its sides; {TABLE}")
    conflicts = duplicates.get("groups_with_several_labels") or 0
    if conflicts:
        found.append(f"{conflicts:,} groups of equal images have several labels: no model can be right about all.")
    return found


def _classes(predictions: pl.DataFrame, classes: Sequence[str], used: Mapping[str, Any]) -> list[str]:
    """Classes that are not tested, or not decided for."""
    found = []
    labels, decided = predictions["label"].to_numpy(), predictions["predicted"].to_numpy()
    absent = [name for k, name in enumerate(classes) if not (labels == k).any()]
    if absent:
        found.append(
            f"No image of {', '.join(absent)} is tested; macro_f1_all_classes counts 0 for what is never there."
        )
    never = [name for k, name in enumerate(classes) if (labels == k).any() and not (decided == k).any()]
    if never:
        own = {"--data.per_class": used.get("per_class"), "--model.balanced_loss true": used.get("balanced_loss")}
        untried = [option for option, tried in own.items() if not tried]
        advice = f"try {', or '.join(untried)}" if untried else "its classes were balanced; it may need more images"
        found.append(f"{', '.join(never)} is never decided for; {advice}.")
    return found


def _decisions(predictions: pl.DataFrame, classes: Sequence[str], metrics: Mapping[str, Estimate]) -> list[str]:
    """Decisions that another distribution, or none at all, would make better."""
    found = []
    gain = metrics.get("accuracy_gain")
    if gain is not None and gain.high < 0 and not _of_primary(predictions, len(classes)):
        found.append(
            f"Balancing spoils more decisions than it mends (accuracy_gain {gain.value:.3f} [{gain.low:.3f},"
            f" {gain.high:.3f}]): the primary distribution is better; test with --model.prediction primary."
        )
    accuracy, majority = metrics.get("accuracy"), metrics.get("accuracy_majority")
    if accuracy is not None and majority is not None and accuracy.value <= majority.value:
        labels = predictions["label"].to_numpy()
        common = classes[int(np.bincount(labels).argmax())]
        found.append(
            f"Accuracy {accuracy.value:.3f} is not above {majority.value:.3f}, that of always deciding for {common};"
            " macro_f1 and recalls tell whether the other classes are found."
        )
    return found


def _of_primary(predictions: pl.DataFrame, count: int) -> bool:
    """Whether decisions are those of the primary distribution already."""
    primary = predictions.select(f"primary_{k}" for k in range(count)).to_numpy().argmax(1)
    return bool((primary == predictions["predicted"].to_numpy()).all())
