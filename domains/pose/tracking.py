"""Persons of successive frames put together by the similarity of their keypoints, so that they can be lifted to 3D.

The assignment is that of least cost over all pairs of a frame (H. W. Kuhn, 1955), the similarity the object keypoint
similarity of COCO (M. R. Ronchi and P. Perona, 2017, arXiv 1707.05388), as in the tracker of B. Xiao, H. Wu and Y. Wei
(2018, arXiv 1804.06208, section 3); in the place of optical flow a person is expected to go on as before, or to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from domains.common.errors import ConfigError

Array = NDArray[np.float64]
LEAST = 0.05  # similarity below which two detections are never one person
SMALLEST = 1.0  # square pixels; of a person whose keypoints all coincide


def pose_similarity(first: Array, second: Array, sigmas: Array) -> Array:
    """Object keypoint similarity of detections, the size of a person being that of the box around its keypoints.

    `mean over keypoints of exp(-d² / (2 area (2 sigma)²))`, area the mean of both boxes: it is symmetric, 1 for equal
    poses, and independent of the unit.

    Args:
        first: detections.
        second: others.
        sigmas: of the keypoints.

    Shape:
        first (N, K, 2), second (M, K, 2), sigmas (K,) -> (N, M).
    """
    area = (_area(first)[:, None] + _area(second)[None]) / 2
    squared = ((first[:, None] - second[None]) ** 2).sum(-1)  # (N, M, K)
    found: Array = np.exp(-squared / (2 * area[..., None] * (2 * sigmas) ** 2)).mean(-1)
    return found


def _area(points: Array) -> Array:
    sides = points.max(1) - points.min(1) if len(points) else np.zeros((0, 2))
    area: Array = np.maximum(sides.prod(-1), SMALLEST)
    return area


@dataclass
class _Track:
    number: int
    points: Array
    frame: int
    speed: Array  # mean of the keypoints, pixels a frame, x and y

    def move(self, points: Array, frame: int) -> None:
        """Take a new detection."""
        self.speed = (points - self.points).mean(0) / (frame - self.frame)
        self.points, self.frame = points, frame


class Tracker:
    """Follows persons from frame to frame of one video; it keeps the last pose of each and no more.

    Args:
        sigmas: of the keypoints.
        age: frames after which a person who is not seen is forgotten.
        least: similarity that two detections of one person have at least.

    Raises:
        ConfigError: an option is out of range.

    Example:
        >>> import numpy as np
        >>> person = np.array([[[10.0, 10.0], [20.0, 40.0]]])
        >>> tracker = Tracker([0.1, 0.1])
        >>> tracker.update(0, person, np.array([0.9])).tolist(), tracker.update(1, person + 1, np.array([0.8])).tolist()
        ([0], [0])
    """

    def __init__(self, sigmas: Sequence[float], age: int = 25, least: float = LEAST) -> None:
        if age < 1 or not 0 < least < 1:
            raise ConfigError(
                f"tracker: age {age}, least {least:g}: give at least 1 frame, and a share between 0 and 1"
            )
        self.sigmas, self.age, self.least = np.asarray(sigmas, np.float64), age, least
        self._tracks: list[_Track] = []
        self._next = 0

    def update(self, frame: int, points: Array, scores: Array) -> NDArray[np.int64]:
        """Number the persons of the next frame.

        Args:
            frame: its number, larger than those before.
            points: detections.
            scores: of the detections; of new persons the surest gets the lowest number.

        Shape:
            points (N, K, 2), scores (N,) -> (N,), each number once.

        Raises:
            ConfigError: frames do not come in their order.
        """
        if any(frame <= track.frame for track in self._tracks):
            raise ConfigError(f"tracker: frame {frame} comes behind a later one; give frames in their order")
        self._tracks = [track for track in self._tracks if frame - track.frame <= self.age]
        numbers = np.full(len(points), -1, np.int64)
        if self._tracks and len(points):
            last = np.stack([track.points for track in self._tracks])
            ahead = np.stack([track.speed * (frame - track.frame) for track in self._tracks])
            # a person goes on, or stops
            similarity = np.maximum(
                pose_similarity(last, points, self.sigmas),
                pose_similarity(last + ahead[:, None], points, self.sigmas),
            )
            # pairs that cannot be are worth nothing, so that they never displace one that can
            worth = np.where(similarity >= self.least, similarity, 0.0)
            for row, column in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
                if worth[row, column] > 0:
                    numbers[column] = self._tracks[row].number
                    self._tracks[row].move(points[column], frame)
        for column in np.argsort(-scores, kind="stable").tolist():
            if numbers[column] < 0:
                numbers[column] = self._next
                self._tracks.append(_Track(self._next, points[column], frame, np.zeros(2)))
                self._next += 1
        return numbers
