"""Group Pose: H. Liu, Q. Chen, Z. Tan, J.-J. Liu, J. Wang, X. Su, X. Li, K. Yao, J. Han, E. Ding, Y. Zhao, J. Wang.

*Group Pose: A simple baseline for end-to-end multi-person pose estimation*, ICCV 2023, arXiv 2308.07313. Official code:
Michel-liu/GroupPose @ 127fe0e (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention import GroupSelfAttention, MultiScaleDeformableAttention
from domains.common.attention.deformable import Backend
from domains.common.errors import ConfigError
from domains.common.hub import plain
from domains.pose.backbone import make_backbone
from domains.pose.grouppose_decoder import MLP, Decoded, GroupPoseDecoder, with_centre
from domains.pose.grouppose_encoder import (
    DeformableEncoder,
    InputProjection,
    Levels,
    map_padding,
    map_positions,
    places,
    real_sizes,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images that a backbone expects, channels RGB
PERSON = 1  # the class; 0 is never a target
PRIOR = 0.01  # probability that the classes start with
MARGIN = 0.01  # of the picture and of sizes, in which a token proposes nothing
SIDE = 0.05  # of a proposal on the first level, for the test of validity


@dataclass(frozen=True)
class Predictions:
    """What one head says.

    Attributes:
        logits: of the classes.
        keypoints: x and y in 0..1 of the image without its padding.

    Shape:
        logits (B, N, classes), keypoints (B, N, K, 2).
    """

    logits: Tensor
    keypoints: Tensor


@dataclass(frozen=True)
class GroupPoseOutput:
    """What the network says of a batch.

    Attributes:
        final: predictions of the last layer.
        auxiliary: of the layers before it.
        two_stage: of the tokens that became queries.
        selected: their numbers (B, N).
        memory: what the encoder gave.
        decoded: what the decoder's layers gave.
    """

    final: Predictions
    auxiliary: list[Predictions]
    two_stage: Predictions
    selected: Tensor
    memory: Levels
    decoded: Decoded


class GroupPose(nn.Module):
    """Persons and their keypoints from images, without boxes, heat maps, or non-maximum suppression.

    A backbone and a deformable encoder give tokens of several levels; the N tokens with the best scores propose
    keypoints and become instances of one instance query and K keypoint queries each; a decoder refines them.

    Args:
        keypoints: K; any number.
        queries: instances N; no weight depends on it.
        backbone: r50, swin_t, swin_b, swin_l, small, or None: `detect` is given maps.
        channels: of the maps where there is no backbone.
        dim: width D.
        heads: of all attentions.
        encoder_depth: layers.
        decoder_depth: layers.
        hidden: width inside the feed-forward networks.
        levels: L.
        encoder_points: points per head and level in the encoder.
        decoder_points: in the decoder.
        classes: 2 in all published weights: nothing, and a person.
        dropout: 0 in all published trainings.
        temperature: of the encoding of places.
        aux_hidden_inplace: see `GroupPoseDecoder`; False differs from the official code in auxiliary outputs only.
        mask_invalid_proposals: tokens of padding and of the border are never selected; the official code may do so.
        learnable_tgt_init: queries start without the content of their token, as the option of the official code.
        exact_padding: each image goes through backbone and projection by itself, at its own size, so that, with
            `mask_invalid_proposals`, a batch gives for each image what the image alone gives. In the official code the
            padding takes part in convolutions, group norms, and the encoding of points.
        dilation: see `make_backbone`.
        checkpointing: see `make_backbone`.
        fuse: see `ResNet50`.
        backend: see `MultiScaleDeformableAttention`.

    Shape:
        images (B, 3, H, W) float, normalised with MEAN and STD, zero on padding at the right and below.

    Raises:
        ConfigError: an option that cannot be.

    Example:
        >>> import torch
        >>> net = GroupPose(5, queries=4, backbone="small", dim=32, encoder_depth=1, decoder_depth=1, hidden=16)
        >>> net(torch.randn(1, 3, 64, 80)).final.keypoints.shape
        torch.Size([1, 4, 5, 2])
    """

    def __init__(
        self,
        keypoints: int = 17,
        queries: int = 100,
        backbone: str | None = "r50",
        channels: Sequence[int] | None = None,
        dim: int = 256,
        heads: int = 8,
        encoder_depth: int = 6,
        decoder_depth: int = 6,
        hidden: int = 2048,
        levels: int = 4,
        encoder_points: int = 4,
        decoder_points: int = 4,
        classes: int = 2,
        dropout: float = 0.0,
        temperature: float = 20.0,
        aux_hidden_inplace: bool = True,
        mask_invalid_proposals: bool = False,
        learnable_tgt_init: bool = False,
        exact_padding: bool = False,
        dilation: bool = False,
        checkpointing: bool = False,
        fuse: bool = True,
        backend: Backend = "auto",
    ) -> None:
        given = plain({name: value for name, value in locals().items() if name not in ("self", "__class__")})
        super().__init__()
        self.arguments: dict[str, Any] = given
        _check(self.arguments)
        self.keypoints, self.queries, self.dim, self.temperature = keypoints, queries, dim, temperature
        self.mask_invalid_proposals, self.exact_padding = mask_invalid_proposals, exact_padding
        self.backbone: nn.Module | None = None
        if backbone is not None:
            self.backbone = make_backbone(backbone, dilation=dilation, fuse=fuse, checkpointing=checkpointing)
            channels = self.backbone.channels  # type: ignore[assignment]
        self.projection = InputProjection(channels or [], dim, levels)
        self.level_embedding = nn.Parameter(torch.empty(levels, dim))
        self.encoder = DeformableEncoder(dim, encoder_depth, heads, hidden, levels, encoder_points, dropout, backend)
        self.selection = nn.Linear(dim, dim)
        self.selection_norm = nn.LayerNorm(dim)
        self.selection_class = nn.Linear(dim, classes)
        self.selection_pose = MLP(dim, 2 * dim, 2 * keypoints, 4)
        self.keypoint_embedding = nn.Parameter(torch.empty(keypoints, dim))
        self.instance_embedding = nn.Parameter(torch.empty(1, dim))
        self.content: Tensor | None
        self.register_buffer("content", torch.zeros(queries, dim) if learnable_tgt_init else None)
        self.decoder = GroupPoseDecoder(
            dim, decoder_depth, heads, hidden, levels, decoder_points, classes, dropout, backend, aux_hidden_inplace,
            position_in_batch=not exact_padding,
        )  # fmt: skip
        self._start()

    def _start(self) -> None:
        """Xavier for encoder and decoder, torch's own for the heads but for their last layers, as the official code."""
        heads = ("class_heads", "pose_heads")
        for name, parameter in (*self.encoder.named_parameters(), *self.decoder.named_parameters()):
            if parameter.ndim > 1 and not name.startswith(heads):
                nn.init.xavier_uniform_(parameter)
        for weight in (self.selection.weight, self.keypoint_embedding, self.instance_embedding):
            nn.init.xavier_uniform_(weight)
        nn.init.normal_(self.level_embedding)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
            if isinstance(module, GroupSelfAttention):
                for attention in (module.within, module.across):
                    bound = math.sqrt(6 / (4 * self.dim))  # of queries, keys and values as one map
                    for linear in (attention.query, attention.key_value):
                        nn.init.uniform_(linear.weight, -bound, bound)
                        nn.init.zeros_(linear.bias)
                    nn.init.zeros_(attention.out.bias)
        for head in (*self.decoder.pose_heads, self.selection_pose):
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)
        for linear in (*self.decoder.class_heads, self.selection_class):
            nn.init.constant_(linear.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, images: Tensor, padding: Tensor | None = None) -> GroupPoseOutput:
        """Find persons.

        Args:
            images: a batch.
            padding: True on padding; default none.

        Shape:
            images (B, 3, H, W), padding (B, H, W) bool.

        Raises:
            ConfigError: there is no backbone, or see `detect`.
            ValueError: images of another shape.
        """
        if self.backbone is None:
            raise ConfigError("this network has no backbone; give its maps to detect()")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images of shape {tuple(images.shape)}; give (B, 3, H, W)")
        if padding is None:
            padding = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
        if self.exact_padding:
            return self._detect(*self._one_by_one(images, padding))
        return self.detect(self.backbone(images), padding)

    def detect(self, maps: Sequence[Tensor], padding: Tensor) -> GroupPoseOutput:
        """Find persons in the backbone's maps.

        Args:
            maps: of the backbone.
            padding: of the images.

        Shape:
            maps (B, C_l, H_l, W_l), padding (B, H, W) bool.

        Raises:
            ConfigError: the images have fewer tokens than there are queries.
        """
        projected = self.projection(maps)
        return self._detect(projected, [map_padding(padding, (x.shape[2], x.shape[3])) for x in projected])

    def _one_by_one(self, images: Tensor, padding: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Projected maps and their padding, of images that do not see the padding."""
        alone = [
            self.projection(self.backbone(image[None, :, :height, :width]))  # type: ignore[misc]
            for image, (width, height) in zip(images, real_sizes(padding).tolist(), strict=True)
        ]
        maps, masks = [], []
        for level in zip(*alone, strict=True):
            high, wide = (max(x.shape[axis] for x in level) for axis in (2, 3))
            gaps = [(0, wide - x.shape[3], 0, high - x.shape[2]) for x in level]
            maps.append(torch.cat([F.pad(x, gap) for x, gap in zip(level, gaps, strict=True)]))
            real = [torch.ones_like(x[:, 0], dtype=torch.bool) for x in level]
            masks.append(~torch.cat([F.pad(x, gap) for x, gap in zip(real, gaps, strict=True)]))
        return maps, masks

    def _detect(self, projected: Sequence[Tensor], masks: Sequence[Tensor]) -> GroupPoseOutput:
        memory = self.encode(projected, masks)
        selected, two_stage, content = self.select(memory)
        references = with_centre(two_stage.keypoints).detach()
        decoded = self.decoder(self._queries(content), references, memory)
        found = [
            Predictions(self.decoder.classify(decoded, layer), self.decoder.place(decoded, layer))
            for layer in range(len(self.decoder.layers))
        ]
        return GroupPoseOutput(found[-1], found[:-1], two_stage, selected, memory, decoded)

    def encode(self, projected: Sequence[Tensor], masks: Sequence[Tensor]) -> Levels:
        """Tokens of all levels, encoded.

        Args:
            projected: maps of all levels.
            masks: True on padding, of all levels.

        Shape:
            projected (B, D, H_l, W_l), masks (B, H_l, W_l) bool.
        """
        sizes = [(x.shape[2], x.shape[3]) for x in projected]  # free in an exported program
        extent = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32, device=masks[0].device)
        ratios = torch.stack([real_sizes(mask) for mask in masks], 1) / extent
        position = torch.cat(
            [
                map_positions(mask, self.dim, self.temperature).flatten(2).transpose(1, 2) + level
                for mask, level in zip(masks, self.level_embedding, strict=True)
            ],
            1,
        )
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], 1)
        levels = Levels(tokens, torch.cat([mask.flatten(1) for mask in masks], 1), sizes, ratios)
        return Levels(self.encoder(levels, position), levels.padding, sizes, ratios)

    def select(self, memory: Levels) -> tuple[Tensor, Predictions, Tensor]:
        """Tokens that become queries (B, N), what they propose, and their content (B, N, D)."""
        tokens = memory.tokens.shape[1]
        if tokens < self.queries:
            raise ConfigError(
                f"images with {tokens} tokens cannot fill {self.queries} queries; give larger images (data.shorter) or"
                " fewer queries (model.queries)"
            )
        logit, invalid = _proposals(memory)
        proposed = self.selection_norm(self.selection(memory.tokens.masked_fill(invalid[..., None], 0.0)))
        logits = self.selection_class(proposed)
        scores = logits.amax(-1)
        if self.mask_invalid_proposals:
            scores = scores.masked_fill(invalid, -math.inf)
        selected = scores.topk(self.queries, dim=1)[1]
        content = _take(proposed, selected)
        offsets = self.selection_pose(content).view(*selected.shape, self.keypoints, 2)
        keypoints = (offsets + _take(logit, selected)[:, :, None]).sigmoid()
        return selected, Predictions(_take(logits, selected), keypoints), content

    def _queries(self, content: Tensor) -> Tensor:
        """Instance query and keypoint queries of each instance (B, N, K + 1, D)."""
        content = content.detach() if self.content is None else self.content.expand_as(content).to(content.dtype)
        points = content[:, :, None] + self.keypoint_embedding
        instance = self.instance_embedding.to(points.dtype).expand(*content.shape[:2], -1, -1)
        return torch.cat([instance, points], 2)


def _check(arguments: Mapping[str, Any]) -> None:
    """Refuse options that cannot be."""
    backbone, channels, levels = arguments["backbone"], arguments["channels"], arguments["levels"]
    dim, heads = arguments["dim"], arguments["heads"]
    if (backbone is None) == (channels is None) or channels == []:
        raise ConfigError("give either a backbone or, without one, the channels of the maps")
    if backbone is None and arguments["exact_padding"]:
        raise ConfigError("exact_padding needs a backbone, which must not see the padding either")
    if levels < (3 if channels is None else len(channels)):
        raise ConfigError(f"levels {levels}: the backbone already has {3 if channels is None else len(channels)} maps")
    if heads < 1 or dim < 1 or dim % heads or dim % 4:
        raise ConfigError(f"dim {dim}: must be a multiple of heads ({heads}) and of 4, for the encoding of places")
    for name in (
        "keypoints",
        "queries",
        "encoder_depth",
        "decoder_depth",
        "encoder_points",
        "decoder_points",
        "hidden",
    ):
        if arguments[name] < 1:
            raise ConfigError(f"{name} {arguments[name]}: must be at least 1")
    if arguments["classes"] <= PERSON:
        raise ConfigError(f"classes {arguments['classes']}: class {PERSON} is a person, so that there are at least 2")


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: (B, S, C), (B, N) -> (B, N, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _proposals(memory: Levels) -> tuple[Tensor, Tensor]:
    """Logits of the tokens' places in their images (B, S, 2), infinite for tokens that are invalid (B, S)."""
    centres, fitting = [], []
    maps = torch.split(memory.padding, [h * w for h, w in memory.sizes], 1)
    for level, (place, own, size) in enumerate(
        zip(places(memory.sizes, memory.padding.device), maps, memory.sizes, strict=True)
    ):
        centre = place / real_sizes(own.reshape(-1, *size))[:, None]  # (B, H_l W_l, 2)
        inside = ((centre > MARGIN) & (centre < 1 - MARGIN)).all(-1)
        centres.append(centre)
        fitting.append(inside if MARGIN < SIDE * 2**level < 1 - MARGIN else torch.zeros_like(inside))
    centre, invalid = torch.cat(centres, 1), memory.padding | ~torch.cat(fitting, 1)
    logit = torch.log(centre / (1 - centre)).masked_fill(invalid[..., None], math.inf)
    return logit, invalid
