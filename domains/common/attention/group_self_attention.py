"""Group self-attention: H. Liu, Q. Chen, Z. Tan, J.-J. Liu, J. Wang et al. (ICCV 2023), arXiv 2308.07313.

*Group Pose: A simple baseline for end-to-end multi-person pose estimation*, section 3. Official code:
Michel-liu/GroupPose @ 127fe0e (Apache-2.0).
"""

from __future__ import annotations

from torch import Tensor, nn

from domains.common.attention.multihead import MultiHeadAttention


class GroupSelfAttention(nn.Module):
    """Attention within each instance, then across the instances among tokens of one type.

    N instances of T tokens each (of Group Pose: the instance itself and its K keypoints): instead of one attention over
    all N T tokens, one over the T tokens of each instance, `x = LN(x + A(x, x, x))`, and one over the N tokens of each
    type. The cost grows with N T (N + T) instead of (N T)^2.

    A recorder finds the weights of `within` as (B N, heads, T, T) and those of `across` as (B T, heads, N, N).

    Args:
        dim: width D of tokens.
        heads: number of heads; divides `dim`.
        dropout: of attention weights and of what is added to x.

    Shape:
        x (B, N, T, D) -> (B, N, T, D).

    Raises:
        ValueError: `heads` does not divide `dim`.

    Example:
        >>> import torch
        >>> block = GroupSelfAttention(dim=16, heads=2)
        >>> block(torch.randn(1, 5, 18, 16)).shape
        torch.Size([1, 5, 18, 16])
    """

    def __init__(self, dim: int, heads: int = 8, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.within = MultiHeadAttention(dim, heads, dropout=dropout)
        self.within_norm = nn.LayerNorm(dim)
        self.across = MultiHeadAttention(dim, heads, dropout=dropout)
        self.across_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: tokens.
            mask: True where an instance is real; padding is no key, and what comes out for it is to be ignored.

        Shape:
            mask (B, N) bool.
        """
        batch, instances, types, _ = x.shape
        attended = self.within(x.flatten(0, 1)).view_as(x)
        x = self.within_norm(x + self.dropout(attended))
        keys = None
        if mask is not None:  # (B T, 1, 1, N)
            keys = mask[:, None].expand(-1, types, -1).reshape(batch * types, 1, 1, instances)
        by_type = x.transpose(1, 2)
        attended = self.across(by_type.flatten(0, 1), mask=keys).view_as(by_type).transpose(1, 2)
        out: Tensor = self.across_norm(x + self.dropout(attended))
        return out
