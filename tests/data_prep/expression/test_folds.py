"""Folds keep subjects apart, and copies together."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.errors import ConfigError
from data_prep.expression.splitting import join_copies
from tests.data.expression import make
from tests.data_prep.expression.helpers import run

SIDES = ("train", "val", "test")


def sides_of(out: Path, fold: int) -> dict[str, str]:
    table = pl.read_csv(out / "folds" / f"splits_{fold}.csv")
    return {name: side for side in SIDES for name in table[side].drop_nulls()}


def folder_with_copies(raw: Path) -> Path:
    """Forty pictures; 20 to 29 are copies of 0 to 9, and 30 is nearly 31."""
    for number in range(40):
        name = raw / ("happy", "sad")[number % 2] / f"{number:02d}.png"
        pixels = make.face(number - 20 if 20 <= number < 30 else number, 64)
        make.save(name, pixels)
    almost = make.face(30, 64).copy()
    almost[0, 0] ^= 1
    make.save(raw / "sad" / "31.png", almost)
    return raw


@pytest.mark.parametrize("rule", ["auto", "report"])
@pytest.mark.parametrize("by", ["subject", "image"])
def test_copies_are_on_one_side_of_every_fold(tmp_path: Path, rule: str, by: str) -> None:
    raw = folder_with_copies(tmp_path / "raw")
    options = {"ratios": (1, 0, 0)} if rule == "auto" else {}
    card = run("folder", raw, tmp_path / "out", folds=5, duplicates=rule, split_by=by, **options)
    assert card["duplicates"]["folds"] == [0] * 5
    tested: list[str] = []
    for fold in range(5):
        side = sides_of(tmp_path / "out", fold)
        assert len(side) == 40
        for number in range(10):
            assert side[f"{number:02d}.png"] == side[f"{number + 20:02d}.png"]
        assert side["30.png"] == side["31.png"]  # as near ones are dropped from the split
        tested += [name for name, where in side.items() if where == "test"]
    assert sorted(tested) == sorted(sides_of(tmp_path / "out", 0))


def test_subjects_with_copies_of_each_other_stay_together(tmp_path: Path) -> None:
    for number in range(36):
        subject, shot = divmod(number, 3)
        # the last picture of subject 0 is the first one of subject 1, and so on to 3
        shown = number - 1 if shot == 0 and 1 <= subject <= 3 else number
        make.save(tmp_path / "raw" / ("happy", "sad")[number % 2] / f"s{subject:02d}_{shot}.png", make.face(shown, 64))
    options = {"subject_pattern": r"(s\d+)_\d", "duplicates": "report"}
    card = run("folder", tmp_path / "raw", tmp_path / "out", folds=4, **options)
    assert card["duplicates"]["folds"] == [0] * 4 and card["group"]["kept_apart"]
    for fold in range(4):
        side = sides_of(tmp_path / "out", fold)
        assert len({side[f"s{subject:02d}_{shot}.png"] for subject in range(4) for shot in range(3)}) == 1
        assert all(len({side[f"s{subject:02d}_{shot}.png"] for shot in range(3)}) == 1 for subject in range(12))
    with pytest.raises(ConfigError, match="there are only 9 subjects that have no copies of each other"):
        run("folder", tmp_path / "raw", tmp_path / "many", folds=10, **options)


def test_data_without_folds_have_none_to_tell(tmp_path: Path) -> None:
    assert run("folder", folder_with_copies(tmp_path / "raw"), tmp_path / "out")["duplicates"]["folds"] == []


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=12),
)
def test_what_is_joined_is_one_group_and_nothing_else_is(subjects: list[int], pairs: list[tuple[int, int]]) -> None:
    names, units = [str(at) for at in range(len(subjects))], [f"s{subject}" for subject in subjects]
    found = join_copies(names, units, [(str(one), str(other)) for one, other in pairs])
    # the same by going from neighbour to neighbour; images from 30 on were left out, and link others
    reached = [{at} for at in range(40)]
    for _ in range(40):
        for links in (pairs, [(a, b) for a in range(len(units)) for b in range(a) if units[a] == units[b]]):
            for one, other in links:
                joined = reached[one] | reached[other]
                for member in joined:
                    reached[member] = joined
    for one in range(len(units)):
        for other in range(len(units)):
            assert (found[one] == found[other]) == (other in reached[one])
        assert found[one] in units
