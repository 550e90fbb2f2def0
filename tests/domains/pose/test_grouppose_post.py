"""From predictions to results files; images and annotations changed together; sizes to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from domains.pose.grouppose import Predictions
from domains.pose.grouppose_post import coco_results, detections, packed_predictions
from domains.pose.grouppose_transforms import Picture, cropped, flipped, normalised, resized, resized_size, target
from domains.pose.resampling import resize

SIDE = st.integers(1, 60)


def picture(height=40, width=60, persons=3, keypoints=4):
    torch.manual_seed(0)
    points = torch.rand(persons, keypoints, 2) * torch.tensor([width - 1.0, height - 1.0])
    flags = torch.randint(0, 3, (persons, keypoints, 1)).float()
    boxes = torch.cat([points.amin(1), points.amax(1) + 1], -1)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return Picture(
        image, torch.cat([points, flags], -1), boxes, torch.rand(persons) * 100, torch.ones(persons, dtype=torch.int64)
    )


class TestDetections:
    def test_best_pairs_of_instance_and_class(self):
        logits = torch.tensor([[[0.0, 3.0], [2.0, 1.0], [-1.0, -2.0]]])
        keypoints = torch.rand(1, 3, 2, 2)
        (found,) = detections(Predictions(logits, keypoints), [(100, 200)], 3)
        assert found.labels.tolist() == [1, 0, 1]
        torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
        torch.testing.assert_close(found.keypoints[0], keypoints[0, 0] * torch.tensor([200.0, 100.0]))
        torch.testing.assert_close(found.keypoints[1], found.keypoints[2])
        assert len(found.persons().scores) == 2

    def test_fewer_pairs_than_asked_and_errors(self):
        predictions = Predictions(torch.randn(1, 3, 2), torch.rand(1, 3, 2, 2))
        assert len(detections(predictions, [(5, 5)], 50)[0].scores) == 6
        with pytest.raises(ValueError, match="2 sizes for 1 images"):
            detections(predictions, [(5, 5), (5, 5)])
        with pytest.raises(ValueError, match="select=0"):
            detections(predictions, [(5, 5)], 0)

    def test_results_are_plain_values(self):
        predictions = Predictions(torch.randn(1, 3, 2), torch.rand(1, 3, 2, 2))
        (found,) = detections(predictions, [(5, 5)], 2)
        results = json.loads(json.dumps(coco_results(7, found)))
        assert [entry["image_id"] for entry in results] == [7, 7]
        assert len(results[0]["keypoints"]) == 6
        assert results[0]["keypoints"][2] == pytest.approx(0.7310586, abs=1e-6)
        assert packed_predictions(predictions).shape == (1, 3, 6)
        assert packed_predictions(predictions, visibility=False).shape == (1, 3, 4)


class TestTransforms:
    def test_flipping_twice_changes_nothing(self):
        one, pairs = picture(), [(0, 2)]
        twice = flipped(flipped(one, pairs), pairs)
        for name in ("image", "keypoints", "boxes"):
            torch.testing.assert_close(getattr(twice, name), getattr(one, name))
        assert not torch.equal(flipped(one, pairs).image, one.image)

    def test_points_stay_on_their_pixels(self):
        one = picture()
        column, row = one.keypoints[0, 0, :2].round().long().tolist()
        exact = Picture(one.image, one.keypoints.round(), one.boxes, one.area, one.labels)
        mirrored = flipped(exact, [])
        x, y = mirrored.keypoints[0, 0, :2].long().tolist()
        assert torch.equal(mirrored.image[:, y, x], one.image[:, row, column])
        cut = cropped(exact, max(row - 3, 0), max(column - 2, 0), 20, 20)
        x, y = cut.keypoints[0, 0, :2].long().tolist()
        assert torch.equal(cut.image[:, y, x], one.image[:, row, column])

    def test_crop_leaves_persons_out_and_may_hide_keypoints(self):
        one = picture()
        boxes = one.boxes.clone()
        boxes[1] = torch.tensor([50.0, 30, 60, 40])
        one = Picture(one.image, one.keypoints, boxes, one.area, one.labels)
        official, clean = (cropped(one, 0, 0, 20, 30, drop_outside=drop) for drop in (False, True))
        kept = [i for i, (x0, y0) in enumerate(boxes[:, :2].tolist()) if x0 < 30 and y0 < 20]
        assert len(official.labels) == len(kept) < 3
        assert torch.equal(official.keypoints[..., 2], one.keypoints[kept][..., 2])
        outside = (one.keypoints[kept][..., 0] > 30) | (one.keypoints[kept][..., 1] > 20)
        assert outside.any()
        assert (clean.keypoints[..., 2][outside] == 0).all()
        assert torch.equal(official.keypoints[..., :2], clean.keypoints[..., :2])

    def test_target_is_relative(self):
        one = picture()
        annotated = target(one)
        torch.testing.assert_close(annotated.keypoints * torch.tensor([60.0, 40.0]), one.keypoints[..., :2])
        torch.testing.assert_close(annotated.area * 2400, one.area)
        assert annotated.visible.unique().tolist() == [0.0, 1.0]
        by_box = target(one, area_of_box=True)
        torch.testing.assert_close(by_box.area * 2400, (one.boxes[:, 2:] - one.boxes[:, :2]).prod(-1))

    def test_no_persons(self):
        one = picture(persons=0)
        changed = resized(cropped(flipped(one, [(0, 1)]), 2, 3, 20, 20), 30, 50)
        assert len(target(changed)) == 0
        assert changed.size == (30, 30)

    def test_sizes(self):
        assert resized_size(480, 640, 800, 1333) == (800, 1066)
        assert resized_size(640, 480, 800, 1333) == (1066, 800)
        assert resized_size(300, 1200, 800, 1333) == (333, 1332)
        assert min(resized_size(1, 3000, 800, 1333)) >= 1 and min(resized_size(1100, 2, 192, 256)) >= 1
        assert resized_size(800, 900, 800, 1333) == (800, 900)

    def test_normalised_grey(self):
        grey = normalised(torch.full((3, 2, 2), 128, dtype=torch.uint8))
        torch.testing.assert_close(
            grey[:, 0, 0], (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        )


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(SIDE, SIDE), new=st.tuples(SIDE, SIDE), seed=st.integers(0, 1000))
def test_scaling_equals_pillow_to_the_bit(old, new, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*old, 3), dtype=np.uint8)
    # one side after the other, because Pillow's order depends on its version
    columns = Image.fromarray(image).resize((new[1], old[0]), Image.Resampling.BILINEAR)
    want = np.asarray(columns.resize(new[::-1], Image.Resampling.BILINEAR))
    got = resize(torch.from_numpy(image).permute(2, 0, 1), new).permute(1, 2, 0)
    assert np.array_equal(got.numpy(), want)
