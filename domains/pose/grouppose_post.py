"""From Group Pose's output to persons in pixels and to the results file of COCO.

Official code: Michel-liu/GroupPose @ 127fe0e (Apache-2.0). There is no threshold and no non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from domains.pose.grouppose import PERSON, GroupPose, Predictions

SELECT = 50
# the network has no visibility head; the official program writes sigmoid(1) in its place, which says nothing
VISIBILITY = 1.0 / (1.0 + 2.718281828459045**-1)


@dataclass(frozen=True)
class Detections:
    """Persons found in one image, best first.

    Attributes:
        scores: in 0..1, not calibrated.
        labels: classes; 1 is a person.
        keypoints: x and y in pixels of the image.

    Shape:
        scores (n,), labels (n,) int, keypoints (n, K, 2).
    """

    scores: Tensor
    labels: Tensor
    keypoints: Tensor

    def packed(self) -> Tensor:
        """Keypoints as COCO writes them, x, y and the constant visibility in turns (n, 3 K)."""
        constant = torch.full_like(self.keypoints[..., :1], VISIBILITY)
        return torch.cat([self.keypoints, constant], -1).flatten(1)

    def persons(self) -> Detections:
        """Those of the class of persons."""
        kept = self.labels == PERSON
        return Detections(self.scores[kept], self.labels[kept], self.keypoints[kept])


@torch.no_grad()
def detections(predictions: Predictions, sizes: Sequence[tuple[int, int]], select: int = SELECT) -> list[Detections]:
    """Take the best pairs of instance and class of each image.

    Args:
        predictions: of the last layer.
        sizes: (height, width) of the original images.
        select: how many pairs; all, where there are fewer.

    Raises:
        ValueError: the number of sizes is not that of images, or `select` is below 1.
    """
    batch, queries, classes = predictions.logits.shape
    if len(sizes) != batch or select < 1:
        raise ValueError(f"{len(sizes)} sizes for {batch} images, select={select}; give one size for each, at least 1")
    flat = predictions.logits.float().sigmoid().flatten(1)
    scores, index = flat.topk(min(select, queries * classes), dim=1)
    found = []
    for image, (height, width) in enumerate(sizes):
        points = predictions.keypoints[image].float()
        chosen = points[index[image] // classes] * points.new_tensor([width, height])
        found.append(Detections(scores[image], index[image] % classes, chosen))
    return found


class PersonDetector(nn.Module):
    """Group Pose with tensors alone as its outputs, for programs that run without this project.

    Args:
        net: the network.

    Shape:
        images (B, 3, H, W) as the network takes them, padding (B, H, W) bool -> scores (B, N) of persons in 0..1, and
        keypoints (B, N, K, 2) as shares of width and height of the image without its padding.
    """

    def __init__(self, net: GroupPose) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Find persons."""
        found = self.net(images, padding).final
        return found.logits[..., PERSON].sigmoid(), found.keypoints


def coco_results(image_id: int, found: Detections) -> list[dict[str, Any]]:
    """Entries of a COCO results file; those of class 0 are left in, and evaluators pass them over."""
    return [
        {"image_id": image_id, "category_id": int(label), "keypoints": points, "score": float(score)}
        for label, points, score in zip(
            found.labels.tolist(), found.packed().tolist(), found.scores.tolist(), strict=True
        )
    ]


def packed_predictions(predictions: Predictions, *, visibility: bool = True) -> Tensor:
    """Keypoints as the official program returns them: 2 K coordinates, then K times the constant visibility.

    Shape:
        keypoints (B, N, K, 2) -> (B, N, 3 K), or (B, N, 2 K).
    """
    flat = predictions.keypoints.flatten(2)
    if not visibility:
        return flat
    return torch.cat([flat, torch.full_like(predictions.keypoints[..., 0], VISIBILITY)], -1)
