"""Whole videos through ConvFormer: each frame encoded once, every frame a middle frame, the test-time mirror."""

from __future__ import annotations

import torch
from torch import Tensor

from domains.common.errors import ConfigError
from domains.pose.convformer import ConvFormer
from domains.pose.layouts import Layout, mirror

ENCODED = 4096  # frames of one step of the spatial stage
COMBINED = 2048  # frames in the windows of one step of the temporal stage on a CPU: beyond, buffers leave the caches
GPU_STEPS = 16  # times as many on a GPU


def windows(sequence: Tensor, frames: int) -> Tensor:
    """A window around each frame of a clip; those that leave it repeat the first or last frame.

    Args:
        sequence: one clip; never two behind each other, as no window must see both.
        frames: T of a window, odd.

    Shape:
        sequence (N, ...) -> (N, T, ...), a view of the padded clip; window i has frame i in its middle.

    Raises:
        ConfigError: T is even.
    """
    if frames < 1 or frames % 2 == 0:
        raise ConfigError(f"frames {frames}: a window has a middle frame; give an odd number")
    if not len(sequence):
        return sequence.new_empty(0, frames, *sequence.shape[1:])
    around = torch.arange(-(frames // 2), len(sequence) + frames // 2, device=sequence.device)
    padded = sequence[around.clamp(0, len(sequence) - 1)]
    return padded.unfold(0, frames, 1).movedim(-1, 1)


@torch.no_grad()
def lift(net: ConvFormer, keypoints: Tensor, *, flip: Layout | None = None, batch_size: int | None = None) -> Tensor:
    """3D poses of every frame of one clip.

    Equal to running the network on each window of `windows(keypoints, T)` but for rounding. The spatial stage sees no
    other frames, so it runs once a frame and not T times. In evaluation mode parallel convolutions run as one (see
    `ConvFormer.reparameterise`), unless the network's path is branches.

    Args:
        net: in evaluation mode, as it is in training mode that dropout acts.
        keypoints: 2D joints of consecutive frames at the rate of training (50 Hz for Human3.6M), screen units.
        flip: layout of the joints; given, the result is the mean with that of the mirrored clip, mirrored back.
        batch_size: windows of one step; the result does not depend on it. None: what suits the device.

    Shape:
        keypoints (N, J, 2) -> (N, J, 3) metres, relative to the root.

    Raises:
        ConfigError: keypoints do not fit the network, or are missing (NaN) somewhere.
    """
    if keypoints.ndim != 3:
        raise ConfigError(f"keypoints of shape {tuple(keypoints.shape)}: give those of one clip (frames, joints, 2)")
    missing = (~keypoints.isfinite()).nonzero()
    if len(missing):
        frame, joint, _ = missing[0].tolist()
        raise ConfigError(f"keypoints: joint {joint} of frame {frame} is not finite; fill missing joints first")
    if flip is not None:
        straight = lift(net, keypoints, batch_size=batch_size)
        return flip_average(straight, lift(net, mirror(keypoints, flip), batch_size=batch_size), flip)
    if not len(keypoints):
        return keypoints.new_empty(0, net.joints, 3)
    if not net.training and net.arguments["path"] == "merged" and not net.arguments["mixing_per_head"]:
        net = net.reparameterise()
    features = torch.cat([net.encode_frames(part) for part in torch.split(keypoints, ENCODED)])  # (N, D)
    suited = COMBINED * (1 if features.device.type == "cpu" else GPU_STEPS) // net.frames
    size = max(1, suited) if batch_size is None else batch_size
    poses = [net.combine_frames(part) for part in torch.split(windows(features, net.frames), size)]
    return torch.cat(poses)[:, 0]


def flip_average(pose: Tensor, mirrored: Tensor, layout: Layout) -> Tensor:
    """Mean of a pose and of the pose found in a mirrored picture, mirrored back (the test-time flip).

    Shape:
        pose (..., J, 3), mirrored (..., J, 3) -> (..., J, 3).

    Raises:
        ConfigError: the poses are not of the layout.
    """
    return (pose + mirror(mirrored, layout)) / 2.0
