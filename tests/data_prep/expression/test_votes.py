"""FER+: what becomes of ten votes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.expression.votes import MODES, NOT_A_FACE, UNKNOWN, decide

#        neutral happy surprise sad anger disgust fear contempt unknown NF
CASES = [
    ([8, 1, 1, 0, 0, 0, 0, 0, 0, 0], "majority", 0, [1, 0, 0, 0]),
    ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], "majority", UNKNOWN, None),  # half is not more than half
    ([6, 4, 0, 0, 0, 0, 0, 0, 0, 0], "majority", 0, [1, 0, 0, 0]),
    ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "majority", UNKNOWN, None),  # single votes count for nothing
    ([0, 0, 0, 0, 2, 0, 0, 0, 8, 0], "majority", UNKNOWN, None),
    ([0, 0, 0, 0, 2, 0, 0, 0, 0, 8], "majority", NOT_A_FACE, None),
    ([4, 3, 3, 0, 0, 0, 0, 0, 0, 0], "crossentropy", 0, [0.4, 0.3, 0.3, 0]),
    ([6, 4, 0, 0, 0, 0, 0, 0, 0, 0], "probability", 0, [0.6, 0.4, 0, 0]),
    ([8, 2, 0, 0, 0, 0, 0, 0, 0, 0], "probability", 0, [1, 0, 0, 0]),  # three quarters are enough
    ([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], "probability", UNKNOWN, None),  # more than three classes
    ([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], "probability", 0, [1, 0, 0, 0]),
    ([4, 0, 0, 0, 0, 0, 0, 0, 6, 0], "probability", UNKNOWN, None),
    ([4, 4, 2, 0, 0, 0, 0, 0, 0, 0], "multi_target", 0, [0.5, 0.5, 0, 0]),
    ([3, 2, 2, 2, 0, 0, 0, 0, 0, 0], "multi_target", UNKNOWN, None),
    ([1, 0, 0, 0, 0, 0, 0, 0, 9, 0], "argmax", 0, [1, 0, 0, 0]),
    ([0, 0, 0, 0, 0, 0, 0, 0, 5, 5], "argmax", UNKNOWN, None),
]


@pytest.mark.parametrize(("votes", "mode", "label", "target"), CASES)
def test_rules_of_the_paper(votes: list[int], mode: str, label: int, target: list[float] | None) -> None:
    found = decide(np.array([votes]), mode)
    assert found.label[0] == label
    assert np.allclose(found.target[0], [*target, 0, 0, 0, 0] if target else [0] * 8)


def test_ties_of_argmax_are_told() -> None:
    found = decide(np.array([[3, 3, 0, 0, 0, 0, 0, 0, 2, 2], [4, 3, 0, 0, 0, 0, 0, 0, 4, 0]]), "argmax")
    assert found.ties.tolist() == [True, False] and found.label.tolist() == [0, 0]


@given(st.lists(st.lists(st.integers(0, 10), min_size=10, max_size=10), max_size=20), st.sampled_from(MODES))
def test_targets_are_shares_and_agree_with_the_label(votes: list[list[int]], mode: str) -> None:
    found = decide(np.array(votes, np.int64).reshape(-1, 10), mode)
    kept = found.label < UNKNOWN
    assert np.allclose(found.target[kept].sum(axis=1), 1) and not found.target[~kept].any()
    assert (found.target[kept].argmax(axis=1) == found.label[kept]).all()
