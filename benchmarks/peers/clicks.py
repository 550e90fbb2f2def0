"""Synthetic click logs in the shape of Criteo: 13 numbers, 26 categories, a click.

Within a field the ids follow Zipf's law (log-uniform ranks); the field sizes fall off as a power law and add up to the
vocabulary asked for. Nothing here needs more than torch, so that every peer's interpreter can read it. A
step trains on batch i modulo their number and counts its `samples`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

N_NUMERIC = 13
N_CATEGORICAL = 26


@dataclass(frozen=True)
class Clicks:
    """One batch.

    Attributes:
        numbers: the numerical fields, (B, 13) float32.
        categories: ids counted within each field, (B, 26) int64.
        label: clicked or not, (B,) float32.
    """

    numbers: Tensor
    categories: Tensor
    label: Tensor


@dataclass(frozen=True)
class Setting:
    """What one run trains: the size of the data and of the network.

    Attributes:
        vocabulary: rows of all categorical tables together.
        batch: samples per step.
        dim: embedding size.
        width: size of each interacting layer.
        heads: attention heads.
        depth: interacting layers.
    """

    vocabulary: int = 1_000_000
    batch: int = 4096
    dim: int = 16
    width: int = 16
    heads: int = 2
    depth: int = 3

    def field_sizes(self) -> list[int]:
        """Return the number of ids of each of the 26 categorical fields; they add up to `vocabulary`."""
        share = [(rank + 1) ** -1.5 for rank in range(N_CATEGORICAL)]
        sizes = [max(4, int(self.vocabulary * part / sum(share))) for part in share]
        sizes[0] += self.vocabulary - sum(sizes)
        return sizes

    def batches(self, count: int = 4, seed: int = 0) -> list[Clicks]:
        """Draw `count` batches; the same seed gives the same batches to every competitor."""
        draw = torch.Generator().manual_seed(seed)
        sizes = torch.tensor(self.field_sizes())
        batches = []
        for _ in range(count):
            rank = torch.exp(torch.rand(self.batch, N_CATEGORICAL, generator=draw) * torch.log(sizes.float()))
            categories = (rank.long() - 1).clamp_min(0).minimum(sizes - 1)
            numbers = torch.randn(self.batch, N_NUMERIC, generator=draw).abs() * math.e
            label = (torch.rand(self.batch, generator=draw) < 0.25).float()
            batches.append(Clicks(numbers, categories, label))
        return batches
