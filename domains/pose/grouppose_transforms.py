"""Flips, crops and sizes of images together with their annotations, as Group Pose is trained and evaluated on.

Official code: Michel-liu/GroupPose @ 127fe0e (Apache-2.0), datasets/transforms.py, after DETR. Everything runs on
tensors, on the device they are on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from domains.pose.grouppose import MEAN, STD
from domains.pose.grouppose_criterion import Persons
from domains.pose.resampling import resize

SIZES = tuple(range(480, 801, 32))  # of the shorter side in training
EVALUATED, LONGEST = 800, 1333


@dataclass(frozen=True)
class Picture:
    """An image and the persons in it.

    Attributes:
        image: channels RGB, before `normalised` whole numbers of 0..255.
        keypoints: x, y in pixels and flag (0: not labelled, 1: hidden, 2: visible).
        boxes: left, top, right, bottom in pixels.
        area: in square pixels.
        labels: classes.

    Shape:
        image (3, H, W) uint8, keypoints (M, K, 3), boxes (M, 4), area (M,), labels (M,) int.
    """

    image: Tensor
    keypoints: Tensor
    boxes: Tensor
    area: Tensor
    labels: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])


def flipped(picture: Picture, pairs: Sequence[tuple[int, int]]) -> Picture:
    """Mirror left and right: x becomes w - x - 1 for keypoints, w - x for boxes, and paired keypoints change places.

    Args:
        picture: what to mirror.
        pairs: keypoints of the left and of the right.
    """
    width = picture.size[1]
    order = list(range(picture.keypoints.shape[1]))
    for left, right in pairs:
        order[left], order[right] = right, left
    keypoints = picture.keypoints[:, order]
    keypoints = torch.cat([width - keypoints[..., :1] - 1, keypoints[..., 1:]], -1)
    left_edge, top, right_edge, bottom = picture.boxes.unbind(-1)
    boxes = torch.stack([width - right_edge, top, width - left_edge, bottom], -1)
    return replace(picture, image=picture.image.flip(-1), keypoints=keypoints, boxes=boxes)


def cropped(picture: Picture, top: int, left: int, height: int, width: int, *, drop_outside: bool = False) -> Picture:
    """Cut a region; persons whose box is empty in it are left out, and areas are those of the boxes in it.

    Args:
        picture: what to cut.
        top: first row.
        left: first column.
        height: rows.
        width: columns.
        drop_outside: keypoints outside count as not labelled. The official code moves them to the border and leaves
            them visible.
    """
    limit = picture.boxes.new_tensor([width, height])
    moved = picture.keypoints[..., :2] - limit.new_tensor([left, top])
    inside = torch.minimum(moved, limit).clamp(min=0)
    flags = picture.keypoints[..., 2:]
    if drop_outside:
        flags = flags * (inside == moved).all(-1, keepdim=True)
    boxes = picture.boxes - limit.new_tensor([left, top, left, top])
    corners = torch.minimum(boxes.reshape(-1, 2, 2), limit).clamp(min=0)
    kept = (corners[:, 1] > corners[:, 0]).all(-1)
    return Picture(
        picture.image[..., top : top + height, left : left + width],
        torch.cat([inside, flags], -1)[kept],
        corners.flatten(1)[kept],
        (corners[:, 1] - corners[:, 0]).prod(-1)[kept],
        picture.labels[kept],
    )


def resized_size(height: int, width: int, shorter: int, longest: int = LONGEST) -> tuple[int, int]:
    """Height and width that give the shorter side `shorter`, or less where the longer one would exceed `longest`."""
    low, high = min(height, width), max(height, width)
    if high / low * shorter > longest:
        shorter = max(1, round(longest * low / high))  # a strip keeps a line of pixels
    if low == shorter:
        return height, width
    other = int(shorter * high / low)
    return (other, shorter) if width < height else (shorter, other)


def resized(picture: Picture, shorter: int = EVALUATED, longest: int = LONGEST) -> Picture:
    """Scale as Pillow does; see `resized_size`."""
    height, width = picture.size
    new = resized_size(height, width, shorter, longest)
    scale = picture.boxes.new_tensor([new[1] / width, new[0] / height])
    keypoints = torch.cat([picture.keypoints[..., :2] * scale, picture.keypoints[..., 2:]], -1)
    return replace(
        picture,
        image=resize(picture.image, new),
        keypoints=keypoints,
        boxes=picture.boxes * scale.repeat(2),
        area=picture.area * scale.prod(),
    )


def normalised(image: Tensor) -> Tensor:
    """Divide by 255, subtract the mean and divide by the deviation of the images that backbones expect.

    Shape:
        image (3, H, W) uint8 -> (3, H, W) float32.
    """
    mean, deviation = (torch.tensor(values, device=image.device)[:, None, None] for values in (MEAN, STD))
    return (image.to(torch.float32) / 255.0 - mean) / deviation


def target(picture: Picture, *, area_of_box: bool = False) -> Persons:
    """Annotations in shares of width and height, as the criterion takes them.

    Args:
        picture: after all changes.
        area_of_box: areas are those of the boxes, for data without areas, such as CrowdPose.
    """
    height, width = picture.size
    boxes = relative_boxes(picture)
    area = boxes[:, 2] * boxes[:, 3] if area_of_box else picture.area / (height * width)
    scale = picture.boxes.new_tensor([width, height])
    visible = (picture.keypoints[..., 2] > 0).to(picture.keypoints.dtype)
    return Persons(picture.keypoints[..., :2] / scale, visible, area, picture.labels)


def relative_boxes(picture: Picture) -> Tensor:
    """Centre, width and height of the boxes (M, 4) in shares of the image."""
    height, width = picture.size
    low, high = picture.boxes.reshape(-1, 2, 2).unbind(1)
    return torch.cat([(low + high) / 2, high - low], -1) / low.new_tensor([width, height, width, height])
