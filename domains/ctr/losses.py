"""Losses and penalties of click models."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def click_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross entropy in nats, from logits.

    Shape:
        logits, labels (B,) -> ().
    """
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def official_log_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Log loss of the official program: `-(y log(p + 1e-7) + (1 - y) log(1 - p + 1e-7))`, mean over the batch.

    It differs from `click_loss` by less than 1e-6 unless |logit| > 14; kept for parity.

    Shape:
        probabilities, labels (B,) -> ().
    """
    labels = labels.to(probabilities.dtype)
    epsilon = 1e-7
    return -(labels * (probabilities + epsilon).log() + (1 - labels) * (1 - probabilities + epsilon).log()).mean()


def l2_penalty(tensors: Iterable[Tensor], coefficient: float) -> Tensor | float:
    """`coefficient / 2 * sum of squares` over all tensors; 0.0 where the coefficient is 0."""
    if coefficient == 0.0:
        return 0.0
    return coefficient / 2 * torch.stack([tensor.square().sum() for tensor in tensors]).sum()
