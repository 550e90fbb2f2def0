"""Cameras in the preparation of sequences: from the world to a camera's axes, and to its picture.

The maths is that of D. Pavllo et al., 2019 (arXiv 1811.11742), which the preparations of the field share, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Pair = tuple[float, float]
Triple = tuple[float, float, float]
Four = tuple[float, float, float, float]


@dataclass(frozen=True)
class Camera:
    """Place and lens of a camera.

    Args:
        name: in the data set.
        width: of the picture, pixels.
        height: of the picture, pixels.
        quaternion: orientation (w, x, y, z), from the axes of the camera to those of the world; None: unknown.
        translation: position in the world, metres; None: unknown.
        focal: focal lengths along x and y, pixels; None: unknown.
        centre: principal point, pixels; None: unknown.
        radial: coefficients of r², r⁴, r⁶.
        tangential: coefficients of tangential distortion along x and y, as Human3.6M has them.
    """

    name: str
    width: int
    height: int
    quaternion: Four | None = None
    translation: Triple | None = None
    focal: Pair | None = None
    centre: Pair | None = None
    radial: Triple = (0.0, 0.0, 0.0)
    tangential: Pair = (0.0, 0.0)

    def describe(self) -> dict[str, Any]:
        """Entry of `cameras` in `dataset.json`."""
        return {
            "width": self.width,
            "height": self.height,
            "quaternion": list(self.quaternion) if self.quaternion else None,
            "translation": list(self.translation) if self.translation else None,
            "focal": list(self.focal) if self.focal else None,
            "centre": list(self.centre) if self.centre else None,
            "radial": list(self.radial),
            "tangential": list(self.tangential),
        }

    @classmethod
    def read(cls, name: str, entry: dict[str, Any]) -> Camera:
        """The camera that `describe` describes."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        return cls(name=name, **values)

    def from_world(self, points: F64) -> F64:
        """`R(q⁻¹) (X - t)`: points in the axes of this camera.

        Shape:
            points (..., 3) metres in the world -> (..., 3) metres.
        """
        if self.quaternion is None or self.translation is None:
            raise ValueError(f"camera {self.name}: its place is not known")
        return np.asarray((points - np.array(self.translation)) @ rotation(self.quaternion))

    def project(self, points: F64) -> F64:
        """Pixels of points, by a lens with distortion.

        With `(x, y) = (X, Y) / Z` and r² = x² + y², the distorted point is
        `(x, y) (1 + k · (r², r⁴, r⁶) + p · (x, y)) + p r²`.

        Shape:
            points (..., 3) in the axes of the camera, metres -> (..., 2) pixels; NaN behind the camera.
        """
        if self.focal is None or self.centre is None:
            raise ValueError(f"camera {self.name}: its lens is not known")
        depth = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
        flat = points[..., :2] / depth
        squared = np.sum(flat**2, axis=-1, keepdims=True)
        factor = 1.0 + np.concatenate([squared, squared**2, squared**3], axis=-1) @ np.array(self.radial)[:, None]
        factor = factor + flat @ np.array(self.tangential)[:, None]
        return np.asarray((flat * factor + np.array(self.tangential) * squared) * self.focal + self.centre)


def rotation(quaternion: Four) -> F64:
    """The matrix R (3, 3) of a quaternion (w, x, y, z): `R X` turns X from the camera's axes to the world's."""
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of(matrix: F64) -> Four:
    """The quaternion (w, x, y, z), w >= 0, of a rotation (3, 3).

    It is the eigenvector of a symmetric matrix (Bar-Itzhack, 2000), so rounded matrices give the nearest rotation.
    """
    m = matrix
    k = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    vector = np.linalg.eigh(k)[1][:, -1]
    # rounded, so that another version of LAPACK gives the same file
    w, x, y, z = (round(float(value), 9) + 0.0 for value in vector * (1.0 if vector[0] >= 0 else -1.0))
    return w, x, y, z
