"""ConvFormer as its equations stand, in plain torch: every branch a convolution, every window from its 2D joints on.

The peer of `benchmarks/pose_convformer.py`. The maths is that of the paper (Diaz-Arias and Shin, 2023, arXiv
2304.02147); dropout and stochastic depth are left out, as in evaluation. Nothing here is from `domains`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.worker import Step, Work

HEADS, BLOCKS, KERNELS, RATIO, EPS = 8, 2, (7, 7, 7), 2, 1e-6
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """One network and one video.

    Args:
        frames: T of a window.
        joints: J.
        dim: features of a joint.
        video: frames of the video.
        sample: windows of one step of those who go window by window.
        seed: of weights and video.
    """

    frames: int
    joints: int = 17
    dim: int = 32
    video: int = 32
    sample: int = 2
    seed: int = 0


def make_video(setting: Setting) -> Tensor:
    """2D joints (frames, J, 2) in screen units."""
    generator = torch.Generator().manual_seed(setting.seed)
    return torch.randn(setting.video, setting.joints, 2, generator=generator) / 2


def make_weights(setting: Setting) -> Weights:
    """Random weights of the size that torch starts with."""
    generator = torch.Generator().manual_seed(setting.seed + 1)
    weights: Weights = {}

    def drawn(name: str, *shape: int, bias: bool = True) -> None:
        bound = torch.Size(shape[1:]).numel() ** -0.5
        weights[f"{name}.weight"] = (torch.rand(*shape, generator=generator) * 2 - 1) * bound
        if bias:
            weights[f"{name}.bias"] = (torch.rand(shape[0], generator=generator) * 2 - 1) * bound

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    features = setting.joints * setting.dim
    drawn("embed", setting.dim, 2)
    weights["pos_spatial"] = torch.randn(setting.joints, setting.dim, generator=generator) / 5
    weights["pos_temporal"] = torch.randn(setting.frames, features, generator=generator) / 5
    for stage, channels, width in (("spatial", setting.dim, setting.dim), ("temporal", setting.frames, features)):
        for i in range(BLOCKS):
            block = f"{stage}.{i}"
            for name in "qkv":
                for branch, kernel in enumerate(KERNELS):
                    drawn(f"{block}.attn.{name}.{branch}", channels, channels, kernel)
                weights[f"{block}.attn.eta_{name}"] = torch.randn(len(KERNELS), generator=generator)
            drawn(f"{block}.attn.proj", channels, channels)
            drawn(f"{block}.ffn.fc1", RATIO * width, width)
            drawn(f"{block}.ffn.fc2", width, RATIO * width)
            norm(f"{block}.norm1", width)
            norm(f"{block}.norm2", width)
        norm(f"norm_{stage}", width)
    drawn("head", 3 * setting.joints, features)
    drawn("fuse", 1, setting.frames, 1)
    return weights


def lift(weights: Weights, window: Tensor) -> Tensor:
    """Pose (1, J, 3) of the middle of one window (T, J, 2)."""
    frames, joints, _ = window.shape
    x = apply(weights, "embed", window) + weights["pos_spatial"]  # (T, J, d)
    for i in range(BLOCKS):
        x = block(weights, f"spatial.{i}", x, temporal=False)
    x = norm(weights, "norm_spatial", x).reshape(1, frames, -1) + weights["pos_temporal"]
    for i in range(BLOCKS):
        x = block(weights, f"temporal.{i}", x, temporal=True)
    poses = apply(weights, "head", norm(weights, "norm_temporal", x))  # (1, T, 3 J)
    return F.conv1d(poses, weights["fuse.weight"], weights["fuse.bias"]).view(1, joints, 3)


def block(weights: Weights, name: str, x: Tensor, *, temporal: bool) -> Tensor:
    """Equation 8; x (N, rows, features)."""
    x = x + attention(weights, f"{name}.attn", norm(weights, f"{name}.norm1", x), temporal=temporal)
    hidden = F.gelu(apply(weights, f"{name}.ffn.fc1", norm(weights, f"{name}.norm2", x)))
    return x + apply(weights, f"{name}.ffn.fc2", hidden)


def attention(weights: Weights, name: str, x: Tensor, *, temporal: bool) -> Tensor:
    """Equations 3, 4, 6 and 7; x (N, rows, features)."""
    given = x if temporal else x.transpose(1, 2)
    found = []
    for part in "qkv":
        eta = weights[f"{name}.eta_{part}"].softmax(0)
        branches = [
            F.conv1d(given, weights[f"{name}.{part}.{i}.weight"], weights[f"{name}.{part}.{i}.bias"], padding=k // 2)
            for i, k in enumerate(KERNELS)
        ]
        mixed = torch.stack([share * out for share, out in zip(eta, branches, strict=True)]).sum(0)
        mixed = mixed if temporal else mixed.transpose(1, 2)
        found.append(mixed.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2))
    q, k, v = found
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    if temporal:
        return apply(weights, f"{name}.proj", out.transpose(1, 2)).transpose(1, 2)
    return apply(weights, f"{name}.proj", out)


def apply(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A linear map."""
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A layer norm."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], EPS)


def window_of(video: Tensor, middle: int, frames: int) -> Tensor:
    """The window around a frame; beyond the video its first and last frame repeat."""
    index = torch.arange(middle - frames // 2, middle + frames // 2 + 1)
    return video[index.clamp(0, len(video) - 1)]


def build(setting: Setting) -> Step:
    """Return a step over a few windows, one after the other."""
    video, weights = make_video(setting), make_weights(setting)

    @torch.no_grad()
    def step(_: int) -> Work:
        poses = [lift(weights, window_of(video, i, setting.frames)) for i in range(setting.sample)]
        return Work({"frames": setting.sample}, {"value": float(poses[0].norm())})

    return step
