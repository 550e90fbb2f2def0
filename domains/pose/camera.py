"""Cameras: from the world to the axes of a camera, to its picture, to the units that networks read; and back.

The maths is that of facebookresearch/VideoPose3D @ 1afb1ca (D. Pavllo et al., 2019, arXiv 1811.11742), whose
preparation the 3D lifting papers share. Quaternions are (w, x, y, z); lengths are metres, pictures pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from domains.common.errors import ConfigError

SCREEN = 1.5  # a body whose pixels all lie within 1.5 of the corner is no body in pixels


@dataclass(frozen=True)
class Camera:
    """Place and lens of a camera.

    Args:
        width: of the picture, pixels.
        height: of the picture, pixels.
        quaternion: orientation (w, x, y, z), from the axes of the camera to those of the world.
        translation: position in the world, metres.
        focal: focal lengths along x and y, pixels.
        centre: principal point, pixels.
        radial: coefficients of r², r⁴, r⁶.
        tangential: coefficients of tangential distortion along x and y, as Human3.6M has them.

    Raises:
        ConfigError: the picture has no size, or the quaternion no direction.
    """

    width: int
    height: int
    quaternion: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    focal: tuple[float, float] = (1.0, 1.0)
    centre: tuple[float, float] = (0.0, 0.0)
    radial: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tangential: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        if not any(self.quaternion):
            raise ConfigError(f"camera orientation {self.quaternion}: a quaternion (w, x, y, z) must not be zero")

    def from_world(self, points: Tensor) -> Tensor:
        """`world_to_camera` of this camera."""
        return world_to_camera(points, points.new_tensor(self.quaternion), points.new_tensor(self.translation))

    def to_world(self, points: Tensor) -> Tensor:
        """`camera_to_world` of this camera."""
        return camera_to_world(points, points.new_tensor(self.quaternion), points.new_tensor(self.translation))

    def project(self, points: Tensor) -> Tensor:
        """Pixels (..., 2) of points (..., 3) in the axes of the camera, metres."""
        return project(
            points,
            points.new_tensor(self.focal),
            points.new_tensor(self.centre),
            points.new_tensor(self.radial),
            points.new_tensor(self.tangential),
        )


def rotate(points: Tensor, quaternion: Tensor) -> Tensor:
    """Rotate points by a quaternion.

    Args:
        points: what to rotate.
        quaternion: (w, x, y, z), of any length but 0.

    Shape:
        points (..., 3), quaternion (4,) or broadcasting (..., 4) -> (..., 3).
    """
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    w, axis = quaternion[..., :1], quaternion[..., 1:].expand(points.shape)
    cross = torch.linalg.cross(axis, points)
    turned: Tensor = points + 2.0 * (w * cross + torch.linalg.cross(axis, cross))
    return turned


def inverse(quaternion: Tensor) -> Tensor:
    """The rotation back, of a quaternion (..., 4) of length 1."""
    return torch.cat([quaternion[..., :1], -quaternion[..., 1:]], dim=-1)


def world_to_camera(points: Tensor, quaternion: Tensor, translation: Tensor) -> Tensor:
    """`R(q⁻¹) (X - t)`: points in the axes of a camera.

    Args:
        points: in the world.
        quaternion: orientation of the camera (w, x, y, z).
        translation: its position, in the unit of the points.

    Shape:
        points (..., 3), quaternion (4,), translation (3,) -> (..., 3).
    """
    return rotate(points - translation, inverse(quaternion))


def camera_to_world(points: Tensor, quaternion: Tensor, translation: Tensor | float = 0.0) -> Tensor:
    """`R(q) X + t`: undo `world_to_camera`; without a translation only turn, as for poses relative to a root.

    Shape:
        points (..., 3), quaternion (4,), translation (3,) -> (..., 3).
    """
    return rotate(points, quaternion) + translation


def root_relative(points: Tensor, root: int = 0) -> Tensor:
    """Points (..., J, 3) relative to joint `root`, which becomes exactly 0."""
    return points - points[..., root : root + 1, :]


def project(
    points: Tensor,
    focal: Tensor,
    centre: Tensor,
    radial: Tensor | None = None,
    tangential: Tensor | None = None,
    *,
    clamp: float | None = None,
) -> Tensor:
    """Project points to the picture by a lens with distortion, as Human3.6M's cameras have it.

    With `(x, y) = (X, Y) / Z` and r² = x² + y², the distorted point is
    `(x, y) (1 + k · (r², r⁴, r⁶) + p · (x, y)) + p r²`.

    Args:
        points: in the axes of the camera, Z ahead.
        focal: focal lengths f.
        centre: principal point.
        radial: coefficients k; None: no radial distortion.
        tangential: coefficients p; None: none.
        clamp: bound of |x| and |y| before distortion (1 in VideoPose3D); None: none.

    Shape:
        points (..., 3), focal (2,), centre (2,), radial (3,), tangential (2,) -> (..., 2), in the unit of f and centre.
    """
    flat = points[..., :2] / points[..., 2:]
    flat = flat if clamp is None else flat.clamp(-clamp, clamp)
    squared = flat.square().sum(dim=-1, keepdim=True)  # r²
    factor = torch.ones_like(squared)
    if radial is not None:
        factor = factor + (torch.cat([squared, squared**2, squared**3], dim=-1) * radial).sum(dim=-1, keepdim=True)
    if tangential is None:
        return flat * factor * focal + centre
    factor = factor + (flat * tangential).sum(dim=-1, keepdim=True)
    return (flat * factor + tangential * squared) * focal + centre


def to_screen(points: Tensor, width: float, height: float) -> Tensor:
    """Pixels to screen units: x from -1 to 1, y in the same unit: `2 x / w - 1`, `2 y / w - h / w`.

    Both are divided by the width, so that the picture keeps its shape; networks are trained on this.

    Shape:
        points (..., 2) pixels -> (..., 2).

    Raises:
        ConfigError: the picture has no size.
    """
    check_size(width, height)
    return points / width * 2.0 - points.new_tensor([1.0, height / width])


def from_screen(points: Tensor, width: float, height: float) -> Tensor:
    """Undo `to_screen`.

    Shape:
        points (..., 2) -> (..., 2) pixels.

    Raises:
        ConfigError: the picture has no size.
    """
    check_size(width, height)
    return (points + points.new_tensor([1.0, height / width])) * width / 2.0


def check_size(width: float, height: float) -> None:
    """Refuse a picture without a size.

    Raises:
        ConfigError: width or height is not positive.
    """
    if not (width > 0 and height > 0):
        raise ConfigError(f"picture of {width} x {height}: give its width and height in pixels")


def check_pixels(points: Tensor, width: float, height: float, what: str) -> None:
    """Refuse keypoints that are not pixels of a picture of that size.

    Args:
        points: NaN where a joint was not found.
        width: of the picture.
        height: of the picture.
        what: what the points are, for the message.

    Shape:
        points (..., 2).

    Raises:
        ConfigError: they are screen units already, or width and height are exchanged.
    """
    check_size(width, height)
    found = points.reshape(-1, 2)
    found = found[found.isfinite().all(dim=1)]
    if not len(found):
        return
    largest = found.amax(dim=0)
    if float(found.abs().max()) <= SCREEN and max(width, height) > 2 * SCREEN:
        raise ConfigError(f"{what}: no coordinate is beyond {SCREEN}, so these are no pixels; give pixels, or no size")
    inside = bool(largest[0] <= width) and bool(largest[1] <= height)
    if not inside and bool(largest[0] <= height) and bool(largest[1] <= width) and width != height:
        raise ConfigError(
            f"{what}: points reach to {largest[0]:.0f}, {largest[1]:.0f} in a picture of {width:g} x {height:g}; width "
            "and height seem to be exchanged"
        )
