"""Group Pose's training loss: matching of instances to persons, then losses of classes, keypoints and similarity.

H. Liu et al. (ICCV 2023), arXiv 2308.07313, section 3, after DETR (N. Carion et al., 2020, arXiv 2005.12872, section
3.1). Official code: Michel-liu/GroupPose @ 127fe0e (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.errors import HeptadError, MissingExtraError
from domains.pose.grouppose import PERSON, GroupPoseOutput, Predictions

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss: T.-Y. Lin et al. (2017), arXiv 1708.02002, eq. 5
LEAST = 1e-6  # similarity and number of visible keypoints are no less
TINY_AREA = 1e-9
WEIGHTS = {"loss_ce": 2.0, "loss_keypoints": 10.0, "loss_oks": 4.0}


class NonFinitePredictionError(HeptadError, ValueError):
    """The network predicts something that is no number.

    Args:
        image: number of the image in its batch.
        what: which predictions.
    """

    def __init__(self, image: int, what: str) -> None:
        self.image = image
        super().__init__(
            f"image {image} of the batch: {what} of the network are not finite; lower the learning rate, or look at the"
            " image"
        )


@dataclass(frozen=True)
class Persons:
    """What is annotated in one image.

    Attributes:
        keypoints: x and y in 0..1 of the image.
        visible: whether a keypoint is labelled.
        area: of each person, as a share of the image.
        labels: classes; persons where absent.

    Shape:
        keypoints (M, K, 2), visible (M, K), area (M,), labels (M,) int; M may be 0.
    """

    keypoints: Tensor
    visible: Tensor
    area: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        """Return M."""
        return len(self.keypoints)

    def classes(self) -> Tensor:
        """Labels (M,)."""
        if self.labels is not None:
            return self.labels
        return torch.full((len(self),), PERSON, device=self.keypoints.device)


@dataclass(frozen=True)
class Costs:
    """Costs of assigning instances to the persons of the whole batch.

    Attributes:
        classes: focal cost.
        keypoints: sum of absolute differences.
        oks: 1 - object keypoint similarity.

    Shape:
        each (B, N, M), M counts the persons of all images.
    """

    classes: Tensor
    keypoints: Tensor
    oks: Tensor

    def total(self) -> Tensor:
        """Weighted sum (B, N, M)."""
        return (
            WEIGHTS["loss_ce"] * self.classes
            + WEIGHTS["loss_keypoints"] * self.keypoints
            + WEIGHTS["loss_oks"] * self.oks
        )


def keypoint_similarity(predicted: Tensor, persons: Persons, sigmas: Tensor) -> Tensor:
    """Object keypoint similarity: the mean over visible keypoints of `exp(-d² / (2 area (2 sigma)²))`.

    Distances are in shares of width and height, so that they weigh unlike in images that are not square, as in the
    official code. Similarities are at least 1e-6.

    Args:
        predicted: keypoints, one pose for each person or any number of them on axes before.
        persons: annotations.
        sigmas: of the K keypoints.

    Shape:
        predicted (..., M, K, 2), sigmas (K,) -> (..., M).
    """
    squared = (predicted - persons.keypoints).square().sum(-1)  # (..., M, K)
    spread = 2 * persons.area.clamp(min=TINY_AREA)[:, None] * (2 * sigmas).square()
    visible = persons.visible.to(squared.dtype)
    return ((-squared / spread).exp() * visible).sum(-1).div(visible.sum(-1) + LEAST).clamp(min=LEAST)


def matching_costs(predictions: Predictions, persons: Persons, sigmas: Tensor) -> Costs:
    """Costs of each instance of the batch for each of the persons.

    Shape:
        persons: M of the whole batch; sigmas (K,) -> see `Costs`.
    """
    probability = predictions.logits.sigmoid()[..., persons.classes()]  # (B, N, M)
    positive = ALPHA * (1 - probability) ** GAMMA * -(probability + 1e-8).log()
    negative = (1 - ALPHA) * probability**GAMMA * -(1 - probability + 1e-8).log()
    points = predictions.keypoints[:, :, None]  # (B, N, 1, K, 2)
    visible = persons.visible.to(points.dtype)
    difference = ((points - persons.keypoints).abs().sum(-1) * visible).sum(-1)
    return Costs(positive - negative, difference, 1 - keypoint_similarity(points, persons, sigmas))


def match(costs: Tensor, counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Assignment of least cost for each image (Hungarian method).

    Args:
        costs: total costs; of each image only those of its own persons count.
        counts: persons of each image.

    Shape:
        costs (B, N, M), the persons image after image -> for each image (instances, persons), int64 of min(N, M_b).

    Raises:
        MissingExtraError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MissingExtraError("scipy", "pose") from None
    found = []
    for image, part in enumerate(torch.split(costs.detach().cpu(), list(counts), -1)):
        pairs = linear_sum_assignment(part[image].numpy())
        found.append(tuple(torch.as_tensor(side, dtype=torch.int64, device=costs.device) for side in pairs))
    return found  # type: ignore[return-value]


class GroupPoseCriterion(nn.Module):
    """Losses of the final, the auxiliary and the two-stage predictions, each with a matching of its own.

    Args:
        sigmas: of the K keypoints.
        weights: of the three losses; default 2, 10 and 4.

    Shape:
        logits (B, N, classes), keypoints (B, N, K, 2).
    """

    sigmas: Tensor

    def __init__(self, sigmas: Sequence[float], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        self.register_buffer("sigmas", torch.tensor(list(sigmas), dtype=torch.float32), persistent=False)
        self.weights = dict(WEIGHTS if weights is None else weights)

    def forward(self, output: GroupPoseOutput, targets: Sequence[Persons]) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            output: of the network.
            targets: persons of each image; any number, also none.

        Returns:
            `loss_ce`, `loss_keypoints`, `loss_oks`, and the mean costs `set_class` and `set_keypoints`; the same of the
            auxiliary predictions with `_0`, `_1`, ... behind the name, of the two-stage predictions with `_interm`;
            `class_error`; and `total`, the weighted sum of the losses.

        Raises:
            ValueError: targets are not those of this batch or of other keypoints.
            NonFinitePredictionError: a prediction is no number.
        """
        found: dict[str, Tensor] = {}
        normaliser = self.normaliser(targets, output.final.logits.device)
        heads = [("", output.final), ("_interm", output.two_stage)]
        heads += [(f"_{layer}", head) for layer, head in enumerate(output.auxiliary)]
        for suffix, head in heads:
            losses, pairs = self.of_head(head, targets, normaliser)
            found |= {f"{name}{suffix}": value for name, value in losses.items()}
            if not suffix:
                found["class_error"] = class_error(head, targets, pairs)
        found["total"] = self.weighted(found)
        return found

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum of the losses times their weights, whatever head they are of."""
        parts = [
            weight * value
            for kind, weight in self.weights.items()
            for name, value in losses.items()
            if name == kind or name.startswith(f"{kind}_")
        ]
        return torch.stack(parts).sum()

    def pairs(self, head: Predictions, targets: Sequence[Persons]) -> tuple[Costs, list[tuple[Tensor, Tensor]]]:
        """Costs of a head's predictions, and the assignment."""
        self._check(head, targets)
        with torch.no_grad():
            costs = matching_costs(_float(head), _joined(targets), self.sigmas)
        return costs, match(costs.total(), [len(persons) for persons in targets])

    def of_head(
        self, head: Predictions, targets: Sequence[Persons], normaliser: Tensor
    ) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
        """Losses of one head, divided by `normaliser`, and its assignment."""
        head = _float(head)
        costs, pairs = self.pairs(head, targets)
        matched = list(_matched(head, targets, pairs))
        wanted = torch.zeros_like(head.logits)
        for image, ((instances, chosen), persons) in enumerate(zip(pairs, targets, strict=True)):
            wanted[image, instances, persons.classes()[chosen]] = 1.0
        similarity = [1 - keypoint_similarity(points, persons, self.sigmas) for points, persons in matched]
        difference = [
            ((points - persons.keypoints).abs().sum(-1) * persons.visible.to(points.dtype)).sum((-1,))
            for points, persons in matched
        ]
        nothing = head.keypoints.sum() * 0.0  # a batch without persons still has a gradient, of zero
        means = {"set_class": costs.classes, "set_keypoints": costs.keypoints}
        return {
            "loss_ce": focal_loss(head.logits, wanted) / normaliser,
            "loss_keypoints": (torch.cat(difference).sum() + nothing) / normaliser,
            "loss_oks": (torch.cat(similarity).sum() + nothing) / normaliser,
        } | {name: cost.mean() if cost.numel() else cost.sum() for name, cost in means.items()}, pairs

    def normaliser(self, targets: Sequence[Persons], device: torch.device) -> Tensor:
        """Persons of the batch, on average over the processes, at least 1; all processes must ask for it."""
        count = torch.tensor(float(sum(len(persons) for persons in targets)), device=device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return count.clamp(min=1.0)

    def _check(self, head: Predictions, targets: Sequence[Persons]) -> None:
        if len(targets) != len(head.logits):
            raise ValueError(f"{len(targets)} targets for a batch of {len(head.logits)} images")
        keypoints = head.keypoints.shape[2]
        for image, persons in enumerate(targets):
            if persons.keypoints.shape[1:] != (keypoints, 2) or len(self.sigmas) != keypoints:
                raise ValueError(
                    f"image {image} of the batch: keypoints {tuple(persons.keypoints.shape)} and {len(self.sigmas)}"
                    f" sigmas for a network of {keypoints} keypoints"
                )
        for what, values in (("class scores", head.logits), ("keypoints", head.keypoints)):
            finite = values.detach().isfinite().flatten(1).all(1)
            if not bool(finite.all()):
                raise NonFinitePredictionError(int((~finite).nonzero()[0]), what)


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sigmoid focal loss, summed (T.-Y. Lin et al., 2017, arXiv 1708.02002, eq. 5).

    Shape:
        logits and wanted (...) -> ().
    """
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missed = probability + wanted - 2 * probability * wanted  # 1 - p_t
    return ((ALPHA * wanted + (1 - ALPHA) * (1 - wanted)) * missed**GAMMA * entropy).sum()


def class_error(head: Predictions, targets: Sequence[Persons], pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Percentage of matched instances whose best class is not that of their person; 100 where nothing is matched."""
    right = [
        head.logits[image, instances].detach().argmax(-1) == persons.classes()[chosen]
        for image, ((instances, chosen), persons) in enumerate(zip(pairs, targets, strict=True))
    ]
    found = torch.cat(right).float()
    return 100.0 * (1.0 - found.mean()) if len(found) else found.new_tensor(100.0)


def _float(head: Predictions) -> Predictions:
    return Predictions(head.logits.float(), head.keypoints.float())


def _joined(targets: Sequence[Persons]) -> Persons:
    return Persons(
        torch.cat([persons.keypoints for persons in targets]),
        torch.cat([persons.visible for persons in targets]),
        torch.cat([persons.area for persons in targets]),
        torch.cat([persons.classes() for persons in targets]),
    )


def _matched(
    head: Predictions, targets: Sequence[Persons], pairs: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Persons]]:
    """Predicted keypoints of the matched instances of each image, and their persons in the same order."""
    for image, ((instances, chosen), persons) in enumerate(zip(pairs, targets, strict=True)):
        yield (
            head.keypoints[image, instances],
            Persons(persons.keypoints[chosen], persons.visible[chosen], persons.area[chosen]),
        )
