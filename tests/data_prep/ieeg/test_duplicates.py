"""Recordings that hold the same signal are found however they were written again; others are not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from data_prep.common.errors import LeakError
from data_prep.ieeg.duplicates import (
    Fingerprint,
    Transforms,
    best_shift,
    find_duplicates,
    group_subjects,
    refuse_duplicates,
)
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


def direct_shift(one, other):
    """Correlation at every shift that leaves a minute and half of the shorter one, one after the other."""
    least = max(240, min(len(one), len(other)) // 2)
    best = (-1.0, 0.0, 0.0)
    for shift in range(-(len(other) - least), len(one) - least + 1):
        mine, others = one[max(shift, 0) :], other[max(-shift, 0) :]
        n = min(len(mine), len(others))
        found = float(np.corrcoef(mine[:n], others[:n])[0, 1])
        best = max(best, (found, shift / 4, n / 4))
    return best


@pytest.mark.parametrize("budget", [1, 60_000, 1 << 30])
def test_correlations_are_those_of_the_direct_way(budget):
    rng = np.random.default_rng(4)
    sequences = [rng.normal(size=length) for length in (240, 300, 517, 518, 900)]
    sequences.append(np.concatenate([sequences[4][77:700], rng.normal(size=31)]))
    transforms = Transforms(sequences, budget)
    for i, one in enumerate(sequences):
        for j, other in enumerate(sequences):
            score, shift, seconds = transforms.best_shift(i, j)
            wanted = direct_shift(one, other)
            assert score == pytest.approx(wanted[0], abs=1e-9)
            assert (shift, seconds) == wanted[1:]
            assert best_shift(one, other)[1:] == wanted[1:]
    assert sum(len(entry.sums) for entry in transforms._kept.values()) > 0
    assert len(transforms._kept) <= 2 or transforms._bytes <= budget


def test_pairs_of_one_subject_are_not_compared(original, monkeypatch):
    compared = []
    direct = Transforms.best_shift
    monkeypatch.setattr(Transforms, "best_shift", lambda *args: compared.append(args[1:]) or direct(*args))
    prints = [fingerprint(name, "one", original * gain) for name, gain in (("a", 1), ("b", 2), ("c", 1))]
    found = find_duplicates(prints)
    assert found.select("first", "second", "kind").rows() == [("a", "c", "equal")]
    assert compared == []
    prints += [fingerprint("d", "two", original[:, 8000:] * 3), fingerprint("e", "three", original[:, :40_000] * 5)]
    found = find_duplicates(prints)
    assert len(compared) == 7
    assert found["first"].to_list() == ["a", "a", "a", "b", "b", "c", "c", "d"]
    assert found["second"].to_list() == ["c", "d", "e", "d", "e", "d", "e", "e"]


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_where_it_is_asked_for(original, capsys, progress):
    prints = [fingerprint("a", "one", original), fingerprint("b", "two", original * 2)]
    assert len(find_duplicates(prints, progress)) == 1
    shown = capsys.readouterr()
    assert ("compare" in shown.err) == progress
    assert shown.out == ""


def test_subjects_of_one_person_are_joined():
    none = find_duplicates([])
    assert group_subjects(list("abcd"), none, [["b", "d"]]) == {"a": "a", "b": "b", "c": "c", "d": "b"}
    with pytest.raises(LeakError, match="subjects b and d: the headers of their files name the same patient"):
        refuse_duplicates(none, [["b", "d"]])
