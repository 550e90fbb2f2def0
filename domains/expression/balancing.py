"""Reliability balancing of ARBEx: anchors, a self-attention corrector, and the confidences that weigh them.

A. T. Wasi, K. Serbetar, R. Islam, T. H. Rafi, D.-K. Chae, *ARBEx: Attentive feature extraction with reliability
balancing for robust facial expression learning* (2023), arXiv 2305.01486, section 3.3. Official code:
takihasan/ARBEx @ b85c37b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention import ReliabilityAttention
from domains.common.attention.reliability import Scope
from domains.common.errors import ConfigError
from domains.expression.calibration import TemperatureScaling

AnchorStart = Literal["normal", "zeros"]
ANCHOR_STD = 0.1
HIDDEN = (384, 192, 96)


@dataclass(frozen=True)
class ARBExOutput:
    """What the network says of a batch.

    Attributes:
        embedding: e.
        logits: of the primary head.
        primary: distribution p.
        confidence: c(p), 1 for certainty and 0 for a uniform distribution.
        distances: from e to each anchor.
        similarities: distribution s by the anchors.
        confidence_geometric: c(s).
        attention: distribution a of the corrector.
        confidence_attention: c(a).
        correction: t, the mean of s and a by their confidences.
        balanced: q, the mean of p and t by the confidence of p.
        corrected: (1 - trust) p + trust q, the prediction.
        primary_calibrated: p by its `TemperatureScaling`.
        calibrated: the corrected distribution by its own; both change nothing until temperatures are set.

    Shape:
        embedding (B, D), distances (B, C, K), confidences (B, 1), all others (B, C).
    """

    embedding: Tensor
    logits: Tensor
    primary: Tensor
    confidence: Tensor
    distances: Tensor
    similarities: Tensor
    confidence_geometric: Tensor
    attention: Tensor
    confidence_attention: Tensor
    correction: Tensor
    balanced: Tensor
    corrected: Tensor
    primary_calibrated: Tensor
    calibrated: Tensor


def confidence(p: Tensor) -> Tensor:
    """`1 - H(p) / log C`, of distributions over the last axis.

    A probability of 0 counts 0 and has a finite gradient.

    Shape:
        p (..., C) -> (..., 1), in 0..1.
    """
    if p.shape[-1] < 2:
        return torch.ones_like(p[..., :1])
    summed = (p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1, keepdim=True)
    return (1.0 + summed / math.log(p.shape[-1])).clamp(0.0, 1.0)


def euclidean_distances(first: Tensor, second: Tensor) -> Tensor:
    """Of each row to each row, from their differences: exact where rows are near, unlike from products.

    Shape:
        first (B, D), second (N, D) -> (B, N).
    """
    if torch.compiler.is_compiling():  # an exported program may have to do without cdist: ONNX has none
        distances: Tensor = torch.linalg.vector_norm(first[:, None] - second, dim=-1)
        return distances
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


class ClassifierHead(nn.Module):
    """Logits from embeddings: for each hidden size Linear, ReLU, batch norm, dropout; then Linear.

    A batch of one in training takes the running statistics of the norms, which have no others.

    Args:
        dim: width D of embeddings.
        n_classes: C.
        hidden: sizes.
        norm: whether there are batch norms.
        dropout: probability.

    Shape:
        embedding (B, D) -> (B, C).
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        hidden: Sequence[int] = HIDDEN,
        *,
        norm: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([dim, *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            layers += [nn.BatchNorm1d(outputs)] if norm else []
            layers.append(nn.Dropout(dropout))
        self.net = nn.Sequential(*layers, nn.Linear(hidden[-1] if hidden else dim, n_classes))

    def forward(self, embedding: Tensor) -> Tensor:
        """Apply."""
        x = embedding
        for layer in self.net:
            if isinstance(layer, nn.BatchNorm1d) and self.training and x.shape[0] == 1:
                x = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
            else:
                x = layer(x)
        return x


class Anchors(nn.Module):
    """K points of each class in the space of embeddings.

    `s_c = sum_k softmax(-d / delta)_ck`, softmax over the distances d to all C K anchors.

    Args:
        dim: width D.
        n_classes: C.
        count: K.
        delta: temperature.
        start: `normal` of standard deviation 0.1, or `zeros` as in the official code, from where the anchors of a class
            stay the same and the anchor loss has no gradient.

    Shape:
        embedding (B, D) -> distances (B, C, K), similarities (B, C).
    """

    def __init__(self, dim: int, n_classes: int, count: int, delta: float, start: AnchorStart) -> None:
        super().__init__()
        self.delta = delta
        self.points = nn.Parameter(torch.zeros(n_classes, count, dim))
        if start == "normal":
            nn.init.normal_(self.points, std=ANCHOR_STD)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Apply."""
        points = self.points.flatten(0, 1).to(embedding.dtype)
        flat = euclidean_distances(embedding, points)  # (B, C K)
        distances = flat.view(embedding.shape[0], *self.points.shape[:2])
        return distances, (flat / -self.delta).softmax(-1).view_as(distances).sum(-1)


class ReliabilityBalancing(nn.Module):
    """Primary head, anchors and corrector: from an embedding to the corrected distribution.

    Args:
        dim: width D of embeddings.
        n_classes: C.
        hidden: see `ClassifierHead`.
        head_norm: see `ClassifierHead`.
        dropout: see `ClassifierHead`.
        anchors: K of each class.
        anchor_init: see `Anchors`.
        attention_anchors: see `ReliabilityAttention`.
        attention_heads: see `ReliabilityAttention`.
        attn_scope: see `ReliabilityAttention`.
        temperature: T of the primary distribution.
        delta: see `Anchors`.

    Shape:
        embedding (B, D).

    Raises:
        ConfigError: an option that cannot be.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        hidden: Sequence[int] = HIDDEN,
        *,
        head_norm: bool = True,
        dropout: float = 0.5,
        anchors: int = 1,
        anchor_init: AnchorStart = "normal",
        attention_anchors: int = 1,
        attention_heads: int = 1,
        attn_scope: Scope = "auto",
        temperature: float = 1.0,
        delta: float = 1.0,
    ) -> None:
        super().__init__()
        counts = {"n_classes": n_classes, "anchors": anchors, "attention_anchors": attention_anchors}
        for name, count in (counts | {"attention_heads": attention_heads}).items():
            if count < 1:
                raise ConfigError(f"{name} {count}: must be at least 1")
        if n_classes * attention_anchors % attention_heads:
            width = n_classes * attention_anchors
            raise ConfigError(
                f"attention_heads {attention_heads}: does not divide n_classes x attention_anchors {width}"
            )
        if temperature <= 0 or delta <= 0:
            raise ConfigError(f"temperature {temperature} and delta {delta}: both must be above 0")
        if anchor_init not in ("normal", "zeros"):
            raise ConfigError(f"anchor_init {anchor_init!r}: choose normal or zeros")
        if attn_scope not in ("auto", "batch", "sample"):
            raise ConfigError(f"attn_scope {attn_scope!r}: choose auto, batch or sample")
        self.temperature = temperature
        self.head = ClassifierHead(dim, n_classes, hidden, norm=head_norm, dropout=dropout)
        self.anchors = Anchors(dim, n_classes, anchors, delta, anchor_init)
        self.attention = ReliabilityAttention(dim, n_classes, attention_anchors, attention_heads, scope=attn_scope)
        # the official program has none of these: `weights` leaves them out
        self.primary_scaling, self.corrected_scaling = TemperatureScaling(), TemperatureScaling()

    def forward(self, embedding: Tensor, *, trust: float = 1.0) -> ARBExOutput:
        """Apply.

        Args:
            embedding: e.
            trust: share of the balanced distribution in the prediction; 1 at evaluation, growing from 0 in training.
        """
        logits = self.head(embedding)
        embedding, p = embedding.float(), (logits.float() / self.temperature).softmax(-1)
        distances, s = self.anchors(embedding)
        a = self.attention(embedding).float()
        c_p, c_g, c_a = (confidence(x) for x in (p, s, a))
        g, c = (x.clamp_min(torch.finfo(x.dtype).eps) for x in (c_g, c_a))  # both are 0 of uniform distributions
        t = (g * s + c * a) / (g + c)
        q = c_p * p + (1.0 - c_p) * t
        corrected = (1.0 - trust) * p + trust * q
        calibrated = self.primary_scaling(p), self.corrected_scaling(corrected)
        return ARBExOutput(embedding, logits, p, c_p, distances, s, c_g, a, c_a, t, q, corrected, *calibrated)
