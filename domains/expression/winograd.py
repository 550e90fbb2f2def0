"""3 x 3 convolutions with 2.25 times fewer products: F(2 x 2, 3 x 3) of A. Lavin and S. Gray (2016), arXiv 1509.09308.

`Y = Aᵀ [(G g Gᵀ) (Bᵀ d B)] A` for each tile of 2 x 2 results: 16 products for 36, as 16 matrix products over all tiles.
For inference on a CPU, where many channels meet few places; with others the transforms cost more than is saved.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from domains.common.derived import Derived

CHANNELS = 256  # from here on it is faster
CHUNK = 4  # images at a time, so that the transforms stay in the cache
G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def suits(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `convolved` gives what the convolution gives, sooner."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= CHANNELS
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def transformed(weight: Tensor) -> Tensor:
    """`G g Gᵀ` of filters (O, C, 3, 3) as 16 matrices (16, C, O)."""
    g = torch.tensor(G, dtype=torch.float64, device=weight.device)
    filters = torch.einsum("ij,ocjk,lk->ilco", g, weight.double(), g)
    return filters.flatten(0, 1).to(weight.dtype).contiguous()


def convolved(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with zeros around the map.

    Args:
        x: map.
        filters: of `transformed`.
        bias: of the channels.

    Shape:
        x (B, C, H, W), H and W even, filters (16, C, O), bias (O,) -> (B, O, H, W), channels last.
    """
    batch, _, height, width = x.shape
    out = x.new_empty(batch, height, width, filters.shape[-1])
    for first in range(0, batch, CHUNK):
        _convolve(x[first : first + CHUNK], filters, bias, out[first : first + CHUNK])
    return out.permute(0, 3, 1, 2)


def convolution(conv: nn.Conv2d, kept: Derived, x: Tensor) -> Tensor:
    """The convolution, by the faster of both forms."""
    if not suits(conv, x):
        out: Tensor = conv(x)
        return out
    (filters,) = kept((conv.weight,), lambda: (transformed(conv.weight),))
    return convolved(x, filters, conv.bias)


def _convolve(x: Tensor, filters: Tensor, bias: Tensor | None, out: Tensor) -> None:
    batch, channels, height, width = x.shape
    down, across = height // 2, width // 2
    padded = x.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    half = x.new_empty(4, batch, down, width + 2, channels)
    _input([padded[:, i : i + height : 2] for i in range(4)], list(half))
    tiles = x.new_empty(4, 4, batch, down, across, channels)
    _input([half[:, :, :, i : i + width : 2] for i in range(4)], [tiles[:, i] for i in range(4)])
    products = torch.bmm(tiles.view(16, -1, channels), filters).view(4, 4, batch, down, across, -1)
    if bias is not None:
        products[1, 1] += bias  # this one is part of all four results
    rows = _output(products, [torch.empty_like(products[0]) for _ in range(2)])
    places = out.view(batch, down, 2, across, 2, -1)
    for i, row in enumerate(rows):
        _output(row, [places[:, :, i, :, j] for j in range(2)])


def _input(d: list[Tensor], out: list[Tensor]) -> None:
    """`Bᵀ d` along one axis."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _output(m: Tensor, out: list[Tensor]) -> list[Tensor]:
    """`Aᵀ m` along the first axis."""
    torch.add(m[1], m[2], out=out[0]).add_(m[0])
    torch.sub(m[1], m[2], out=out[1]).sub_(m[3])
    return out
