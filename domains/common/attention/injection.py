"""Multi-scale injection: maps of one shared encoder-decoder gate the stages of another network (MEDUSA)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention.recorder import Recordable
from domains.common.errors import ConfigError

Gate = Literal["channel", "sigmoid", "spatial"]


class InjectionGate(Recordable):
    """Gates A in (0, 2), or with `ceiling` 1 in (0, 1), of a map of hidden features; all equal at the start.

    This attention is no softmax over keys: each gate stands alone, so `attend` has no part in it. Inside `record` each
    call leaves A (B, channels, h, w).

    Args:
        hidden: channels of the map.
        channels: gates of each position.
        ceiling: what the sigmoid is multiplied with; A starts at half of it.

    Shape:
        (B, hidden, h, w) -> (B, channels, h, w).
    """

    def __init__(self, hidden: int, channels: int, ceiling: float = 2.0) -> None:
        super().__init__()
        self.ceiling = ceiling
        self.weight = nn.Parameter(torch.zeros(channels, hidden, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))

    @property
    def start(self) -> float:
        """Value of all gates before training."""
        return self.ceiling / 2

    def forward(self, mixed: Tensor) -> Tensor:
        """Return the gates, eq. 4."""
        gates = self.ceiling * F.conv2d(mixed, self.weight, self.bias).sigmoid()
        if self._sink is not None:
            self._sink.append(gates.detach())
        return gates


class InjectionHead(nn.Module):
    """Light head that injects the body's global map G into one stage F of a convolutional network.

    Aboutalebi et al., "MEDUSA: Multi-Scale Encoder-Decoder Self-Attention Deep Neural Network Architecture for Medical
    Image Analysis", 2022, arXiv 2110.06063: a single body, several heads. The authors' network is not public; the
    equations are this project's reading of it (domains/medical/README.md):

        g = resize(G, size of F)                              (eq. 1)
        f = ReLU(BN(Conv1x1(F)))                              (eq. 2)
        m = ReLU(BN(Conv3x3(concat[f, g])))                   (eq. 3)
        A = 2 sigmoid(Conv1x1(m)),  F' = A * F                (eq. 4)

    The last convolution starts at zero, hence A = 1 and F' = F: the gated network starts as it was without.

    Args:
        channels: C of the stage.
        body_channels: w of the body's map.
        hidden: h of the head.
        gate: `channel` as above; `sigmoid` without the factor 2, so that A is in (0, 1) and 1/2 at the start;
            `spatial` one gate for all channels of a position.

    Shape:
        features (B, C, h, w), body (B, w, H, W) -> (B, C, h, w).

    Raises:
        ConfigError: an unknown gate, or a size below 1.

    Example:
        >>> import torch
        >>> head = InjectionHead(channels=8, body_channels=4, hidden=6)
        >>> features = torch.randn(1, 8, 7, 7)
        >>> bool((head(features, torch.randn(1, 4, 28, 28)) == features).all())
        True
    """

    def __init__(self, channels: int, body_channels: int, hidden: int = 64, gate: Gate = "channel") -> None:
        super().__init__()
        if min(channels, body_channels, hidden) < 1:
            raise ConfigError(f"injection head with {channels}, {body_channels}, {hidden} channels; each is at least 1")
        if gate not in ("channel", "sigmoid", "spatial"):
            raise ConfigError(f"gate is {gate!r}; choose channel, sigmoid or spatial")
        both = hidden + body_channels
        self.proj = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(both, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.gate = InjectionGate(
            hidden, 1 if gate == "spatial" else channels, ceiling=1.0 if gate == "sigmoid" else 2.0
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def gates(self, features: Tensor, body: Tensor) -> Tensor:
        """Return A (B, C or 1, h, w), eq. 1-4."""
        resized = resize_map(body, features.shape[-2], features.shape[-1])
        mixed = self.mix(torch.cat([self.proj(features), resized], dim=1))
        gates: Tensor = self.gate(mixed)
        return gates

    def forward(self, features: Tensor, body: Tensor) -> Tensor:
        """Return F' (B, C, h, w), eq. 4."""
        return features * self.gates(features, body)


def resize_map(maps: Tensor, height: int, width: int) -> Tensor:
    """Bring a map to another size, eq. 1: averaged where it shrinks (or stays), so that nothing aliases; else bilinear.

    Shape:
        (B, C, H, W) -> (B, C, height, width).
    """
    if maps.shape[-2:] == (height, width):
        return maps
    if height <= maps.shape[-2] and width <= maps.shape[-1]:
        if maps.is_cuda and torch.are_deterministic_algorithms_enabled():  # the gradient of torch's pooling is not
            return pooling_matrix(maps, -2, height) @ maps @ pooling_matrix(maps, -1, width).T
        return F.adaptive_avg_pool2d(maps, (height, width))
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


def pooling_matrix(maps: Tensor, axis: int, size: int) -> Tensor:
    """Matrix (size, n) that averages as adaptive pooling does: place i over [i n / size, (i + 1) n / size].

    Args:
        maps: whose axis it is; the matrix gets its device and dtype.
        axis: number of the axis.
        size: wanted length.
    """
    length = maps.shape[axis]
    place = torch.arange(size, device=maps.device)[:, None]
    start, end = place * length // size, -(-(place + 1) * length // size)
    column = torch.arange(length, device=maps.device)
    inside = ((column >= start) & (column < end)).to(maps.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
