"""Landmark backbone of POSTER++ and ARBEx: three maps of MobileFaceNet.

S. Chen, Y. Liu, X. Gao, Z. Han, *MobileFaceNets: Efficient CNNs for accurate real-time face verification on mobile
devices* (2018), arXiv 1804.07573, table 1, as a detector of landmarks (cunjian/pytorch_face_landmark).
"""

from __future__ import annotations

from torch import Tensor, nn

from domains.expression.folding import ConvBlock


class DepthWise(nn.Module):
    """Bottleneck: 1 x 1 convolution to more channels, 3 x 3 of each channel by itself, linear 1 x 1 convolution.

    Args:
        inputs: channels.
        outputs: channels.
        groups: channels in between.
        stride: of the convolution of each channel.
        residual: add the input.
        fuse: see `ConvBlock`.

    Shape:
        x (B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        stride: int = 1,
        *,
        residual: bool = False,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.expand = ConvBlock(inputs, groups, fuse=fuse)
        self.depthwise = ConvBlock(groups, groups, 3, stride, groups, fuse=fuse)
        self.project = ConvBlock(groups, outputs, activation=False, fuse=fuse)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class MobileFaceNet(nn.Module):
    """Maps before the global layers.

    Args:
        fuse: see `ConvBlock`.

    Shape:
        image (B, 3, H, W) -> (B, 64, H / 4, W / 4), (B, 128, H / 8, W / 8), (B, 512, H / 16, W / 16), rounded up.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in MobileFaceNet()(torch.randn(1, 3, 32, 32))]
        [(1, 64, 8, 8), (1, 128, 4, 4), (1, 512, 2, 2)]
    """

    def __init__(self, *, fuse: bool = True) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            (
                nn.Sequential(
                    ConvBlock(3, 64, 3, 2, fuse=fuse),
                    ConvBlock(64, 64, 3, groups=64, fuse=fuse),
                    DepthWise(64, 64, 128, 2, fuse=fuse),
                    residuals(64, 128, 4, fuse=fuse),
                ),
                nn.Sequential(DepthWise(64, 128, 256, 2, fuse=fuse), residuals(128, 256, 6, fuse=fuse)),
                nn.Sequential(
                    DepthWise(128, 128, 512, 2, fuse=fuse),
                    residuals(128, 256, 2, fuse=fuse),
                    ConvBlock(128, 512, fuse=fuse),
                ),
            )
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Apply."""
        x, maps = image, []
        for path in self.paths:
            x = path(x)
            maps.append(x)
        return maps


def residuals(dim: int, groups: int, count: int, *, fuse: bool = True) -> nn.Sequential:
    """Bottlenecks of one width, each added to its input."""
    return nn.Sequential(*(DepthWise(dim, dim, groups, residual=True, fuse=fuse) for _ in range(count)))
