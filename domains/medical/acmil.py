"""ACMIL: Y. Zhang, H. Li, Y. Sun, S. Zheng, C. Zhu, L. Yang (ECCV 2024), arXiv 2311.07125; and the baselines beside it.

*Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification*. Whose maths where the paper
leaves it open: dazhangyu123/ACMIL @ e53d19c (MIT), architecture/transformer.py. README.md of this folder maps the
equations to methods, and lists the differences.

A slide is a bag: features (n, D_feat) of its patches. Bags of different lengths lie one behind the other; whatever bags
share a batch, each gets what it gets alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from domains.common.attention import (
    BranchLinear,
    GatedAttentionPooling,
    HeadProjection,
    InstanceMasking,
    LearnedQueryPooling,
    MaskReading,
    diversity_loss,
)
from domains.common.attention.instance_blocks import BLOCK, reduce_and_score
from domains.common.attention.multi_branch import split_bags
from domains.common.errors import ConfigError

Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class BagOutput:
    """What a network makes of packed bags.

    Args:
        logits: of the bags.
        features: of the bags, before the classifier.
        branch_logits: of each branch's own classifier; None where there are no branches.
        branch_features: of each branch.
        weights: for each bag the attention (groups, K, n_b) of its branches; groups are heads.
        attention_logits: for each bag the logits (groups, K, n_b) of its branches, masked ones -1e9; None where nothing
            is scored.

    Shape:
        logits (B, C), features (B, D), branch_logits (B, K, C), branch_features (B, K, D).
    """

    logits: Tensor
    features: Tensor
    weights: list[Tensor]
    branch_logits: Tensor | None = None
    branch_features: Tensor | None = None
    attention_logits: list[Tensor] | None = None

    def attention(self) -> list[Tensor]:
        """Attention (n_b,) of each bag: the mean over its branches and heads (eq. 6)."""
        return [weights.mean((0, 1)) for weights in self.weights]

    def branch_attention(self) -> list[Tensor]:
        """Attention (K, n_b) of each bag's branches: the mean over heads."""
        return [weights.mean(0) for weights in self.weights]

    def diversity(self) -> Tensor:
        """Loss L_div (B,) of the bags."""
        return torch.stack([diversity_loss(weights) for weights in self.weights])


class BagNetwork(nn.Module):
    """What all networks for bags share: reduce the width of instances, pool, classify.

    Args:
        feature_dim: width D_feat of an instance.
        n_classes: number of classes C.
        dim: width D behind the reduction.
        standardize: subtract a mean from each feature and divide it by a deviation, both measured by `measure`.

    Shape:
        x (N, D_feat) packed -> logits (B, C).
    """

    feature_mean: Tensor
    feature_deviation: Tensor

    def __init__(self, feature_dim: int, n_classes: int, dim: int, *, standardize: bool = False) -> None:
        super().__init__()
        self.feature_dim, self.n_classes, self.dim, self.standardize = feature_dim, n_classes, dim, standardize
        self.arguments: dict[str, Any] = {"feature_dim": feature_dim, "n_classes": n_classes, "dim": dim}
        self.arguments |= {"standardize": standardize}
        if standardize:
            self.register_buffer("feature_mean", torch.zeros(feature_dim))
            self.register_buffer("feature_deviation", torch.zeros(feature_dim))
        self.reduce = nn.Linear(feature_dim, dim, bias=False)
        self.classifier = nn.Linear(dim, n_classes)

    def forward(self, x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Logits (B, C) of packed bags; without `sizes` all instances are one bag."""
        return self.pool(x, sizes).logits

    @property
    def measured(self) -> bool:
        """Whether mean and deviation of the features are known."""
        return self.standardize and bool((self.feature_deviation > 0).any())

    def measure(self, mean: Tensor, deviation: Tensor) -> None:
        """Take mean and deviation (D_feat,) of the features of the training bags."""
        self.feature_mean.copy_(mean)
        self.feature_deviation.copy_(deviation)

    def prepared(self, x: Tensor) -> Tensor:
        """Features (N, D_feat) of any floating type as the reduction takes them."""
        x = x.to(self.reduce.weight.dtype)
        if not self.standardize:
            return x
        known = self.feature_deviation > 0  # a feature that never changes is 0
        return (x - self.feature_mean) * torch.where(known, 1.0 / self.feature_deviation.clamp(min=1e-12), 0.0)

    def instances(self, x: Tensor) -> Tensor:
        """Reduce the width: (N, D_feat) -> (N, D)."""
        h: Tensor = self.reduce(self.prepared(x))
        return h.relu_()

    def pool(
        self,
        x: Tensor,
        sizes: Sequence[int] | None = None,
        *,
        draws: Sequence[Tensor] | None = None,
    ) -> BagOutput:
        """Pool and classify packed bags.

        Args:
            x: features of the instances of all bags.
            sizes: instances of each bag; None: one bag.
            draws: for each bag the uniform draws of its masking, in the place of fresh ones.

        Shape:
            x (N, D_feat) -> see `BagOutput`.
        """
        raise NotImplementedError(f"{type(self).__name__}.pool")


class ACMIL(BagNetwork):
    """ACMIL: K branches of attention, each with a classifier, and one classifier of their mean.

    `attention="gated"` is ACMIL_GA: gated attention whose branches share their gate. `attention="multi_head"` is
    ACMIL_MHA: learned queries with eight heads. In training, of the `masked_top` instances that a branch (and head)
    attends to most, a share is masked (STKIM).

    Args:
        feature_dim: width D_feat of an instance.
        n_classes: number of classes C.
        dim: width D behind the reduction.
        attention: gated (GA) or multi_head (MHA).
        branches: number of branches K; 1 and no masking is gated ABMIL.
        masked_top: candidates for masking in each branch; 0: none is masked.
        mask_probability: share of the candidates that is masked.
        mask_reading: exact: that share (official code); bernoulli: each with that probability (paper).
        scale_masking: in bags of n instances no more than n / 4 candidates, for bags of few instances.
        gate_dim: width of the gate (GA).
        heads: heads of a branch (MHA).
        dropout: behind the output map of a branch (MHA).
        standardize: see `BagNetwork`.

    Shape:
        x (N, D_feat) packed -> logits (B, C).
    """

    def __init__(
        self,
        feature_dim: int,
        n_classes: int,
        dim: int = 128,
        *,
        attention: Literal["gated", "multi_head"] = "gated",
        branches: int = 5,
        masked_top: int = 10,
        mask_probability: float = 0.6,
        mask_reading: MaskReading = "exact",
        scale_masking: bool = False,
        gate_dim: int = 128,
        heads: int = 8,
        dropout: float = 0.1,
        standardize: bool = False,
    ) -> None:
        super().__init__(feature_dim, n_classes, dim, standardize=standardize)
        if branches < 1:
            raise ConfigError(f"branches={branches}; give at least one")
        self.arguments |= {"attention": attention, "branches": branches, "masked_top": masked_top}
        self.arguments |= {
            "mask_probability": mask_probability,
            "mask_reading": mask_reading,
            "scale_masking": scale_masking,
        }
        self.arguments |= {"gate_dim": gate_dim, "heads": heads, "dropout": dropout}
        masking = InstanceMasking(masked_top, mask_probability, mask_reading, scale_masking)
        self.masking = masking if masked_top and mask_probability else None
        self.dropout = dropout
        self.attention: GatedAttentionPooling | LearnedQueryPooling
        self.bag: HeadProjection | None = None
        if attention == "gated":
            self.attention = GatedAttentionPooling(dim, gate_dim, branches)
        else:
            self.attention = LearnedQueryPooling(dim, branches, heads)
            self.bag = HeadProjection(dim, 1, heads)
        # one branch is the bag itself: a classifier of its own would never be trained
        self.branch_classifier = BranchLinear(branches, dim, n_classes) if branches > 1 else None

    def pool(
        self,
        x: Tensor,
        sizes: Sequence[int] | None = None,
        *,
        draws: Sequence[Tensor] | None = None,
    ) -> BagOutput:
        """Pool and classify packed bags; see `BagNetwork.pool`. Masking is of training only."""
        h, scores = self._score(x)
        masking = self.masking if self.training else None
        pooled = self.attention(h, sizes, scores=scores, masking=masking, draws=draws)
        if isinstance(self.attention, LearnedQueryPooling) and self.bag is not None:
            dropout = self.dropout if self.training else 0.0
            branches = self.attention.project(pooled.branches, dropout)  # (B, K, D)
            # attention of the bag is the mean over branches, and so is what it sums (eq. 6)
            features = self.bag(pooled.branches.mean(1, keepdim=True), dropout).squeeze(1)
        else:
            branches = pooled.branches
            features = branches.mean(1)  # eq. 6: the mean attention pools what the mean of branches is
        return BagOutput(
            logits=self.classifier(features),
            features=features,
            branch_logits=None if self.branch_classifier is None else self.branch_classifier(branches),
            branch_features=branches,
            weights=pooled.weights,
            attention_logits=pooled.logits,
        )

    def _score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Instances and their scores; those of a large bag on a CPU in blocks."""
        scorer = self.attention.scorer()
        whole = torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        if whole or x.requires_grad or len(x) <= BLOCK:
            h = self.instances(x)
            return h, scorer(h)
        return reduce_and_score(x, self.reduce.weight, self.prepared, scorer)


class ABMIL(ACMIL):
    """Gated ABMIL (Ilse et al., 2018, arXiv 1802.04712): one branch of gated attention, nothing masked.

    Args:
        feature_dim: width D_feat of an instance.
        n_classes: number of classes C.
        dim: width D behind the reduction.
        gate_dim: width of the gate.
        standardize: see `BagNetwork`.

    Shape:
        x (N, D_feat) packed -> logits (B, C).
    """

    def __init__(
        self, feature_dim: int, n_classes: int, dim: int = 128, *, gate_dim: int = 128, standardize: bool = False
    ) -> None:
        options: dict[str, Any] = {"gate_dim": gate_dim, "standardize": standardize}
        super().__init__(feature_dim, n_classes, dim, branches=1, masked_top=0, **options)
        self.arguments = {"feature_dim": feature_dim, "n_classes": n_classes, "dim": dim, **options}


class PoolingMIL(BagNetwork):
    """Mean or maximum over the reduced instances, as the baseline without attention.

    Args:
        feature_dim: width D_feat of an instance.
        n_classes: number of classes C.
        dim: width D behind the reduction.
        pooling: mean or max.
        standardize: see `BagNetwork`.

    Shape:
        x (N, D_feat) packed -> logits (B, C).
    """

    def __init__(
        self, feature_dim: int, n_classes: int, dim: int = 128, *, pooling: Pooling = "mean", standardize: bool = False
    ) -> None:
        super().__init__(feature_dim, n_classes, dim, standardize=standardize)
        if pooling not in ("mean", "max"):
            raise ConfigError(f"pooling={pooling!r}; choose mean or max")
        self.arguments |= {"pooling": pooling}
        self.pooling = pooling

    def pool(
        self,
        x: Tensor,
        sizes: Sequence[int] | None = None,
        *,
        draws: Sequence[Tensor] | None = None,
    ) -> BagOutput:
        """Pool and classify packed bags; all instances weigh the same."""
        del draws
        bags = split_bags(self.instances(x), sizes)
        pooled = [bag.mean(0) if self.pooling == "mean" else bag.amax(0) for bag in bags]
        features = torch.stack(pooled)
        even = [bag.new_ones(1, 1, bag.shape[0]) / bag.shape[0] for bag in bags]
        return BagOutput(logits=self.classifier(features), features=features, weights=even)
