"""Convolution, batch norm and PReLU, at inference with the norm folded into the convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.derived import Derived
from domains.expression import winograd


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm and, unless told otherwise, PReLU with a slope for each channel.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side of the filters; the padding is half of it.
        stride: of the convolution.
        groups: of the convolution.
        activation: whether there is a PReLU.
        fuse: fold at inference; the numbers are the same but for rounding.

    Shape:
        x (B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        activation: bool = True,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = nn.PReLU(outputs) if activation else None
        self.fuse = fuse
        self._folded = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        x = folded(self.conv, self.norm, self._folded, x) if folds(self, self.fuse) else self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


def folds(module: nn.Module, fuse: bool) -> bool:
    """Whether a module takes its form for inference."""
    return fuse and not module.training and not torch.is_grad_enabled()


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, kept: Derived, x: Tensor) -> Tensor:
    """`norm(conv(x))` of running statistics by one convolution.

    Args:
        conv: without bias.
        norm: behind it.
        kept: for its filters.
        x: what it is applied to.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        out: Tensor = norm(conv(x))
        return out

    fast = winograd.suits(conv, x)

    def make() -> tuple[Tensor, Tensor]:
        scale = norm.weight * (variance + norm.eps).rsqrt()
        weight = conv.weight * scale[:, None, None, None]
        if fast:
            weight = winograd.transformed(weight)
        elif weight.device.type == "cpu":
            weight = weight.contiguous(memory_format=torch.channels_last)
        return weight, norm.bias - mean * scale

    weight, bias = kept((conv.weight, norm.weight, norm.bias, mean, variance), make, fast)
    if fast:
        return winograd.convolved(x, weight, bias)
    if conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1:
        return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
