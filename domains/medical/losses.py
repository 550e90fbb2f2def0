"""Losses of ACMIL: Y. Zhang et al. (ECCV 2024), arXiv 2311.07125."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from domains.medical.acmil import BagOutput


def bag_losses(output: BagOutput, labels: Tensor, class_weights: Tensor | None = None) -> dict[str, Tensor]:
    """The three terms of the loss of each bag; their sum is what the paper minimises.

    - `slide`: cross entropy of the bag's logits.
    - `branch`: the mean over the branches of their cross entropies (absent where there are no branches).
    - `diversity`: the mean cosine similarity of the attention of each two branches.

    Args:
        output: of the network, with weights.
        labels: class of each bag.
        class_weights: weight of each class (C,); None: all the same.

    Shape:
        labels (B,) int64 -> each (B,).
    """
    losses = {"slide": F.cross_entropy(output.logits, labels, weight=class_weights, reduction="none")}
    if output.branch_logits is not None:
        branches = output.branch_logits.shape[1]
        every = F.cross_entropy(
            output.branch_logits.flatten(0, 1),
            labels.repeat_interleave(branches),
            weight=class_weights,
            reduction="none",
        )
        losses["branch"] = every.view(-1, branches).mean(1)
        losses["diversity"] = output.diversity()
    return losses
