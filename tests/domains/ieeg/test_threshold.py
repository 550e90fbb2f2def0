"""The threshold of detections comes from validation data, and from nothing else."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from domains.common.classification import choose_threshold
from domains.common.errors import ConfigError, PreparedDataError
from domains.ieeg.detections import Decisions
from domains.ieeg.evaluation import evaluate_detection
from domains.ieeg.threshold import choose_detection_threshold
from tests.domains.ieeg.detection_helpers import certain, predictions


class TestChoice:
    def test_it_is_the_best_of_all(self):
        frame, events = predictions(gain=3, seed=5)
        choice = choose_detection_threshold(frame, events=events)
        best = evaluate_detection(frame, threshold=choice.threshold, events=events, replicates=1)["event_f1"].value
        for threshold in np.linspace(0.01, 0.99, 99):
            found = evaluate_detection(frame, threshold=threshold, events=events, replicates=1)["event_f1"].value
            assert not found > best + 1e-12, threshold
        assert f"{choice.threshold:.4g}" in choice.sentence
        assert f"{best:.3f}" in choice.sentence
        assert "\n" not in choice.sentence

    def test_it_lies_in_the_middle_of_the_plateau_in_log_odds(self):
        frame = certain([0] * 30 + [1] * 5 + [0] * 30)
        frame = frame.with_columns(probability_1=pl.when(pl.col("label") == 1).then(0.9).otherwise(0.001))
        got = choose_detection_threshold(frame).threshold
        middle = (math.log(0.9 / 0.1) + math.log(0.001 / 0.999)) / 2
        assert math.log(got / (1 - got)) == pytest.approx(middle)

    def test_fewest_false_alarms_decide_between_equals(self):
        """At 0.9 one of two seizures and no false alarm, at 0.5 both and two: F1 is 2/3 each time."""
        quiet = [0.01] * 60
        found, false, weak = [0.9] * 3, [0.5] * 3, [0.5] * 3
        p = [*quiet, *found, *quiet, *false, *quiet, *false, *quiet, *weak, *quiet]
        label = [0] * 60 + [1] * 3 + [0] * (60 + 3 + 60 + 3 + 60) + [1] * 3 + [0] * 60
        frame = certain(label).with_columns(probability_1=pl.Series(p))
        assert 0.5 < choose_detection_threshold(frame).threshold <= 0.9

    def test_without_seizures_single_windows_decide(self):
        frame = certain([0] * 20 + [1] * 3 + [0] * 20)
        nothing = pl.DataFrame(schema={"recording": pl.String, "onset": pl.Float64, "offset": pl.Float64})
        choice = choose_detection_threshold(frame, events=nothing)
        assert choice.threshold == choose_threshold(frame["label"].to_numpy(), frame["probability_1"].to_numpy())
        assert "no seizure" in choice.sentence
        assert choose_detection_threshold(certain([0] * 20)).threshold == 0.5

    def test_where_nothing_can_be_found_single_windows_decide(self):
        frame = certain([0] * 20 + [1] + [0] * 20)
        choice = choose_detection_threshold(frame, decisions=Decisions(min_duration=1000))
        assert "No threshold found a seizure" in choice.sentence

    def test_it_never_uses_test_rows(self):
        valid, _ = predictions(seed=1)
        test, _ = predictions(seed=2, gain=1)
        alone = choose_detection_threshold(valid.with_columns(split=pl.lit("valid")))
        both = pl.concat([valid.with_columns(split=pl.lit("valid")), test.with_columns(split=pl.lit("test"))])
        with pytest.raises(PreparedDataError, match="rows of split 'test'"):
            choose_detection_threshold(both)
        assert alone == choose_detection_threshold(valid)
        tested = evaluate_detection(test, threshold=alone.threshold, replicates=1)
        assert tested.evidence.settings.threshold == alone.threshold
        flipped = test.with_columns(label=1 - pl.col("label"))
        again = evaluate_detection(flipped, threshold=alone.threshold, replicates=1)
        assert (again.evidence.positive == tested.evidence.positive).all(), "test labels change no decision"

    def test_all_windows_positive(self):
        choice = choose_detection_threshold(certain([1] * 40))
        assert 0 < choice.threshold <= 0.99
        with pytest.raises(ConfigError, match="no choice"):
            choose_detection_threshold(certain([1] * 40), candidates=1)

    def test_many_scores_are_searched_in_rounds(self):
        frame, events = predictions(subjects=3, windows=900, gain=2.5, seed=4)
        one = choose_detection_threshold(frame, events=events, candidates=9)
        two = choose_detection_threshold(frame, events=events, candidates=4000)
        found = [
            evaluate_detection(frame, threshold=c.threshold, events=events, replicates=1)["event_f1"].value
            for c in (one, two)
        ]
        assert found[0] == pytest.approx(found[1], abs=0.05)
        assert found[0] <= found[1]
