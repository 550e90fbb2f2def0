"""Labels that are shares of votes: several annotators, one face."""

from __future__ import annotations

import torch
from torch import Tensor


def shares(votes: Tensor) -> Tensor:
    """Votes (B, C) float as shares that sum to 1; rows without votes stay 0."""
    return votes / votes.sum(-1, keepdim=True).clamp_min(torch.finfo(votes.dtype).tiny)


def soft_loss(p: Tensor, target: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of distributions with shares of votes (E. Barsoum et al., 2016, arXiv 1608.01041).

    Of shares that are all one label it is `distribution_loss`.

    Args:
        p: distributions; a probability of 0 counts as the smallest normal number.
        target: shares.
        weights: of the classes.
        label_smoothing: share of the target that is spread over all classes.

    Shape:
        p and target (B, C), weights (C,) -> ().
    """
    tiny = torch.finfo(p.dtype).tiny
    target = shares(target.to(p))
    w = p.new_ones(p.shape[-1]) if weights is None else weights.to(p.dtype)
    spread = (1.0 - label_smoothing) * target + label_smoothing / p.shape[-1]
    loss = -(spread * w * p.clamp_min(tiny).log()).sum()
    return loss / (target * w).sum().clamp_min(tiny)
