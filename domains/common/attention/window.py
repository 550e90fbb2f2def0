"""Shifted-window attention: Z. Liu, Y. Lin, Y. Cao, H. Hu, Y. Wei et al. (ICCV 2021), arXiv 2103.14030.

*Swin Transformer: Hierarchical vision transformer using shifted windows*, sections 3.2 and 3.3. Padding, shift and mask
are those of the official code for detection: SwinTransformer/Swin-Transformer-Object-Detection @ c7b2011 (MIT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention.recorder import Recordable

APART = -100.0  # added to scores between regions that the shift brought side by side


class ShiftedWindowAttention(Recordable):
    """Multi-head attention inside windows of M x M places, with a learned bias of relative position (eq. 4).

    `softmax(q kᵀ / sqrt(d) + B) v`. The map is padded with zeros on the right and below to whole windows, rolled by the
    shift, and cut. The padding takes part in the attention, as in the official code, and a map of a single window is
    shifted, too.

    Args:
        dim: width D of tokens.
        heads: number of heads; divides `dim`.
        window: places M along one side.
        shift: places by which the windows are shifted.

    Shape:
        x (B, H, W, D) -> (B, H, W, D); a recorder gets the weights as (B, windows, heads, M M, M M).

    Raises:
        ValueError: `heads` does not divide `dim`.

    Example:
        >>> import torch
        >>> block = ShiftedWindowAttention(dim=16, heads=2, window=4, shift=2)
        >>> block(torch.randn(1, 7, 9, 16)).shape
        torch.Size([1, 7, 9, 16])
    """

    def __init__(self, dim: int, heads: int, window: int = 7, shift: int = 0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        self.heads, self.window, self.shift = heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        batch, height, width, dim = x.shape
        m = self.window
        x = F.pad(x, (0, 0, 0, -width % m, 0, -height % m))
        down, across = x.shape[1] // m, x.shape[2] // m
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = x.view(batch, down, m, across, m, dim).transpose(2, 3).reshape(batch, down * across, m * m, dim)
        q, k, v = self.qkv(windows).view(batch, down * across, m * m, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        index = relative_position_index(m, x.device)
        bias = self.relative_position_bias_table[index.flatten()].view(m * m, m * m, -1).permute(2, 0, 1)
        if self.shift:
            bias = bias + self._regions(down, across, x.device)[:, None]  # (windows, heads, M M, M M)
        out, _ = self.mix(q, k, v, bias=bias)
        out = self.proj(out.transpose(2, 3).reshape(batch, down, across, m, m, dim))
        out = out.transpose(2, 3).reshape(batch, down * m, across * m, dim)
        if self.shift:
            out = out.roll((self.shift, self.shift), (1, 2))
        attended: Tensor = out[:, :height, :width]
        return attended

    def _regions(self, down: int, across: int, device: torch.device) -> Tensor:
        """Bias that keeps places apart that were not neighbours before the shift (windows, M M, M M)."""
        bands = []
        for count in (down, across):
            place = torch.arange(count * self.window, device=device)
            last = (place >= (count - 1) * self.window).long()
            bands.append(last + (place >= count * self.window - self.shift).long())
        region = (3 * bands[0][:, None] + bands[1]).view(down, self.window, across, self.window)
        region = region.transpose(1, 2).reshape(down * across, -1)
        return (region[:, None] != region[:, :, None]) * APART


def relative_position_index(window: int, device: torch.device | None = None) -> Tensor:
    """Row of the table for each pair of places of a window.

    Shape:
        -> (M M, M M) int64.
    """
    place = torch.arange(window, device=device)
    distance = place[:, None] - place + window - 1  # of query and key along one side
    rows = distance[:, None, :, None] * (2 * window - 1) + distance[None, :, None, :]
    return rows.reshape(window * window, window * window)
