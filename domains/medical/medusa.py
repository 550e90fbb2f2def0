"""MEDUSA: one encoder-decoder attention body, injected into every stage of a classification network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from domains.common.attention.injection import Gate, InjectionHead
from domains.common.errors import ConfigError
from domains.common.hub import plain

Configuration = Literal["medusa_resnet50", "medusa_tiny"]

# sides of the two views, and the sizes of the parts, that go with each classification network
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "medusa_resnet50": {"side": 480, "gray_side": 256, "channels": 3, "width": 24, "levels": 5, "hidden": 64},
    "medusa_tiny": {"side": 28, "gray_side": 28, "channels": 1, "width": 8, "levels": 3, "hidden": 16},
}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class UNetBody(nn.Module):
    """The attention body: U-Net (Ronneberger et al., 2015, arXiv 1505.04597) with batch normalisation.

    Level i has w * 2^i channels; a double convolution is twice (Conv 3x3 without bias, BN, ReLU), 2 x 2 max pooling
    between the levels of the encoder; the decoder doubles the size by a transposed convolution, concatenates [skip,
    up] and convolves twice.

    Args:
        width: w, channels of the first level and of the result.
        levels: depth of the U.
        channels: of the image.
        pad_to: sides that are no multiple of it are padded with zeros right and bottom, and the result is cropped; at
            least 2^(levels - 1), which is what the pooling divides by.

    Shape:
        (B, channels, H, W) float32 -> G (B, w, H, W); `segment` G -> logits of the lung mask (B, 1, H, W).

    Raises:
        ConfigError: a width, a number of levels or of channels below 1.
    """

    def __init__(self, width: int = 24, levels: int = 5, channels: int = 1, pad_to: int = 16) -> None:
        super().__init__()
        if min(width, levels, channels, pad_to) < 1:
            raise ConfigError(f"body of width {width}, {levels} levels and {channels} channels; each is at least 1")
        self.width, self.levels, self.channels = width, levels, channels
        self.multiple = max(pad_to, 2 ** (levels - 1))
        self.arguments = {"width": width, "levels": levels, "channels": channels, "pad_to": pad_to}
        sizes = [width * 2**i for i in range(levels)]
        self.enc = nn.ModuleList(_double(a, b) for a, b in zip([channels, *sizes[:-1]], sizes, strict=True))
        upper = sizes[-2::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, stride=2) for size in upper)
        self.dec = nn.ModuleList(_double(2 * size, size) for size in upper)
        self.seg = nn.Conv2d(width, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, gray: Tensor) -> Tensor:
        """Return G (B, w, H, W)."""
        height, width = gray.shape[-2:]
        x = F.pad(gray, (0, -width % self.multiple, 0, -height % self.multiple))
        skips: list[Tensor] = []
        for i, block in enumerate(self.enc):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, block, skip in zip(self.up, self.dec, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, up(x)], dim=1))
        return x[..., :height, :width]

    def segment(self, body: Tensor) -> Tensor:
        """Logits of the lung mask (B, 1, H, W) from G."""
        logits: Tensor = self.seg(body)
        return logits


class ResNetStages(nn.Module):
    """ResNet (He et al., 2016, arXiv 1512.03385) with torchvision's parameter names, whose stages can be tapped.

    Args:
        block: torchvision's `Bottleneck` or `BasicBlock`.
        depths: blocks of each stage.
        widths: channels inside the blocks of each stage; a bottleneck gives four times as many.
        n_classes: C.
        channels: of the image.
        small: a 3 x 3 stem of stride 1 without pooling, for images of a few dozen pixels.

    Shape:
        (B, channels, H, W) -> logits (B, C).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        n_classes: int,
        channels: int,
        *,
        small: bool = False,
    ) -> None:
        super().__init__()
        stem = widths[0]
        self.conv1 = nn.Conv2d(channels, stem, *((3, 1, 1) if small else (7, 2, 3)), bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.stage_channels = [width * block.expansion for width in widths]
        before = [stem, *self.stage_channels]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            setattr(self, f"layer{i + 1}", _stage(block, before[i], width, depth, stride=2 if i else 1))
        self.fc = nn.Linear(self.stage_channels[-1], n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> list[nn.Module]:
        """The stages in their order."""
        return [getattr(self, f"layer{i + 1}") for i in range(len(self.stage_channels))]

    def stem(self, image: Tensor) -> Tensor:
        """What the first stage takes."""
        x: Tensor = self.pool(F.relu(self.bn1(self.conv1(image)), inplace=True))
        return x

    def classify(self, features: Tensor) -> Tensor:
        """Global average pool and linear map: the last stage's features -> logits (B, C)."""
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Return logits, without any tap."""
        x = self.stem(image)
        for stage in self.stages:
            x = stage(x)
        return self.classify(x)


class MEDUSA(nn.Module):
    """Multi-scale encoder-decoder self-attention (Aboutalebi et al., 2022, arXiv 2110.06063).

    The body reads the grey image once; head j gates the features of stage j with its map, and the gated features go on
    to stage j + 1, the last ones to the classifier. The paper's network was never published: sizes hit its published
    29.2 M parameters and 29.1 GMACs as nearly as round numbers do (28,578,907 and 27.39 G at 480 x 480).

    Args:
        n_classes: C.
        configuration: `medusa_resnet50` (ResNet-50, 480 x 480 and 256 x 256), or `medusa_tiny` (basic blocks 2-2-2-2
            with 32 to 256 channels, 28 x 28 twice).
        channels: of the image; default 3, and 1 for `medusa_tiny`.
        width: w of the body; default 24, and 8.
        levels: of the body; default 5, and 3.
        hidden: channels inside a head; default 64, and 16.
        gate: `channel`, `sigmoid` or `spatial`, see `InjectionHead`.
        taps: stages that have a head, counted from 1; none of them makes it the plain ResNet, without body.
        imagenet_statistics: subtract ImageNet's mean colour and divide by its standard deviation, as a backbone that
            was trained there expects; for three channels.

    Shape:
        image (B, channels, S, S) float32 in [0, 1], or (B, 1, S, S), which is repeated; gray (B, 1, s, s) float32,
        z-scores of each image -> logits (B, C).

    Raises:
        ConfigError: an unknown configuration, a stage that is none, or sizes below 1.

    Example:
        >>> import torch
        >>> net = MEDUSA(configuration="medusa_tiny").eval()
        >>> net(torch.rand(2, 1, 28, 28), torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 2])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        n_classes: int = 2,
        configuration: Configuration = "medusa_resnet50",
        channels: int | None = None,
        width: int | None = None,
        levels: int | None = None,
        hidden: int | None = None,
        gate: Gate = "channel",
        taps: Sequence[int] = (1, 2, 3, 4),
        imagenet_statistics: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments = plain(arguments)  # what builds this network again, for config.json
        if configuration not in CONFIGURATIONS:
            raise ConfigError(f"configuration is {configuration!r}; choose one of {', '.join(CONFIGURATIONS)}")
        if n_classes < 2:
            raise ConfigError(f"{n_classes} classes; a classifier needs 2 or more")
        chosen = dict(CONFIGURATIONS[configuration])
        given = {"channels": channels, "width": width, "levels": levels, "hidden": hidden}
        chosen |= {name: value for name, value in given.items() if value is not None}
        self.side, self.gray_side, self.channels = chosen["side"], chosen["gray_side"], chosen["channels"]
        if configuration == "medusa_resnet50":
            self.backbone = ResNetStages(Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), n_classes, self.channels)
        else:
            sizes = (32, 64, 128, 256)
            self.backbone = ResNetStages(BasicBlock, (2, 2, 2, 2), sizes, n_classes, self.channels, small=True)
        self.taps = sorted(set(taps))
        if not set(self.taps) <= set(range(1, 5)):
            raise ConfigError(f"taps are {list(taps)}; the stages are 1, 2, 3 and 4")
        self.body = UNetBody(chosen["width"], chosen["levels"]) if self.taps else None
        self.heads = nn.ModuleList(
            InjectionHead(self.backbone.stage_channels[tap - 1], chosen["width"], chosen["hidden"], gate)
            for tap in self.taps
        )
        if imagenet_statistics and self.channels != 3:
            raise ConfigError(f"ImageNet's statistics are of 3 channels, the network takes {self.channels}")
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet_statistics else ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, image: Tensor, gray: Tensor) -> Tensor:
        """Return logits (B, C); the probabilities are their softmax."""
        return self.with_body(image, gray)[0]

    def with_body(self, image: Tensor, gray: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, C), and the body's map G (B, w, s, s) where there is one."""
        body = None if self.body is None else self.body(gray)
        heads = dict(zip(self.taps, self.heads, strict=True))
        image = image.expand(-1, self.channels, -1, -1) if image.shape[1] == 1 else image
        x = self.backbone.stem((image - self.mean) / self.std)
        for j, stage in enumerate(self.backbone.stages, start=1):
            x = stage(x)
            if body is not None and j in heads:
                x = heads[j](x, body)  # F_j'
        return self.backbone.classify(x), body


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    outputs = width * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    blocks: list[nn.Module] = [block(inputs, width, stride, shortcut)]
    blocks += [block(outputs, width) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
