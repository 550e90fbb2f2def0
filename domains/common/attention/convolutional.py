"""Dynamic multi-headed convolutional self-attention: A. Diaz-Arias and D. Shin (2023), arXiv 2304.02147, section 3.2.

*ConvFormer: Parameter Reduction in Transformer Models for 3D Human Pose Estimation by Leveraging Dynamic Multi-Headed
Convolutional Attention*. Its program was never published: the reading here is the one whose parameters and operations
add up to the paper's tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention import fourier
from domains.common.attention.multihead import merge_heads, split_heads
from domains.common.attention.recorder import Recordable

Slide = Literal["rows", "features"]
Mixing = Literal["softmax", "sum", "free"]
Centring = Literal["same", "shifted"]
Path = Literal["merged", "branches"]
NAMES = ("q", "k", "v")


class ConvolutionalAttention(Recordable):
    """Multi-head self-attention whose queries, keys and values are one convolution each (eq. 3, 4, 7 with n = 1).

    `concat_h(softmax(Q_h K_hᵀ / sqrt(D / H)) V_h)`, then a linear map of the convolution's channels. This is the form
    that `DynamicConvolutionalAttention.reparameterised` returns, all three convolutions in one filter bank.

    Args:
        rows: number R of rows, which attend to each other.
        dim: number D of features, which the heads split.
        heads: number H of heads.
        kernel: odd size of the filters.
        slide: rows: the filters slide over the rows and mix the features (the paper's spatial attention); features:
            they slide over the features and mix the rows (its temporal attention), as does the linear map behind.
        centring: same: output p sees p - (k - 1) / 2 to p + (k - 1) / 2, zeros outside. shifted: all of it one
            position earlier, as the index in eq. 4 can be read.
        dropout: of queries, keys and values in training (section 4.2).

    Shape:
        x (N, R, D) -> (N, R, D).

    Raises:
        ValueError: `heads` does not divide `dim`, or the kernel is even.
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        heads: int,
        kernel: int = 7,
        *,
        slide: Slide = "rows",
        centring: Centring = "same",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(dim, heads, [kernel])
        self.heads, self.slide, self.centring = heads, slide, centring
        self.channels = channels_of(rows, dim, slide)
        self.dropout = nn.Dropout(dropout)
        self.qkv = nn.Conv1d(self.channels, 3 * self.channels, kernel)
        self.proj = nn.Linear(self.channels, self.channels)
        self._transformed: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        return attend_rows(self, self.dropout, self.proj, self.aggregate(x), self.heads, self.slide)

    def aggregate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values before heads and dropout, each (N, R, D)."""
        weight, bias = self.qkv.weight, self.qkv.bias
        if self.slide == "rows" or weight.is_inference() or not fourier.suits(x, weight):
            return convolved(x, weight, bias, self.slide, self.centring)
        kernel = weight.shape[2]
        before = (kernel - 1) // 2 + (self.centring == "shifted")
        q, k, v = fourier.convolve(x, self._filters(), bias, kernel, before).chunk(3, dim=1)
        return q, k, v

    def _filters(self) -> Tensor:
        """The filters as `fourier.convolve` needs them, kept until the weights are others."""
        weight = self.qkv.weight
        state = (weight.data_ptr(), weight._version)
        if self._transformed is None or self._transformed[0] != state:
            self._transformed = state, fourier.transform_filters(weight.detach())
        return self._transformed[1]


class DynamicConvolutionalAttention(Recordable):
    """Self-attention whose queries, keys and values are learned means of convolutions of several sizes (section 3.2).

    `Q = sum_i eta_i Q_i` with `Q_i` the convolution by filters of size k_i (eq. 4, 6), K and V likewise, each with its
    own weights eta; then attention and a linear map as in `ConvolutionalAttention`. The weights are learned numbers:
    they do not depend on the input, so the sum of convolutions is one convolution by the sum of their filters, each
    padded by zeros to the largest size.

    Args:
        rows: number R of rows, which attend to each other.
        dim: number D of features, which the heads split.
        heads: number H of heads.
        kernels: odd sizes k_1 .. k_n of the filters.
        slide: see `ConvolutionalAttention`.
        mixing: what the n learned numbers are: logits of eta (softmax; 0 at the start), numbers that are divided by
            their sum (sum; 1 at the start), or eta itself (free; 1 / n at the start).
        mixing_per_head: each head has its own eta.
        centring: see `ConvolutionalAttention`.
        dropout: of queries, keys and values in training (section 4.2).
        path: merged: sum the filters and convolve once, in training too, where gradients reach every branch through
            the sum. branches: n convolutions, as the equation stands; the same but for rounding, and slower.

    Shape:
        x (N, R, D) -> (N, R, D).

    Raises:
        ValueError: `heads` does not divide `dim`, there are no kernels, or one is even.

    Example:
        >>> import torch
        >>> block = DynamicConvolutionalAttention(rows=9, dim=16, heads=4, kernels=(3, 5), slide="features")
        >>> block(torch.randn(2, 9, 16)).shape
        torch.Size([2, 9, 16])
        >>> block.reparameterised().qkv.weight.shape
        torch.Size([27, 9, 5])
    """

    eta_q: Tensor
    eta_k: Tensor
    eta_v: Tensor

    def __init__(
        self,
        rows: int,
        dim: int,
        heads: int,
        kernels: Sequence[int] = (7, 7, 7),
        *,
        slide: Slide = "rows",
        mixing: Mixing = "softmax",
        mixing_per_head: bool = False,
        centring: Centring = "same",
        dropout: float = 0.0,
        path: Path = "merged",
    ) -> None:
        super().__init__()
        _check(dim, heads, kernels)
        self.rows, self.dim, self.heads, self.kernels, self.slide = rows, dim, heads, tuple(kernels), slide
        self.mixing, self.centring, self.path = mixing, centring, path
        self.channels = channels_of(rows, dim, slide)
        # over the features a head is a range of positions, and one filter bank cannot differ between positions
        self.mergeable = slide == "rows" or not mixing_per_head
        self.dropout = nn.Dropout(dropout)
        start = {"softmax": 0.0, "sum": 1.0, "free": 1.0 / len(self.kernels)}[mixing]
        shape = (len(self.kernels), heads) if mixing_per_head else (len(self.kernels),)
        for name in NAMES:
            branches = (nn.Conv1d(self.channels, self.channels, size) for size in self.kernels)
            setattr(self, name, nn.ModuleList(branches))
            setattr(self, f"eta_{name}", nn.Parameter(torch.full(shape, start)))
        self.proj = nn.Linear(self.channels, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        return attend_rows(self, self.dropout, self.proj, self.aggregate(x), self.heads, self.slide)

    def aggregate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (eq. 6) before heads and dropout, each (N, R, D)."""
        if self.path == "merged" and self.mergeable:
            return convolved(x, *self.filters(), self.slide, self.centring)
        q, k, v = (self._sum_of_branches(x, name) for name in NAMES)
        return q, k, v

    def eta(self, name: str) -> Tensor:
        """Weights of the branches of q, k or v: (n,), or (n, H) where each head has its own."""
        given: Tensor = getattr(self, f"eta_{name}")
        if self.mixing == "softmax":
            return given.softmax(dim=0)
        return given / given.sum(dim=0) if self.mixing == "sum" else given

    def filters(self) -> tuple[Tensor, Tensor]:
        """The filter bank (3 c, c, largest k) and the biases (3 c,) that do what all branches do together.

        Raises:
            ValueError: there is none, as heads that mix by themselves are ranges of positions.
        """
        if not self.mergeable:
            raise ValueError("heads that mix by themselves over features have no common filter bank; keep the branches")
        largest, weights, biases = max(self.kernels), [], []
        for name in NAMES:
            eta = self.eta(name)
            shares = eta.repeat_interleave(self.dim // self.heads, 1) if eta.ndim == 2 else eta[:, None]  # (n, c or 1)
            pairs = list(zip(shares, getattr(self, name), strict=True))
            padded = (
                F.pad(b.weight * share[:, None, None], [(largest - b.weight.shape[2]) // 2] * 2) for share, b in pairs
            )
            weights.append(torch.stack(list(padded)).sum(0))
            biases.append(torch.stack([b.bias * share for share, b in pairs]).sum(0))
        return torch.cat(weights), torch.cat(biases)

    @torch.no_grad()
    def reparameterised(self) -> ConvolutionalAttention:
        """The same attention with one convolution in the place of n, in the same mode and precision.

        Raises:
            ValueError: see `filters`.
        """
        weight, bias = self.filters()
        block = ConvolutionalAttention(
            self.rows,
            self.dim,
            self.heads,
            max(self.kernels),
            slide=self.slide,
            centring=self.centring,
            dropout=self.dropout.p,
        ).to(weight)
        block.load_state_dict(
            {"qkv.weight": weight, "qkv.bias": bias, "proj.weight": self.proj.weight, "proj.bias": self.proj.bias}
        )
        return block.train(self.training)

    def _sum_of_branches(self, x: Tensor, name: str) -> Tensor:
        eta, total = self.eta(name), torch.zeros_like(x)
        shares = eta.repeat_interleave(self.dim // self.heads, 1) if eta.ndim == 2 else eta[:, None]  # (n, D or 1)
        for share, branch in zip(shares, getattr(self, name), strict=True):
            padded = pad_positions(x.mT if self.slide == "rows" else x, branch.weight.shape[2], self.centring)
            out = F.conv1d(padded[0], branch.weight, branch.bias, padding=padded[1])
            total = total + share * (out.mT if self.slide == "rows" else out)
        return total


def channels_of(rows: int, dim: int, slide: Slide) -> int:
    """Channels that the filters mix: the axis over which they do not slide."""
    return dim if slide == "rows" else rows


def pad_positions(x: Tensor, kernel: int, centring: Centring) -> tuple[Tensor, int]:
    """The input of a convolution (N, channels, positions), and how much zero padding that still has to add."""
    half = (kernel - 1) // 2
    if centring == "same":
        return x, half
    return F.pad(x, [half + 1, half - 1]), 0  # a negative size cuts


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, slide: Slide, centring: Centring
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (N, R, D) by one convolution of x (N, R, D)."""
    padded, padding = pad_positions(x.mT if slide == "rows" else x, weight.shape[2], centring)
    q, k, v = F.conv1d(padded, weight, bias, padding=padding).chunk(3, dim=1)
    # feature-major views, where the filters slide over rows: what the attention of short sequences likes best
    return (q.mT, k.mT, v.mT) if slide == "rows" else (q, k, v)


def attend_rows(
    block: Recordable,
    dropout: nn.Dropout,
    proj: nn.Linear,
    qkv: tuple[Tensor, Tensor, Tensor],
    heads: int,
    slide: Slide,
) -> Tensor:
    """Attention between rows (eq. 3, 7), and the linear map of the channels: features, or rows; (N, R, D)."""
    q, k, v = (split_heads(dropout(t), heads) for t in qkv)  # (N, H, R, D / H)
    out, _ = block.mix(q, k, v)
    merged = merge_heads(out)
    if slide == "rows":
        projected: Tensor = proj(merged)
        return projected
    return torch.baddbmm(proj.bias[:, None], proj.weight.expand(merged.shape[0], -1, -1), merged)


def _check(dim: int, heads: int, kernels: Sequence[int]) -> None:
    if heads < 1 or dim % heads:
        raise ValueError(f"heads={heads} does not divide dim={dim}")
    if not kernels or any(size < 1 or size % 2 == 0 for size in kernels):
        raise ValueError(f"kernels {list(kernels)}: give one or more odd sizes")
