"""Gated attention pooling of bags: M. Ilse, J. M. Tomczak, M. Welling (ICML 2018).

*Attention-based Deep Multiple Instance Learning*, arXiv 1802.04712, section 2.4, eq. 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention.instance_blocks import Scorer
from domains.common.attention.multi_branch import InstanceMasking, Pooled, pool_bags
from domains.common.attention.recorder import Recordable


class GatedAttentionPooling(Recordable):
    """Each branch k pools a bag by `sum_n a_kn h_n` with `a_k = softmax_n(w_kᵀ (tanh(V h_n) ⊙ sigmoid(U h_n)) + b_k)`.

    The branches share V and U and differ in w_k (the official ACMIL); K = 1 is the attention of Ilse et al. It is
    computed with one sigmoid over both halves of the gate: `tanh(z) = 2 sigmoid(2 z) - 1`.

    Args:
        dim: width D of an instance.
        hidden: width of the gate.
        branches: number of branches K.

    Shape:
        h (N, D) packed -> branches (B, K, D); groups is 1.
    """

    doubled: Tensor

    def __init__(self, dim: int, hidden: int = 128, branches: int = 1) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, 2 * hidden)  # V, then U
        self.score = nn.Linear(hidden, branches)
        self.register_buffer("doubled", torch.ones(2 * hidden).index_fill_(0, torch.arange(hidden), 2.0), False)

    def scorer(self) -> Scorer:
        """Make what scores instances for each branch.

        Shape:
            h (N, D) -> (K, N).
        """
        gate_weight, gate_bias = self.gate.weight * self.doubled[:, None], self.gate.bias * self.doubled
        # w (2 s - 1) g = 2 w (s g) - w g, with s and g the halves of the gate
        weight = torch.cat([2.0 * self.score.weight, -self.score.weight], 1)
        return Scorer(_score, (gate_weight, gate_bias, weight, self.score.bias[:, None]))

    def forward(
        self,
        h: Tensor,
        sizes: Sequence[int] | None = None,
        *,
        scores: Tensor | None = None,
        masking: InstanceMasking | None = None,
        draws: Sequence[Tensor] | None = None,
    ) -> Pooled:
        """Pool each bag.

        Args:
            h: instances of all bags.
            sizes: instances of each bag; None: one bag.
            scores: of the instances, where they are known already.
            masking: which instances a branch does without; None: it has all.
            draws: for each bag the uniform draws (K, k) of the masking, in the place of fresh ones.
        """
        found = self.scorer()(h) if scores is None else scores
        return pool_bags(self, found, h, sizes, (len(found),), masking, draws)


def _score(h: Tensor, gate_weight: Tensor, gate_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    gate = F.linear(h, gate_weight, gate_bias).sigmoid_()
    hidden = gate.shape[1] // 2
    if torch.is_grad_enabled():
        products, halves = gate[:, :hidden] * gate[:, hidden:], gate[:, hidden:]
        return torch.addmm(torch.addmm(bias, weight[:, :hidden], products.T), weight[:, hidden:], halves.T)
    gate[:, :hidden].mul_(gate[:, hidden:])
    return torch.addmm(bias, weight, gate.T)
