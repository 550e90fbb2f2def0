from __future__ import annotations

import math

import numpy as np

from domains.common.intervals import group_bootstrap


def mean_of(values):
    return lambda weights: float(weights @ values / weights.sum())


def test_interval_of_a_mean_has_the_textbook_width():
    values = np.random.default_rng(0).normal(size=2000)
    estimate = group_bootstrap({"mean": mean_of(values)}, 2000)["mean"]
    half = 1.96 * values.std() / math.sqrt(2000)
    assert estimate.value == values.mean()
    assert estimate.units == 2000
    assert abs((estimate.high - estimate.low) / 2 - half) < 0.1 * half


def test_rows_of_one_unit_are_drawn_together():
    """Ten copies of each row must not make the interval narrower."""
    values = np.random.default_rng(1).normal(size=200)
    copies, groups = np.repeat(values, 10), np.repeat(np.arange(200), 10)
    single = group_bootstrap({"m": mean_of(values)}, 200)["m"]
    grouped = group_bootstrap({"m": mean_of(copies)}, 2000, groups)["m"]
    naive = group_bootstrap({"m": mean_of(copies)}, 2000)["m"]
    width = single.high - single.low
    assert grouped.units == 200
    assert abs((grouped.high - grouped.low) - width) < 0.15 * width
    assert naive.high - naive.low < 0.5 * width


def test_seeded_paired_and_honest_about_too_few_units():
    values = np.arange(50.0)
    metrics = {"a": mean_of(values), "b": mean_of(values + 1)}
    first, again = group_bootstrap(metrics, 50, seed=3), group_bootstrap(metrics, 50, seed=3)
    assert first == again
    assert first["b"].low - first["a"].low == 1.0
    one = group_bootstrap({"a": mean_of(values)}, 50, np.zeros(50))["a"]
    assert math.isnan(one.low)
    assert one.to_dict()["low"] is None


def test_undefined_resamples_are_left_out():
    labels = np.array([1.0] + [0.0] * 9)
    metric = {"needs a positive": lambda w: 1.0 if w @ labels > 0 else float("nan")}
    assert group_bootstrap(metric, 10)["needs a positive"].low == 1.0
