"""ConvFormer, from 2D joints of consecutive frames to the 3D pose of the middle one: A. Diaz-Arias and D. Shin (2023).

*ConvFormer: Parameter Reduction in Transformer Models for 3D Human Pose Estimation by Leveraging Dynamic Multi-Headed
Convolutional Attention*, arXiv 2304.02147. No program and no weights of it were published; where the text leaves
something open, the reading here is the one that gives the paper's parameter and operation counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from domains.common.attention.convolutional import (
    Centring,
    ConvolutionalAttention,
    DynamicConvolutionalAttention,
    Mixing,
    Path,
    Slide,
)
from domains.common.errors import ConfigError

Activation = Literal["gelu", "relu"]


class FeedForward(nn.Module):
    """Two linear maps with an activation between.

    Args:
        dim: width w of the features.
        ratio: the width between is ratio * w.
        activation: gelu (by the error function) or relu.

    Shape:
        x (..., w) -> (..., w).
    """

    def __init__(self, dim: int, ratio: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.activation = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016, arXiv 1603.09382): samples lose the branch in training, others gain.

    Args:
        rate: probability with which a sample loses it.

    Shape:
        x (N, ...) -> (N, ...).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1.0 - self.rate)).to(x.dtype)


class ConvFormerBlock(nn.Module):
    """`x' = x + Attention(LN(x))`, `x' + FFN(LN(x'))` (eq. 8).

    Args:
        dim: width of the features.
        attention: the attention.
        ratio: see `FeedForward`.
        activation: see `FeedForward`.
        drop_path: rate of stochastic depth of both branches.
        norm_eps: of the norms.

    Shape:
        x (N, R, dim) -> (N, R, dim).
    """

    def __init__(
        self,
        dim: int,
        attention: ConvolutionalAttention | DynamicConvolutionalAttention,
        ratio: int,
        activation: Activation,
        drop_path: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.ffn = FeedForward(dim, ratio, activation)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.ffn(self.norm2(x)))
        return out


class ConvFormer(nn.Module):
    """Lift 2D joints of T frames to the 3D joints of the middle frame (section 3).

    A linear embedding of each joint (eq. 1), blocks that see the joints of one frame, the joints' features side by
    side as D = J dim features of the frame, blocks that see all frames, a linear map to 3 J numbers, and a weighted sum
    over frames.

    Args:
        frames: T of a window, odd. Weights fit one T only: embeddings and temporal filters have that size.
        joints: number J of joints.
        dim: features of a joint.
        heads: of both attentions; divides `dim`.
        spatial_blocks: blocks within frames.
        temporal_blocks: blocks over frames.
        kernels: odd sizes of the parallel convolutions.
        mixing: how their weights are normalised, see `DynamicConvolutionalAttention`.
        mixing_per_head: each head weighs them by itself.
        centring: same (padding alike on both sides) or shifted, see `ConvolutionalAttention`.
        activation: of the feed-forward networks: gelu or relu.
        ratio: width of a feed-forward network over that of its input.
        final_norms: a norm behind each of the two stages, as in PoseFormer.
        dropout: of aggregated queries, keys and values.
        drop_path: rate of stochastic depth in the last block of each stage; it grows linearly from 0 in the first.
        norm_eps: of all norms.
        path: merged or branches, see `DynamicConvolutionalAttention`; the same but for rounding.
        reparameterised: one convolution in the place of the parallel ones; see the method `reparameterise`.

    Shape:
        keypoints (B, T, J, 2) float32, screen units (see `camera.to_screen`) -> (B, 1, J, 3) float32, metres in the
        axes of the camera, relative to the root joint.

    Raises:
        ConfigError: an option cannot work, or keypoints do not fit the model.

    Example:
        >>> import torch
        >>> net = ConvFormer(frames=9, joints=15, dim=16)
        >>> net(torch.randn(2, 9, 15, 2)).shape
        torch.Size([2, 1, 15, 3])
    """

    def __init__(
        self,
        frames: int = 9,
        joints: int = 17,
        dim: int = 32,
        heads: int = 8,
        spatial_blocks: int = 2,
        temporal_blocks: int = 2,
        kernels: Sequence[int] = (7, 7, 7),
        mixing: Mixing = "softmax",
        mixing_per_head: bool = False,
        centring: Centring = "same",
        activation: Activation = "gelu",
        ratio: int = 2,
        final_norms: bool = True,
        dropout: float = 0.2,
        drop_path: float = 0.2,
        norm_eps: float = 1e-6,
        path: Path = "merged",
        reparameterised: bool = False,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "frames": frames,
            "joints": joints,
            "dim": dim,
            "heads": heads,
            "spatial_blocks": spatial_blocks,
            "temporal_blocks": temporal_blocks,
            "kernels": list(kernels),
            "mixing": mixing,
            "mixing_per_head": mixing_per_head,
            "centring": centring,
            "activation": activation,
            "ratio": ratio,
            "final_norms": final_norms,
            "dropout": dropout,
            "drop_path": drop_path,
            "norm_eps": norm_eps,
            "path": path,
            "reparameterised": reparameterised,
        }
        self._check()
        self.frames, self.joints, self.dim, self.features = frames, joints, dim, joints * dim
        self.embed = nn.Linear(2, dim)
        self.pos_spatial = nn.Parameter(torch.zeros(joints, dim))
        self.spatial = self._blocks(spatial_blocks, joints, dim, "rows")
        self.norm_spatial = nn.LayerNorm(dim, eps=norm_eps) if final_norms else nn.Identity()
        self.pos_temporal = nn.Parameter(torch.zeros(frames, self.features))
        self.temporal = self._blocks(temporal_blocks, frames, self.features, "features")
        self.norm_temporal = nn.LayerNorm(self.features, eps=norm_eps) if final_norms else nn.Identity()
        self.head = nn.Linear(self.features, 3 * joints)
        self.fuse = nn.Conv1d(frames, 1, 1)

    def _check(self) -> None:
        given = self.arguments
        if given["frames"] < 1 or given["frames"] % 2 == 0:
            raise ConfigError(f"frames {given['frames']}: a window has a middle frame; give an odd number")
        if given["joints"] < 1 or given["dim"] < 1:
            raise ConfigError(f"joints {given['joints']}, dim {given['dim']}: give positive numbers")
        if given["heads"] < 1 or given["dim"] % given["heads"]:
            raise ConfigError(f"heads {given['heads']} must divide dim {given['dim']}")
        if not given["kernels"] or any(size < 1 or size % 2 == 0 for size in given["kernels"]):
            raise ConfigError(f"kernels {given['kernels']}: give one or more odd sizes")
        if given["reparameterised"] and given["mixing_per_head"]:
            raise ConfigError("mixing_per_head has no re-parameterised form: the filters differ between positions")

    def _blocks(self, depth: int, rows: int, width: int, slide: Slide) -> nn.ModuleList:
        given, blocks = self.arguments, nn.ModuleList()
        rates = [given["drop_path"] * i / max(1, depth - 1) for i in range(depth)]
        shared = {"slide": slide, "centring": given["centring"], "dropout": given["dropout"]}
        for rate in rates:
            attention: ConvolutionalAttention | DynamicConvolutionalAttention
            if given["reparameterised"]:
                attention = ConvolutionalAttention(rows, width, given["heads"], max(given["kernels"]), **shared)
            else:
                options = {name: given[name] for name in ("mixing", "mixing_per_head", "path")}
                attention = DynamicConvolutionalAttention(
                    rows, width, given["heads"], given["kernels"], **shared, **options
                )
            blocks.append(
                ConvFormerBlock(width, attention, given["ratio"], given["activation"], rate, given["norm_eps"])
            )
        return blocks

    def encode_frames(self, keypoints: Tensor) -> Tensor:
        """The spatial stage: features of each frame by itself, before any position in time.

        Shape:
            keypoints (..., J, 2) -> (..., D); joint j occupies features j dim .. (j + 1) dim - 1.

        Raises:
            ConfigError: another number of joints or coordinates than the model's.
        """
        if keypoints.ndim < 2 or keypoints.shape[-2:] != (self.joints, 2):
            raise ConfigError(
                f"keypoints of shape {tuple(keypoints.shape)}: the last axes must be {self.joints} joints and 2 "
                "coordinates; convert the layout, and leave confidences out"
            )
        x = self.embed(keypoints.reshape(-1, self.joints, 2)) + self.pos_spatial  # (N, J, dim)  eq. 1
        for block in self.spatial:
            x = block(x)
        features: Tensor = self.norm_spatial(x).reshape(*keypoints.shape[:-2], self.features)
        return features

    def combine_frames(self, features: Tensor) -> Tensor:
        """The temporal stage: the pose of the middle frame from the features of all.

        Shape:
            features (B, T, D) -> (B, 1, J, 3).

        Raises:
            ConfigError: another number of frames than the model's.
        """
        if features.ndim != 3 or features.shape[1] != self.frames:
            raise ConfigError(
                f"windows of shape {tuple(features.shape[:-1])}: the model reads windows (batch, {self.frames}); its "
                "weights fit no other number of frames"
            )
        x = features + self.pos_temporal
        for block in self.temporal:
            x = block(x)
        pose: Tensor = self.fuse(self.head(self.norm_temporal(x)))  # (B, 1, 3 J)
        return pose.view(-1, 1, self.joints, 3)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Lift."""
        return self.combine_frames(self.encode_frames(keypoints))

    @torch.no_grad()
    def reparameterise(self) -> ConvFormer:
        """The same network with each sum of parallel convolutions as one, for inference; equal but for rounding.

        Raises:
            ConfigError: heads mix by themselves.
        """
        if self.arguments["reparameterised"]:
            return self
        first = self.embed.weight
        net = ConvFormer(**{**self.arguments, "reparameterised": True}).to(first.device, first.dtype)
        state = {name: tensor for name, tensor in self.state_dict().items() if name in net.state_dict()}
        for name, block in self.named_modules():
            if isinstance(block, DynamicConvolutionalAttention):
                state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"] = block.filters()
        net.load_state_dict(state)
        return net.train(self.training)
