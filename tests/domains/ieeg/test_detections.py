"""From windows to detections, and the files that other programs read."""

from __future__ import annotations

import datetime
import json

import mne
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mne_bids import events_file_to_annotation_kwargs

from domains.common.errors import ConfigError, PreparedDataError
from domains.ieeg import annotations
from domains.ieeg.annotations import write_detections, write_edf_annotations, write_events_tsv
from domains.ieeg.detections import (
    Decisions,
    decide_windows,
    detected_events,
    labelled_events,
    smoothed,
    window_labels,
)
from domains.ieeg.timeline import intervals
from domains.ieeg.window_table import window_table

NOTHING = Decisions(smoothing=1, min_duration=0)


def windows(probabilities, recording="a", subject="s", first=120.0, step=5.0, **columns):
    """Predictions of one recording, window by window."""
    count = len(probabilities)
    table = {
        "recording": [recording] * count,
        "subject": [subject] * count,
        "onset": first + step * np.arange(count),
        "duration": [5.0] * count,
        "probability_1": np.array(probabilities, dtype=np.float32),
    }
    return pl.DataFrame(table | columns)


def spans(frame):
    return frame.select("onset", "offset").rows()


class TestRuns:
    def test_neighbouring_windows_are_one_event(self):
        frame = windows([0.1, 0.9, 0.7, 0.2, 0.6, 0.1])
        found = detected_events(frame, 0.5, NOTHING)
        assert spans(found) == [(125, 135), (140, 145)]
        assert found["confidence"].to_list() == pytest.approx([0.9, 0.6])
        assert decide_windows(frame, 0.5, NOTHING).tolist() == [0, 1, 1, 0, 1, 0]

    def test_recordings_and_gaps_part_events(self):
        frame = pl.concat(
            [windows([0.9, 0.9]), windows([0.9], first=300.0), windows([0.9, 0.9], "b", "t", first=130.0)]
        )
        found = detected_events(frame.sample(fraction=1, shuffle=True, seed=3), 0.5, NOTHING)
        assert found.select("recording", "onset", "offset").rows() == [
            ("a", 120, 130),
            ("a", 300, 305),
            ("b", 130, 140),
        ]
        assert found["subject"].to_list() == ["s", "s", "t"]

    def test_windows_that_overlap_are_one_event(self):
        frame = windows([0.9, 0.1, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9], step=1.0)
        found = detected_events(frame, 0.5, NOTHING)
        assert spans(found) == [(120, 127), (129, 134)]
        assert found["confidence"].to_list() == pytest.approx([0.9, 0.9])

    def test_all_and_none(self):
        assert spans(detected_events(windows([0.9] * 4), 0.5)) == [(120, 140)]
        nothing = detected_events(windows([0.1] * 4), 0.5)
        assert nothing.is_empty()
        assert nothing.columns == ["recording", "subject", "onset", "offset", "confidence"]

    def test_short_ones_are_dropped_and_gaps_closed(self):
        frame = windows([0.9, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9])
        assert spans(detected_events(frame, 0.5, Decisions(smoothing=1, min_duration=10))) == [(130, 140)]
        closed = Decisions(smoothing=1, min_duration=10, min_gap=6)
        assert spans(detected_events(frame, 0.5, closed)) == [(120, 140)]
        apart = pl.concat([windows([0.9, 0.9]), windows([0.9, 0.9], first=133.0)])
        assert len(detected_events(apart, 0.5, Decisions(min_gap=60))) == 2, "nobody judged what lies between"

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.floats(0.01, 1), st.integers(0, 40))
    def test_the_decision_of_windows_and_the_events_agree(self, probabilities, threshold, gap):
        frame = windows(probabilities)
        rules = Decisions(min_gap=float(gap))
        decided = frame.with_columns(label=pl.Series(decide_windows(frame, threshold, rules)))
        events = detected_events(frame, threshold, rules)
        assert labelled_events(window_table(decided)).pairs(0).tolist() == [list(pair) for pair in spans(events)]
        assert all(stop - start >= 10 for start, stop in spans(events))
        gaps = events["onset"].to_numpy()[1:] - events["offset"].to_numpy()[:-1]
        assert (gaps >= max(gap, 5)).all()


class TestSmoothing:
    def test_median_and_mean_of_neighbours(self):
        table = window_table(windows([0.0, 1.0, 0.0, 0.5, 0.5]))
        assert smoothed(table, Decisions()).tolist() == [0.5, 0, 0.5, 0.5, 0.5]
        assert smoothed(table, Decisions(method="mean")) == pytest.approx([0.5, 1 / 3, 0.5, 1 / 3, 0.5])
        assert smoothed(table, Decisions(causal=True, smoothing=2, method="mean")).tolist() == [0, 0.5, 0.5, 0.25, 0.5]

    def test_it_never_crosses_an_interruption_or_a_recording(self):
        frame = pl.concat([windows([0.0, 0.0]), windows([1.0, 1.0], first=200.0), windows([0.5], "b")])
        for method in ("median", "mean"):
            got = smoothed(window_table(frame), Decisions(smoothing=5, method=method))
            assert got.tolist() == [0, 0, 1, 1, 0.5]

    def test_a_causal_decision_ignores_the_future(self):
        past = windows([0.1, 0.9, 0.9, 0.9, 0.1, 0.2])
        future = windows([0.1, 0.9, 0.9, 0.9, 0.1, 0.2, 0.9, 0.9, 0.9])
        rules = Decisions(causal=True, min_duration=0)
        assert decide_windows(future, 0.5, rules)[:6].tolist() == decide_windows(past, 0.5, rules).tolist()

    @pytest.mark.parametrize("wrong", [{"smoothing": 0}, {"smoothing": 4}, {"method": "max"}, {"min_gap": -1}])
    def test_options_that_make_no_sense(self, wrong):
        with pytest.raises(ConfigError):
            Decisions(**wrong)


def test_labels_are_windows_that_touch_an_event():
    table = window_table(pl.concat([windows([0.5] * 6), windows([0.5] * 2, "b")]))
    events = intervals([(121.0, 124.0), (135.0, 136.0)])
    assert window_labels(table, events).tolist() == [1, 0, 1, 1, 0, 0, 0, 0], "both ends included"
    assert window_labels(table, events[np.zeros(2, dtype=bool)]).sum() == 0
    inside = intervals([(126.0, 134.0)])
    frame = windows([0.5] * 6, label=window_labels(window_table(windows([0.5] * 6)), inside))
    assert labelled_events(window_table(frame)).pairs(0).tolist() == [[125, 135]], "on the grid of the windows"


class TestChecks:
    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"probability_1": [0.5, float("nan"), 0.5]}, "1 of 3 windows .* recording a at 125 s: the probability"),
            ({"probability_1": [0.5, 1.5, 0.5]}, "from 0 to 1"),
            ({"probability_1": [0.5, None, 0.5]}, "not a number"),
            ({"onset": [0.0, float("nan"), 10.0]}, "onset must be"),
            ({"onset": [0.0, 5.0, 5.0]}, "there twice"),
            ({"duration": [5.0, 0.0, 5.0]}, "duration more than 0"),
            ({"label": [0, 2, 1]}, "label of 1 windows is neither 0 nor 1, first 2 in row 1"),
            ({"recording": ["a", None, "a"]}, "name no recording"),
            ({"subject": ["s", "t", "s"]}, "recording a belongs to several subjects"),
            ({"subject": ["s", None, "s"]}, "recording a has no subject"),
        ],
    )
    def test_broken_predictions_are_refused_in_one_line(self, change, text):
        frame = windows([0.5] * 3).with_columns(**{name: pl.Series(values) for name, values in change.items()})
        with pytest.raises(PreparedDataError, match=text) as error:
            window_table(frame)
        assert "\n" not in str(error.value)

    def test_missing_columns_and_rows(self):
        with pytest.raises(PreparedDataError, match="lack the columns subject, probability_1"):
            window_table(windows([0.5]).drop("subject", "probability_1"))
        with pytest.raises(PreparedDataError, match="were they made without labels"):
            window_table(windows([0.5]), labelled=True)
        with pytest.raises(PreparedDataError, match="no windows"):
            window_table(windows([]))

    def test_time_that_was_judged(self):
        table = window_table(
            pl.concat([windows([0.5] * 4), windows([0.5], first=300.0), windows([0.5] * 9, step=1.0, recording="b")])
        )
        assert table.durations.tolist() == [305, 133]
        assert table.judged.tolist() == [25, 13]


def events_of(*pairs, confidence=0.75):
    return pl.DataFrame(
        {"onset": [a for a, _ in pairs], "offset": [b for _, b in pairs], "confidence": [confidence] * len(pairs)},
        schema={"onset": pl.Float64, "offset": pl.Float64, "confidence": pl.Float64},
    )


PAIRS = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**7)), min_size=1, max_size=10).map(
    lambda found: [(start / 1000, (start + length) / 1000) for start, length in found]
)


class TestFiles:
    @settings(max_examples=30, deadline=None)
    @given(PAIRS)
    def test_mne_reads_back_what_was_written(self, tmp_path_factory, pairs):
        folder = tmp_path_factory.mktemp("events")
        frame, want = events_of(*pairs), sorted(pairs)
        table = events_file_to_annotation_kwargs(write_events_tsv(folder / "a_events.tsv", frame, 1e7), verbose="error")
        notes = mne.read_annotations(write_edf_annotations(folder / "a_annotations.edf", frame, 1e7))
        onsets, lengths = [a for a, _ in want], [b - a for a, b in want]
        for onset, duration in ((table["onset"], table["duration"]), (notes.onset, notes.duration)):
            assert np.asarray(onset) == pytest.approx(onsets, abs=1e-6)
            assert np.asarray(duration) == pytest.approx(lengths, abs=1e-6)
        assert set(table["description"]) == set(notes.description) == {"seizure"}

    def test_columns_of_bids_and_szcore(self, tmp_path):
        begin = datetime.datetime(2021, 3, 4, 5, 6, 7)
        path = write_events_tsv(tmp_path / "a_events.tsv", events_of((12.5, 40.0)), 3600, started=begin)
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        assert dict(zip(*rows, strict=True)) == {
            "onset": "12.5",
            "duration": "27.5",
            "trial_type": "seizure",
            "eventType": "sz",
            "confidence": "0.7500",
            "channels": "n/a",
            "dateTime": "2021-03-04 05:06:07",
            "recordingDuration": "3600",
        }
        plain = write_events_tsv(tmp_path / "b_events.tsv", events_of((1, 2)), 10, szcore=False)
        assert plain.read_text().splitlines()[0] == "onset\tduration\ttrial_type\tconfidence\tchannels"

    def test_a_recording_without_detections(self, tmp_path):
        tsv = write_events_tsv(tmp_path / "a_events.tsv", events_of(), 3600)
        assert tsv.read_text().splitlines()[1].startswith("0\t3600\tn/a\tbckg\tn/a"), (
            "SzCORE wants to know the duration"
        )
        assert len(events_file_to_annotation_kwargs(tsv, verbose="error")["onset"]) == 0
        edf = write_edf_annotations(tmp_path / "a_annotations.edf", events_of(), 3600)
        assert len(mne.read_annotations(edf)) == 0

    def test_every_recording_has_its_files(self, tmp_path):
        frame = windows([0.9, 0.9, 0.1])
        written = write_detections(tmp_path, detected_events(frame, 0.5), {"a": 135.0, "b": 50.0})
        names = sorted(path.name for path in tmp_path.iterdir())
        assert sorted(path.name for path in written) == names
        assert names == ["a_annotations.edf", "a_events.tsv", "b_annotations.edf", "b_events.tsv", "events.json"]
        columns = (tmp_path / "a_events.tsv").read_text().splitlines()[0].split("\t")
        assert set(json.loads((tmp_path / "events.json").read_text())) == set(columns)
        assert mne.read_annotations(tmp_path / "a_annotations.edf").duration.tolist() == [10]

    def test_what_cannot_be_written_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"must end in \.tsv"):
            write_events_tsv(tmp_path / "a.csv", events_of(), 10)
        with pytest.raises(ConfigError, match="goes from 5"):
            write_edf_annotations(tmp_path / "a.edf", events_of((5, 4)), 10)
        with pytest.raises(ConfigError, match="duration of 0"):
            write_events_tsv(tmp_path / "a.tsv", events_of(), 0)
        found = detected_events(windows([0.9, 0.9]), 0.5)
        with pytest.raises(PreparedDataError, match="recording a, whose duration"):
            write_detections(tmp_path, found, {"b": 10.0})
        with pytest.raises(PreparedDataError, match="name that a file can have"):
            write_detections(tmp_path, found.clear(), {"../b": 10.0})
        assert list(tmp_path.iterdir()) == []

    def test_a_file_is_whole_or_absent(self, tmp_path, monkeypatch):
        def fail(path, content):
            raise OSError("no space left on device")

        monkeypatch.setattr(annotations, "write_whole", fail)
        for write, name in ((write_events_tsv, "a.tsv"), (write_edf_annotations, "a.edf")):
            with pytest.raises(OSError, match="no space"):
                write(tmp_path / name, events_of((1, 2)), 10)
        assert list(tmp_path.iterdir()) == []
