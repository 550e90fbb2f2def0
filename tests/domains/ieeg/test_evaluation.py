"""Metrics, tables and pictures of a detection test."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score, log_loss, roc_auc_score

from domains.common.errors import ConfigError, HeptadError, PreparedDataError
from domains.common.figures import WARNINGS
from domains.ieeg.detections import Decisions, detected_events
from domains.ieeg.evaluation import evaluate_detection, report_tables
from domains.ieeg.figures import figures, poisson_gaps
from domains.ieeg.scoring import Counts, Scoring, score_events
from domains.ieeg.threshold import choose_detection_threshold
from domains.ieeg.window_scores import WindowScores
from tests.domains.ieeg.detection_helpers import NOTHING, certain, predictions


def values(metrics):
    return {name: (e.value, e.low, e.high) for name, e in metrics.items()}


def same(one, two, tolerance=1e-9):
    assert one.keys() == two.keys()
    for name, left in values(one).items():
        assert left == pytest.approx(values(two)[name], abs=tolerance, nan_ok=True), name


class TestMetrics:
    def test_windows_as_scikit_learn_counts_them(self):
        frame, _ = predictions()
        found = evaluate_detection(frame, threshold=0.3, replicates=5)
        label, p = frame["label"].to_numpy(), frame["probability_1"].cast(pl.Float64).to_numpy()
        decided = (p >= 0.3).astype(int)
        assert found["cohen_kappa"].value == pytest.approx(cohen_kappa_score(label, decided))
        assert found["f1"].value == pytest.approx(f1_score(label, decided))
        assert found["auroc"].value == pytest.approx(roc_auc_score(label, p))
        assert found["average_precision"].value == pytest.approx(average_precision_score(label, p))
        assert found["log_loss"].value == pytest.approx(log_loss(label, p))
        assert found["brier"].value == pytest.approx(((label - p) ** 2).mean())
        parts = [part for _, part in frame.group_by("subject")]
        kappas = [cohen_kappa_score(q["label"], (q["probability_1"] >= 0.3).cast(int)) for q in parts]
        areas = [roc_auc_score(q["label"], q["probability_1"]) for q in parts]
        assert found["subject_mean_cohen_kappa"].value == pytest.approx(np.mean(kappas))
        assert found["subject_mean_auroc"].value == pytest.approx(np.mean(areas))
        assert found["subject_median_auroc"].value == pytest.approx(np.median(areas))
        assert found["auroc"].units == 4

    def test_events_are_those_of_the_scorer_by_subject(self):
        frame, events = predictions(gain=3)
        rules = Scoring(min_overlap=0.2)
        found = evaluate_detection(frame, threshold=0.4, events=events, scoring=rules, replicates=5)
        detections = detected_events(frame, 0.4)
        subjects = []
        for subject in frame["subject"].unique().sort():
            total = Counts()
            for name in frame.filter(pl.col("subject") == subject)["recording"].unique().sort():
                true = events.filter(pl.col("recording") == name).select("onset", "offset").to_numpy()
                own = detections.filter(pl.col("recording") == name).select("onset", "offset").to_numpy()
                total += score_events(true, own, 120 + 5 * 400, rules)
            subjects.append(total)
        pooled = sum(subjects, Counts())
        assert pooled.fp > 0
        assert found["event_sensitivity"].value == pytest.approx(pooled.sensitivity)
        assert found["event_precision"].value == pytest.approx(pooled.precision)
        assert found["event_f1"].value == pytest.approx(pooled.f1)
        assert found["subject_mean_event_f1"].value == pytest.approx(np.nanmean([c.f1 for c in subjects]))
        hours = 8 * 400 * 5 / 3600
        assert found["false_alarms_per_24h"].value == pytest.approx(24 * pooled.fp / hours), "of time that was judged"
        for estimate in found.values():
            assert estimate.low <= estimate.value <= estimate.high

    @settings(max_examples=10, deadline=None)
    @given(st.randoms(use_true_random=False))
    def test_the_order_of_rows_and_recordings_does_not_matter(self, random):
        frame, events = predictions(windows=100, seizures=1)
        parts = frame.partition_by("recording")
        random.shuffle(parts)
        mixed = pl.concat([part.sample(fraction=1, shuffle=True, seed=random.randrange(99)) for part in parts])
        options = {"threshold": 0.4, "events": events, "replicates": 20}
        same(evaluate_detection(mixed, **options), evaluate_detection(frame, **options))

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), min_size=1, max_size=4))
    def test_perfect_predictions(self, labels):
        frame = pl.concat([certain(one, f"r{i}", f"s{i % 2}") for i, one in enumerate(labels)])
        found = evaluate_detection(frame, threshold=0.5, decisions=NOTHING, replicates=3)
        if frame["label"].sum():
            for name in ("event_f1", "event_sensitivity", "event_precision", "f1", "sample_f1"):
                assert found[name].value == 1, name
                assert found[f"subject_mean_{name}"].value == 1, name
            assert found["detection_latency"].value == 0
        else:
            assert math.isnan(found["event_f1"].value)
        assert found["false_alarms_per_24h"].value == 0

    def test_the_interval_of_a_share_without_failures_has_a_width(self):
        frame = pl.concat([certain([0, 0, 1, 1, 0] * 20, f"r{i}", f"s{i}") for i in range(6)])
        found = evaluate_detection(frame, threshold=0.5, replicates=20)
        assert found["event_sensitivity"].low == pytest.approx(0.025 ** (1 / 6))
        alarms = found["false_alarms_per_24h"]
        assert (alarms.value, alarms.low) == (0, 0)
        assert alarms.high == pytest.approx(3.689 / (6 * 500 / 86400), rel=1e-3)

    def test_predicted_is_final_without_a_threshold(self):
        frame, _ = predictions()
        one = evaluate_detection(frame, replicates=5)
        same(one, evaluate_detection(frame, threshold=0.5, decisions=NOTHING, replicates=5))
        with pytest.raises(PreparedDataError, match="lack the column predicted"):
            evaluate_detection(frame.drop("predicted"))

    def test_latency_is_counted_from_the_annotated_onset(self):
        frame = certain([0] * 20 + [1] * 4 + [0] * 20)  # a detection from 100 to 120 s
        events = pl.DataFrame({"recording": ["a", "elsewhere"], "onset": [93.0, 1.0], "offset": [118.0, 2.0]})
        found = evaluate_detection(frame, threshold=0.5, events=events)
        assert found["detection_latency"].value == pytest.approx(7)
        early = events.with_columns(onset=pl.Series([170.0, 1.0]), offset=pl.Series([180.0, 2.0]))
        assert math.isnan(evaluate_detection(frame, threshold=0.5, events=early)["detection_latency"].value)
        within = events.with_columns(onset=pl.Series([145.0, 1.0]), offset=pl.Series([180.0, 2.0]))
        found = evaluate_detection(frame, threshold=0.5, events=within)
        assert found["detection_latency"].value == -30, "the tolerance before the seizure, not the detection's onset"

    def test_recordings_nobody_looked_through_are_left_out_and_told(self):
        frame, events = predictions()
        name = "sub-01_run-1"
        marked = frame.with_columns(annotated=pl.col("recording") != name)
        found = evaluate_detection(marked, threshold=0.4, events=events, replicates=5)
        without = frame.filter(pl.col("recording") != name)
        same(found, evaluate_detection(without, threshold=0.4, events=events, replicates=5))
        warning = report_tables(marked, found)[WARNINGS][0]["warning"]
        assert warning.startswith("1 recording that nobody looked through")
        assert name in warning
        with pytest.raises(PreparedDataError, match="none of the 8 recordings is annotated"):
            evaluate_detection(frame.with_columns(annotated=pl.lit(False)))

    def test_resamples_see_scores_in_steps_that_move_nothing(self):
        rng = np.random.default_rng(0)
        label = (rng.random(30_000) < 0.03).astype(np.int64)
        p = 1 / (1 + np.exp(-(rng.normal(-3, 1.5, 30_000) + 2 * label)))
        subject = rng.integers(0, 5, 30_000)
        scores = WindowScores(label, p, p > 0.5, subject, 5)
        for weights in (np.ones(5), np.array([0.0, 3, 1, 0, 1])):
            got, each = scores(weights), weights[subject]
            assert got["auroc"] == pytest.approx(roc_auc_score(label, p, sample_weight=each), abs=1e-4)
            want = average_precision_score(label, p, sample_weight=each)
            assert got["average_precision"] == pytest.approx(want, abs=2e-3)
            assert got["log_loss"] == pytest.approx(log_loss(label, p, sample_weight=each))


class TestEdges:
    def test_no_seizure_at_all(self):
        frame = pl.concat([certain([0] * 50, f"r{i}", f"s{i}") for i in range(3)])
        found = evaluate_detection(frame, threshold=0.5, replicates=5)
        assert math.isnan(found["event_sensitivity"].value)
        assert math.isnan(found["auroc"].value)
        assert found["specificity"].value == 1
        tables = report_tables(frame, found)
        assert tables[WARNINGS][0]["warning"].startswith("There is no seizure")
        assert "Seizures" not in tables
        assert figures(frame, found)[0].title == "Seizures and detections over time"

    def test_nothing_but_seizure(self):
        frame = pl.concat([certain([1] * 50, f"r{i}", f"s{i}") for i in range(3)])
        found = evaluate_detection(frame, threshold=0.5, replicates=5)
        assert found["event_f1"].value == 1
        assert math.isnan(found["specificity"].value)
        assert any("100% of the time" in row["warning"] for row in report_tables(frame, found)[WARNINGS])
        figures(frame, found)

    def test_one_subject_has_no_intervals(self):
        frame, _ = predictions(subjects=1)
        found = evaluate_detection(frame, threshold=0.4)
        assert all(math.isnan(e.low) and math.isnan(e.high) for e in found.values())
        assert any("only one subject" in row["warning"] for row in report_tables(frame, found)[WARNINGS])

    @pytest.mark.parametrize(
        ("break_it", "text"),
        [
            (lambda f: f.clear(), "no windows"),
            (lambda f: f.drop("label"), "without labels"),
            (lambda f: f.with_columns(probability_1=pl.lit(math.nan)), "not a number from 0 to 1"),
        ],
    )
    def test_broken_predictions_end_in_one_line(self, break_it, text):
        frame, _ = predictions(subjects=1, recordings=1)
        for function in (evaluate_detection, choose_detection_threshold):
            with pytest.raises(HeptadError, match=text) as error:
                function(break_it(frame))
            assert "\n" not in str(error.value)

    def test_a_threshold_that_is_no_number(self):
        with pytest.raises(ConfigError, match="not a number"):
            evaluate_detection(certain([0, 1]), threshold=math.nan)

    def test_events_that_make_no_sense(self):
        frame = certain([0] * 9)
        with pytest.raises(PreparedDataError, match="lack the columns offset"):
            evaluate_detection(frame, events=pl.DataFrame({"recording": ["a"], "onset": [1.0]}))
        with pytest.raises(PreparedDataError, match=r"recording a goes from 5\.0 to 1\.0"):
            evaluate_detection(frame, events=pl.DataFrame({"recording": ["a"], "onset": [5.0], "offset": [1.0]}))

    def test_labels_are_not_needed_where_seizures_are_given(self):
        frame, events = predictions()
        options = {"threshold": 0.4, "events": events, "replicates": 5}
        same(evaluate_detection(frame.drop("label"), **options), evaluate_detection(frame, **options))


class TestReport:
    def test_tables(self):
        frame, events = predictions(gain=2.5)
        found = evaluate_detection(frame, threshold=0.4, events=events, replicates=5)
        tables = report_tables(frame, found)
        assert list(tables) == [
            WARNINGS,
            "Mean and standard deviation over subjects",
            "By subject",
            "Seizures",
            "How it was scored",
        ]
        assert len(tables["By subject"]) == 4
        assert sum(row["seizures"] for row in tables["By subject"]) == len(events) == len(tables["Seizures"])
        assert sum(row["false alarms"] for row in tables["By subject"]) == found.evidence.counts["fp"].sum()
        missed = [row["detected"] for row in tables["Seizures"]]
        assert missed == sorted(missed), "missed ones first"
        assert all((row["latency, s"] == "-") == (row["detected"] == "no") for row in tables["Seizures"])
        spread = {row["metric"]: row for row in tables["Mean and standard deviation over subjects"]}
        assert spread["event_f1"]["mean"] == f"{found['subject_mean_event_f1'].value:.3f}"
        for heading, rows in tables.items():
            assert len({tuple(row) for row in rows}) == 1, f"{heading}: all rows have the same columns"

    def test_every_parameter_is_printed(self):
        frame, _ = predictions()
        rules, decisions = Scoring(tolerance_start=12), Decisions(method="mean", smoothing=5, min_gap=7)
        found = evaluate_detection(frame, threshold=0.25, scoring=rules, decisions=decisions, replicates=2)
        rows = {row["parameter"]: row["value"] for row in report_tables(frame, found)["How it was scored"]}
        for name in (*Scoring.__dataclass_fields__, *Decisions.__dataclass_fields__, "threshold"):
            assert name in rows
        assert (rows["tolerance_start"], rows["method"], rows["smoothing"]) == ("12", "mean", "5")
        assert (rows["min_gap"], rows["threshold"], rows["max_event_duration"]) == ("7", "0.25", "300")
        assert rows["seizures from"].startswith("labels of windows")
        plain = report_tables(frame, dict(found))["How it was scored"]
        assert plain[0]["value"] == "as predicted", (
            "metrics without their evidence: the table of predictions is counted"
        )

    def test_warnings(self):
        frame = pl.concat([certain([0] * 40 + [1] * 4 + [0] * 9, "a", "s"), certain([0] * 900, "b", "t")])
        events = pl.DataFrame({"recording": ["a", "a"], "onset": [200.0, 230.0], "offset": [210.0, 235.0]})
        first = frame.filter((pl.col("recording") == "b") | (pl.col("onset") < 225))
        gap = pl.concat([first, frame.filter((pl.col("recording") == "a") & (pl.col("onset") > 240))])
        found = evaluate_detection(gap, threshold=0.5, events=events, replicates=2)
        text = " ".join(row["warning"] for row in report_tables(gap, found)[WARNINGS])
        assert "1 of 2 subjects without any seizure: t" in text
        assert "Only 2 seizures" in text
        assert "Only 2 subjects" in text
        assert "less than the 24 h" in text
        assert "1 seizure where no window decided" in text

    def test_pictures(self):
        frame, events = predictions(gain=2.5)
        found = evaluate_detection(frame, threshold=0.4, events=events, replicates=5)
        pictures = figures(frame, found)
        assert [picture.title for picture in pictures] == [
            "Seizures and detections over time",
            "Sensitivity and false alarms by threshold",
            "Subjects",
            "The recording that was scored best",
            "The one scored worst",
            "Probability around the onset of seizures",
            "Windows: receiver operating characteristic",
            "Windows: precision and recall",
            "Windows: calibration",
        ]
        for picture in pictures:
            picture.figure.canvas.draw()
            assert "\n" not in picture.caption
        point = pictures[1].figure.axes[0].get_legend().get_texts()[1].get_text()
        assert f"sensitivity {found['event_sensitivity'].value:.3f}" in point

    @pytest.mark.parametrize(
        "options", [{"subjects": 45, "recordings": 1, "windows": 100, "seizures": 2}, {"subjects": 1}]
    )
    def test_pictures_of_many_and_of_one(self, options):
        frame, events = predictions(**options)
        for picture in figures(frame, evaluate_detection(frame, events=events, replicates=2)):
            picture.figure.canvas.draw()


def test_poisson_intervals():
    """Against the exact ones of 0, 1 and 10 events."""
    low, high = poisson_gaps(np.array([0.0, 1, 10]))
    assert np.array([0.0, 1, 10]) - low == pytest.approx([0, 0.0253, 4.795], abs=0.02)
    assert np.array([0.0, 1, 10]) + high == pytest.approx([3.689, 5.572, 18.39], abs=0.05)
