"""Errors of 3D poses: their invariances, their degenerate cases, their tables."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.errors import ConfigError
from domains.pose import metrics3d as metrics
from domains.pose.camera import rotate

SEEDS = st.integers(0, 10**6)
JOINTS = st.integers(3, 17)


def drawn(seed, joints=17, frames=5):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(frames, joints, 3, generator=generator, dtype=torch.float64) * 300
    return target + torch.randn(target.shape, generator=generator, dtype=torch.float64) * 60, target


def similarity(points, seed, scale):
    generator = torch.Generator().manual_seed(seed + 1)
    quaternion, shift = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    return rotate(points, quaternion) * scale + shift[:3] * 500


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, joints=JOINTS, scale=st.floats(0.01, 100.0))
def test_p_mpjpe_ignores_similarity_transforms(seed, joints, scale):
    prediction, target = drawn(seed, joints)
    want = metrics.p_mpjpe(prediction, target)
    torch.testing.assert_close(metrics.p_mpjpe(similarity(prediction, seed, scale), target), want, atol=1e-7, rtol=1e-7)
    assert (metrics.p_mpjpe(similarity(target, seed, scale), target) < 1e-8).all()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, joints=JOINTS)
def test_the_alignment_is_the_best_similarity(seed, joints):
    prediction, target = drawn(seed, joints)
    aligned = metrics.procrustes(prediction, target)
    best = (aligned - target).square().sum((1, 2))
    for i in range(5):
        generator = torch.Generator().manual_seed(seed + i)
        turn, shift = torch.randn(2, 3, generator=generator, dtype=torch.float64) * 1e-2
        near = rotate(aligned, torch.cat([turn.new_ones(1), turn])) * (1.0 + shift[0]) + shift
        assert (best <= (near - target).square().sum((1, 2)) + 1e-9).all()
    torch.testing.assert_close(metrics.procrustes(aligned, target), aligned)


def test_mirrored_poses_are_not_turned_into_the_target():
    _, target = drawn(0)
    mirrored = target * torch.tensor([-1.0, 1.0, 1.0])
    assert (metrics.p_mpjpe(mirrored, target) > 50).all()
    flat = target * torch.tensor([1.0, 1.0, 0.0])  # in a plane a mirror is a turn
    assert (metrics.p_mpjpe(flat * torch.tensor([-1.0, 1.0, 1.0]), flat) < 1e-8).all()


def test_poses_without_extent():
    prediction, target = drawn(0)
    spot = prediction[:, :1].expand_as(prediction) / 3.0  # whose mean is off by rounding
    middle = target.mean(1, keepdim=True)
    torch.testing.assert_close(metrics.procrustes(spot, target), middle.expand_as(target))
    assert (metrics.p_mpjpe(prediction, target[:, :1].expand_as(target)) < 1e-9).all()
    assert (metrics.p_mpjpe(spot, spot) < 1e-9).all()
    zeros = torch.zeros_like(target)
    torch.testing.assert_close(metrics.n_mpjpe(zeros, target), metrics.mpjpe(zeros, target))
    assert metrics.p_mpjpe(target[:, :1], prediction[:, :1]).tolist() == pytest.approx([0.0] * 5, abs=1e-9)


def test_p_mpjpe_of_single_precision_is_computed_in_double():
    _, target = drawn(0)
    found = metrics.p_mpjpe((target * 2).float(), target.float())
    assert found.dtype == torch.float64 and (found < 1e-4).all()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, scale=st.floats(0.01, 100.0))
def test_n_mpjpe_ignores_scale_and_is_the_best_of_all(seed, scale):
    prediction, target = drawn(seed)
    want = metrics.n_mpjpe(prediction, target)
    torch.testing.assert_close(metrics.n_mpjpe(scale * prediction, target), want)
    assert (metrics.n_mpjpe(scale * target, target) < 1e-9).all()
    best = (target * prediction).sum((1, 2)) / prediction.square().sum((1, 2))
    squares = [((best * f)[:, None, None] * prediction - target).square().sum((1, 2)) for f in (1.0, 0.99, 1.01)]
    assert (squares[0] <= squares[1]).all() and (squares[0] <= squares[2]).all()


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_mpjpe_and_mpjve(seed):
    prediction, target = drawn(seed)
    p, t = prediction.numpy(), target.numpy()
    torch.testing.assert_close(metrics.mpjpe(prediction, target).numpy(), np.linalg.norm(p - t, axis=-1).mean(-1))
    velocity = np.linalg.norm(np.diff(p, axis=0) - np.diff(t, axis=0), axis=-1).mean()
    assert float(metrics.mpjve(prediction, target)) == pytest.approx(velocity)
    shift = torch.randn(3, dtype=torch.float64) * 100
    torch.testing.assert_close(metrics.mpjve(prediction + shift, target), metrics.mpjve(prediction, target))
    rooted = metrics.mpjpe(prediction, target, root=14)
    torch.testing.assert_close(metrics.mpjpe(prediction + shift, target - shift, root=14), rooted)
    turned = [rotate(points, torch.tensor([0.3, 0.1, -0.7, 0.2], dtype=torch.float64)) for points in drawn(seed)]
    torch.testing.assert_close(metrics.mpjpe(*turned), metrics.mpjpe(prediction, target))


def test_any_leading_axes():
    prediction, target = drawn(0, frames=12)
    for metric in (metrics.mpjpe, metrics.p_mpjpe, metrics.n_mpjpe):
        split = metric(prediction.view(3, 4, 17, 3), target.view(3, 4, 17, 3))
        torch.testing.assert_close(split.flatten(), metric(prediction, target))
    assert metrics.mpjve(prediction.view(3, 4, 17, 3), target.view(3, 4, 17, 3)).shape == (3,)


def test_pck_is_strict_and_auc_its_mean():
    target = torch.zeros(1, 4, 3)
    prediction = torch.zeros(1, 4, 3)
    prediction[0, :, 0] = torch.tensor([0.0, 149.0, 150.0, 7.0])
    assert float(metrics.pck(prediction, target)) == 75.0
    assert float(metrics.auc(target, target)) == pytest.approx(100 * 30 / 31)  # of threshold 0 nothing is nearer
    shares = [metrics.pck(prediction, target, threshold=t) for t in range(0, 151, 5)]
    assert float(metrics.auc(prediction, target)) == pytest.approx(float(torch.stack(shares).mean()))
    mask = torch.tensor([[1, 0, 1, 0]], dtype=torch.uint8)
    assert float(metrics.pck(prediction, target, mask)) == 50.0
    assert float(metrics.masked_mpjpe(prediction, target, mask)) == 75.0
    assert math.isnan(float(metrics.pck(prediction, target, mask * 0)))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_pck_grows_with_the_threshold(seed):
    prediction, target = drawn(seed)
    found = [float(metrics.pck(prediction, target, threshold=t)) for t in (0, 50, 100, 200, 1e9)]
    assert found == sorted(found) and found[0] == 0.0 and found[-1] == 100.0


def clips():
    sizes = [("Walk", "S9", 6), ("Walk", "S11", 2), ("Sit", "S9", 1), ("Sit", "S9", 8), ("Eat", "S11", 1)]
    return [
        metrics.Clip(*drawn(i, frames=frames), action, subject, f"{subject}/{action}/{i}")
        for i, (action, subject, frames) in enumerate(sizes)
    ]


def test_tables_weigh_clips_by_frames_and_actions_alike():
    given = clips()
    scores = metrics.score_clips(given)
    assert scores.columns == ["subject", "action", "clip", "frames", *metrics.METRICS]
    assert scores["frames"].to_list() == [6, 2, 1, 8, 1]
    actions = metrics.per_action(scores)
    assert actions["action"].to_list() == ["Eat", "Sit", "Walk"] and actions["frames"].to_list() == [1, 9, 8]
    walk = [torch.cat([getattr(clip, name) for clip in given[:2]]) for name in ("prediction", "target")]
    row = actions.row(by_predicate=pl.col("action") == "Walk", named=True)
    assert row["mpjpe_mm"] == pytest.approx(float(metrics.mpjpe(*walk).mean()))
    assert row["p_mpjpe_mm"] == pytest.approx(float(metrics.p_mpjpe(*walk).mean()))
    speeds = [float(metrics.mpjve(clip.prediction, clip.target)) for clip in given[:2]]
    assert row["mpjve_mm"] == pytest.approx((6 * speeds[0] + 2 * speeds[1]) / 8)
    average = metrics.action_average(scores)
    assert average["mpjpe_mm"] == pytest.approx(np.mean(actions["mpjpe_mm"].to_numpy()))
    assert metrics.per_subject(scores)["subject"].to_list() == ["S11", "S9"]
    both = metrics.summarise(scores, "subject", "action")
    assert both.height == 4 and both["frames"].sum() == 18
    assert metrics.summarise(scores)["frames"].to_list() == [18]


def test_a_clip_of_one_frame_has_no_velocity():
    scores = metrics.score_clips(clips())
    assert scores["mpjve_mm"].is_null().to_list() == [False, False, True, False, True]
    sit = metrics.per_action(scores).filter(action="Sit")["mpjve_mm"].item()
    assert sit == pytest.approx(scores["mpjve_mm"][3])  # only the clip that has one counts
    assert metrics.per_action(scores).filter(action="Eat")["mpjve_mm"].to_list() == [None]
    assert math.isfinite(metrics.action_average(scores)["mpjve_mm"])
    assert math.isnan(float(metrics.mpjve(*drawn(0, frames=1))))


def test_nothing_to_score():
    scores = metrics.score_clips([])
    assert scores.height == 0 and metrics.per_action(scores).height == 0
    assert math.isnan(metrics.action_average(scores)["mpjpe_mm"])


@pytest.mark.parametrize("what", ["frames", "empty", "nan"])
def test_bad_clips_are_named_in_one_line(what):
    prediction, target = drawn(0)
    prediction[3, 2, 1] = torch.nan
    clip = {
        "frames": metrics.Clip(target[1:], target, "Walk", "S1", "walk.npz"),
        "empty": metrics.Clip(target[:0], target[:0], "Walk", "S1", "walk.npz"),
        "nan": metrics.Clip(prediction, target, "Walk", "S1", "walk.npz"),
    }[what]
    message = {"frames": "as many frames", "empty": "at least one", "nan": "prediction of frame 3 is not finite"}[what]
    with pytest.raises(ConfigError, match=rf"walk\.npz: .*{message}") as caught:
        metrics.score_clips([clip])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="as many frames and joints"):
        metrics.mpjpe(target[1:], target)
