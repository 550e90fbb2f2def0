"""What turns the features of a branch into logits."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from domains.finegrained.processes import GlobalBatchNorm1d


class BranchOutput(NamedTuple):
    """What a branch found.

    Attributes:
        features: class token behind the branch's norm (B, D).
        logits: (B, C).
    """

    features: Tensor
    logits: Tensor


class LinearHead(nn.Linear):
    """Logits by a linear map, whose weights start small (truncated normal, 0.02).

    Args:
        dim: width D of features.
        n_classes: C.

    Shape:
        (B, D) -> (B, C).
    """

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__(dim, n_classes)
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class BNNeck(nn.Module):
    """Batch norm between features and classifier: H. Luo et al. (2019), arXiv 1903.07071, section 3.6.

    The triplet loss and the distances of retrieval use the features before it, the cross entropy what comes behind. The
    norm's shift stays at zero, and the classifier has no bias.

    Args:
        dim: width D of features.
        n_classes: identities C of the training set.

    Shape:
        (B, D) -> logits (B, C).
    """

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.bottleneck = GlobalBatchNorm1d(dim)
        self.bottleneck.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, n_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        """Apply."""
        logits: Tensor = self.classifier(self.bottleneck(features))
        return logits
