"""Losses of ARBEx (Wasi et al., 2023, arXiv 2305.01486, section 3.4), of its program and bounded."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from domains.common.errors import ConfigError
from domains.expression.balancing import ARBExOutput

AnchorLoss = Literal["official", "hinge"]
LAMBDAS = (1.0, 0.01, 1.0)  # of the classification, anchor and centre losses
MARGIN = 0.5  # of the hinge, in units of the square root of D


def class_weights(counts: Tensor) -> Tensor:
    """`N / (C n_c)`; 0 for a class that never occurs.

    Shape:
        counts (C,) int, of all C classes -> (C,) float32.
    """
    found = counts.clamp_min(1).float()
    return torch.where(counts > 0, counts.sum() / (len(counts) * found), 0.0)


def distribution_loss(
    p: Tensor, labels: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Negative log-likelihood of distributions, weighted by class; a mean over the summed weights of the labels.

    Args:
        p: distributions; a probability of 0 counts as the smallest normal number.
        labels: classes.
        weights: of the classes.
        label_smoothing: share of the target that is spread over all classes.

    Shape:
        p (B, C), labels (B,) int64, weights (C,) -> ().
    """
    negative = -p.clamp_min(torch.finfo(p.dtype).tiny).log()
    w = p.new_ones(p.shape[-1]) if weights is None else weights.to(p.dtype)
    own = w[labels]
    loss = own * negative.gather(1, labels[:, None])[:, 0]
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss + label_smoothing / p.shape[-1] * (w * negative).sum(-1)
    return (loss / own.sum().clamp_min(torch.finfo(p.dtype).tiny)).sum()


def anchor_loss(points: Tensor, kind: AnchorLoss = "official", *, margin: float = MARGIN) -> Tensor:
    """Keep the anchors of classes apart; A_i are the K anchors of class i as one vector.

    `official`: `-1 / (K^2 sqrt(D)) sum_ij |A_i - A_j|^2`, which has no minimum: anchors run away. `hinge`:
    `1 / (C^2 sqrt(D)) sum_(i != j) max(0, m sqrt(D) - |A_i - A_j| / sqrt(K))^2`, which is 0 once they are m sqrt(D)
    apart.

    Args:
        points: anchors.
        kind: see above.
        margin: m.

    Shape:
        points (C, K, D) -> ().
    """
    classes, count, dim = points.shape
    flat = points.flatten(1)
    if kind == "official":  # the sum over pairs of squares is that of squares around the mean
        spread: Tensor = (flat - flat.mean(0)).square().sum()
        return spread * (-2.0 * classes / count**2 / math.sqrt(dim))
    if kind != "hinge":
        raise ConfigError(f"anchor_loss {kind!r}: choose official or hinge")
    first, second = torch.triu_indices(classes, classes, 1, device=points.device)
    apart = torch.linalg.vector_norm(flat[first] - flat[second], dim=-1) / math.sqrt(count)
    overlap: Tensor = (margin * math.sqrt(dim) - apart).clamp_min(0.0).square().sum()
    return overlap * (2.0 / (classes**2 * math.sqrt(dim)))


def center_loss(output: ARBExOutput, labels: Tensor, *, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """`c(p) min_k d_yk / sqrt(D)`: embeddings go to the nearest anchor of their class, confident ones most.

    Args:
        output: of the network.
        labels: classes y.
        reduction: over the batch.

    Shape:
        labels (B,) int64 -> ().
    """
    nearest = output.distances[torch.arange(len(labels), device=labels.device), labels].amin(-1)
    each = output.confidence[:, 0] * nearest / math.sqrt(output.embedding.shape[-1])
    return each.sum() if reduction == "sum" else each.mean()


def arbex_losses(
    output: ARBExOutput,
    labels: Tensor,
    points: Tensor,
    *,
    trust: float,
    lambdas: tuple[float, float, float] = LAMBDAS,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    kind: AnchorLoss = "hinge",
    margin: float = MARGIN,
) -> dict[str, Tensor]:
    """`L = l_ce L_ce + trust l_mu L_mu + trust l_c L_c`.

    Args:
        output: of the network, for the same trust.
        labels: classes.
        points: anchors.
        trust: share of the correction, from 0 to 1 in the course of training.
        lambdas: of L_ce, L_mu and L_c.
        weights: see `distribution_loss`.
        label_smoothing: see `distribution_loss`.
        kind: see `anchor_loss`.
        margin: see `anchor_loss`.

    Shape:
        labels (B,) int64, points (C, K, D) -> ce, mu, center and total, each ().
    """
    ce = distribution_loss(output.corrected, labels, weights, label_smoothing=label_smoothing)
    mu, center = anchor_loss(points, kind, margin=margin), center_loss(output, labels)
    total = lambdas[0] * ce + trust * (lambdas[1] * mu + lambdas[2] * center)
    return {"ce": ce, "mu": mu, "center": center, "total": total}
