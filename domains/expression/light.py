"""A small feature extractor of ARBEx for images of 24 to 224 pixels, which trains from scratch on a CPU.

Two maps of one backbone take the places of the streams of POSTER++ (arXiv 2301.12149): each is asked by the other one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.errors import ConfigError, MissingExtraError
from domains.expression.fusion import CrossFusion
from domains.expression.token_vit import TokenViT

FINE, COARSE = 64, 128  # channels of both maps in the attention
HEAD = 32  # channels of a head
GAMMA = 0.1  # of the branches at the start: from scratch they have to count sooner than in POSTER++
RATIO = 2  # of the feed-forward networks
SMALLEST = 3  # side of the coarse map
STD = 0.05  # of the transformer's maps at the start: from 0.01, as in POSTER++, training from scratch stands still


class ResidualUnit(nn.Module):
    """Basic block of a residual network (K. He et al., 2016, arXiv 1512.03385).

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the first convolution.

    Shape:
        x (B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        return F.relu(inner + self.shortcut(x), inplace=True)


class SmallStream(nn.Module):
    """Residual network of 24 x 24, 12 x 12 and 6 x 6 places of an image of 48 x 48.

    Args:
        channels: of the image.
        widths: channels of the three stages.
        depths: units of the three stages.

    Shape:
        image (B, channels, H, W) -> (B, widths[1], H / 4, W / 4), (B, widths[2], H / 8, W / 8), rounded up.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, int, int] = (32, FINE, COARSE),
        depths: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.widths, self.strides = list(widths[1:]), [4, 8]
        self.stem = nn.Conv2d(channels, widths[0], 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        before = [widths[0], *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualUnit(inputs, outputs, 2 if i else 1),
                *(ResidualUnit(outputs, outputs) for _ in range(depth - 1)),
            )
            for i, (inputs, outputs, depth) in enumerate(zip(before, widths, depths, strict=True))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Apply."""
        x, maps = F.relu(self.norm(self.stem(image)), inplace=True), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]


class TimmStream(nn.Module):
    """Two maps of a network of timm: the deepest whose sides are multiples of each other.

    Args:
        name: of the network.
        channels: of the image.
        image_size: side of images.

    Raises:
        ConfigError: timm has no such network, or no two of its maps fit.
        MissingExtraError: timm is not installed.
    """

    def __init__(self, name: str, channels: int, image_size: int) -> None:
        super().__init__()
        try:
            import timm
        except ImportError:
            raise MissingExtraError("timm", "expression") from None
        try:
            whole: Any = timm.create_model(name, pretrained=False, features_only=True, in_chans=channels)
        except Exception as error:  # whatever a network says when it is unknown or gives no maps
            reason = str(error).split("\n")[0][:120]
            raise ConfigError(
                f"backbone {name!r}: no network of timm that gives maps ({reason}); choose another"
            ) from None
        strides = whole.feature_info.reduction()
        sides = [-(-image_size // stride) for stride in strides]
        fitting = [i for i in range(1, len(sides)) if sides[i] >= SMALLEST and sides[i - 1] in (sides[i], 2 * sides[i])]
        if not fitting:
            raise ConfigError(
                f"image_size {image_size}: the maps of {name} have sides {sides}; choose a multiple of 16, at least 48"
            )
        chosen = fitting[-1] - 1, fitting[-1]
        self.strides = [strides[i] for i in chosen]
        # this class leaves out what lies behind the deeper map
        options: dict[str, Any] = {"features_only": True, "feature_cls": "getter", "out_indices": chosen}
        body: Any = timm.create_model(name, pretrained=False, in_chans=channels, **options)
        self.body, self.widths = body, list(body.feature_info.channels())

    def forward(self, image: Tensor) -> list[Tensor]:
        """Apply."""
        maps: list[Tensor] = self.body(image)
        return maps


class LightExtractor(nn.Module):
    """Embedding of a face from two maps of one backbone.

    The fine map is cut into windows that the coarse map asks; the coarse map is one window that the fine map asks.

    Args:
        backbone: `small`, or the name of a network of timm.
        channels: of the image.
        image_size: side of images.
        dim: width D of the embedding.
        depth: blocks of the transformer.
        heads: of their attention.
        drop_path: see `ScaledFeedForward`.
        fuse: see `TokenViT`.

    Shape:
        image (B, channels, image_size, image_size) float, or (B, 1, ...), which is repeated -> (B, D).

    Raises:
        ConfigError: an image size without whole windows; see `TimmStream`.
    """

    def __init__(
        self,
        backbone: str = "small",
        channels: int = 1,
        image_size: int = 48,
        dim: int = 128,
        depth: int = 1,
        heads: int = 4,
        *,
        drop_path: float = 0.0,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.channels, self.image_size = dim, channels, image_size
        if backbone == "small":
            if image_size % 8 or image_size < 8 * SMALLEST:
                raise ConfigError(f"image_size {image_size}: must be a multiple of 8, at least {8 * SMALLEST}")
            self.stream: SmallStream | TimmStream = SmallStream(channels)
        else:
            self.stream = TimmStream(backbone, channels, image_size)
        side, window = (-(-image_size // stride) for stride in self.stream.strides)
        ratio = side // window
        self.projections = nn.ModuleList(
            nn.Identity() if width == wanted else nn.Conv2d(width, wanted, 1)
            for width, wanted in zip(self.stream.widths, (FINE, COARSE), strict=True)
        )
        self.from_coarse = nn.Conv2d(COARSE, FINE, 1)
        self.from_fine = nn.Conv2d(FINE, COARSE, ratio, ratio)
        options = {"halve": False, "drop_path": drop_path, "gamma": GAMMA, "ratio": RATIO, "fuse": fuse}
        halved = (3,) if ratio > 1 else (1,)
        self.fine = CrossFusion(FINE, FINE // HEAD, window, (dim,), halved, **options)  # type: ignore[arg-type]
        self.coarse = CrossFusion(COARSE, COARSE // HEAD, window, (dim,), (1,), **options)  # type: ignore[arg-type]
        places = (side + 1) // 2 if ratio > 1 else side
        self.vit = TokenViT(places**2 + window**2, dim, depth, heads, fuse=fuse)
        for module in self.vit.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=STD)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Apply.

        Raises:
            ValueError: images of another size.
        """
        if image.ndim != 4 or image.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"images of shape {tuple(image.shape)}; give sides of {self.image_size} pixels")
        if image.shape[1] == 1 < self.channels:
            image = image.expand(-1, self.channels, -1, -1)
        if image.device.type == "cpu":
            image = image.contiguous(memory_format=torch.channels_last)
        fine, coarse = (project(x) for project, x in zip(self.projections, self.stream(image), strict=True))
        tokens = [self.fine(fine, self.from_coarse(coarse)), self.coarse(coarse, self.from_fine(fine))]
        embedding: Tensor = self.vit(torch.cat(tokens, 1))
        return embedding
