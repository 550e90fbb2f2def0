"""Temperature scaling: probabilities that are as high as they are right.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, *On calibration of modern neural networks* (2017), arXiv 1706.04599,
section 4.2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from domains.common.intervals import Floats

LIMITS = 0.2, 5.0  # of T; where all labels are right, the log loss has no minimum above 0
ROWS = 10_000  # that one number is fitted to at most
HALVINGS = 40  # of the range of log T
TINY = float(np.finfo(np.float32).tiny)  # stands for probabilities of 0


class TemperatureScaling(nn.Module):
    """Distributions `p^(1/T)`, normalised: flatter where T is above 1, sharper below; their order stays.

    For a softmax of logits z it is `softmax(z / T)`, as in the paper; a mixture of distributions has no logits.

    Attributes:
        temperature: T, 1 until it is set; a buffer, which is not trained.

    Shape:
        p (B, C) float -> same.

    Example:
        >>> scaling = TemperatureScaling()
        >>> scaling.set(0.5)
        >>> scaling(torch.tensor([[0.75, 0.25]]))
        tensor([[0.9000, 0.1000]])
    """

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    def set(self, temperature: float) -> None:
        """Set T, in place."""
        self.temperature.fill_(temperature)

    def forward(self, p: Tensor) -> Tensor:
        """Apply."""
        return (p.clamp_min(TINY).log() / self.temperature.to(p)).softmax(-1)


def fit_temperature(labels: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """T in 0.2 .. 5 of the least log loss; 1 where there are no rows, or no T is better than it.

    The log loss is convex in 1 / T, so that halving the range by the sign of its slope finds the minimum. Of many rows,
    10,000 at equal distances are taken.

    Args:
        labels: true classes, of data that are neither trained nor tested on.
        probabilities: of the classes.

    Shape:
        labels (N,), probabilities (N, C).
    """
    if not len(labels):
        return 1.0
    kept = np.linspace(0, len(labels) - 1, min(len(labels), ROWS)).round().astype(np.int64)
    own, logs = np.asarray(labels)[kept].astype(np.int64), _logarithms(np.asarray(probabilities)[kept])
    rows = np.arange(len(own))
    low, high = (math.log(limit) for limit in LIMITS)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected = (np.exp(_powers(logs, math.exp(middle))) * logs).sum(axis=1)
        slope = (expected - logs[rows, own]).mean()  # of the log loss in 1 / T
        low, high = (middle, high) if slope > 0 else (low, middle)
    found = math.exp((low + high) / 2)
    gain = (_powers(logs, found) - _powers(logs, 1.0))[rows, own].mean()
    return found if gain > 0 else 1.0


def scaled_distribution(probabilities: NDArray[Any], temperature: float) -> Floats:
    """`TemperatureScaling` of an array (N, C)."""
    shares: Floats = np.exp(_powers(_logarithms(probabilities), temperature))
    return shares


def calibration_note(primary: float, corrected: float | None) -> str:
    """Say what was done to the probabilities, and where the fit of a temperature ended at its limit.

    Args:
        primary: T of the primary distribution.
        corrected: T of the corrected one, or None where there is none.
    """
    if primary == 1.0 and corrected in (1.0, None):
        return "Probabilities are not calibrated: their temperature is 1."
    of_both = f"{primary:.3f} of the primary" + ("" if corrected is None else f", {corrected:.3f} of the corrected")
    bounded = {"primary": primary, "corrected": 1.0 if corrected is None else corrected}
    at_limit = [
        name for name, value in bounded.items() if any(math.isclose(value, end, rel_tol=1e-3) for end in LIMITS)
    ]
    limited = (
        f" That of the {' and the '.join(at_limit)} is at its limit ({LIMITS[0]:g} to {LIMITS[1]:g}): the validation"
        " split asks for more, as where nearly all of it is right, or wrong, or it is small; do not trust these"
        " probabilities."
        if at_limit
        else ""
    )
    return (
        f"Probabilities, ece, ece_15 and log_loss are those after temperature scaling (Guo et al., 2017), which changes"
        f" no decision; its T, fitted to the validation split, is {of_both} distribution.{limited}"
    )


def _logarithms(probabilities: NDArray[Any]) -> Floats:
    found: Floats = np.log(np.asarray(probabilities, dtype=np.float64).clip(min=TINY))
    return found


def _powers(logs: Floats, temperature: float) -> Floats:
    """Logarithms of the scaled distributions."""
    powers = logs / temperature
    powers -= powers.max(axis=1, keepdims=True)
    found: Floats = powers - np.log(np.exp(powers).sum(axis=1, keepdims=True))
    return found
