"""Scores of expression recognition as the challenges and the ARBEx program count them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def official_scores(labels: NDArray[Any], predicted: NDArray[Any], n_classes: int) -> dict[str, float]:
    """Accuracy, and F1, precision and recall averaged over all classes.

    A class that neither occurs nor is predicted counts 0, unlike in `domains.common.classification`, which leaves it
    out. This is the F1 of Aff-Wild2 (D. Kollias, 2022, arXiv 2202.10659) and of takihasan/ARBEx @ b85c37b.

    Args:
        labels: true classes.
        predicted: classes.
        n_classes: C.

    Shape:
        labels and predicted (N,) int in 0..C - 1.

    Example:
        >>> import numpy as np
        >>> official_scores(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), 4)["macro_recall"]
        0.375
    """
    cells = np.asarray(labels).astype(np.int64) * n_classes + np.asarray(predicted).astype(np.int64)
    confusion = np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.float64)
    right, actual, called = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return {
        "accuracy": float(right.sum() / max(confusion.sum(), 1.0)),
        "macro_f1": float((2 * right / np.maximum(actual + called, 1.0)).mean()),
        "macro_precision": float((right / np.maximum(called, 1.0)).mean()),
        "macro_recall": float((right / np.maximum(actual, 1.0)).mean()),
    }
