"""Attention that corrects distributions: A. T. Wasi, K. Serbetar, R. Islam, T. H. Rafi, D.-K. Chae (2023).

*ARBEx: Attentive feature extraction with reliability balancing for robust facial expression learning*, arXiv
2305.01486, section 3.3. Official code: takihasan/ARBEx @ b85c37b.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from domains.common.attention.multihead import merge_heads, split_heads
from domains.common.attention.recorder import Recordable

Scope = Literal["auto", "batch", "sample"]


class ReliabilityAttention(Recordable):
    """Distribution over C classes from embeddings, by multi-head attention of width C K.

    Each embedding is mapped to a query, a key and a value of C K numbers, which go through a multi-head attention with
    projections of its own; softmax over the C K results, and the sum over the K of each class.

    Args:
        dim: width D of embeddings.
        n_classes: C.
        anchors: K, results of each class.
        heads: number of heads; divides C K.
        scope: what attends to what. `batch`: the samples of a batch to each other, as in the official code, so that a
            result depends on the others in the batch. `sample`: each sample to itself alone, which is what the official
            code does with one sample; queries and keys then have no effect. `auto`: batch in training, sample in
            evaluation.

    Shape:
        embedding (B, D) -> (B, C); a recorder gets (1, heads, B, B) or, of single samples, (B, heads, 1, 1).

    Raises:
        ValueError: `heads` does not divide C K, or there is no such scope.

    Example:
        >>> import torch
        >>> block = ReliabilityAttention(dim=16, n_classes=7, scope="batch")
        >>> block(torch.randn(4, 16)).sum(-1).round().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, dim: int, n_classes: int, anchors: int = 1, heads: int = 1, *, scope: Scope = "auto") -> None:
        super().__init__()
        width = n_classes * anchors
        if width % heads:
            raise ValueError(f"heads={heads} does not divide the width {width} of {n_classes} classes")
        if scope not in ("auto", "batch", "sample"):
            raise ValueError(f"scope={scope!r}; choose auto, batch or sample")
        self.n_classes, self.heads, self.scope = n_classes, heads, scope
        self.query, self.key, self.value = (nn.Linear(dim, width) for _ in range(3))
        self.inner_query, self.inner_key, self.inner_value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        for linear in (self.inner_query, self.inner_key, self.inner_value):
            bound = math.sqrt(6 / (4 * width))  # Xavier's of the three as one map
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """Attend."""
        together = self.scope == "batch" or (self.scope == "auto" and self.training)
        x = embedding[None] if together else embedding[:, None]  # (1, B, D) or (B, 1, D)
        q = split_heads(self.inner_query(self.query(x)), self.heads)
        k = split_heads(self.inner_key(self.key(x)), self.heads)
        v = split_heads(self.inner_value(self.value(x)), self.heads)
        mixed, _ = self.mix(q, k, v)
        attended = self.out(merge_heads(mixed)).view(embedding.shape[0], -1).softmax(-1)
        distribution: Tensor = attended.view(embedding.shape[0], self.n_classes, -1).sum(-1)
        return distribution
