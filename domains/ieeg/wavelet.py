"""Wavelet encoder of MVPFormer: Daubechies-4 coefficients of a segment, normalised and projected (section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# decomposition low-pass of Daubechies-4 (8 taps; Daubechies, 1992, table 6.1)
LOW = (
    -0.010597401785069032,
    0.0328830116668852,
    0.030841381835560764,
    -0.18703481171909309,
    -0.027983769416859854,
    0.6308807679298589,
    0.7148465705529157,
    0.2303778133088965,
)
TAPS = len(LOW)
HIGH = tuple((-1) ** (k + 1) * LOW[TAPS - 1 - k] for k in range(TAPS))
CHUNK = 1 << 18  # samples that are transformed at a time, so that all levels stay in the cache


def levels(samples: int) -> int:
    """Levels of the transform of so many samples: the last one still fills a filter; 0 below 14 samples."""
    return int(math.log2(samples / (TAPS - 1))) if samples >= 2 * (TAPS - 1) else 0


def coefficient_sizes(samples: int) -> list[int]:
    """Number of coefficients in each part of `wavelet_transform`, coarse to fine: a_J, d_J, ..., d_1."""
    details = []
    for _ in range(levels(samples)):
        samples = (samples + TAPS - 1) // 2
        details.append(samples)
    return [samples, *reversed(details)]


def wavelet_transform(x: Tensor) -> Tensor:
    """Multi-level discrete wavelet transform, Daubechies-4, periodic extension (pywt's mode `periodic`).

    One level on N samples (index modulo N, also for odd N) is

        a[k] = sum_j low[j] x[2k + 1 - j],  d[k] = sum_j high[j] x[2k + 1 - j],  k = 0 .. floor((N + 7) / 2) - 1,

    repeated on a. Even and odd samples are filtered apart, so that every step runs along contiguous memory.

    Shape:
        x (..., L) -> (..., sum(coefficient_sizes(L))), coarse to fine, in float32 (float64 stays).
    """
    flat = x.reshape(-1, x.shape[-1])
    flat = flat if flat.dtype == torch.float64 else flat.float()
    if torch.compiler.is_compiling():  # the number of rows is free in an exported program
        return _transform(flat).view(*x.shape[:-1], -1)
    rows = max(1, CHUNK // x.shape[-1])
    parts = [_transform(flat[start : start + rows]) for start in range(0, max(len(flat), 1), rows)]
    return torch.cat(parts).view(*x.shape[:-1], -1)


def _transform(approximation: Tensor) -> Tensor:
    details: list[Tensor] = []
    for _ in range(levels(approximation.shape[-1])):
        size = approximation.shape[-1]
        count = (size + TAPS - 1) // 2
        wrapped = torch.cat([approximation[:, 2 - TAPS :], approximation, approximation[:, : 6 + size % 2]], dim=-1)
        even, odd = wrapped[:, 0::2].contiguous(), wrapped[:, 1::2].contiguous()
        low, high = (approximation.new_zeros(approximation.shape[0], count) for _ in range(2))
        for i in range(TAPS // 2):
            for signal, tap in ((even[:, i : i + count], TAPS - 1 - 2 * i), (odd[:, i : i + count], TAPS - 2 - 2 * i)):
                low.add_(signal, alpha=LOW[tap])
                high.add_(signal, alpha=HIGH[tap])
        approximation = low
        details.append(high)
    return torch.cat([approximation, *reversed(details)], dim=-1)


class WaveletEncoder(nn.Module):
    """Segment of one channel -> token: transform without gradient, RMS norm, linear map.

    The norm has eps 1e-5 on the mean square of the coefficients: signals must come in microvolts. In volts they would
    be crushed to nothing. It leaves the shape of a segment and takes its amplitude away, unless eps is as large as the
    mean square of the signals.

    Args:
        samples: L of a segment.
        dim: width E of a token.
        eps: added to the mean square of the coefficients, microvolts squared; 1e-5 in the official code.

    Shape:
        x (..., L) microvolts -> (..., E).
    """

    def __init__(self, samples: int, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        width = sum(coefficient_sizes(samples))
        self.norm = nn.RMSNorm(width, eps=eps)
        self.project = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            coefficients = wavelet_transform(x)
        token: Tensor = self.project(self.norm(coefficients.to(self.norm.weight.dtype)))
        return token
