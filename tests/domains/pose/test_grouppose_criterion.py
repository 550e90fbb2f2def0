"""Matching and losses of Group Pose."""

from __future__ import annotations

import itertools

import pytest
import torch

from domains.pose.grouppose import GroupPoseOutput, Predictions
from domains.pose.grouppose_criterion import (
    GroupPoseCriterion,
    NonFinitePredictionError,
    Persons,
    focal_loss,
    keypoint_similarity,
    match,
)

SIGMAS = [0.05, 0.03, 0.1, 0.02]


def persons(count):
    return Persons(torch.rand(count, 4, 2), (torch.rand(count, 4) < 0.7).float(), torch.rand(count) + 0.05)


def head(images=2, queries=6):
    return Predictions(
        torch.randn(images, queries, 2, requires_grad=True), torch.rand(images, queries, 4, 2, requires_grad=True)
    )


def output(images=2, queries=6):
    heads = [head(images, queries) for _ in range(3)]
    return GroupPoseOutput(heads[0], [heads[1]], heads[2], *[None] * 3)  # type: ignore[arg-type]


def test_similarity_is_the_formula():
    truth, sigmas = persons(1), torch.tensor(SIGMAS)
    points = torch.rand(1, 4, 2)
    visible = truth.visible[0] > 0
    squared = (points[0] - truth.keypoints[0]).square().sum(-1)
    want = (-squared / (2 * truth.area[0] * (2 * sigmas) ** 2)).exp()[visible].mean()
    torch.testing.assert_close(keypoint_similarity(points, truth, sigmas)[0], want, atol=2e-6, rtol=1e-5)
    assert keypoint_similarity(truth.keypoints, truth, sigmas) == pytest.approx(1.0, abs=1e-5)


def test_nothing_visible_or_no_area_stays_finite():
    truth = Persons(torch.rand(2, 4, 2), torch.tensor([[0.0] * 4, [1.0] * 4]), torch.tensor([0.3, 0.0]))
    points = truth.keypoints.clone().requires_grad_()
    similarity = keypoint_similarity(points, truth, torch.tensor(SIGMAS))
    similarity.sum().backward()
    assert similarity.isfinite().all()
    assert points.grad.isfinite().all()


def test_matching_is_the_best_of_all_assignments():
    torch.manual_seed(0)
    costs = torch.rand(2, 4, 5)
    pairs = match(costs, [3, 2])
    for image, (first, last) in enumerate(((0, 3), (3, 5))):
        own = costs[image, :, first:last]
        best = min(
            sum(own[q, p] for p, q in enumerate(chosen)) for chosen in itertools.permutations(range(4), last - first)
        )
        torch.testing.assert_close(own[pairs[image]].sum(), best)


def test_more_persons_than_queries():
    criterion, truth = GroupPoseCriterion(SIGMAS), [persons(9), persons(1)]
    found = output(queries=3)
    losses = criterion(found, truth)
    assert all(value.isfinite() for value in losses.values())
    assert len(criterion.pairs(found.final, truth)[1][0][0]) == 3


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (1, 0)])
def test_images_without_persons(counts):
    found, truth = output(), [persons(count) for count in counts]
    losses = GroupPoseCriterion(SIGMAS)(found, truth)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert (losses["loss_keypoints"] == 0) == (sum(counts) == 0)
    assert found.final.keypoints.grad.isfinite().all()
    assert found.final.logits.grad.abs().sum() > 0


def test_total_is_the_weighted_sum_of_all_heads():
    criterion = GroupPoseCriterion(SIGMAS, {"loss_ce": 1.0, "loss_keypoints": 3.0, "loss_oks": 0.5})
    losses = criterion(output(), [persons(2), persons(1)])
    want = sum(
        weight * losses[f"{name}{suffix}"]
        for name, weight in criterion.weights.items()
        for suffix in ("", "_0", "_interm")
    )
    torch.testing.assert_close(losses["total"], want)


def test_order_of_persons_does_not_matter():
    found, truth = output(images=1), persons(4)
    turned = Persons(*(t.flip(0) for t in (truth.keypoints, truth.visible, truth.area)))
    losses = [GroupPoseCriterion(SIGMAS)(found, [t]) for t in (truth, turned)]
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])


def test_focal_loss_is_the_formula():
    logits, wanted = torch.randn(5, 2), torch.randint(0, 2, (5, 2)).float()
    p = logits.sigmoid()
    want = torch.where(wanted > 0, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()).sum()
    torch.testing.assert_close(focal_loss(logits, wanted), want)


@pytest.mark.parametrize("what", ["logits", "keypoints"])
def test_predictions_that_are_no_numbers_name_their_image(what):
    found = output()
    with torch.no_grad():
        getattr(found.final, what)[1, 2] = float("nan")
    with pytest.raises(NonFinitePredictionError, match="image 1 of the batch") as caught:
        GroupPoseCriterion(SIGMAS)(found, [persons(1), persons(1)])
    assert caught.value.image == 1
    assert "\n" not in str(caught.value)


def test_targets_of_another_batch_or_layout():
    with pytest.raises(ValueError, match="1 targets for a batch of 2"):
        GroupPoseCriterion(SIGMAS)(output(), [persons(1)])
    with pytest.raises(ValueError, match="5 sigmas for a network of 4"):
        GroupPoseCriterion([0.1] * 5)(output(), [persons(1), persons(1)])


def test_half_precision_predictions():
    heads = Predictions(torch.randn(1, 3, 2).bfloat16(), torch.rand(1, 3, 4, 2).bfloat16())
    losses = GroupPoseCriterion(SIGMAS)(GroupPoseOutput(heads, [], heads, *[None] * 3), [persons(2)])
    assert losses["total"].dtype == torch.float32
