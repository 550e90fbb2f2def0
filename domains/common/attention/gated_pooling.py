"""Gated attention pooling of bags: M. Ilse, J. M. Tomczak, M. Welling (ICML 2018).

*Attention-based Deep Multiple Instance Learning*, arXiv 1802.04712, section 2.4, eq. 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from domains.common.attention.multi_branch import MASKED, InstanceMasking, split_bags
from domains.common.attention.recorder import Recordable


@dataclass(frozen=True)
class Pooled:
    """Bags pooled by several branches of attention.

    Args:
        branches: vector of each bag from each branch.
        weights: for each bag its attention (groups, K, n_b) after the softmax; groups are heads. None: not asked for.
        logits: for each bag its logits (groups, K, n_b), masked ones -1e9. None: not asked for.

    Shape:
        branches (B, K, D), or (B, K, heads, D) where heads are not merged yet.
    """

    branches: Tensor
    weights: list[Tensor] | None = None
    logits: list[Tensor] | None = None


class GatedAttentionPooling(Recordable):
    """Each branch k pools a bag by `sum_n a_kn h_n` with `a_k = softmax_n(w_kᵀ (tanh(V h_n) ⊙ sigmoid(U h_n)))`.

    The branches share V and U and differ in w_k (the official ACMIL); K = 1 is the attention of Ilse et al. As an
    attention its queries are the w_k, its keys the gated instances, its values the instances, and its scale 1.

    Args:
        dim: width D of an instance.
        hidden: width of the gate.
        branches: number of branches K.

    Shape:
        h (N, D) packed -> branches (B, K, D); groups is 1.
    """

    def __init__(self, dim: int, hidden: int = 128, branches: int = 1) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, 2 * hidden)  # V and U in one product
        self.score = nn.Linear(hidden, branches)

    def forward(
        self,
        h: Tensor,
        sizes: Sequence[int] | None = None,
        *,
        masking: InstanceMasking | None = None,
        draws: Sequence[Tensor] | None = None,
        need_weights: bool = False,
        need_logits: bool = False,
    ) -> Pooled:
        """Pool each bag.

        Args:
            h: instances of all bags.
            sizes: instances of each bag; None: one bag.
            masking: which instances a branch does without; None: it has all.
            draws: for each bag the uniform draws (K, k).
            need_weights: return the attention.
            need_logits: return the logits.
        """
        through_tanh, through_sigmoid = self.gate(h).chunk(2, dim=-1)
        gated = through_tanh.tanh() * through_sigmoid.sigmoid()  # (N, hidden)
        pooled, weights, logits = [], [], []
        for i, (keys, values) in enumerate(zip(split_bags(gated, sizes), split_bags(h, sizes), strict=True)):
            scores = self.score(keys).T if masking is not None or need_logits else None  # (K, n)
            # one number for all instances of a branch changes no weight; it is here to be a part of the graph
            bias = self.score.bias[None, :, None] if torch.is_grad_enabled() else None
            if masking is not None and scores is not None:
                mask = masking.mask(scores.detach(), None if draws is None else draws[i])
                masked = torch.zeros_like(scores.detach()).masked_fill_(mask, MASKED)[None]
                bias = masked if bias is None else masked + bias
                scores = scores.masked_fill(mask, MASKED)
            found, attention = self.mix(
                self.score.weight[None], keys[None], values[None], bias=bias, scale=1.0, need_weights=need_weights
            )
            pooled.append(found[0])
            if attention is not None:
                weights.append(attention)
            if scores is not None:
                logits.append(scores[None])
        return Pooled(torch.stack(pooled), weights if need_weights else None, logits if need_logits else None)
