from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from domains.ctr.evaluation import calibration_table, click_metrics, evaluate_clicks, grouped_auc, weighted_auc
from domains.ctr.figures import figures

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=60
)


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_weighted_auc_is_that_of_scikit_learn(rows):
    labels, scores, weights, _ = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    got = weighted_auc(labels, scores / 8)(weights)
    kept = weights > 0
    if len(set(labels[kept])) < 2:
        assert math.isnan(got)
    else:
        assert got == pytest.approx(roc_auc_score(labels[kept], scores[kept], sample_weight=weights[kept]), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_gauc_is_the_weighted_mean_of_aucs_by_user(rows):
    labels, scores, _, users = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    total, mass = 0.0, 0
    for user in set(users):
        mine = users == user
        if len(set(labels[mine])) == 2:
            total += mine.sum() * roc_auc_score(labels[mine], scores[mine])
            mass += mine.sum()
    got = grouped_auc(labels, scores, users)(np.ones(len(labels)))
    assert math.isnan(got) if not mass else got == pytest.approx(total / mass, abs=1e-12)


def sample(rows=40_000, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.beta(2, 5, size=rows)
    labels = (rng.random(rows) < probabilities).astype(float)
    return labels, probabilities, rng.integers(0, 300, size=rows)


def test_metrics_of_true_probabilities():
    labels, probabilities, _ = sample()
    ones = np.ones(len(labels))
    metrics = {name: metric(ones) for name, metric in click_metrics(labels, probabilities).items()}
    assert metrics["log_loss"] == pytest.approx(log_loss(labels, probabilities))
    assert metrics["calibration_ratio"] == pytest.approx(1, abs=0.05)
    assert metrics["ece"] < 0.03
    assert 0.8 < metrics["normalised_entropy"] < 1
    worse = click_metrics(labels, probabilities / 3)
    assert worse["ece"](ones) > 0.1
    assert worse["auc"](ones) == metrics["auc"], "a monotone change leaves the ranking"


def test_constant_prediction_of_the_base_rate():
    labels = np.array([0.0, 0, 0, 1] * 50)
    metrics = {name: metric(np.ones(200)) for name, metric in click_metrics(labels, np.full(200, 0.25)).items()}
    assert metrics["auc"] == 0.5
    assert metrics["normalised_entropy"] == pytest.approx(1)
    assert metrics["ece"] == pytest.approx(0)


def test_table_of_metrics_and_pictures():
    labels, probabilities, users = sample()
    frame = pl.DataFrame({"label": labels, "probability": probabilities, "group": users})
    metrics = evaluate_clicks(frame, replicates=40)
    assert set(metrics) == {"auc", "log_loss", "normalised_entropy", "ece", "calibration_ratio", "gauc"}
    assert all(estimate.units == len(set(users)) for estimate in metrics.values())
    assert all(e.low <= e.value <= e.high for e in metrics.values())
    assert [picture.title for picture in figures(frame, metrics)][:2] == [
        "Receiver operating characteristic",
        "Calibration",
    ]
    table = calibration_table(labels, probabilities)
    assert table["rows"].sum() == 40_000
