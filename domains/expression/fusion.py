"""One level of POSTER++: what the landmark map asks the image map, as tokens.

J. Mao et al., *POSTER++* (2023), arXiv 2301.12149, sections 3.2 and 3.3. Official code: Talented-Q/POSTER_V2 @ 18de559.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from domains.common.attention import WindowCrossAttention
from domains.common.attention.window_cross import from_windows, to_windows
from domains.common.derived import Derived
from domains.expression.folding import folds

GAMMA = 1e-5  # of both branches at the start
MLP_RATIO = 4


class ScaledFeedForward(nn.Module):
    """`x = s + g1 a`, then `x + g2 MLP(LN(x))`, with a scale for each channel (H. Touvron et al., 2021, 2103.17239).

    Args:
        dim: channels D.
        drop_path: probability with which a branch is left out for a sample in training.
        gamma: the scales at the start.
        ratio: width inside the MLP, in units of D.

    Shape:
        attended and shortcut (B, H, W, D) -> (B, H, W, D).
    """

    def __init__(self, dim: int, drop_path: float = 0.0, gamma: float = GAMMA, ratio: int = MLP_RATIO) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.full((dim,), gamma))
        self.gamma_2 = nn.Parameter(torch.full((dim,), gamma))
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, attended: Tensor, shortcut: Tensor) -> Tensor:
        """Apply."""
        x = shortcut + self.drop_path(self.gamma_1 * attended)
        out: Tensor = x + self.drop_path(self.gamma_2 * self.fc2(F.gelu(self.fc1(self.norm(x)))))
        return out


class TokenEmbedding(nn.Module):
    """A map as tokens, by convolutions without activation between them.

    At inference two convolutions of stride 2 are one of stride 4 with 7 x 7 filters, on maps whose sides are multiples
    of 4. The zeros that pad the second one's input then matter through the first one's bias alone, which becomes a map.

    Args:
        widths: channels of the map and behind each convolution.
        kernels: side of the filters of each: 3 with stride 2 and padding, or 1.
        fuse: see above; the numbers are the same but for rounding.

    Shape:
        x (B, widths[0], H, W) -> (B, H' W', widths[-1]), row by row, H' = H halved for each convolution with stride.
    """

    def __init__(self, widths: Sequence[int], kernels: Sequence[int], *, fuse: bool = True) -> None:
        super().__init__()
        self.fuse = fuse
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel, 2 if kernel == 3 else 1, kernel // 2)
            for inputs, outputs, kernel in zip(widths[:-1], widths[1:], kernels, strict=True)
        )
        self._joined = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        twice = [conv.kernel_size[0] for conv in self._layers()] == [3, 3]
        if twice and x.shape[2] % 4 == x.shape[3] % 4 == 0 and folds(self, self.fuse):
            x = self._at_once(x)
        else:
            for conv in self.convs:
                x = conv(x)
        return x.flatten(2).transpose(1, 2)

    def _layers(self) -> list[nn.Conv2d]:
        return [conv for conv in self.convs if isinstance(conv, nn.Conv2d)]

    def _at_once(self, x: Tensor) -> Tensor:
        first, second = self._layers()
        if first.bias is None or second.bias is None:
            raise ValueError("convolutions of a token embedding have a bias")
        weight, bias, inner = self._joined((first.weight, first.bias, second.weight, second.bias), self._join)
        middle = torch.ones(1, 1, *((side + 1) // 2 for side in x.shape[2:]), device=x.device, dtype=x.dtype)
        return F.conv2d(x, weight, bias, 4, 3) + F.conv2d(middle, inner, None, 2, 1)

    def _join(self) -> tuple[Tensor, Tensor, Tensor]:
        """Filters of the one convolution, bias of the second, and filters that the first one's bias goes through."""
        first, second = self._layers()
        if first.bias is None or second.bias is None:
            raise ValueError("convolutions of a token embedding have a bias")
        # output o sees place 2 p + i of the input through place p of the middle: 2 (2 o + p) + i
        weight = first.weight.new_zeros(second.out_channels, first.in_channels, 7, 7)
        for row in range(3):
            for column in range(3):
                part = torch.einsum("om,mijk->oijk", second.weight[:, :, row, column], first.weight)
                weight[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += part
        inner = torch.einsum("omjk,m->ojk", second.weight, first.bias)[:, None]
        if weight.device.type == "cpu":
            weight = weight.contiguous(memory_format=torch.channels_last)
        return weight, second.bias.detach().clone(), inner


class CrossFusion(nn.Module):
    """A level: windows of the image map, asked by the landmark map, a feed-forward network, tokens.

    The shortcut around the attention is the map behind the layer norm, as in the official code.

    Args:
        dim: channels d of both maps.
        heads: of the attention.
        window: places M along one side of a window; the landmark map has M x M places.
        widths: channels behind each convolution of the embedding; the last is the width D of tokens.
        kernels: see `TokenEmbedding`.
        halve: put a convolution of stride 2 before the windows.
        drop_path: see `ScaledFeedForward`.
        gamma: see `ScaledFeedForward`.
        ratio: see `ScaledFeedForward`.
        fuse: see `TokenEmbedding`.

    Shape:
        image (B, d, H, W), landmarks (B, d, M, M) -> (B, tokens, D).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        widths: Sequence[int],
        kernels: Sequence[int],
        *,
        halve: bool = True,
        drop_path: float = 0.0,
        gamma: float = GAMMA,
        ratio: int = MLP_RATIO,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        self.window = window
        self.conv = nn.Conv2d(dim, dim, 3, 2, 1) if halve else None
        self.norm = nn.LayerNorm(dim)
        self.attention = WindowCrossAttention(dim, heads, window)
        self.feed_forward = ScaledFeedForward(dim, drop_path, gamma, ratio)
        self.embedding = TokenEmbedding((dim, *widths), kernels, fuse=fuse)

    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """Apply."""
        tokens: Tensor = self.embedding(self.fused(image, landmarks))
        return tokens

    def fused(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """The map before the embedding (B, d, H', W')."""
        x = image if self.conv is None else self.conv(image)
        shortcut = self.norm(x.permute(0, 2, 3, 1))  # (B, H', W', d)
        query = landmarks.flatten(2).transpose(1, 2)  # (B, M M, d)
        attended = self.attention(to_windows(shortcut, self.window), query)
        height, width = shortcut.shape[1:3]
        fused: Tensor = self.feed_forward(from_windows(attended, height, width), shortcut)
        return fused.permute(0, 3, 1, 2)
