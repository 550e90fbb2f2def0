"""Recordings that hold the same signal are found however they were written again; others are not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from data_prep.common.errors import LeakError
from data_prep.ieeg.duplicates import Fingerprint, best_shift, find_duplicates, group_subjects, refuse_duplicates
from data_prep.ieeg.planted import add_seizure, background, draw_seizures
from data_prep.ieeg.signal.statistics import Scanner

RATE = 200.0


def fingerprint(name, subject, signal, rate=RATE):
    scanner = Scanner(len(signal), rate)
    for start in range(0, signal.shape[1], 4000):
        scanner.add(np.ascontiguousarray(signal[:, start : start + 4000], dtype=np.float32))
    found = scanner.result()
    return Fingerprint(name, subject, found.digest, found.envelope)


@pytest.fixture(scope="module")
def original():
    return background(np.random.default_rng(0), 6, int(300 * RATE), RATE)


def resampled(signal):
    return scipy.signal.resample_poly(signal, 5, 4, axis=1)


CHANGES = {
    "scaled": lambda x: (x * 0.37, RATE),
    "with an offset": lambda x: (x + 1000, RATE),
    "cut": lambda x: (x[:, int(37.4 * RATE) :], RATE),
    "cut at both ends": lambda x: (x[:, int(61.3 * RATE) : int(260 * RATE)], RATE),
    "resampled": lambda x: (resampled(x), RATE * 1.25),
    "re-referenced": lambda x: (x - x.mean(0), RATE),
    "fewer channels": lambda x: (x[:4], RATE),
    "quantised": lambda x: (np.round(x), RATE),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found(original, change):
    copy, rate = CHANGES[change](original)
    pairs = find_duplicates([fingerprint("a", "one", original), fingerprint("b", "two", copy, rate)])
    assert pairs.select("first", "second", "kind").rows() == [("a", "b", "similar")]


def test_equal_recordings_are_found_however_short():
    signal = background(np.random.default_rng(1), 2, 400, RATE)
    pairs = find_duplicates([fingerprint(name, name, signal) for name in "abc"])
    assert pairs.select("first", "second", "kind").rows() == [("a", "b", "equal"), ("a", "c", "equal")]
    assert set(group_subjects(["a", "b", "c", "d"], pairs).values()) == {"a", "d"}


def test_seizures_make_no_copies():
    prints = []
    for i in range(8):
        rng = np.random.default_rng(50 + i)
        signal = background(rng, 4, int(200 * RATE), RATE)
        for seizure in draw_seizures(rng, 200, [[0, 1], [2, 3]], 2):
            add_seizure(rng, signal, RATE, seizure, height=600)
        prints.append(fingerprint(str(i), str(i), signal))
    assert find_duplicates(prints).is_empty()


def test_unlike_recordings_are_not_joined():
    prints = [
        fingerprint(str(i), str(i), background(np.random.default_rng(10 + i), 3, int((70 + 10 * i) * RATE), RATE))
        for i in range(12)
    ]
    assert find_duplicates(prints).is_empty()
    rng = np.random.default_rng(3)
    best = max(best_shift(rng.normal(size=400), rng.normal(size=400))[0] for _ in range(200))
    assert best < 0.5


def test_shared_content_can_be_refused(original):
    pairs = find_duplicates([fingerprint("a", "one", original), fingerprint("b", "two", original * 2)])
    with pytest.raises(LeakError, match="recording a of subject one and b of subject two hold the same signal"):
        refuse_duplicates(pairs)
    same = find_duplicates([fingerprint("a", "one", original), fingerprint("b", "one", original * 2)])
    refuse_duplicates(same)
