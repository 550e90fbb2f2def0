"""Group Pose's decoder: instance and keypoint queries, group self-attention, refinement of keypoints.

H. Liu et al. (ICCV 2023), arXiv 2308.07313, section 3. Official code: Michel-liu/GroupPose @ 127fe0e (Apache-2.0).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from domains.common.attention import GroupSelfAttention, MultiScaleDeformableAttention
from domains.common.attention.deformable import Backend, View
from domains.pose.grouppose_encoder import FeedForward, Levels, in_parts, waves

POINT_TEMPERATURE = 10_000.0
CLAMP = 1e-3  # of the inverse sigmoid


class MLP(nn.Module):
    """Linear maps with ReLU between them.

    Args:
        dim: width of the input.
        hidden: width between.
        out: width of the output.
        depth: number of linear maps.
    """

    def __init__(self, dim: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        widths = [dim, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (..., dim)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        out: Tensor = self.layers[-1](x)
        return out


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logit of x, clamped so that neither x nor 1 - x is below 1e-3."""
    x = x.clamp(0.0, 1.0)
    return torch.log(x.clamp(min=CLAMP) / (1 - x).clamp(min=CLAMP))


def point_positions(points: Tensor, dim: int) -> Tensor:
    """Sine encoding of points in 0..1: D / 2 channels of y, then D / 2 of x.

    Shape:
        points (..., 2) x and y -> (..., dim).
    """
    angles = points * (2 * math.pi)
    return torch.cat([waves(angles[..., axis], dim // 2, POINT_TEMPERATURE) for axis in (1, 0)], -1)


def with_centre(keypoints: Tensor) -> Tensor:
    """Put the mean of the keypoints before them.

    Shape:
        keypoints (B, N, K, 2) -> (B, N, K + 1, 2).
    """
    return torch.cat([keypoints.mean(2, keepdim=True), keypoints], 2)


class DecoderLayer(nn.Module):
    """Group self-attention, deformable attention to the memory, feed-forward network; each behind a norm.

    Args:
        dim: width D.
        heads: of the attentions.
        hidden: width inside the feed-forward network.
        levels: L.
        points: P per head and level.
        dropout: of attention weights and of what is added to x.
        backend: see `MultiScaleDeformableAttention`.

    Shape:
        x (B, N, K + 1, D), position (B, N, K, D), references (B, N, K + 1, 2) -> (B, N, K + 1, D).
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, levels: int, points: int, dropout: float, backend: Backend
    ) -> None:
        super().__init__()
        self.group = GroupSelfAttention(dim, heads, dropout=dropout)
        self.cross = MultiScaleDeformableAttention(dim, heads, levels, points, backend=backend)
        self.norm1 = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, placed: Tensor, position: Tensor, references: Tensor, memory: Levels) -> Tensor:
        """Apply to queries that already carry their positions."""
        grouped = add_position(self.group(placed), position)  # a second time, and for good: also in the residual
        x = grouped.flatten(1, 2)
        scaled = references.flatten(1, 2)[:, :, None] * memory.ratios[:, None]  # (B, N (K + 1), L, 2)
        view = self.cross.view(memory.tokens, memory.sizes, memory.padding)
        rows = in_parts(x, self.cross.recording) or x.shape[1]
        parts = zip(torch.split(x, rows, 1), torch.split(scaled, rows, 1), strict=True)
        return torch.cat([self._tokens(*part, view) for part in parts], 1).view_as(grouped)

    def _tokens(self, x: Tensor, references: Tensor, view: View) -> Tensor:
        """Cross-attention and feed-forward network of some of the tokens."""
        x = self.norm1(x + self.dropout(self.cross.look(x, references, view)))
        out: Tensor = self.norm2(x + self.feed_forward(x))
        return out


def add_position(x: Tensor, position: Tensor) -> Tensor:
    """Add positions to the keypoint queries; the instance queries have none.

    Shape:
        x (B, N, K + 1, D), position (B, N, K, D) -> (B, N, K + 1, D).
    """
    return torch.cat([x[:, :, :1], x[:, :, 1:] + position.to(x.dtype)], 2)


@dataclass
class Decoded:
    """What the decoder's layers gave.

    Attributes:
        hidden: queries behind each layer, as the heads see them.
        references: keypoints with their centre: those that the first layer was given, then those behind each layer,
            with gradients.

    Shape:
        hidden (B, N, K + 1, D) each, references (B, N, K + 1, 2) each.
    """

    hidden: list[Tensor] = field(default_factory=list)
    references: list[Tensor] = field(default_factory=list)


class GroupPoseDecoder(nn.Module):
    """Layers that refine the keypoints of each instance; heads of classes and keypoints belong to each layer.

    Args:
        dim: width D.
        depth: layers.
        heads: of the attentions.
        hidden: width inside the feed-forward networks.
        levels: L.
        points: P per head and level.
        classes: number of classes; class 1 is a person.
        dropout: see `DecoderLayer`.
        backend: see `MultiScaleDeformableAttention`.
        aux_hidden_inplace: the heads of all layers but the last see queries to which the next layer has already added
            its positions, as in the official code, where they share memory; False: queries as the layer left them.
        position_in_batch: positions are encoded as shares of the padded image, as in the official code; False: of the
            image itself, so that they do not depend on the others of its batch.

    Shape:
        x (B, N, K + 1, D), keypoints (B, N, K, 2) in 0..1 -> see `Decoded`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        levels: int,
        points: int,
        classes: int = 2,
        dropout: float = 0.0,
        backend: Backend = "auto",
        aux_hidden_inplace: bool = True,
        position_in_batch: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.aux_hidden_inplace, self.position_in_batch = dim, aux_hidden_inplace, position_in_batch
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, hidden, levels, points, dropout, backend) for _ in range(depth)
        )
        self.position = MLP(dim, dim, dim, 2)
        self.class_heads = nn.ModuleList(nn.Linear(dim, classes) for _ in range(depth))
        self.pose_heads = nn.ModuleList(MLP(dim, dim, 2, 3) for _ in range(depth))

    def forward(self, x: Tensor, references: Tensor, memory: Levels) -> Decoded:
        """Apply; `references` come with their centre, detached."""
        decoded = Decoded(references=[references])
        for i, layer in enumerate(self.layers):
            points = references[:, :, 1:]
            if self.position_in_batch:
                points = points * memory.ratios[:, None, None, 0]
            position = self.position(point_positions(points, self.dim))
            placed = add_position(x, position)
            if i and self.aux_hidden_inplace:
                decoded.hidden[-1] = placed
            x = layer(placed, position, references, memory)
            decoded.hidden.append(x)
            # looks forward twice: the next layer gets the detached points, the heads those with gradients
            refined = with_centre((inverse_sigmoid(references[:, :, 1:]) + self.pose_heads[i](x[:, :, 1:])).sigmoid())
            decoded.references.append(refined)
            references = refined.detach()
        return decoded

    def classify(self, decoded: Decoded, layer: int) -> Tensor:
        """Logits (B, N, classes) of a layer."""
        logits: Tensor = self.class_heads[layer](decoded.hidden[layer][:, :, 0])
        return logits

    def place(self, decoded: Decoded, layer: int) -> Tensor:
        """Keypoints (B, N, K, 2) of a layer in 0..1, from the points before it."""
        before = inverse_sigmoid(decoded.references[layer][:, :, 1:])
        points: Tensor = (before + self.pose_heads[layer](decoded.hidden[layer][:, :, 1:])).sigmoid()
        return points
