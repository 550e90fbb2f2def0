from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score

from domains.common.classification import (
    ClassificationScores,
    calibration_bins,
    choose_threshold,
    class_names,
    decide,
    evaluate_classification,
)
from domains.common.errors import PreparedDataError

BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 3)), min_size=2, max_size=60)


def sample(rows=600, classes=3, seed=0, strength=1.0):
    """Labels, probabilities that know something about them, and patients of a few rows each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += strength
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities, rng.integers(0, rows // 3, rows)


def values(labels, probabilities, weights=None, predicted=None, **options):
    decided = decide(probabilities) if predicted is None else predicted
    scores = ClassificationScores(labels, probabilities, decided, **options)
    return scores(np.ones(len(labels)) if weights is None else weights)


@settings(max_examples=150, deadline=None)
@given(BINARY)
def test_two_classes_agree_with_scikit_learn_under_any_weights(rows):
    labels, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    weights, probability = weights.astype(float), scores / 8
    got = values(labels, np.stack([1 - probability, probability], axis=1), weights)
    kept = weights > 0
    y, p, w = labels[kept], probability[kept], weights[kept]
    if len(set(y)) < 2:
        assert math.isnan(got["auroc"])
        return
    given_by_argmax = (p > 0.5).astype(int)
    want = {
        "auroc": sklearn.roc_auc_score(y, p, sample_weight=w),
        "average_precision": sklearn.average_precision_score(y, p, sample_weight=w),
        "accuracy": sklearn.accuracy_score(y, given_by_argmax, sample_weight=w),
        "balanced_accuracy": sklearn.balanced_accuracy_score(y, given_by_argmax, sample_weight=w),
        "macro_f1": sklearn.f1_score(y, given_by_argmax, average="macro", sample_weight=w),
        "brier": sklearn.brier_score_loss(y, p, sample_weight=w),
        "ppv_class_1": sklearn.precision_score(y, given_by_argmax, sample_weight=w, zero_division=0),
        "sensitivity": sklearn.recall_score(y, given_by_argmax, sample_weight=w),
    }
    assert {name: got[name] for name in want} == pytest.approx(want, abs=1e-9)
    fpr, tpr, _ = sklearn.roc_curve(y, p, sample_weight=w, drop_intermediate=False)
    assert got["sensitivity_at_specificity_0.90"] == pytest.approx(tpr[1 - fpr >= 0.9 - 1e-9].max())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 6), st.booleans())
def test_more_classes_agree_with_scikit_learn(seed, classes, ties):
    labels, probabilities, _ = sample(80, classes, seed)
    labels[:classes] = np.arange(classes)
    if ties:
        probabilities = np.round(probabilities, 1) + 1e-3
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    got, predicted = values(labels, probabilities), probabilities.argmax(axis=1)
    assert got["auroc"] == pytest.approx(sklearn.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert got["macro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    assert got["log_loss"] == pytest.approx(sklearn.log_loss(labels, probabilities))
    assert got["average_precision"] == pytest.approx(sklearn.average_precision_score(labels, probabilities))
    confusion = sklearn.multilabel_confusion_matrix(labels, predicted)[1]
    assert got["specificity_class_1"] == pytest.approx(confusion[0, 0] / confusion[0].sum())


def test_the_metrics_of_torchmetrics_and_its_micro_f1():
    labels, probabilities, _ = sample()
    got = values(labels, probabilities)
    y, p = torch.from_numpy(labels), torch.from_numpy(probabilities)
    assert got["auroc"] == pytest.approx(float(multiclass_auroc(p, y, 3)))
    assert got["macro_f1"] == pytest.approx(float(multiclass_f1_score(p, y, 3, average="macro")))
    # what the official ACMIL program calls F1 is accuracy
    assert got["f1_micro"] == pytest.approx(float(multiclass_f1_score(p, y, 3, average="micro")))
    assert got["f1_micro"] == got["accuracy"]


def test_metrics_of_true_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    p = rng.beta(2, 4, 20_000)
    labels = (rng.random(20_000) < p).astype(int)
    honest, bold = (values(labels, np.stack([1 - q, q], axis=1)) for q in (p, np.clip(2 * p, 0, 1)))
    assert honest["ece"] < 0.02
    assert bold["ece"] > 0.2
    assert bold["brier"] > honest["brier"]
    assert len(set(calibration_bins(p))) == 15
    assert len(set(calibration_bins(p[:45]))) == 4, "no bin of a small set has fewer than ten rows"


def test_intervals_are_over_patients():
    labels, probabilities, patients = sample(seed=2)
    grouped = evaluate_classification(labels, probabilities, patients, replicates=200)
    assert {e.units for e in grouped.values()} == {len(set(patients))}
    assert all(e.low <= e.value <= e.high for e in grouped.values())
    copies = [np.repeat(array, 6, axis=0) for array in (labels, probabilities)]
    same = evaluate_classification(*copies, np.repeat(np.arange(600), 6), replicates=200)
    naive = evaluate_classification(*copies, replicates=200)
    width = {name: e.high - e.low for name, e in same.items()}
    assert width["auroc"] > 2 * (naive["auroc"].high - naive["auroc"].low)


def test_proportions_without_an_error_have_an_exact_interval():
    labels = np.array([0] * 30 + [1] * 20)
    probabilities = np.stack([1.0 - labels, 1.0 * labels], axis=1)
    found = evaluate_classification(labels, probabilities, classes=["healthy", "ill"], replicates=50)
    assert found["sensitivity"].high == 1
    assert found["sensitivity"].low == pytest.approx(0.025 ** (1 / 20))
    assert found["ppv_healthy"].low == pytest.approx(0.025 ** (1 / 30))
    assert found["auroc"].low == pytest.approx(0.025 ** (1 / 20)), "no more is known than of the rarer class"
    patients = np.r_[np.arange(30), 30 + np.arange(20) // 10]
    two = evaluate_classification(labels, probabilities, patients, replicates=50)
    assert two["sensitivity"].low == pytest.approx(0.025 ** (1 / 2)), "twenty rows of two patients are two trials"
    wrong = evaluate_classification(labels, probabilities[:, ::-1], replicates=50)
    assert wrong["sensitivity"].high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_a_class_that_is_absent_is_left_out_of_means():
    labels, probabilities, _ = sample(200, 4)
    labels = np.minimum(labels, 2)
    got = values(labels, probabilities)
    assert math.isnan(got["auroc_class_3"])
    assert math.isnan(got["sensitivity_class_3"])
    assert got["auroc"] == pytest.approx(np.mean([got[f"auroc_class_{k}"] for k in range(3)]))
    one = values(np.ones(8, int), np.full((8, 2), 0.5))
    assert math.isnan(one["auroc"])
    assert one["sensitivity"] == 0, "equal probabilities are the first class"


def test_a_class_that_is_never_predicted_has_a_predictive_value_of_0():
    got = values(np.array([0, 0, 1, 2]), np.array([[0.8, 0.1, 0.1]] * 4))
    assert got["ppv_class_1"] == 0
    assert got["macro_f1"] == pytest.approx((2 * 2 / (2 + 4)) / 3)


def test_names_of_classes_go_through_the_metrics():
    labels, probabilities, _ = sample(100)
    found = evaluate_classification(labels, probabilities, classes=["a", "b c", "d"], replicates=2, prefix="patient_")
    assert {"patient_auroc_b c", "patient_sensitivity_at_specificity_0.95_d"} <= set(found)
    plain = evaluate_classification(labels, probabilities, classes=["a", "b c", "d"], replicates=2)
    assert class_names(plain, 3) == ["a", "b c", "d"]
    assert class_names({}, 2) == ["class_0", "class_1"]
    assert len(evaluate_classification(*sample(100, 30)[:2], replicates=2)) == 9, "many classes are not listed"


def test_what_cannot_be_evaluated_is_named():
    labels, probabilities, _ = sample(50)
    with pytest.raises(PreparedDataError, match="1 labels are none of the 3 classes, first 7 in row 4"):
        evaluate_classification(np.r_[labels[:4], 7, labels[5:]], probabilities)
    diverged = probabilities.copy()
    diverged[3:] = np.nan
    with pytest.raises(PreparedDataError, match="47 of 50 rows are not numbers, first in row 3"):
        evaluate_classification(labels, diverged)
    with pytest.raises(PreparedDataError, match="no rows"):
        evaluate_classification(labels[:0], probabilities[:0])
    with pytest.raises(PreparedDataError, match="name of its own"):
        evaluate_classification(labels, probabilities, classes=["a", "a", "b"])


class TestThreshold:
    @settings(max_examples=150, deadline=None)
    @given(BINARY)
    def test_no_other_threshold_has_a_better_balanced_accuracy(self, rows):
        labels, scores, _ = (np.array(column) for column in zip(*rows, strict=True))
        p = (scores / 8).astype(np.float32)
        chosen = choose_threshold(labels, p)
        if len(set(labels)) < 2:
            assert chosen == 0.5
            return

        def balanced(threshold):
            called = decide(np.stack([1 - p, p], axis=1), threshold)
            return (called[labels == 1].mean() + 1 - called[labels == 0].mean()) / 2

        best = max(balanced(threshold) for threshold in [*(p - 0.01), 2.0])
        assert balanced(chosen) == pytest.approx(max(best, 0.5)) or best <= 0.5

    def test_it_lies_in_the_middle_of_the_gap_and_ties_near_a_half(self):
        assert choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])) == pytest.approx(0.5)
        assert choose_threshold(np.array([0, 1]), np.array([0.01, 0.03])) == pytest.approx(0.02)
        # cuts at 0.25 and at 0.65 are equally good
        labels, scores = np.array([0, 1, 0, 1]), np.array([0.2, 0.3, 0.6, 0.7])
        assert choose_threshold(labels, scores) == pytest.approx(0.65)

    def test_useless_scores_leave_it_alone(self):
        assert choose_threshold(np.array([1, 0]), np.array([0.1, 0.9])) == 0.5
        assert choose_threshold(np.array([1, 0, 1]), np.full(3, 0.3)) == 0.5

    def test_neighbouring_float32_scores_are_told_apart(self):
        low = np.float32(0.3)
        high = np.nextafter(low, np.float32(1))
        scores = np.array([low, high])
        chosen = choose_threshold(np.array([0, 1]), scores)
        assert decide(np.stack([1 - scores, scores], axis=1), chosen).tolist() == [0, 1]


def test_a_thousand_resamples_of_5000_rows_take_no_seconds():
    labels, probabilities, patients = sample(5000, 2)
    start = time.process_time()
    evaluate_classification(labels, probabilities, patients)
    assert time.process_time() - start < 5
