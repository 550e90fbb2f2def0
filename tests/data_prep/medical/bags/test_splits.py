"""Patients on one side, whatever the table; CLAM's, ACMIL's and official lists; the same result from any order."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from data_prep.common.errors import ConfigError, LabelError, LeakError, PrepError, RejectsExceededError
from data_prep.common.splits import assign_stratified, refuse_shared
from data_prep.medical.wsi.bags.split_files import read_lists
from data_prep.medical.wsi.bags.splitting import split
from tests.data_prep.helpers import tree
from tests.data_prep.medical.bags.helpers import SLIDES, run, write_native, write_table

SHARES = st.sampled_from([(0.2,) * 5, (0.5, 0.5), (0.7, 0.1, 0.2), (0.9, 0.05, 0.05), (0.34, 0.33, 0.33)])
# Group, class, site; classes follow from the group in the first, not in the second.
PURE = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60).map(
    lambda rows: [(f"g{group}", f"c{group % 4}", f"s{site}") for group, _, site in rows]
)
MIXED = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60).map(
    lambda rows: [(f"g{group}", f"c{label}", f"s{site}") for group, label, site in rows]
)


def divide(rows: list[tuple[str, str, str]], shares: Any, seed: int) -> list[int]:
    groups, classes, sites = zip(*rows, strict=True)
    return assign_stratified(groups, classes, shares, sites=sites, seed=seed).tolist()


@settings(max_examples=80, deadline=None)
@given(st.one_of(PURE, MIXED), SHARES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_groups_stay_whole_whatever_the_table_and_its_order(rows: Any, shares: Any, seed: int, random: Any) -> None:
    parts = divide(rows, shares, seed)
    place: dict[str, int] = {}
    for (group, _, _), part in zip(rows, parts, strict=True):
        assert place.setdefault(group, part) == part and 0 <= part < len(shares)
    order = list(range(len(rows)))
    random.shuffle(order)
    assert divide([rows[index] for index in order], shares, seed) == [parts[index] for index in order]


@settings(max_examples=80, deadline=None)
@given(PURE, SHARES, st.integers(0, 5))
def test_every_class_is_in_every_part_when_there_are_groups_enough(rows: Any, shares: Any, seed: int) -> None:
    parts = divide(rows, shares, seed)
    groups, held = defaultdict(set), defaultdict(set)
    for (group, label, _), part in zip(rows, parts, strict=True):
        groups[label].add(group)
        held[label].add(part)
    for label in groups:
        if len(groups[label]) >= len(shares):
            assert held[label] == set(range(len(shares)))


def test_parts_have_their_shares_of_classes_sites_and_rows() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for group in range(300):
        label, site = rng.choice(4, p=[0.5, 0.3, 0.15, 0.05]), rng.integers(3)
        rows += [(f"g{group}", f"c{label}", f"s{site}")] * int(1 + rng.poisson(1))
    for shares in ((0.7, 0.1, 0.2), (0.2,) * 5):
        parts = np.array(divide(rows, shares, seed=3))
        for column in (1, 2):
            for name, count in Counter(row[column] for row in rows).items():
                mine = np.array([row[column] == name for row in rows])
                found = [(mine & (parts == part)).sum() for part in range(len(shares))]
                assert np.abs(np.array(found) - count * np.array(shares)).max() < 6 + 0.05 * count
    assert divide(rows, (0.2,) * 5, seed=3) != divide(rows, (0.2,) * 5, seed=4)


def test_folds_are_as_even_as_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    sizes = 1 + rng.poisson(2, size=60)
    groups = np.repeat(np.arange(60), sizes)
    classes = np.repeat(rng.choice(3, size=60, p=[0.6, 0.3, 0.1]), sizes)

    def spread(parts: np.ndarray) -> float:
        tables = [np.bincount(classes[parts == part], minlength=3) / np.bincount(classes) for part in range(5)]
        return float(np.std(tables, axis=0).mean())

    theirs = np.zeros(len(groups), int)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(groups, classes, groups)
    for fold, (_, test) in enumerate(folds):
        theirs[test] = fold
    mine = assign_stratified([str(g) for g in groups], [str(c) for c in classes], (0.2,) * 5)
    assert spread(mine) < 1.5 * spread(theirs)


def test_a_leak_names_the_group_and_its_members() -> None:
    sides = ["train", "train", "test", "", "valid"]
    refuse_shared("subject", ["a", "a", "b", "a", "c"], sides, list("vwxyz"), "scan")
    with pytest.raises(
        LeakError, match=r"^f\.csv: subject 'a' is in train \(scans v, w\) and in test \(scan x\); 1 of 2"
    ):
        refuse_shared(
            "subject",
            ["a", "a", "a", "b", "c"],
            ["train", "train", "test", "", "valid"],
            list("vwxyz"),
            "scan",
            "f.csv",
        )


# -- the command


def cut(table: Path, out: Path, **options: Any) -> dict[str, Any]:
    return split(table, out, **options)


def lists(path: Path) -> dict[str, list[str]]:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [row[name] for row in rows if row[name]] for name in ("train", "val", "test")}


def patients_of(names: list[str]) -> set[str]:
    known = {slide: patient for patient, slide, *_ in SLIDES}
    return {known[name] for name in names}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "slides.csv")


def test_k_fold_tests_every_slide_once_and_keeps_patients_apart(tmp_path: Path, table: Path, capsys: Any) -> None:
    card = cut(table, tmp_path / "out", folds=3)
    tested: list[str] = []
    for fold in range(3):
        found = lists(tmp_path / "out" / f"splits_{fold}.csv")
        assert sorted(name for names in found.values() for name in names) == sorted(row[1] for row in SLIDES)
        sides = [patients_of(names) for names in found.values()]
        assert sum(map(len, sides)) == 12 and all(sides)
        tested += found["test"]
        counted = card["folds"][fold]["test"]
        assert counted["slides"] == len(found["test"]) and min(counted["classes"].values()) > 0
    assert sorted(tested) == sorted(row[1] for row in SLIDES)
    assert "fold 2: train" in capsys.readouterr().out
    assert card["group"] == {"name": "patient", "kept_apart": True, "groups": 12}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"splits_{fold}{end}.csv" for fold in range(3) for end in ("", "_bool", "_descriptor")),
        "split.json",
        "rejects.parquet",
    }


def test_the_files_are_those_of_clam(tmp_path: Path) -> None:
    rows = [(f"p{i}", f"s{i}", i % 2) for i in range(10)]
    out = tmp_path / "out"
    cut(
        write_table(tmp_path / "t.csv", rows, "case_id,slide_id,label"),
        out,
        folds=1,
        method="hold-out",
        ratios=(0.6, 0.2, 0.2),
    )
    plain = (out / "splits_0.csv").read_text().splitlines()
    assert plain[0] == ",train,val,test" and plain[1].startswith("0,s") and plain[-1].endswith(",,")
    marks = (out / "splits_0_bool.csv").read_text().splitlines()
    assert marks[0] == ",train,val,test" and len(marks) == 11
    assert {tuple(sorted(line.split(",")[1:])) for line in marks[1:]} == {("False", "False", "True")}
    assert (out / "splits_0_descriptor.csv").read_text() == ",train,val,test\n0,3,1,1\n1,3,1,1\n"


def test_row_order_changes_nothing_and_the_seed_does(tmp_path: Path) -> None:
    cut(write_table(tmp_path / "a.csv"), tmp_path / "one")
    cut(write_table(tmp_path / "b.csv", SLIDES[::-1]), tmp_path / "two")
    cut(tmp_path / "a.csv", tmp_path / "three", seed=1)
    texts = [(tmp_path / name / "splits_0.csv").read_text() for name in ("one", "two", "three")]
    assert texts[0] == texts[1] != texts[2]
    before = tree(tmp_path / "one")
    cut(tmp_path / "a.csv", tmp_path / "one")
    assert tree(tmp_path / "one") == before
    with pytest.raises(ConfigError, match="not of this division"):
        cut(tmp_path / "a.csv", tmp_path / "one", seed=1)


@pytest.mark.parametrize("ending", ["", "_bool"])
def test_lists_of_clam_are_read_back(tmp_path: Path, table: Path, ending: str) -> None:
    cut(table, tmp_path / "out", folds=3)
    path = tmp_path / "out" / f"splits_1{ending}.csv"
    cut(table, tmp_path / "again", method="lists", splits=str(path))
    for end in ("", "_bool", "_descriptor"):
        one, other = tmp_path / "out" / f"splits_1{end}.csv", tmp_path / "again" / f"splits_0{end}.csv"
        assert one.read_bytes() == other.read_bytes()


def test_every_kind_of_list_says_the_same(tmp_path: Path) -> None:
    wanted = {"train": ["a.1", "b"], "valid": ["c"], "test": ["d"]}
    (tmp_path / "acmil.json").write_text(
        json.dumps({"train_names": ["a.1.svs", "b"], "val_names": ["c"], "test_names": ["x/d.tif"]})
    )
    (tmp_path / "official.csv").write_text(
        "slide_id,split_info\na.1,train\nb,Training\nc,validation\nd,test\ne,\n", encoding="utf-16"
    )
    (tmp_path / "clam.csv").write_text(",train,val,test\n0,a.1,c,d\n1,b,,\n")
    folder = tmp_path / "lists"
    folder.mkdir()
    for name, text in (("train.txt", "a.1\nb.svs\n\n"), ("val.csv", "slide_id\nc\n"), ("test.txt", "d")):
        (folder / name).write_text(text)
    for source in ("acmil.json", "official.csv", "clam.csv", "lists"):
        assert read_lists(tmp_path / source) == wanted


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", ",train,val,test\n0,a,b,a\n", "slide 'a' is in train and in test"),
        ("a.json", '{"train_names": ["a"], "val_names": ["a"]}', "slide 'a' is in train and in valid"),
        ("a.json", '{"train": "a"}', "no list of slide ids"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[]", "no slide is in train, val or test"),
        ("a.csv", "slide_id,x\na,b\n", "no splits: give columns train, val, test"),
        ("a.csv", "slide_id,split\na,later\n", "row 0: split 'later'"),
    ],
)
def test_lists_that_cannot_be(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PrepError, match=message):
        read_lists(tmp_path / name)


def test_one_patient_in_two_splits_is_refused(tmp_path: Path, table: Path) -> None:
    (tmp_path / "leak.csv").write_text(",train,val,test\n0,s02.0,s00.0,s02.1\n1,s01.0,s03.0,s02.2\n")
    with pytest.raises(
        LeakError, match=r"leak\.csv: patient 'p02' is in train \(slide s02\.0\) and in test \(slides s02"
    ):
        cut(table, tmp_path / "out", method="lists", splits=str(tmp_path / "leak.csv"))
    assert not (tmp_path / "out").exists()
    rows = [("p1", "a", 0, "train"), ("p1", "b", 1, "test"), ("p2", "c", 1, "train")]
    official = write_table(tmp_path / "t.csv", rows, "case_id,slide_id,label,split_info")
    with pytest.raises(LeakError, match=r"t\.csv: patient 'p1' is in train \(slide a\) and in test \(slide b\)"):
        cut(official, tmp_path / "out", method="lists", splits="column")


def test_slides_in_lists_that_do_not_exist_are_named(tmp_path: Path, table: Path, capsys: Any) -> None:
    (tmp_path / "l.csv").write_text(",train,val,test\n0,s00.0,gone_1,s03.0\n1,s01.0,,gone_2\n")
    card = cut(table, tmp_path / "out", method="lists", splits=str(tmp_path / "l.csv"))
    assert card["in_lists_only"] == ["gone_1", "gone_2"]
    said = capsys.readouterr().err
    assert "names 2 slides (gone_1, gone_2)" in said and "in no split: 21 slides" in said
    (tmp_path / "l.csv").write_text(",train,val,test\n0,x,y,z\n")
    with pytest.raises(ConfigError, match="no slide of the table is in any split"):
        cut(table, tmp_path / "none", method="lists", splits=str(tmp_path / "l.csv"))


def test_lists_may_name_patients(tmp_path: Path, table: Path) -> None:
    (tmp_path / "l.csv").write_text(",train,val,test\n0,p01,p03,p05\n1,p02,,\n")
    cut(table, tmp_path / "out", method="lists", splits=str(tmp_path / "l.csv"))
    assert lists(tmp_path / "out" / "splits_0.csv")["train"] == ["s01.0", "s01.1", "s02.0", "s02.1", "s02.2"]


def test_camelyon_is_split_by_name_and_its_test_set_may_stay(tmp_path: Path) -> None:
    rows = [(f"{kind}{i}", f"{kind}_{i:03d}", kind) for kind in ("normal", "tumor") for i in range(8)]
    rows += [(f"t{i}", f"test_{i:03d}", ("normal", "tumor")[i % 2]) for i in range(6)]
    table = write_table(tmp_path / "t.csv", rows, "case_id,slide_id,label")
    cut(table, tmp_path / "one", method="lists", splits="camelyon")
    found = lists(tmp_path / "one" / "splits_0.csv")
    assert found["test"] == [f"test_{i:03d}" for i in range(6)] and len(found["train"]) == 16
    card = cut(table, tmp_path / "folds", folds=4, fixed_test="camelyon")
    held = [lists(tmp_path / "folds" / f"splits_{fold}.csv") for fold in range(4)]
    assert all(fold["test"] == found["test"] for fold in held)
    assert sorted(name for fold in held for name in fold["val"]) == sorted(found["train"])
    assert all(fold["valid"]["classes"] == {"normal": 2, "tumor": 2} for fold in card["folds"])
    cut(table, tmp_path / "hold", method="hold-out", folds=2, fixed_test="camelyon")
    assert lists(tmp_path / "hold" / "splits_1.csv")["test"] == found["test"]
    with pytest.raises(ConfigError, match="no slide has test in its name"):
        cut(write_table(tmp_path / "u.csv"), tmp_path / "u", method="lists", splits="camelyon")


def test_few_shots_take_slides_of_many_patients(tmp_path: Path, table: Path) -> None:
    card = cut(table, tmp_path / "out", folds=2, n_shot=2)
    for fold in range(2):
        assert card["folds"][fold]["train"]["classes"] == {"normal": 2, "tumor": 2}
        assert len(patients_of(lists(tmp_path / "out" / f"splits_{fold}.csv")["train"])) == 4
    with pytest.raises(ConfigError, match="n_shot 50: class 0 has only"):
        cut(table, tmp_path / "no", n_shot=50)


def test_a_prepared_directory_is_divided_as_a_table_is(tmp_path: Path, table: Path) -> None:
    run(write_native(tmp_path / "features"), tmp_path / "bags", table)
    cut(tmp_path / "bags", tmp_path / "one", folds=3)
    cut(table, tmp_path / "two", folds=3)
    assert (tmp_path / "one" / "splits_2.csv").read_text() == (tmp_path / "two" / "splits_2.csv").read_text()
    with pytest.raises(ConfigError, match="has its own columns"):
        cut(tmp_path / "bags", tmp_path / "x", patients="slide")


def test_bad_rows_and_options_stop_the_command(tmp_path: Path, table: Path) -> None:
    rows = [*SLIDES, ("p99", "s99", "", "A")]
    with pytest.raises(RejectsExceededError, match=r"record 24 field label: label missing"):
        cut(write_table(tmp_path / "t.csv", rows), tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "rejects.parquet").height == 1
    cut(tmp_path / "t.csv", tmp_path / "out", max_rejects=0.1)
    wrong = [{"folds": 13}, {"folds": 1}, {"folds": 0}, {"method": "lists"}, {"splits": "column"}, {"max_rejects": 2}]
    for options in [*wrong, {"ratios": (0.5, 0.1, 0.1)}, {"seed": -1}]:
        with pytest.raises(ConfigError):
            cut(table, tmp_path / "no", **options)
    one = [("p1", "a", 0), ("p2", "b", 0), ("p3", "c", 1)]
    with pytest.raises(LabelError, match=r"fold .*: the training split has only slides of '0'"):
        cut(write_table(tmp_path / "u.csv", one, "case_id,slide_id,label"), tmp_path / "no", folds=3)
    assert not (tmp_path / "no").exists()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40),
    st.sampled_from([("k-fold", 2), ("k-fold", 4), ("hold-out", 2)]),
    st.integers(0, 3),
)
def test_no_patient_is_ever_on_two_sides(tmp_path_factory: Any, rows: Any, how: Any, seed: int) -> None:
    folder = tmp_path_factory.mktemp("split")
    slides = [(f"p{patient}", f"s{i}", label, f"h{site}") for i, (patient, label, site) in enumerate(rows)]
    path = write_table(folder / "t.csv", slides)
    try:
        cut(path, folder / "out", method=how[0], folds=how[1], seed=seed)
    except (ConfigError, LabelError):  # too few patients or classes to learn from
        return
    known = {slide: patient for patient, slide, *_ in slides}
    for fold in range(how[1]):
        sides = lists(folder / "out" / f"splits_{fold}.csv")
        patients = [{known[name] for name in names} for names in sides.values()]
        assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
        assert sum(map(len, sides.values())) == len(slides)
