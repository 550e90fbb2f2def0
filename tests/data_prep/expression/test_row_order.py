"""Rows of two tables that were moved, told by labels that agree no more often than real ones do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.expression import fer2013
from data_prep.expression.ferplus import read_votes
from data_prep.expression.row_order import find_disorder
from data_prep.expression.votes import CLASSES
from tests.data.expression import make
from tests.data_prep.expression.helpers import run

I64 = npt.NDArray[np.int64]
# about the shares of FER2013 and of FER+, in the order of the votes
THEIRS = np.array([0.172, 0.25, 0.111, 0.169, 0.138, 0.015, 0.145, 0.0])
OURS = np.array([0.35, 0.29, 0.125, 0.12, 0.084, 0.005, 0.021, 0.005])


def draw(seed: int, rows: int, agree: float = 0.65, sure: float = 0.875) -> tuple[I64, I64, npt.NDArray[np.bool_]]:
    """Labels of which so many agree, and fewer where the votes are not sure."""
    rng = np.random.default_rng(seed)
    theirs = rng.choice(8, rows, p=THEIRS)
    certain = rng.random(rows) < sure
    same = rng.random(rows) < np.where(certain, agree, agree / 2)
    other = (theirs + rng.choice(np.arange(1, 8), rows)) % 8
    wrong = np.where(rng.random(rows) < 0.5, rng.choice(8, rows, p=OURS), other)
    return theirs, np.where(same, theirs, wrong), certain


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(200, 3000), st.floats(0.55, 1))
def test_the_right_order_is_never_refused(seed: int, rows: int, agree: float) -> None:
    theirs, ours, sure = draw(seed, rows, agree)
    assert find_disorder(theirs, ours, sure, 8) is None


@pytest.mark.slow
def test_tables_as_long_as_the_real_one_are_not_refused() -> None:
    for seed in range(40):
        theirs, ours, sure = draw(seed, 35_887)
        assert find_disorder(theirs, ours, sure, 8) is None


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high", "enough"), [(30, 40, 142), (60, 400, 150)])
def test_how_many_rotated_blocks_are_found(low: int, high: int, enough: int) -> None:
    found = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        length = int(rng.integers(low, high))
        by, start = int(rng.integers(1, length)), int(rng.integers(0, 1000))
        theirs, ours, sure = draw(seed, 1600)
        theirs[start : start + length] = np.roll(theirs[start : start + length], by)
        found += find_disorder(theirs, ours, sure, 8) is not None
    assert found >= enough


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(40, 400), st.integers(0, 700), st.data())
def test_blocks_that_were_rotated_are_found(seed: int, length: int, start: int, data: st.DataObject) -> None:
    theirs, ours, sure = draw(seed, 1200, agree=0.8)
    by = data.draw(st.integers(1, length - 1), "by")
    theirs[start : start + length] = np.roll(theirs[start : start + length], by)
    found = find_disorder(theirs, ours, sure, 8)
    # the first rows of a block come from its end: if they are few, and that is far, the next ones are told
    assert found is not None and start - 15 <= found.row <= start + min(length, 45)


@pytest.mark.parametrize(("length", "enough"), [(30, 15), (60, 20)])
def test_short_blocks_are_found_among_labels_that_often_disagree(length: int, enough: int) -> None:
    found = 0
    for seed in range(20):
        theirs, ours, sure = draw(seed, 1000)
        theirs[400 : 400 + length] = np.roll(theirs[400 : 400 + length], -1)
        place = find_disorder(theirs, ours, sure, 8)
        found += place is not None and place.shift == 1 and abs(place.row - 400) <= 20
    assert found >= enough


def test_a_row_that_is_missing_and_one_that_was_added() -> None:
    for seed in range(12):
        theirs, ours, sure = draw(seed, 1500)
        moved = np.concatenate([theirs[:300], theirs[301:380], [4], theirs[380:]])
        found = find_disorder(moved, ours, sure, 8)
        assert found is not None and found.shift == 1 and abs(found.row - 300) <= 20
        # nearly all rows are off: what is right is told, too, as all but one shift is without sense
        moved = np.concatenate([theirs[:100], [4], theirs[100:-1]])
        found = find_disorder(moved, ours, sure, 8)
        assert found is not None and found.shift == -1 and abs(found.row - 100) <= 20


def test_rows_from_elsewhere_fit_nothing() -> None:
    theirs, ours, sure = draw(0, 3000)
    theirs[500:620], theirs[2500:2620] = theirs[2500:2620].copy(), theirs[500:620].copy()
    found = find_disorder(theirs, ours, sure, 8)
    assert found is not None and found.shift is None and abs(found.row - 500) <= 20
    found = find_disorder(np.random.default_rng(1).permutation(theirs), ours, sure, 8)
    assert found is not None and found.row == 0 and found.shift is None


def test_rows_without_labels_and_tables_of_one_class() -> None:
    nothing = np.full(50, -1)
    assert find_disorder(nothing, nothing, np.ones(50, bool), 8) is None
    assert find_disorder(np.zeros(50, np.int64), np.zeros(50, np.int64), np.ones(50, bool), 8) is None
    assert find_disorder(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool), 8) is None


def write(folder: Path, labels: I64, ours: I64, shown: I64) -> Path:
    """Both tables of FER+: pixels of two numbers, votes that agree with `ours`."""
    names = [fer2013.CLASSES.index(name) if name in fer2013.CLASSES else 0 for name in CLASSES]
    tiny = np.array([[0, 200], [90, 7]], np.uint8)
    rows = [(names[label], "Training", tiny + np.uint8(at % 50)) for at, label in enumerate(labels)]
    changed = {at: [8 * int(k == label) for k in range(8)] + [2, 0] for at, label in enumerate(ours)}
    make.pixel_csv(folder / "fer2013.csv", [rows[at] for at in shown])
    make.make_ferplus(folder, rows, changed)
    return folder


def test_tables_whose_rows_were_rotated_are_refused_with_the_row(tmp_path: Path) -> None:
    theirs, ours, _ = draw(3, 600)
    order = np.arange(600)
    order[200:260] = np.roll(order[200:260], -7)
    raw = write(tmp_path / "raw", theirs, ours, order)
    message = r"fer2013\.csv: from about row (19|20)\d on, labels do not fit the votes .* but those \d+ rows further on"
    with pytest.raises(ConfigError, match=message):
        run("ferplus", raw, tmp_path / "out")


def test_votes_of_which_a_row_is_missing_are_refused(tmp_path: Path) -> None:
    rows = make.fer_rows(4)
    path = make.make_ferplus(tmp_path, rows, removed=9)
    lines = path.read_text().splitlines()
    assert len(read_votes(path).names) == 84
    # another row in its place keeps the number of rows
    path.write_text("\n".join([*lines[:30], *lines[31:], lines[-1].replace("fer0000083", "fer0000084")]) + "\n")
    with pytest.raises(CorruptRecordError, match=r"behind fer0000028\.png, 1 row is missing before fer0000030\.png"):
        read_votes(path)
    # numbers that go on behind an image which the authors removed are as good as those that leave it out
    later = [line.replace(f"fer{at:07d}", f"fer{at - 1:07d}") if at > 9 else line for at, line in enumerate(lines, -1)]
    path.write_text("\n".join(later) + "\n")
    assert read_votes(path).names[10] == "fer0000009.png"
