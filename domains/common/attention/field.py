"""Self-attention over the fields of one sample: the interacting layer of AutoInt."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention.recorder import Recordable

Residual = Literal["activated", "projected", "identity", "none"]
Norm = Literal["none", "before", "after"]


class FieldAttention(Recordable):
    """Interacting layer (Song et al., 2019, arXiv 1810.11921, section 4.3).

    With x of M fields: `Q, K, V = act(x W + b)` each (eq. 5, 6), `O = concat_h(softmax(s Q_h K_hᵀ) V_h)` (eq. 6, 7),
    `y = norm(relu(O + R(x)))` (eq. 8). The official program activates Q, K, V and R by ReLU with biases, scales by
    1 / sqrt(c), and normalises behind the ReLU; the paper does none of these. All published variants are arguments.

    Args:
        in_dim: width of an incoming field vector.
        width: width D of an outgoing one; `heads` must divide it.
        heads: number of heads H.
        bias: biases on the projections.
        activated: ReLU on Q, K and V.
        scaled: scores are scaled by 1 / sqrt(D / H).
        residual: R(x) is `activated` relu(x W_r + b_r), `projected` x W_r (+ b_r), `identity` x itself where the
            widths agree and a projection where they differ, or `none`.
        norm: LayerNorm `before` or `after` the ReLU, or `none`.
        norm_eps: its epsilon, inside the square root.
        output_projection: a linear map behind the heads (as torch.nn.MultiheadAttention has).
        output_activated: the closing ReLU.
        dropout: probability with which an attention weight is dropped in training.

    Shape:
        x (B, M, in_dim) -> (B, M, D); recorded weights (B, H, M, M).

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        in_dim: int,
        width: int,
        heads: int,
        *,
        bias: bool = True,
        activated: bool = True,
        scaled: bool = True,
        residual: Residual = "activated",
        norm: Norm = "after",
        norm_eps: float = 1e-8,
        output_projection: bool = False,
        output_activated: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.in_dim, self.width, self.heads = in_dim, width, heads
        self.activated, self.output_activated, self.dropout = activated, output_activated, dropout
        self.scale = None if scaled else 1.0
        self.residual: Residual = "projected" if residual == "identity" and in_dim != width else residual
        # one product for queries, keys, values and residual: its input is read once
        chunks = 4 if self.residual in ("activated", "projected") else 3
        self.project = nn.Linear(in_dim, chunks * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias) if output_projection else None
        self.norm_position: Norm = norm
        self.norm = None if norm == "none" else nn.LayerNorm(width, eps=norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform kernels, each of the joined maps for itself, and zero biases (the official start)."""
        for kernel in torch.split(self.project.weight, self.width):
            nn.init.xavier_uniform_(kernel)
        if self.project.bias is not None:
            nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Let the fields of each sample attend to each other.

        Inside, tensors are feature-major, (B, D, M): every product then runs over a long contiguous last axis, and the
        heads are slices that need no transposition. A result handed to the next layer stays so in memory.

        Args:
            x: field vectors.
            mask: True = attend; broadcasts to (B, H, M, M). It hides padding fields.
        """
        heads, fields = self.heads, x.shape[1]
        t = x.transpose(1, 2)  # (B, in_dim, M)
        chunks = len(self.project.weight) // self.width
        bias = None if self.project.bias is None else self._by_head(self.project.bias)
        joined = map_channels(self._by_head(self.project.weight), bias, t)
        whole = self.activated and self.residual != "projected"
        if whole:
            joined = joined.relu()
        # unbound before they are transposed: the gradient is then one straight copy
        q, k, v, *rest = joined.view(-1, heads, chunks, self.width // heads, fields).unbind(2)  # (B, H, c, M)
        if self.activated and not whole:
            q, k, v = q.relu(), k.relu(), v.relu()  # eq. 5
        dropout = self.dropout if self.training else 0.0
        mixed, _ = self.mix(q.mT, k.mT, v.mT, mask=mask, scale=self.scale, dropout=dropout)  # eq. 6
        out = mixed.mT  # (B, H, c, M)
        if rest and self.out is None:
            activate = self.residual == "activated" and not whole
            out = out + (rest[0].relu() if activate else rest[0])  # eq. 8
        out = out.reshape(-1, self.width, fields)  # (B, D, M)  eq. 7
        if self.out is not None:
            out = map_channels(self.out.weight, self.out.bias, out)
            if rest:
                out = out + rest[0].reshape(out.shape)
        if self.residual == "identity":
            out = out + t
        if self.norm is not None and self.norm_position == "before":
            out = self.norm(out.mT).mT
        if self.output_activated:
            out = F.relu(out)
        if self.norm is not None and self.norm_position == "after":
            out = self.norm(out.mT).mT
        return out.transpose(1, 2)

    def _by_head(self, rows: Tensor) -> Tensor:
        """Order rows (map, head, channel) as (head, map, channel)."""
        return rows.view(-1, self.heads, self.width // self.heads, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)


def map_channels(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Linear map of the channels of a feature-major tensor.

    Shape:
        weight (out, in), bias (out,), x (B, in, M) -> (B, out, M).
    """
    expanded = weight.expand(x.shape[0], -1, -1)
    return torch.bmm(expanded, x) if bias is None else torch.baddbmm(bias[:, None], expanded, x)
