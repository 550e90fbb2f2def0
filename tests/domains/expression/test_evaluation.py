from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score
from torchmetrics.functional.classification import multiclass_calibration_error

from domains.common.errors import PreparedDataError
from domains.common.figures import WARNINGS
from domains.common.intervals import Estimate
from domains.expression.doubts import doubts
from domains.expression.evaluation import (
    DISTRIBUTIONS,
    ece_15,
    evaluate_expressions,
    f1_of_all_classes,
    report_tables,
)
from domains.expression.figures import class_balance, figures
from domains.expression.official_scores import official_scores
from domains.expression.smoothing import exponential, smoothed_columns, window, write_csv
from tests.domains.expression.face_helpers import CLASSES, predictions

PAIRS = {"primary": "corrected", "corrected": "primary"}
CARD = {
    "duplicates": {
        "exact": {"images_across": {"train-test": {"train": 3, "test": 2}}},
        "near_pairs": {"train": 9, "valid-test": 8},
        "dropped": {"train": 3},
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
    for part in (
        "5 images of train and test are copies of each other (left out: 3 of train)",
        "8 pairs of images of valid and test are nearly copies",
        "4 groups of equal images",
        "of 7 images is not known",
    ):
        assert part in said
    assert " 9 pairs" not in said, "those are of one side"
    changed = tables["What the correction changed"][0]
    assert changed["mended"] - changed["spoilt"] == pytest.approx(metrics["accuracy_gain"].value * len(table))
    assert [row["class"] for row in tables["Classes"]] == CLASSES
    pictures = figures(table, metrics, CARD)
    titles = [picture.title for picture in pictures]
    assert {"Calibration before balancing", "Calibration after balancing", "Balance of the classes"} <= set(titles)
    assert class_balance({}) is None


@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(2, 6))
def test_ece_of_equal_widths_is_that_of_torchmetrics(seed, rows, classes):
    rng = np.random.default_rng(seed)
    p, labels = rng.dirichlet(np.full(classes, 0.5), rows), rng.integers(0, classes, rows)
    wanted = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(labels), classes, n_bins=15)
    assert ece_15(labels, p)(np.ones(rows)) == pytest.approx(float(wanted), abs=1e-6)
    counts = rng.integers(0, 3, rows)
    counts[0] += 1
    drawn = np.repeat(np.arange(rows), counts)
    whole = ece_15(labels[drawn], p[drawn])(np.ones(len(drawn)))
    assert ece_15(labels, p)(counts.astype(float)) == pytest.approx(whole), "a weight is how often a row counts"


def test_every_compared_distribution_has_an_ece_of_equal_widths():
    found = evaluate_expressions(predictions(), CLASSES, replicates=30)
    for name in DISTRIBUTIONS:
        estimate = found[f"ece_15_{name}"]
        assert 0 <= estimate.low <= estimate.value <= estimate.high and estimate.units == 30
    assert found["ece_15"] == found["ece_15_calibrated"]


class TestBesideTheCommonestClass:
    def test_it_is_a_row_of_the_comparison(self):
        table = predictions()
        found = evaluate_expressions(table, CLASSES, replicates=30)
        labels = table["label"].to_numpy()
        common = int(np.bincount(labels).argmax())
        constant = np.full(len(labels), common)
        assert found["accuracy_majority"].value == pytest.approx((labels == common).mean())
        assert found["macro_f1_majority"].value == pytest.approx(
            f1_score(labels, constant, average="macro", zero_division=0)
        )
        row = report_tables(table, found)["Before and after balancing"][-1]
        assert row["distribution"] == f"always {CLASSES[common]}, the commonest class"
        assert row["accuracy"].startswith(f"{found['accuracy_majority'].value:.3f} [") and row["log_loss"] == "-"

    def test_an_accuracy_below_it_is_warned_of(self):
        table = predictions()
        spoilt = table.with_columns(predicted=(pl.col("label") + 1) % 3)
        for given_table, warned in ((table, False), (spoilt, True)):
            found = evaluate_expressions(given_table, CLASSES, replicates=20)
            said = " ".join(doubts(given_table, CLASSES, {}, found))
            assert ("that of always deciding for" in said) is warned


class TestDoubts:
    def test_balancing_that_hurts_is_told_unless_it_decides_nothing(self):
        swapped = {f"{name}_{k}": f"{other}_{k}" for name, other in PAIRS.items() for k in range(3)}
        table = predictions().rename(swapped)
        corrected = table.select(f"corrected_{k}" for k in range(3)).to_numpy().argmax(1)
        primary = table.select(f"primary_{k}" for k in range(3)).to_numpy().argmax(1)
        worse = Estimate(-0.1, -0.2, -0.01, 30)
        for decided, gain, warned in (
            (corrected, worse, True),
            (corrected, Estimate(-0.1, -0.2, 0.0, 30), False),
            (primary, worse, False),
        ):
            said = " ".join(doubts(table.with_columns(predicted=decided), CLASSES, {}, {"accuracy_gain": gain}))
            assert ("test with --model.prediction primary" in said) is warned

    @pytest.mark.parametrize(
        ("used", "advice"),
        [
            ({}, "try --data.per_class, or --model.balanced_loss true."),
            ({"per_class": 100, "balanced_loss": False}, "try --model.balanced_loss true."),
            ({"per_class": 0, "balanced_loss": True}, "try --data.per_class."),
            ({"per_class": 100, "balanced_loss": True}, "its classes were balanced; it may need more images."),
        ],
    )
    def test_advice_is_what_was_not_tried(self, used, advice):
        table = predictions().with_columns(predicted=pl.lit(0))
        (said,) = (text for text in doubts(table, CLASSES, {"used": used}) if "never decided for" in text)
        assert said == f"happiness, surprise is never decided for; {advice}"

    @pytest.mark.parametrize(
        ("folds", "said"),
        [
            ([4, 17, 0], "17 images of fold 1 have copies across its sides"),
            ([4, 0, 0], ""),
            (None, "Whether images of fold 1 have copies on its other sides was not counted"),
        ],
    )
    def test_copies_are_those_of_the_fold(self, folds, said):
        card = CARD | {"duplicates": CARD["duplicates"] | ({} if folds is None else {"folds": folds})}
        of_split = " ".join(doubts(predictions(), CLASSES, card))
        assert "of train and test are copies" in of_split and "fold" not in of_split
        of_fold = " ".join(doubts(predictions(), CLASSES, card | {"used": {"fold": 1}}))
        assert said in of_fold and "of train and test are" not in of_fold and "4 groups" in of_fold
        assert bool(said) is ("fold 1" in of_fold)

    def test_precision_of_a_class_that_is_never_decided_for_is_undefined(self):
        table = predictions().with_columns(predicted=pl.lit(0))
        rows = report_tables(table, evaluate_expressions(table, CLASSES, replicates=20))["Classes"]
        assert [row["precision"] == "-" for row in rows] == [False, True, True]
        assert all(row["recall"] != "-" for row in rows)


def test_balance_of_a_fold_run_is_that_of_all_images():
    table = predictions()
    metrics = evaluate_expressions(table, CLASSES, replicates=10)
    for used, legend in (({}, "train (15)"), ({"fold": None}, "train (15)"), ({"fold": 2}, "all (15)")):
        (picture,) = (p for p in figures(table, metrics, CARD | {"used": used}) if p.title == "Balance of the classes")
        assert [text.get_text() for text in picture.figure.axes[0].get_legend().get_texts()] == [legend]


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
