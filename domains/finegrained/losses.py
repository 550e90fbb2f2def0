"""Losses of DCAL (H. Zhu et al., CVPR 2022, arXiv 2205.02151, section 3.4) and of re-identification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.common.errors import ConfigError
from domains.finegrained.dcal import DCALOutput
from domains.finegrained.heads import BranchOutput
from domains.finegrained.processes import gather_rows


class HardestPairs(NamedTuple):
    """Distances within a batch.

    Attributes:
        positive: to the farthest image of the same identity (B,).
        negative: to the nearest of another one (B,).
    """

    positive: Tensor
    negative: Tensor


def uncertainty_weighted(losses: Sequence[Tensor], w: Tensor) -> Tensor:
    """`(sum_i exp(-w_i) L_i + w_i) / 2`: A. Kendall et al. (CVPR 2018), arXiv 1705.07115, in FairMOT's form.

    Args:
        losses: scalars.
        w: as many learned logarithms of variances.
    """
    return 0.5 * ((-w).exp() @ torch.stack(list(losses)).to(w.dtype) + w.sum())


def hardest_pairs(features: Tensor, labels: Tensor) -> HardestPairs:
    """Euclidean distances to the hardest positive and negative: A. Hermans et al. (2017), arXiv 1703.07737, eq. 5.

    Args:
        features: not normalised.
        labels: identities.

    Shape:
        features (B, D), labels (B,) int64.

    Raises:
        ConfigError: all images of the batch show one identity.
    """
    same = labels[:, None] == labels
    if bool(same.all(1).any()):
        raise ConfigError(
            "a batch shows one identity only, so nothing is negative; enlarge data.batch_size, or set data.instances so"
            " that each batch shows 2 or more"
        )
    with torch.no_grad():  # in float32 at least: differences of long features cancel
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        distances = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
        farthest = distances.masked_fill(~same, -1.0).argmax(1)
        nearest = distances.masked_fill(same, torch.inf).argmin(1)
    return HardestPairs(_distance(features, features[farthest]), _distance(features, features[nearest]))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    squared = (a - b).float().square().sum(1) if a.dtype in (torch.float16, torch.bfloat16) else (a - b).square().sum(1)
    return squared.clamp(min=1e-12).sqrt()  # the root has no gradient at zero, where an identity has one image


def triplet_loss(features: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Batch-hard triplet loss: mean of `log(1 + exp(d_ap - d_an))`, or with a margin of `max(0, d_ap - d_an + margin)`.

    A. Hermans, L. Beyer, B. Leibe (2017), arXiv 1703.07737; arguments as `hardest_pairs`.
    """
    positive, negative = hardest_pairs(features, labels)
    if margin is None:
        return F.softplus(positive - negative).mean()
    return F.relu(positive - negative + margin).mean()


def branch_loss(
    branch: BranchOutput,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    triplet: float = 0.0,
    margin: float | None = None,
    share: Tensor | float | None = None,
) -> Tensor:
    """Cross entropy of a branch, and for re-identification the triplet loss of its features (scalar).

    The mean over processes of what they return is the loss over the images of all of them: each sums the cross entropy
    of its own, and all look for the hardest pairs among those of all.

    Args:
        branch: features and logits, of the images of this process.
        labels: (B,) int64; of a distracted image its own.
        smoothing: label smoothing of the cross entropy.
        triplet: weight of the triplet loss; 0: none.
        margin: of the triplet loss; None: soft.
        share: factor on the sum of cross entropies: number of processes / images of all of them; default 1 / B.
    """
    logits = branch.logits.to(torch.promote_types(branch.logits.dtype, torch.float32))
    summed = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    loss = summed * (1 / len(labels) if share is None else share)
    if triplet:
        loss = loss + triplet * triplet_loss(gather_rows(branch.features), gather_rows(labels), margin)
    return loss


def dcal_losses(
    output: DCALOutput,
    labels: Tensor,
    w: Tensor,
    *,
    smoothing: float = 0.0,
    triplet: float = 0.0,
    margin: float | None = None,
    share: Tensor | float | None = None,
) -> dict[str, Tensor]:
    """Losses of the branches that ran, `sa`, `glca` and `pwca`, and their weighted `total`.

    A single loss has nothing to be weighed against, and is the total.

    Args:
        output: of the network.
        labels: (B,) int64.
        w: the network's `uncertainty_w` (3,), in that order.
        smoothing: see `branch_loss`.
        triplet: likewise.
        margin: likewise.
        share: likewise.
    """
    branches = {"sa": output.self_attention, "glca": output.global_local, "pwca": output.pairwise}
    losses = {
        name: branch_loss(branch, labels, smoothing=smoothing, triplet=triplet, margin=margin, share=share)
        for name, branch in branches.items()
        if branch is not None
    }
    if len(losses) == 1:
        return losses | {"total": losses["sa"]}
    weights = w[[i for i, branch in enumerate(branches.values()) if branch is not None]]
    return losses | {"total": uncertainty_weighted(list(losses.values()), weights)}
