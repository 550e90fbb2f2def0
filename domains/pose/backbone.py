"""Networks that turn images into maps of features: ResNet, Swin, and a small one for the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.errors import ConfigError, MissingExtraError
from domains.pose.swin import Swin

# (width, depths, heads, window): arXiv 2103.14030, section 3.3; windows of 12 are those of pretraining at 384 pixels
SWINS: Mapping[str, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {
    "swin_t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_l": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
BACKBONES = ("r50", *SWINS, "small")
EPS = 1e-5


class FrozenBatchNorm(nn.Module):
    """Batch norm with fixed statistics and a fixed affine map: `x s + (b - mean s)`, s = w / sqrt(var + 1e-5).

    Args:
        dim: channels.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and summand of the map (dim,)."""
        scale = self.weight * (self.running_var + EPS).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (B, dim, H, W)."""
        scale, shift = self.affine()
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


class ResNet50(nn.Module):
    """ResNet-50 (K. He et al., 2016, arXiv 1512.03385) of torchvision with frozen batch norm.

    Stem and first stage are not trained, as in the official code of Group Pose.

    Args:
        dilation: keep stride 16 in the last stage and dilate its convolutions instead.
        fuse: at inference, fold the norms into the convolutions before them; the numbers are the same but for rounding.

    Shape:
        x (B, 3, H, W) -> (B, 512, H / 8, W / 8), (B, 1024, H / 16, W / 16), (B, 2048, H / 32, W / 32), rounded up.

    Raises:
        MissingExtraError: torchvision is not installed.
    """

    def __init__(self, *, dilation: bool = False, fuse: bool = True) -> None:
        super().__init__()
        try:
            from torchvision.models import resnet50
        except ImportError:
            raise MissingExtraError("torchvision", "pose") from None
        self.fuse = fuse
        self.channels = [512, 1024, 2048]
        self._folded: dict[nn.Module, tuple[Any, Tensor, Tensor]] = {}
        self.body = resnet50(
            weights=None, norm_layer=FrozenBatchNorm, replace_stride_with_dilation=[False, False, dilation]
        )
        del self.body.fc, self.body.avgpool
        for name, parameter in self.body.named_parameters():
            parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Apply."""
        body, fold = self.body, self.fuse and not self.training and not torch.is_grad_enabled()
        if fold and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(self._conv_norm(x, body.conv1, body.bn1, fold).relu_(), 3, 2, 1)
        maps = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            for block in stage:
                x = self._bottleneck(x, block, fold)
            maps.append(x)
        return maps[1:]

    def _conv_norm(self, x: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm, fold: bool) -> Tensor:
        if not fold:
            out: Tensor = norm(conv(x))
            return out
        weight, shift = self._fold(conv, norm)
        return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation)

    def _fold(self, conv: nn.Conv2d, norm: FrozenBatchNorm) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution with the norm; kept until one of the tensors changes."""
        sources = (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if torch.compiler.is_compiling() or any(source.is_inference() for source in sources):
            state = None  # such tensors do not count their changes
        else:
            state = [(source.data_ptr(), source._version, source.dtype) for source in sources]
        kept = self._folded.get(conv)
        if kept is not None and state is not None and kept[0] == state:
            return kept[1:]
        scale, shift = norm.affine()
        weight = conv.weight * scale[:, None, None, None]
        if weight.device.type == "cpu":
            weight = weight.contiguous(memory_format=torch.channels_last)
        if state is not None:
            self._folded[conv] = (state, weight, shift)
        return weight, shift

    def _bottleneck(self, x: Tensor, block: Any, fold: bool) -> Tensor:
        inner = self._conv_norm(x, block.conv1, block.bn1, fold).relu_()
        inner = self._conv_norm(inner, block.conv2, block.bn2, fold).relu_()
        inner = self._conv_norm(inner, block.conv3, block.bn3, fold)
        if block.downsample is not None:
            conv, norm = block.downsample
            x = self._conv_norm(x, conv, norm, fold)
        return inner.add_(x).relu_()


class SmallBackbone(nn.Module):
    """Six convolutions with group norm, for pictures of about a hundred pixels and for tests.

    Args:
        channels: of the three maps.

    Shape:
        x (B, 3, H, W) -> maps of `channels` at strides 4, 8, 16, rounded up.
    """

    def __init__(self, channels: tuple[int, int, int] = (48, 64, 96)) -> None:
        super().__init__()
        self.channels = list(channels)
        first, second, third = channels
        plan = [(3, 32, 2), (32, first, 2), (first, first, 1), (first, second, 2), (second, second, 1)]
        plan.append((second, third, 2))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.GroupNorm(8, o), nn.ReLU()) for i, o, stride in plan
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Apply."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return [maps[2], maps[4], maps[5]]


def make_backbone(name: str, *, dilation: bool = False, fuse: bool = True, checkpointing: bool = False) -> nn.Module:
    """Build a backbone; its attribute `channels` tells the channels of its maps.

    Args:
        name: r50, swin_t, swin_b, swin_l or small.
        dilation: see `ResNet50`.
        fuse: see `ResNet50`.
        checkpointing: see `Swin`.

    Raises:
        ConfigError: there is no such backbone, or it has no dilation.
    """
    if name not in BACKBONES:
        raise ConfigError(f"backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    if dilation and name != "r50":
        raise ConfigError(f"backbone {name!r} has no dilation; it is an option of r50")
    if name == "r50":
        return ResNet50(dilation=dilation, fuse=fuse)
    if name == "small":
        return SmallBackbone()
    dim, depths, heads, window = SWINS[name]
    return Swin(dim, depths, heads, window, checkpointing=checkpointing)
