"""Log energies of wavelet bands: what detectors of seizures were before networks, as the baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from domains.ieeg.wavelet import coefficient_sizes, wavelet_transform

FLOOR = 1e-3  # microvolts squared, below which a band is silent


class BandEnergyClassifier(nn.Module):
    """A two-layer network on the log energies of the bands of `wavelet_transform` (Gotman, 1982, in spirit).

    Of each band and channel it sees the energy of the last segment, and how far that lies above the mean of the window;
    of the channels the mean, the largest, and the standard deviation. The order of channels does not matter.

    Args:
        samples: L of a segment.
        hidden: width between.
        n_classes: number of classes.

    Shape:
        x (B, T, C, L) microvolts, counts (B,) int -> logits (B, n_classes).
    """

    def __init__(self, samples: int, hidden: int = 32, n_classes: int = 2) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {"samples": samples, "hidden": hidden, "n_classes": n_classes}
        self.sizes = coefficient_sizes(samples)
        width = 2 * 3 * len(self.sizes)
        self.norm = nn.BatchNorm1d(width)
        self.hidden = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, n_classes)

    def features(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """(B, 6 bands)."""
        bands = torch.split(wavelet_transform(x), self.sizes, dim=-1)
        energy = torch.stack([band.square().mean(-1) for band in bands], dim=-1).add(FLOOR).log()  # (B, T, C, bands)
        last = energy[:, -1]
        seen = torch.cat([last, last - energy.mean(1)], dim=-1)  # (B, C, 2 bands)
        channels = x.shape[2]
        real = torch.ones(len(x), channels, dtype=torch.bool, device=x.device)
        if counts is not None:
            real = torch.arange(channels, device=x.device) < counts[:, None]
        weight = real[..., None] / real.sum(1)[:, None, None]
        mean = (seen * weight).sum(1)
        spread = ((seen - mean[:, None]).square() * weight).sum(1).sqrt()
        largest = seen.masked_fill(~real[..., None], -torch.inf).amax(1)
        return torch.cat([mean, largest, spread], dim=-1)

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """Classify."""
        features = self.norm(self.features(x, counts))
        logits: Tensor = self.head(torch.relu(self.hidden(features)))
        return logits
