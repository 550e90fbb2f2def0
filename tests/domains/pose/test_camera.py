"""Cameras: to their axes, to the picture, to screen units, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.errors import ConfigError
from domains.pose.camera import (
    Camera,
    camera_to_world,
    check_pixels,
    from_screen,
    project,
    root_relative,
    rotate,
    to_screen,
    world_to_camera,
)

SEEDS = st.integers(0, 10**6)


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    points, quaternion, translation = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 17, 3), (4,), (3,))
    )
    return points, quaternion / quaternion.norm(), translation


def matrix(quaternion):
    w, x, y, z = quaternion.tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_world_and_camera_undo_each_other_and_are_the_matrix(seed):
    points, quaternion, translation = drawn(seed)
    there = world_to_camera(points, quaternion, translation)
    torch.testing.assert_close(there, (points - translation) @ matrix(quaternion))
    torch.testing.assert_close(camera_to_world(there, quaternion, translation), points)
    torch.testing.assert_close(camera_to_world(points, quaternion), points @ matrix(quaternion).T)
    torch.testing.assert_close(rotate(points, 3.0 * quaternion), rotate(points, quaternion))
    torch.testing.assert_close(rotate(points, -quaternion), rotate(points, quaternion))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, width=st.integers(1, 4000), height=st.integers(1, 4000))
def test_screen_units_and_back(seed, width, height):
    points = torch.rand(6, 17, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2000
    screen = to_screen(points, width, height)
    torch.testing.assert_close(from_screen(screen, width, height), points, atol=1e-8, rtol=1e-10)
    # one unit is as long in x as in y
    torch.testing.assert_close(screen.diff(dim=0) * width / 2, points.diff(dim=0), atol=1e-8, rtol=1e-8)


def test_the_corners_of_the_screen():
    corners = torch.tensor([[0.0, 0.0], [1000.0, 500.0], [500.0, 250.0]])
    assert to_screen(corners, 1000, 500).tolist() == [[-1.0, -0.5], [1.0, 0.5], [0.0, 0.0]]


def test_projection_without_distortion_is_a_pinhole():
    camera = Camera(1000, 1000, focal=(1100.0, 1200.0), centre=(500.0, 510.0))
    found = camera.project(torch.tensor([[0.5, -0.25, 2.0], [0.0, 0.0, 4.0]]))
    assert found.tolist() == [[500.0 + 1100 / 4, 510.0 - 150.0], [500.0, 510.0]]


def test_projection_with_distortion():
    k, p, x, y = (0.2, -0.3, 0.1), (0.01, -0.02), 0.25, -0.5
    r2 = x * x + y * y
    factor = 1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3 + p[0] * x + p[1] * y
    want = [1000 * (x * factor + p[0] * r2) + 500, 1100 * (y * factor + p[1] * r2) + 400]
    camera = Camera(1000, 1000, focal=(1000.0, 1100.0), centre=(500.0, 400.0), radial=k, tangential=p)
    point = torch.tensor([2 * x, 2 * y, 2.0], dtype=torch.float64)
    assert camera.project(point).tolist() == pytest.approx(want)
    far = torch.tensor([9.0, 0.0, 1.0])
    focal, centre = torch.ones(2), torch.zeros(2)
    assert project(far, focal, centre, clamp=1.0).tolist() == [1.0, 0.0]
    assert project(far, focal, centre).tolist() == [9.0, 0.0]


def test_a_camera_carries_its_place():
    points, quaternion, translation = drawn(3)
    camera = Camera(10, 10, tuple(quaternion.tolist()), tuple(translation.tolist()))
    torch.testing.assert_close(camera.from_world(points), world_to_camera(points, quaternion, translation))
    torch.testing.assert_close(camera.to_world(camera.from_world(points)), points)


def test_the_root_is_exactly_zero():
    points, _, _ = drawn(1)
    for root in (0, 14):
        found = root_relative(points, root)
        assert not found[:, root].any()
        torch.testing.assert_close(found.diff(dim=1), points.diff(dim=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_screen(torch.zeros(1, 2), 0, 100), "picture of 0 x 100"),
        (lambda: from_screen(torch.zeros(1, 2), 100, float("nan")), "picture of 100 x nan"),
        (lambda: Camera(0, 1), "picture of 0 x 1"),
        (lambda: Camera(1, 1, quaternion=(0.0, 0.0, 0.0, 0.0)), "must not be zero"),
        (lambda: check_pixels(torch.rand(4, 17, 2), 1000, 1000, "a.npz"), r"a\.npz: .* no pixels"),
        (lambda: check_pixels(torch.tensor([[1900.0, 1000.0]]), 1080, 1920, "a.npz"), "seem to be exchanged"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_pixels_pass():
    for points in ([[1900.0, 1000.0]], [[2000.0, 2000.0]], [[float("nan"), 3.0]], [[3.0, 0.5]]):
        check_pixels(torch.tensor(points), 1920, 1080, "a.npz")
