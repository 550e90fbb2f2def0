"""Random numbers that depend on the place of what they are for alone: whatever the batch, process or device."""

from __future__ import annotations

import torch
from torch import Tensor

# constants of SplitMix64 (Steele et al., 2014) as signed 64-bit numbers
GOLDEN, MIX_1, MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def hashed_uniforms(seed: int, epoch: int, draws: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on (seed, epoch, draw, place) alone, hashed by SplitMix64.

    Whatever the batch, the process or the device, the numbers of one draw are the same: 24 bits, exact in float32.

    Shape:
        draws (B,) int64 -> (B, count) float32.
    """
    state = torch.zeros(len(draws), count, dtype=torch.int64, device=draws.device)
    places = torch.arange(count, device=draws.device)
    for part in (seed, epoch, draws[:, None], places):
        state = state + part + GOLDEN
        state = (state ^ _shifted(state, 30)) * MIX_1
        state = (state ^ _shifted(state, 27)) * MIX_2
        state = state ^ _shifted(state, 31)
    return _shifted(state, 40).to(torch.float32) / (1 << 24)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
