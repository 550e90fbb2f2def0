from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from domains.common.errors import PreparedDataError
from domains.common.figures import WARNINGS
from domains.expression.evaluation import DISTRIBUTIONS, doubts, evaluate_expressions, f1_of_all_classes, report_tables
from domains.expression.figures import class_balance, figures
from domains.expression.official_scores import official_scores
from domains.expression.smoothing import exponential, smoothed_columns, window, write_csv
from tests.domains.expression.face_helpers import CLASSES, predictions

CARD = {
    "duplicates": {
        "exact": {"images_across": {"train-test": {"train": 3, "test": 2}}},
        "groups_with_several_labels": 4,
    },
    "group": {"name": "subject", "kept_apart": False, "images_of_unknown_subjects": 7},
    "counts": {"classes": {"train": dict.fromkeys(CLASSES, 5), "valid": dict.fromkeys(CLASSES, 0)}},
}


def test_both_distributions_are_measured_over_subjects():
    table = predictions()
    found = evaluate_expressions(table, CLASSES, replicates=50)
    labels = table["label"].to_numpy()
    for name in ("primary", "corrected"):
        decided = table.select(f"{name}_{k}" for k in range(3)).to_numpy().argmax(1)
        assert found[f"accuracy_{name}"].value == pytest.approx((decided == labels).mean())
    assert found["accuracy"] == found["accuracy_corrected"]
    assert found["accuracy"].units == 30
    gain = found["accuracy_corrected"].value - found["accuracy_primary"].value
    assert found["accuracy_gain"].value == pytest.approx(gain)
    assert found["accuracy_gain"].low <= gain <= found["accuracy_gain"].high
    recalls = recall_score(labels, table["predicted"], average=None)
    assert [found[f"sensitivity_{name}"].value for name in CLASSES] == pytest.approx(recalls)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_macro_f1_counts_all_classes_as_the_challenge_does(pairs):
    labels, predicted = np.array(pairs).T
    value = f1_of_all_classes(labels, predicted, 5, np.ones(len(labels)))
    assert value == pytest.approx(official_scores(labels, predicted, 5)["macro_f1"])
    assert value == pytest.approx(f1_score(labels, predicted, labels=range(5), average="macro", zero_division=0))


def test_a_class_that_is_never_there_counts_nothing():
    table = predictions()
    wider = table.with_columns(
        *(pl.lit(0.0).cast(pl.Float32).alias(f"{name}_3") for name in ("probability", *DISTRIBUTIONS))
    )
    found = evaluate_expressions(wider, [*CLASSES, "fear"], replicates=20)
    assert found["macro_f1_all_classes"].value == pytest.approx(found["macro_f1"].value * 3 / 4)
    assert any("No image of fear" in text for text in doubts(wider, [*CLASSES, "fear"], {}))


def test_predictions_without_labels_are_refused():
    with pytest.raises(PreparedDataError, match="lack the column label"):
        evaluate_expressions(predictions().drop("label"), CLASSES)


def test_report_tells_copies_conflicts_and_subjects():
    table = predictions()
    metrics = evaluate_expressions(table, CLASSES, replicates=20)
    tables = report_tables(table, metrics, CARD)
    said = " ".join(row["warning"] for row in tables[WARNINGS])
    for part in ("5 images of train and test are copies", "4 groups of equal images", "of 7 images is not known"):
        assert part in said
    changed = tables["What the correction changed"][0]
    assert changed["mended"] - changed["spoilt"] == pytest.approx(metrics["accuracy_gain"].value * len(table))
    assert [row["class"] for row in tables["Classes"]] == CLASSES
    pictures = figures(table, metrics, CARD)
    titles = [picture.title for picture in pictures]
    assert {"Calibration before balancing", "Calibration after balancing", "Balance of the classes"} <= set(titles)
    assert class_balance({}) is None


class TestSmoothing:
    @given(st.lists(st.floats(0, 100), min_size=1, max_size=30, unique=True), st.floats(0.01, 10))
    def test_means_stay_between_the_values(self, seconds, constant):
        seconds = np.sort(np.array(seconds))
        values = np.random.default_rng(0).random((len(seconds), 3))
        values /= values.sum(1, keepdims=True)
        for smooth in (exponential, window):
            found = smooth(values, seconds, constant)
            np.testing.assert_allclose(found.sum(1), 1, atol=1e-9)
            assert found.min() >= values.min() - 1e-9 and found.max() <= values.max() + 1e-9

    def test_exponential_knows_the_past_alone_and_forgets_over_gaps(self):
        values = np.array([[0.0], [1.0], [1.0], [0.0]])
        found = exponential(values, np.array([0.0, 1.0, 2.0, 1000.0]), 1.0)[:, 0]
        assert found[1] == pytest.approx(1 - np.exp(-1))
        assert found[2] == pytest.approx(1 - np.exp(-2))
        assert found[3] == pytest.approx(0.0)

    def test_window_is_centred(self):
        values = np.arange(5.0)[:, None]
        assert window(values, np.arange(5.0), 2.0)[:, 0].tolist() == [0.5, 1.0, 2.0, 3.0, 3.5]

    def test_videos_do_not_mix_and_pictures_stay(self, tmp_path):
        table = (
            predictions(rows=6)
            .drop("label")
            .with_columns(
                name=pl.Series([f"f{i}" for i in range(6)]),
                source=pl.Series(["a", "b", "a", "b", "", ""]),
                time_s=pl.Series([1.0, 0.0, 0.0, 1.0, -1.0, -1.0]),
            )
        )
        found = smoothed_columns(table, "exponential", 1.0)
        for row in (1, 2, 4, 5):  # first frames, and pictures
            assert found["smoothed_0"][row] == pytest.approx(table["probability_0"][row])
        first, second = table["probability_0"][2], table["probability_0"][0]
        assert found["smoothed_0"][0] == pytest.approx(second + np.exp(-1) * (first - second), abs=1e-6)
        assert smoothed_columns(table, "none", 1.0).columns == table.columns
        write_csv(found, CLASSES, tmp_path / "p.csv")
        written = pl.read_csv(tmp_path / "p.csv")
        assert written["predicted"].to_list() == [CLASSES[k] for k in found["predicted"]]
        assert {"time_s", "probability_happiness", "smoothed_surprise", "confidence"} <= set(written.columns)
