"""The temporal convolutional network of VideoPose3D in plain torch: a peer of `benchmarks/pose_humaneva.py`.

D. Pavllo, C. Feichtenhofer, D. Grangier and M. Auli, *3D human pose estimation in video with temporal convolutions and
semi-supervised training*, CVPR 2019, arXiv 1811.11742, section 3 and figure 2. Windows give one pose, so the dilated
convolutions are computed as strided ones, which is the same and what the paper trains with. Nothing here is from
`domains`.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

WIDTH = 3  # frames of a filter
FIRST, LAST = 0.1, 0.001  # momentum of batch norms, which decays over the training (section 5.3)


class TemporalModel(nn.Module):
    """Residual blocks of a convolution over time and one of a single frame, with batch norm, ReLU and dropout.

    Args:
        joints: J.
        frames: T, a power of 3.
        channels: C.
        dropout: rate.

    Shape:
        keypoints (B, T, J, 2) -> (B, J, 3), the pose of the middle frame.

    Raises:
        ValueError: T is no power of 3.
    """

    def __init__(self, joints: int, frames: int = 27, channels: int = 1024, dropout: float = 0.25) -> None:
        super().__init__()
        depth = round(math.log(frames, WIDTH))
        if depth < 1 or WIDTH**depth != frames:
            raise ValueError(f"frames {frames}: give a power of {WIDTH}")
        self.joints = joints
        self.expand = self._layer(2 * joints, channels, WIDTH, dropout)
        self.temporal = nn.ModuleList(self._layer(channels, channels, WIDTH, dropout) for _ in range(depth - 1))
        self.single = nn.ModuleList(self._layer(channels, channels, 1, dropout) for _ in range(depth - 1))
        self.shrink = nn.Conv1d(channels, 3 * joints, 1)

    @staticmethod
    def _layer(before: int, behind: int, width: int, dropout: float) -> nn.Sequential:
        convolution = nn.Conv1d(before, behind, width, stride=width, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm1d(behind, momentum=FIRST), nn.ReLU(), nn.Dropout(dropout))

    def progress(self, share: float) -> None:
        """Set the momentum of batch norms by the share of the training that is done."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = FIRST * (LAST / FIRST) ** share

    def forward(self, keypoints: Tensor) -> Tensor:
        """Lift."""
        x = self.expand(keypoints.flatten(2).transpose(1, 2))  # (B, C, T / 3)
        for temporal, single in zip(self.temporal, self.single, strict=True):
            x = x[:, :, WIDTH // 2 :: WIDTH] + single(temporal(x))
        pose: Tensor = self.shrink(x)[:, :, 0]
        return pose.view(-1, self.joints, 3)


class LinearModel(nn.Module):
    """One linear map from all 2D joints of a window to the pose of its middle frame.

    Args:
        joints: J.
        frames: T.

    Shape:
        keypoints (B, T, J, 2) -> (B, J, 3).
    """

    def __init__(self, joints: int, frames: int = 27) -> None:
        super().__init__()
        self.joints = joints
        self.map = nn.Linear(frames * joints * 2, 3 * joints)

    def progress(self, share: float) -> None:
        """Nothing changes over the training."""

    def forward(self, keypoints: Tensor) -> Tensor:
        """Lift."""
        pose: Tensor = self.map(keypoints.flatten(1))
        return pose.view(-1, self.joints, 3)
