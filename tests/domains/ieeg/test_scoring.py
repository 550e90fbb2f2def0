"""Event and sample scores; the recorded cases of timescoring are replayed in tests/parity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.errors import ConfigError, MissingExtraError
from domains.ieeg import scoring as scoring_module
from domains.ieeg.scoring import Counts, Scoring, count_events, score_events, score_samples, united
from domains.ieeg.timeline import Intervals, intervals, merged, split

DURATION = 3600.0
# tenths of a second: events in any order, nested, touching, without length, across both ends of the recording
TENTHS = st.integers(-300, int(DURATION * 10) + 300)
EVENTS = st.lists(st.tuples(TENTHS, st.integers(0, 9000)), max_size=8).map(
    lambda found: [(start / 10, (start + length) / 10) for start, length in found]
)
RULES = st.builds(
    Scoring,
    tolerance_start=st.sampled_from([0, 7.3, 30]),
    tolerance_end=st.sampled_from([0, 12.5, 60]),
    min_overlap=st.sampled_from([0, 0.1, 0.5, 1]),
    max_event_duration=st.sampled_from([45.5, 300, 1e6]),
    min_duration_between_events=st.sampled_from([0, 10, 90]),
)


def covered(events, step=0.1):
    """Which tenths of a second lie in an event."""
    mask = np.zeros(int(DURATION / step), dtype=bool)
    for start, stop in events:
        mask[max(round(start / step), 0) : max(round(stop / step), 0)] = True
    return mask


class TestUnion:
    @settings(deadline=None)
    @given(EVENTS)
    def test_it_covers_the_same_time_sorted_and_apart(self, events):
        result = united(events, DURATION)
        assert (covered(result) == covered(events)).all()
        assert (result[1:, 0] >= result[:-1, 1]).all()
        assert (result >= 0).all()
        assert (result <= DURATION).all()
        assert np.array_equal(united(result[::-1], DURATION), result), "the order does not matter, nor doing it twice"

    def test_nested_events_do_not_shorten_the_outer_one(self):
        """The library alone would make 100-300 and 120-130 one event that ends at 130."""
        assert united([(120, 130), (100, 300)], DURATION).tolist() == [[100, 300]]
        nested = score_events([(100, 300), (120, 130)], [(280, 290)], DURATION, Scoring(tolerance_end=0))
        assert nested == score_events([(100, 300)], [(280, 290)], DURATION, Scoring(tolerance_end=0))
        assert nested.tp == 1

    def test_events_outside_are_dropped_and_borders_cut(self):
        assert united([(-50, -10), (-5, 20), (3590, 4000), (3700, 3800)], DURATION).tolist() == [[0, 20], [3590, 3600]]
        assert united([(10, 10), (5000, 5000)], DURATION).tolist() == [[10, 10]], "an onset alone stays an event"

    @pytest.mark.parametrize("events", [[(20, 10)], [(math.nan, 5)], [(1, 2, 3)], [(1, math.inf)]])
    def test_what_is_no_event_is_refused_in_one_line(self, events):
        with pytest.raises(ConfigError) as error:
            united(events, DURATION)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("duration", [0, -1, math.nan, math.inf])
    def test_what_is_no_duration(self, duration):
        with pytest.raises(ConfigError, match="duration"):
            united([], duration)


class TestManyAtOnce:
    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(EVENTS, EVENTS, st.sampled_from([DURATION, 1234.5])), min_size=1, max_size=3), RULES)
    def test_they_are_counted_as_timescoring_counts_each(self, recordings, rules):
        parts = ([], [])
        for i, (reference, detections, _) in enumerate(recordings):
            for side, events in zip(parts, (reference, detections), strict=True):
                side.append(intervals(np.array(events), i))
        true, found = (
            Intervals(*(np.concatenate([getattr(p, name) for p in side]) for name in ("recording", "start", "stop")))
            for side in parts
        )
        got = count_events(true, found, np.array([duration for *_, duration in recordings]), rules)
        for i, (reference, detections, duration) in enumerate(recordings):
            want = score_events(reference, detections, duration, rules)
            assert (got.reference[i], got.tp[i], got.fp[i]) == (want.reference, want.tp, want.fp)

    def test_pieces_are_cut_as_the_library_cuts(self):
        pieces = split(merged(intervals([(100.1, 1000.7)])), 300.0)
        assert pieces.start.tolist() == [100.1, 100.1 + 300, 100.1 + 300 + 300, 100.1 + 300 + 300 + 300]
        assert pieces.stop[-1] == 1000.7


class TestCounts:
    @settings(deadline=None)
    @given(EVENTS, EVENTS)
    def test_a_far_false_alarm_lowers_precision_alone(self, reference, detections):
        """It lies more than all tolerances and merging behind everything else."""
        duration = 40_000.0
        before = score_events(reference, detections, duration)
        after = score_events(reference, [*detections, (30_000, 30_020)], duration)
        assert (after.reference, after.tp, after.fp) == (before.reference, before.tp, before.fp + 1)
        assert after.sensitivity == before.sensitivity or math.isnan(after.sensitivity)
        assert after.precision < before.precision or not before.precision > 0

    @settings(deadline=None)
    @given(EVENTS.map(lambda events: [(start, stop) for start, stop in events if stop > start]))
    def test_a_perfect_detector(self, events):
        found, samples = score_events(events, events, DURATION), score_samples(events, events, DURATION)
        assert found.tp == found.reference
        assert samples.tp == samples.reference
        assert (found.fp, samples.fp) == (0, 0)

    def test_they_add_up_to_those_of_a_subject(self):
        one = score_events([(100, 160)], [(100, 160)], DURATION)
        two = score_events([(100, 160)], [(2000, 2010)], 2 * DURATION)
        assert one + two == Counts(2, 1, 1, 3 * DURATION)
        assert (one + two).sensitivity == 0.5
        assert (one + two).precision == 0.5
        assert (one + two).f1 == 0.5
        assert (one + two).false_alarms_per_24h == pytest.approx(8)
        assert sum([one, two], Counts()) == one + two

    def test_undefined_scores(self):
        nothing = Counts(seconds=DURATION)
        assert math.isnan(nothing.sensitivity)
        assert math.isnan(nothing.precision)
        assert math.isnan(nothing.f1)
        assert nothing.false_alarms_per_24h == 0
        assert math.isnan(Counts().false_alarms_per_24h)
        assert score_events([(0, 0.01)], [], 0.01) == Counts(), "shorter than a tick of the scorer"

    def test_samples_are_seconds(self):
        assert score_samples([(0, 10)], [(5, 20)], 30) == Counts(10, 5, 10, 30.0)
        assert score_samples([(0, 10)], [(5, 20)], 30, rate=2) == Counts(20, 10, 20, 30.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tolerance_start": -1},
        {"tolerance_end": math.inf},
        {"min_duration_between_events": math.nan},
        {"max_event_duration": 0},
        {"min_overlap": 1.5},
    ],
)
def test_parameters_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Scoring(**wrong)


def test_a_missing_scorer_is_told(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(scoring_module.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"heptad\[ieeg\]"):
        score_events([], [], 10)
