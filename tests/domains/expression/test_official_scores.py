"""Scores over all classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from domains.expression.official_scores import official_scores


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40), more=st.integers(0, 3))
def test_they_are_those_of_scikit_learn_over_all_classes(pairs, more):
    labels, predicted = np.array(pairs).T
    count = 5 + more
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=range(count), average="macro", zero_division=0
    )
    got = official_scores(labels, predicted, count)
    want = [accuracy_score(labels, predicted), f1, precision, recall]
    assert list(got.values()) == pytest.approx(want)


def test_nothing_scores_0():
    assert set(official_scores(np.array([], int), np.array([], int), 3).values()) == {0.0}
