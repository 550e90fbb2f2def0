"""Multi-branch attention over bags, and what keeps its branches apart: Y. Zhang et al. (ECCV 2024).

*Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification*, arXiv 2311.07125
(multi-branch attention, stochastic top-K instance masking). Whose maths where the paper leaves it open:
dazhangyu123/ACMIL @ e53d19c.

Bags of different lengths lie one behind the other ("packed"): instances (N, D) of all bags, and how many each has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from domains.common.attention.recorder import Recordable
from domains.common.errors import ConfigError

MaskReading = Literal["exact", "bernoulli"]
MASKED = -1e9  # the official logit of a masked instance: a bag of which all are masked is attended to evenly


@dataclass(frozen=True)
class Pooled:
    """Bags pooled by several branches of attention.

    Args:
        branches: what each branch makes of each bag.
        weights: for each bag its attention (groups, K, n_b) after the softmax; groups are heads.
        logits: for each bag its logits (groups, K, n_b); masked ones are -1e9.

    Shape:
        branches (B, K, D), or (B, K, H, D) where heads are not merged yet.
    """

    branches: Tensor
    weights: list[Tensor]
    logits: list[Tensor]


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
    """Stochastic top-K instance masking (STKIM, eq. 9): what each branch does without in a step.

    Of the `top` largest logits of each row, `exact` (the official code) removes int(k p), drawn without replacement,
    and `bernoulli` (the paper) each with probability p. k is `top`, or the number of instances where there are fewer.

    Args:
        top: the number K of candidates; 0 masks nothing.
        probability: share p of the candidates that is masked.
        reading: exact or bernoulli.
        scaled: in bags of n instances no more than n / 4 candidates, for bags of few instances.

    Raises:
        ConfigError: a number is out of range.
    """

    top: int = 10
    probability: float = 0.6
    reading: MaskReading = "exact"
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.top < 0 or not 0.0 <= self.probability <= 1.0 or self.reading not in ("exact", "bernoulli"):
            raise ConfigError(
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
    """Mean cosine similarity between the attention of each two branches (the loss L_div).

    Args:
        weights: attention after the softmax.

    Shape:
        weights (groups, K, N) -> (); the mean over groups (heads) and the K (K - 1) / 2 pairs, 0 for one branch.
    """
    branches = weights.shape[1]
    if branches < 2:
        return weights.new_zeros(())
    # The loss is a symmetric function of the product: its gradient is twice that through one side, and cheaper so.
    gram = weights @ weights.detach().transpose(-2, -1)  # (groups, K, K)
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt().clamp(min=1e-8)
    cosines = gram / (norms[..., :, None] * norms[..., None, :])
    pairs = cosines.sum((-2, -1)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    one_sided = (pairs / (branches * (branches - 1))).mean()
    return 2.0 * one_sided - one_sided.detach()


def pool_bags(
    block: Recordable,
    scores: Tensor,
    h: Tensor,
    sizes: Sequence[int] | None,
    rows: tuple[int, ...],
    masking: InstanceMasking | None,
    draws: Sequence[Tensor] | None,
) -> Pooled:
    """Pool packed bags by given scores, each bag by its own.

    Args:
        block: whose attention it is, for the recorder.
        scores: of the instances of all bags.
        h: the instances.
        sizes: instances of each bag; None: one bag.
        rows: (K,) or (K, H): what the rows of the scores are.
        masking: which instances a row does without; None: it has all.
        draws: for each bag the uniform draws of the masking.

    Shape:
        scores (R, N), h (N, D) -> branches (B, *rows, D); weights and logits (H or 1, K, n_b).
    """
    pooled: list[Tensor] = []
    weights: list[Tensor] = []
    logits: list[Tensor] = []
    bags = split_bags(h, sizes)
    # without sizes nothing may ask for the number of instances as an int: exported programs leave it free
    parts = (scores,) if sizes is None else torch.split(scores, list(sizes), 1)
    for i, (mine, instances) in enumerate(zip(parts, bags, strict=True)):
        if masking is not None:
            mine = mine.masked_fill(masking.mask(mine.detach(), None if draws is None else draws[i]), MASKED)
        out, attention = block.weigh(mine, instances)
        pooled.append(out.view(*rows, -1))
        for given, kept in ((attention, weights), (mine, logits)):
            kept.append(given.view(rows[0], -1, given.shape[1]).transpose(0, 1))
    return Pooled(torch.stack(pooled), weights, logits)


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
    return (instances,) if len(sizes) == 1 else torch.split(instances, list(sizes))
