"""Multi-branch attention over bags, and what keeps its branches apart: Y. Zhang et al. (ECCV 2024).

*Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification*, arXiv 2311.07125, sections 3.2
(multiple branch attention) and 3.3 (stochastic top-K instance masking). Whose maths where the paper leaves it open:
dazhangyu123/ACMIL @ e53d19c.

Bags of different lengths lie one behind the other ("packed"): instances (N, D) of all bags, and how many each has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MaskReading = Literal["exact", "bernoulli"]
MASKED = -1e9  # the official logit of a masked instance: a bag of which all are masked is attended to evenly


class BranchLinear(nn.Module):
    """One linear map for each branch, with weights and start of `torch.nn.Linear`.

    Args:
        branches: number of maps K.
        inputs: width of the input.
        outputs: width of the result.

    Shape:
        x (..., K, inputs) -> (..., K, outputs).
    """

    def __init__(self, branches: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(branches, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(branches, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map each branch by its own weights."""
        return torch.einsum("...ki,koi->...ko", x, self.weight) + self.bias


@dataclass(frozen=True)
class InstanceMasking:
    """Stochastic top-K instance masking (STKIM, section 3.3, eq. 9): what each branch does without in a step.

    Of the `top` largest logits of each row, `exact` (the official code) removes int(k p), drawn without replacement,
    and `bernoulli` (the paper) each with probability p. k is `top`, or the number of instances where there are fewer.

    Args:
        top: the number K of candidates; 0 masks nothing.
        probability: share p of the candidates that is masked.
        reading: exact or bernoulli.
        scaled: in bags of n instances no more than n / 4 candidates, for bags of few instances.

    Raises:
        ValueError: a number is out of range.
    """

    top: int = 10
    probability: float = 0.6
    reading: MaskReading = "exact"
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.top < 0 or not 0.0 <= self.probability <= 1.0 or self.reading not in ("exact", "bernoulli"):
            raise ValueError(
                f"masking of top={self.top}, probability={self.probability}, reading={self.reading!r}: "
                "give top >= 0, a probability, and exact or bernoulli"
            )

    def candidates(self, length: int) -> int:
        """The number k of candidates in a bag of `length` instances."""
        return min(self.top, length // 4 if self.scaled else length)

    @torch.no_grad()
    def mask(self, logits: Tensor, draws: Tensor | None = None) -> Tensor:
        """Draw which instances are masked.

        Args:
            logits: of the attention; one row for each branch, and head.
            draws: uniform draws (rows, k) in the place of fresh ones.

        Shape:
            logits (rows, N) -> (rows, N) bool, True = masked.
        """
        mask = torch.zeros_like(logits, dtype=torch.bool)
        count = self.candidates(logits.shape[1])
        if not count or not self.probability:
            return mask
        places = logits.topk(count, dim=-1).indices  # (rows, k)
        draws = torch.rand_like(logits[:, :count]) if draws is None else draws.reshape(places.shape)
        if self.reading == "bernoulli":
            return mask.scatter_(1, places, draws < self.probability)
        chosen = draws.argsort(dim=-1)[:, : int(count * self.probability)]
        return mask.scatter_(1, places.gather(1, chosen), value=True)


def diversity_loss(weights: Tensor) -> Tensor:
    """Mean cosine similarity between the attention of each two branches (section 3.2, eq. 8).

    Args:
        weights: attention after the softmax.

    Shape:
        weights (groups, K, N) -> (); the mean over groups (heads) and the K (K - 1) / 2 pairs, 0 for one branch.
    """
    branches = weights.shape[1]
    if branches < 2:
        return weights.new_zeros(())
    unit = F.normalize(weights, dim=-1, eps=1e-8)
    gram = unit @ unit.transpose(-2, -1)  # (groups, K, K)
    pairs = gram.sum((-2, -1)) - gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (pairs / (branches * (branches - 1))).mean()


def split_bags(instances: Tensor, sizes: Sequence[int] | None) -> tuple[Tensor, ...]:
    """Cut packed instances into bags.

    Args:
        instances: of all bags, one behind the other.
        sizes: instances of each bag; None: all are one bag.

    Shape:
        instances (N, D) -> (n_b, D) for each bag, views.

    Raises:
        ValueError: a bag is empty, or the sizes do not add up to N.
    """
    if sizes is None:
        return (instances,)
    if not sizes or min(sizes) < 1 or sum(sizes) != len(instances):
        raise ValueError(
            f"bags of {list(sizes)[:8]} instances do not make up {len(instances)}; each needs at least one"
        )
    return torch.split(instances, list(sizes))
