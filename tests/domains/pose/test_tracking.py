"""Persons keep their numbers from frame to frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.errors import ConfigError
from domains.pose.tracking import Tracker, pose_similarity

SIGMAS = np.linspace(0.05, 0.1, 5)
BODY = np.array([[0.0, 0.0], [-10.0, 20.0], [10.0, 20.0], [-8.0, 50.0], [8.0, 50.0]])


def crowd(places: list[tuple[float, float]]) -> np.ndarray:
    return np.array([BODY + place for place in places]).reshape(-1, 5, 2)


def sure(points: np.ndarray) -> np.ndarray:
    return np.linspace(0.9, 0.5, len(points)) if len(points) else np.zeros(0)


def test_similarity_by_hand():
    moved = BODY + np.array([3.0, 4.0])
    area = 20.0 * 50.0
    want = np.exp(-25.0 / (2 * area * (2 * SIGMAS) ** 2)).mean()
    np.testing.assert_allclose(pose_similarity(BODY[None], moved[None], SIGMAS), [[want]])


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 50.0))
def test_similarity_is_symmetric_at_most_1_and_without_unit(seed, unit):
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(3, 5, 2)) * 40, rng.normal(size=(4, 5, 2)) * 40
    found = pose_similarity(one, two, SIGMAS)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found.T, pose_similarity(two, one, SIGMAS))
    np.testing.assert_allclose(np.diag(pose_similarity(one, one, SIGMAS)), 1.0)
    np.testing.assert_allclose(found, pose_similarity(one * unit, two * unit, SIGMAS), atol=1e-9)


def test_crossing_persons_keep_their_numbers():
    tracker = Tracker(SIGMAS)
    for frame in range(30):
        # they pass each other 30 pixels apart, one below the other
        points = crowd([(8.0 * frame, 0.0), (240.0 - 8.0 * frame, 30.0)])
        numbers = tracker.update(frame, points, np.array([0.9, 0.8]))
        assert numbers.tolist() == [0, 1], frame


def test_a_person_is_remembered_for_a_time_and_then_forgotten():
    tracker = Tracker(SIGMAS, age=5)
    person = crowd([(0, 0)])
    assert tracker.update(0, person, np.array([0.9])).tolist() == [0]
    for frame in range(1, 5):
        assert tracker.update(frame, crowd([]), np.zeros(0)).tolist() == []
    assert tracker.update(5, person, np.array([0.9])).tolist() == [0]
    assert tracker.update(11, person, np.array([0.9])).tolist() == [1]  # numbers are not used again


def test_the_best_assignment_of_all_is_taken():
    # the surest detection is most like the first person, but then the second one would have none
    tracker = Tracker(SIGMAS)
    assert tracker.update(0, crowd([(0, 0), (20, 0)]), np.array([0.9, 0.8])).tolist() == [0, 1]
    after = crowd([(8, 0), (-7, 0)])
    similarity = pose_similarity(crowd([(0, 0), (20, 0)]), after, SIGMAS)
    assert similarity[0, 1] > similarity[1, 0] > 0.05 > similarity[1, 1]
    assert tracker.update(1, after, np.array([0.9, 0.8])).tolist() == [1, 0]


def test_persons_far_away_are_new_ones():
    tracker = Tracker(SIGMAS)
    tracker.update(0, crowd([(0, 0)]), np.array([0.9]))
    assert tracker.update(1, crowd([(200, 0)]), np.array([0.9])).tolist() == [1]


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_numbers_are_there_once_grow_and_do_not_depend_on_the_order_of_detections(seed, counts):
    rng = np.random.default_rng(seed)
    one, other = Tracker(SIGMAS, age=3), Tracker(SIGMAS, age=3)
    seen: set[int] = set()
    for frame, count in enumerate(counts):
        points = crowd([tuple(place) for place in rng.uniform(0, 120, (count, 2))])
        scores = rng.permutation(np.linspace(0.2, 0.9, count)) if count else np.zeros(0)
        numbers = one.update(frame, points, scores)
        shuffled = rng.permutation(count)
        assert other.update(frame, points[shuffled], scores[shuffled]).tolist() == numbers[shuffled].tolist()
        assert len(set(numbers.tolist())) == count
        fresh = sorted(set(numbers.tolist()) - seen)
        assert fresh == list(range(len(seen), len(seen) + len(fresh)))
        seen |= set(fresh)


def test_keypoints_that_coincide_break_nothing():
    tracker = Tracker(SIGMAS)
    flat = np.zeros((1, 5, 2))
    assert tracker.update(0, flat, np.array([0.5])).tolist() == [0]
    assert tracker.update(1, flat, np.array([0.5])).tolist() == [0]


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="age 0"):
        Tracker(SIGMAS, age=0)
    with pytest.raises(ConfigError, match="least 1"):
        Tracker(SIGMAS, least=1.0)
    tracker = Tracker(SIGMAS)
    tracker.update(4, crowd([(0, 0)]), np.array([0.9]))
    with pytest.raises(ConfigError, match="frame 4 comes behind a later one"):
        tracker.update(4, crowd([(0, 0)]), np.array([0.9]))
