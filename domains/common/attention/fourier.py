"""Convolutions with many channels by short Fourier transforms, for inference on the CPU.

A convolution of c channels to o costs o c k products a position. Cut into overlapping pieces of n positions
(overlap-save), each transformed by itself, it costs o c products a frequency of a piece, and the pieces are long
against the filters: for k = 7 and n = 32 a quarter of the products (Mathieu, Henaff and LeCun, 2014, arXiv 1312.5851;
pieces as in Lavin and Gray, 2016, arXiv 1509.09308). The products of complex numbers take three real ones each (Gauss),
so that all of it is products of real matrices. Pieces are short enough for the transforms to be small matrices, too,
and for rounding to stay that of a sum: about 3e-7 of the result.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 32
MIN_CHANNELS, MIN_POSITIONS = 64, 128  # below these the products are too small to be worth the transforms
KERNELS = range(5, 17)


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` takes these tensors, (N, c, positions) and (o, c, k), and is faster for them than torch."""
    differentiable = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not differentiable
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0
        and weight.shape[1] >= MIN_CHANNELS
        and x.shape[2] >= MIN_POSITIONS
        and weight.shape[2] in KERNELS
    )


def transform_filters(weight: Tensor) -> Tensor:
    """Filters as `convolve` needs them.

    Shape:
        weight (o, c, k) -> (products, o, c); about 3 n / 2 products of a piece of n positions.
    """
    outputs, channels, kernel = weight.shape
    matrix = _matrices(kernel)[1].to(weight)
    return (matrix @ weight.permute(2, 0, 1).reshape(kernel, -1)).view(-1, outputs, channels)


def convolve(x: Tensor, filters: Tensor, bias: Tensor | None, kernel: int, before: int) -> Tensor:
    """`F.conv1d` with zero padding, as many positions out as in.

    Args:
        x: what to convolve.
        filters: of `transform_filters`.
        bias: added to each output channel.
        kernel: size k of the filters.
        before: zeros before the first position, of k - 1 in all.

    Shape:
        x (N, c, positions), bias (o,) -> (N, o, positions), a view.
    """
    batch, channels, positions = x.shape
    outputs, step = filters.shape[1], PIECE - kernel + 1
    pieces = -(-positions // step)
    analysis, _, synthesis = (matrix.to(x) for matrix in _matrices(kernel))
    padded = F.pad(x, (before, pieces * step + kernel - 1 - before - positions))
    cut = padded.unfold(2, PIECE, step).transpose(0, 1).reshape(-1, PIECE)  # (c N pieces, n)
    spectra = (analysis @ cut.mT).view(len(analysis), channels, -1)  # (products, c, N pieces)
    mixed = torch.bmm(filters, spectra)  # (products, o, N pieces)
    if bias is not None:
        mixed[0] += bias[:, None] * PIECE  # frequency 0, the sum over the piece
    out = mixed.view(len(analysis), -1).mT @ synthesis  # (o N pieces, step)
    return out.view(outputs, batch, -1).transpose(0, 1)[..., :positions]


@cache
def _matrices(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real matrices of a piece (products, n), of a filter (products, k), and of a result (products, n - k + 1).

    With X and W the transforms of piece and reversed filter, the result is the inverse transform of X conj(W). For each
    frequency but the first and last, a + ib = X and c + id = conj(W) give `c (a + b) - b (c + d)` and
    `c (a + b) + a (d - c)`.
    """
    times = [torch.arange(size, dtype=torch.float64, device="cpu") for size in (PIECE, kernel, PIECE - kernel + 1)]
    pieces, filters, results = [], [], []
    for frequency in range(PIECE // 2 + 1):
        angle = 2.0 * math.pi * frequency / PIECE
        (a, c, real), (b, d, imaginary) = (
            [torch.cos(angle * time) for time in times],
            [sign * torch.sin(angle * time) for sign, time in zip((-1.0, 1.0, -1.0), times, strict=True)],
        )
        if frequency in (0, PIECE // 2):
            pieces.append(a)
            filters.append(c)
            results.append(real / PIECE)
            continue
        pieces += [a + b, a, b]
        filters += [c, d - c, c + d]
        results += [2.0 * part / PIECE for part in (real + imaginary, imaginary, -real)]
    products, of_filters, out = (torch.stack(rows).float() for rows in (pieces, filters, results))
    return products, of_filters, out
