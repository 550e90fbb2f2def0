"""Global-local cross-attention: H. Zhu, W. Ke, D. Li, J. Liu, L. Tian, Y. Shan (CVPR 2022), arXiv 2205.02151.

*Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object Re-Identification*, section 3.2. There
is no official code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from domains.common.attention.pairwise import JointProjectionAttention, project_context, project_queries


def select_tokens(row: Tensor, ratio: float, *, prefix: int = 1) -> Tensor:
    """Tokens that ask in global-local cross-attention: CLS, then the patches with the largest weights in `row`.

    R = max(1, floor(ratio * N)) of N patches; of equal weights the patch of lower index comes first.

    Args:
        row: accumulated attention of CLS to every token, see `rollout_row`.
        ratio: part of the patches, in (0, 1].
        prefix: tokens before the patches: CLS, and registers; they are not ranked.

    Shape:
        row (B, prefix + N) -> (B, 1 + R) int64, descending by weight behind CLS.

    Raises:
        ValueError: the ratio is not in (0, 1], or there is no patch.
    """
    patches = row.shape[-1] - prefix
    if not 0.0 < ratio <= 1.0 or patches < 1:
        raise ValueError(f"ratio={ratio} of {patches} patches; it lies in (0, 1], and there is a patch at least")
    # a hundredth of a step of float64 error must not take a patch away: 0.3 * 10 is 3
    count = max(1, int(ratio * patches + 1e-9))
    ranked = row[:, prefix:]
    if torch.compiler.is_compiling():  # ONNX has this sort alone, and orders equal weights by index, too
        order = ranked.sort(dim=-1, descending=True).indices[:, :count]
    else:
        order = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return torch.cat([torch.zeros_like(order[:, :1]), order + prefix], dim=-1)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x by index.

    Shape:
        x (B, L, D), index (B, K) int64 -> (B, K, D).
    """
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class GlobalLocalCrossAttention(JointProjectionAttention):
    """The selected tokens attend to all tokens: `softmax(Q_l K_gᵀ / sqrt(c)) V_g` (eq. 3).

    Only keys and values are made of all L tokens; everything else costs what the K selected ones cost.

    Args:
        dim: width D of tokens.
        heads: number of heads; must divide `dim`.
        bias: whether the joint map of queries, keys and values has a bias.
        dropout: probability with which an attention weight is dropped in training.

    Shape:
        x (B, L, D), selected (B, K) int64 -> (B, K, D).

    Example:
        >>> import torch
        >>> block = GlobalLocalCrossAttention(dim=16, heads=2)
        >>> block(torch.randn(4, 9, 16), torch.tensor([[0, 3, 8]]).expand(4, -1)).shape
        torch.Size([4, 3, 16])
    """

    def forward(self, x: Tensor, selected: Tensor) -> Tensor:
        """Attend from the selected rows of x to all of them."""
        k, v = project_context(self, x)
        return self.attend(project_queries(self, gather_tokens(x, selected)), k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with what was projected before; q (B, heads, K, c), k and v (B, heads, L, c)."""
        out, _ = self.mix(q, k, v, scale=self.scale, dropout=self.rate)
        return self.finish(out)
