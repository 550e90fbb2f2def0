"""Layouts and conversions: what they promise, and that nothing is guessed."""

from __future__ import annotations

import itertools

import pytest
import torch

from domains.common.errors import ConfigError
from domains.pose.layouts import (
    _CONVERSIONS,
    COCO_17,
    H36M_17,
    HUMANEVA_15,
    LAYOUTS,
    MPI_INF_3DHP_17,
    Layout,
    check_metres,
    convert,
    find_layout,
    mirror,
    sources,
)

PAIRS = list(itertools.permutations(LAYOUTS, 2))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
class TestEveryLayout:
    def test_sides_pair_by_name(self, layout):
        for left, right in zip(layout.left, layout.right, strict=True):
            assert layout.joints[left].replace("left", "right") == layout.joints[right]
        sided = [joint for joint in layout.joints if joint.startswith(("left_", "right_"))]
        assert len(sided) == len(layout.left) + len(layout.right)

    def test_size_is_in_the_name(self, layout):
        assert layout.name.endswith(f"-{len(layout.joints)}")

    def test_edges_connect_all_joints(self, layout):
        reached, before = {layout.edges[0][0]}, 0
        while len(reached) > before:
            before = len(reached)
            reached |= {b for edge in layout.edges for a, b in (edge, edge[::-1]) if a in reached}
        assert layout.name == "coco-17" or reached == set(range(len(layout.joints)))

    def test_edges_mirror_into_edges(self, layout):
        order = layout.mirrored()
        edges = {frozenset(edge) for edge in layout.edges}
        assert {frozenset(order[joint] for joint in edge) for edge in edges} == edges

    def test_mirror_twice_is_nothing(self, layout):
        points = torch.randn(4, len(layout.joints), 3)
        assert torch.equal(mirror(mirror(points, layout), layout), points)


def test_the_published_orders():
    assert H36M_17.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
    assert (H36M_17.left, H36M_17.right) == ((4, 5, 6, 11, 12, 13), (1, 2, 3, 14, 15, 16))
    assert HUMANEVA_15.parents == (-1, 0, 1, 2, 3, 1, 5, 6, 0, 8, 9, 0, 11, 12, 1)
    assert (HUMANEVA_15.left, HUMANEVA_15.right) == ((2, 3, 4, 8, 9, 10), (5, 6, 7, 11, 12, 13))
    assert (H36M_17.root, HUMANEVA_15.root, MPI_INF_3DHP_17.root) == (0, 0, 14)


def test_coco_to_human36m():
    points = torch.randn(5, 17, 2)
    found = convert(points, "coco-17", "h36m-17")
    hips, shoulders = points[:, 11:13].mean(1), points[:, 5:7].mean(1)
    torch.testing.assert_close(found[:, 0], hips)
    torch.testing.assert_close(found[:, 8], shoulders)
    torch.testing.assert_close(found[:, 7], (hips + shoulders) / 2)
    torch.testing.assert_close(found[:, 10], points[:, 1:5].mean(1))
    order = [12, 14, 16, 11, 13, 15, 0, 5, 7, 9, 6, 8, 10]
    assert torch.equal(found[:, [1, 2, 3, 4, 5, 6, 9, 11, 12, 13, 14, 15, 16]], points[:, order])


@pytest.mark.parametrize(("source", "target"), list(_CONVERSIONS))
def test_conversions_commute_with_mirrors_and_shifts(source, target):
    points = torch.randn(3, len(find_layout(source).joints), 3)
    found = convert(points, source, target)
    assert found.shape == (3, len(find_layout(target).joints), 3)
    flipped = convert(mirror(points, find_layout(source)), source, target)
    torch.testing.assert_close(flipped, mirror(found, find_layout(target)))
    torch.testing.assert_close(convert(points + 2.0, source, target), found + 2.0)
    named = dict(zip(find_layout(target).joints, sources(source, target), strict=True))
    for side in ("left", "right"):
        for joint, parts in named.items():
            if joint.startswith(side):
                assert [find_layout(source).joints[part].split("_")[0] for part in parts] == [side]


def test_3dhp_and_human36m_are_the_same_joints_in_another_order():
    points = torch.randn(2, 17, 3)
    there = convert(points, "h36m-17", "mpi-inf-3dhp-17")
    assert not torch.equal(there, points)
    assert torch.equal(convert(there, "mpi-inf-3dhp-17", "h36m-17"), points)


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair not in _CONVERSIONS])
def test_undefined_conversions_are_refused_in_one_line(source, target):
    with pytest.raises(ConfigError, match=f"no conversion from {source} to {target}.*coco-17 to h36m-17") as caught:
        convert(torch.zeros(1, len(find_layout(source).joints), 2), source, target)
    assert "\n" not in str(caught.value)


def test_a_layout_to_itself_is_nothing():
    points = torch.randn(1, 17, 2)
    assert convert(points, "coco-17", "coco-17") is points


def test_missing_joints_stay_missing():
    points = torch.zeros(1, 17, 2)
    points[0, 11] = torch.nan
    found = convert(points, "coco-17", "h36m-17").isnan().any(-1)[0]
    assert [H36M_17.joints[i] for i in found.nonzero().flatten()] == ["hip", "left_hip", "spine"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_layout("h36m"), "layout 'h36m' is unknown; the layouts are h36m-17"),
        (lambda: convert(torch.zeros(1, 15, 2), "coco-17", "h36m-17"), "are not of layout coco-17"),
        (lambda: convert(torch.zeros(1, 17, 4), "coco-17", "h36m-17"), "2 or 3 coordinates"),
        (lambda: COCO_17.root, "no root joint; convert it"),
        (lambda: H36M_17.index("nose"), "no joint 'nose'"),
        (lambda: Layout("x", ("a", "a"), (), ()), "each its own"),
        (lambda: Layout("x", ("a", "b"), (0,), ()), "left and right"),
        (lambda: Layout("x", ("a", "b"), (0,), (0,)), "left and right"),
        (lambda: Layout("x", ("a", "b"), (0,), (2,)), "joints 0 to 1"),
        (lambda: Layout("x", ("a", "b"), (), (), (0, 1)), "one root"),
        (lambda: Layout("x", ("a", "b"), (), (), (), ((0, 5),)), "edges"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_millimetres_are_refused_where_metres_belong():
    torch.manual_seed(0)
    pose = torch.randn(3, 17, 3) / 5
    check_metres(pose, H36M_17, "walk.npz")
    check_metres(torch.empty(0, 17, 3), H36M_17, "empty.npz")
    with pytest.raises(ConfigError, match=r"walk\.npz: .* millimetres; divide by 1000"):
        check_metres(pose * 1000, H36M_17, "walk.npz")
