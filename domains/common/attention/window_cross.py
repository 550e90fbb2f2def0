"""Window cross-attention of POSTER++: J. Mao, R. Xu, X. Yin, Y. Chang, B. Nie, A. Huang (2023), arXiv 2301.12149.

*POSTER++: A simpler and stronger facial expression recognition network*, section 3.2; the feature extractor of ARBEx
(A. T. Wasi, K. Serbetar, R. Islam, T. H. Rafi, D.-K. Chae, 2023, arXiv 2305.01486, section 3.2). Official code:
Talented-Q/POSTER_V2 @ 18de559, takihasan/ARBEx @ b85c37b.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from domains.common.attention.multihead import merge_heads, split_heads
from domains.common.attention.recorder import Recordable
from domains.common.attention.window import relative_position_index
from domains.common.derived import Derived


class WindowCrossAttention(Recordable):
    """Tokens of one stream, cut into windows of M x M places, asked by tokens of another stream.

    `concat_h(softmax(q_h k_hᵀ / sqrt(c) + B_h) v_h) W_o + b_o` with `[k, v] = x W + b` of each window of x, B a learned
    bias of relative position as in Swin (arXiv 2103.14030, eq. 4), and q the other stream's tokens as they are. The
    same M M queries ask every window.

    Args:
        dim: width D of tokens of both streams.
        heads: number of heads; divides `dim`.
        window: places M along one side.

    Shape:
        windows (B, n, M M, D), query (B, M M, D) -> (B, n, M M, D); a recorder gets (B n, heads, M M, M M).

    Raises:
        ValueError: `heads` does not divide `dim`.

    Example:
        >>> import torch
        >>> block = WindowCrossAttention(dim=16, heads=2, window=4)
        >>> block(torch.randn(1, 6, 16, 16), torch.randn(1, 16, 16)).shape
        torch.Size([1, 6, 16, 16])
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._bias = Derived()

    def forward(self, windows: Tensor, query: Tensor) -> Tensor:
        """Attend."""
        count = windows.shape[1]
        key, value = self.key_value(windows.flatten(0, 1)).chunk(2, dim=-1)
        asked = query[:, None].expand(-1, count, -1, -1).flatten(0, 1)
        q, k, v = (split_heads(x, self.heads) for x in (asked, key, value))  # (B n, heads, M M, c)
        out, _ = self.mix(q, k, v, bias=self.bias()[None])  # the fused kernel takes four axes only
        attended: Tensor = self.out(merge_heads(out))
        return attended.view_as(windows)

    def bias(self) -> Tensor:
        """B of every pair of query and key (heads, M M, M M)."""
        if torch.is_grad_enabled():
            return self._gathered()[0]
        return self._bias((self.relative_position_bias_table,), self._gathered)[0]

    def _gathered(self) -> tuple[Tensor]:
        table = self.relative_position_bias_table
        index = relative_position_index(self.window, table.device)
        return (table.t()[:, index.flatten()].reshape(-1, *index.shape),)


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut a map into windows, row by row.

    Shape:
        x (B, H, W, D), H and W multiples of M -> (B, H W / M^2, M M, D).
    """
    batch, height, width, dim = x.shape
    down, across = height // window, width // window
    cut = x.reshape(batch, down, window, across, window, dim).transpose(2, 3)
    return cut.reshape(batch, down * across, window * window, dim)


def from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Undo `to_windows`.

    Shape:
        windows (B, H W / M^2, M M, D) -> (B, H, W, D).
    """
    batch, _, places, dim = windows.shape
    window = round(places**0.5)
    cut = windows.reshape(batch, height // window, width // window, window, window, dim).transpose(2, 3)
    return cut.reshape(batch, height, width, dim)
