"""Image backbone of POSTER++ and ARBEx: the first three stages of IR50.

Improved residual units of J. Deng, J. Guo, N. Xue, S. Zafeiriou, *ArcFace* (2019), arXiv 1801.07698, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from domains.common.derived import Derived
from domains.expression.folding import ConvBlock, folded, folds
from domains.expression.winograd import convolution

WIDTHS, DEPTHS = (64, 128, 256), (3, 4, 14)  # of the three stages


class IRUnit(nn.Module):
    """`BN(conv(PReLU(conv(BN(x))))) + shortcut(x)`, without activation behind the sum.

    The stride is that of the second convolution. The shortcut leaves places out or, where the number of channels
    changes, is a 1 x 1 convolution with batch norm.

    Args:
        inputs: channels.
        outputs: channels.
        stride: see above.
        fuse: see `ConvBlock`.

    Shape:
        x (B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, fuse: bool = True) -> None:
        super().__init__()
        self.stride, self.fuse = stride, fuse
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.activation = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: ConvBlock | None = None
        if inputs != outputs:
            self.shortcut = ConvBlock(inputs, outputs, 1, stride, activation=False, fuse=fuse)
        self._folded, self._transformed = Derived(), Derived()

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        fold, inner = folds(self, self.fuse), self.norm1(x)
        inner = self.activation(convolution(self.conv1, self._transformed, inner) if fold else self.conv1(inner))
        inner = folded(self.conv2, self.norm2, self._folded, inner) if fold else self.norm2(self.conv2(inner))
        skipped = x[:, :, :: self.stride, :: self.stride] if self.shortcut is None else self.shortcut(x)
        return inner.add_(skipped) if fold else inner + skipped


class IR50(nn.Module):
    """Maps of the first three stages.

    Args:
        widths: channels of the stages.
        depths: units of the stages; the first of each has stride 2.
        channels: of the image.
        fuse: see `ConvBlock`.

    Shape:
        image (B, 3, H, W) -> (B, 64, H / 2, W / 2), (B, 128, H / 4, W / 4), (B, 256, H / 8, W / 8), rounded up.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in IR50(depths=(1, 1, 1))(torch.randn(1, 3, 32, 32))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4)]
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = DEPTHS,
        channels: int = 3,
        *,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        self.stem = ConvBlock(channels, widths[0], 3, fuse=fuse)
        before = [widths[0], *widths[:-1]]
        self.stages = nn.ModuleList(
            ir_stage(inputs, outputs, depth, fuse=fuse)
            for inputs, outputs, depth in zip(before, widths, depths, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Apply."""
        x, maps = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def ir_stage(inputs: int, outputs: int, depth: int, *, fuse: bool = True) -> nn.Sequential:
    """Units of one stage; the first has stride 2."""
    units = [IRUnit(inputs, outputs, 2, fuse=fuse)]
    units += [IRUnit(outputs, outputs, fuse=fuse) for _ in range(depth - 1)]
    return nn.Sequential(*units)
