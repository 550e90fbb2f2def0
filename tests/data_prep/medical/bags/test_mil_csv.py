"""Classic multiple-instance sets: one file, a row per instance."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import (
    ConfigError,
    CorruptRecordError,
    DatasetNotFoundError,
    PrepError,
    RejectsExceededError,
)
from data_prep.medical.wsi.bags.mil_csv import prepare
from data_prep.medical.wsi.bags.splitting import split
from tests.data_prep.helpers import kill_and_continue, tree
from tests.data_prep.medical.bags.helpers import bag, index, rejects

# Label, bag, two features: 12 bags of one to three rows, not all together.
ROWS = [(i % 2, f"b{i:02d}", i + 0.5, -10 * k) for k in range(3) for i in range(12) if i % 3 >= k]


def run(raw: Any, out: Path, **options: Any) -> dict[str, Any]:
    return prepare(
        "mil-csv", raw, out, **{"executor": "serial", "progress": False, "ratios": (0.5, 0.25, 0.25), **options}
    )


def write(path: Path, rows: Iterable[Any] = ROWS, header: str = "", separator: str = ",") -> Path:
    lines = [header] if header else []
    path.write_text("\n".join([*lines, *(separator.join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_bags_are_gathered_from_all_their_rows(tmp_path: Path) -> None:
    card = run(write(tmp_path / "set.csv"), tmp_path / "out")
    assert (card["feature_dim"], card["classes"], card["counts"]["patches"]) == (2, ["0", "1"], 24)
    assert card["group"] == {"name": "bag", "kept_apart": True, "groups": 12}
    rows = index(tmp_path / "out")
    assert rows["name"].to_list() == [f"b{i:02d}" for i in range(12)] and rows["patient"].equals(rows["name"])
    assert rows["label"].to_list() == [0, 1] * 6 and rows["coords"].to_list() == [""] * 12
    assert bag(tmp_path / "out", "b05").tolist() == [[5.5, 0], [5.5, -10], [5.5, -20]]
    assert {name: entry["rows"] for name, entry in card["splits"].items()} == {"train": 6, "valid": 3, "test": 3}
    assert run(tmp_path / "set.csv", tmp_path / "out") == card


@pytest.mark.parametrize(
    ("header", "separator", "order", "options"),
    [
        ("label,bag,x,y", ",", (0, 1, 2, 3), {}),
        ("x,bag_id,y,Class", ",", (2, 1, 3, 0), {}),
        ("x;why;y;which", ";", (2, 0, 3, 1), {"label_column": "why", "bag_column": "which"}),
        ("", "\t", (2, 3, 0, 1), {"label_column": "2", "bag_column": "3"}),
        ("", "   ", (0, 1, 2, 3), {}),
    ],
)
def test_any_order_header_and_separator(
    tmp_path: Path, header: str, separator: str, order: Any, options: Any, capsys: Any
) -> None:
    run(write(tmp_path / "plain.csv"), tmp_path / "plain")
    assert "label in column 0, bag in column 1; 2 features from column 2 to 3" in capsys.readouterr().err
    moved = [tuple(row[column] for column in order) for row in ROWS]
    run(write(tmp_path / "set.csv", moved, header, separator), tmp_path / "out", **options)
    for name in index(tmp_path / "plain")["name"]:
        assert np.array_equal(bag(tmp_path / "out", name), bag(tmp_path / "plain", name))
    columns = ("name", "label", "split")
    assert index(tmp_path / "out").select(columns).equals(index(tmp_path / "plain").select(columns))


def test_packed_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "set.csv.gz").write_bytes(gzip.compress(write(tmp_path / "set.csv").read_bytes()))
    run(folder, tmp_path / "out")
    run([tmp_path / "set.csv"], tmp_path / "plain")
    assert index(tmp_path / "out").equals(index(tmp_path / "plain"))
    write(folder / "other.csv")
    with pytest.raises(ConfigError, match="a set is one file"):
        run(folder, tmp_path / "no")
    with pytest.raises(DatasetNotFoundError):
        run(tmp_path / "none.csv", tmp_path / "no")


def test_patients_sites_and_official_splits_of_bags(tmp_path: Path) -> None:
    sides = ("train", "train", "val", "test")
    rows = [(*row, f"p{int(row[1][1:]) // 3}", "AB"[row[0]], sides[int(row[1][1:]) // 3]) for row in ROWS]
    path = write(tmp_path / "set.csv", rows, "label,bag,x,y,who,where,side")
    options = {"patient_column": "who", "site_column": "where", "split_column": "side"}
    card = run(path, tmp_path / "out", **options)
    assert card["group"] == {"name": "patient", "kept_apart": True, "groups": 4}
    assert index(tmp_path / "out", "test")["patient"].unique().to_list() == ["p3"]
    assert card["split_rule"]["kind"] == "column" and card["feature_dim"] == 2
    left = run(path, tmp_path / "left", patient_column="who", leave_out=["where", "6"])
    assert left["feature_dim"] == 2 and left["split_rule"]["kind"] == "stratified"
    with pytest.raises(ConfigError, match=r"column 'where' holds no number; leave it out with --leave-out where"):
        run(path, tmp_path / "no", patient_column="who")
    with pytest.raises(ConfigError, match=r"no column 'age' \(patient_column\); there are 7"):
        run(path, tmp_path / "no", patient_column="age")


def test_rows_that_lack_numbers_and_bags_of_two_labels(tmp_path: Path, capsys: Any) -> None:
    rows = [list(row) for row in ROWS]
    rows[2][3] = "NA"  # b02: one of three rows
    rows[3][2] = "inf"  # b03: its only row
    rows[5][0] = 1 - rows[5][0]  # b05: two labels
    rows[7][0] = ""  # b07: a label in one of its rows only
    path = write(tmp_path / "set.csv", rows)
    with pytest.raises(RejectsExceededError, match=r"3 of 12 records are unusable"):
        run(path, tmp_path / "out", max_bad=0.5)
    card = run(path, tmp_path / "out", max_bad=0.5, max_rejects=0.5)
    assert bag(tmp_path / "out", "b02").tolist() == [[2.5, -10], [2.5, -20]]
    assert "rows that lack a number were left out of 1 bags, 1 in all" in capsys.readouterr().err
    found = {item["excerpt"]: (item["record"], item["field"], item["reason"]) for item in rejects(tmp_path / "out")}
    assert found["bag b03"] == (3, "features", "1 of 1 rows lack a number")
    assert found["bag b05"] == (5, "label", "rows of one bag have different labels ('0', '1')")
    assert found["bag b07"] == (7, "label", "rows of one bag have different labels ('', '1')")
    assert card["counts"]["slides"] == 9


def test_a_bag_without_label_is_rejected(tmp_path: Path) -> None:
    rows = [("", *row[1:]) if row[1] == "b04" else row for row in ROWS]
    run(write(tmp_path / "set.csv", rows), tmp_path / "out", max_rejects=0.1)
    assert [(item["reason"], item["record"]) for item in rejects(tmp_path / "out")] == [("label missing", 4)]


def test_bags_of_different_names_stay_different(tmp_path: Path, capsys: Any) -> None:
    names = ["a/0", "b/0", "dogs/1.jpg", "cats/1.jpg", "c.svs", "c", "1", "01", "A", "a", "x 1", "x  1"]
    rows = [(label, names[int(bag[1:])], *rest) for label, bag, *rest in ROWS]
    card = run(write(tmp_path / "set.csv", rows), tmp_path / "out")
    safe = ["a_0", "b_0", "dogs_1.jpg", "cats_1.jpg", *names[4:]]
    assert index(tmp_path / "out")["name"].to_list() == sorted(safe) and card["counts"]["patches"] == 24
    assert bag(tmp_path / "out", "cats_1.jpg").tolist() == [[3.5, 0]]
    assert "names of 4 bags cannot be those of files: 'a/0' is called 'a_0' here" in capsys.readouterr().err
    # Lists call bags as the file does.
    sides = {"train": names[:6], "val": names[6:8], "test": names[8:]}
    (tmp_path / "lists.json").write_text(json.dumps(sides))
    run(tmp_path / "set.csv", tmp_path / "listed", splits=str(tmp_path / "lists.json"))
    assert index(tmp_path / "listed", "test")["name"].to_list() == sorted(safe[8:])
    found = split(tmp_path / "out", tmp_path / "folds", method="lists", splits=str(tmp_path / "lists.json"))
    assert found["folds"][0]["train"]["slides"] == 6 and not found["in_lists_only"]


def test_bags_that_would_be_one_file_are_refused(tmp_path: Path) -> None:
    rows = [(label, {"b00": "a/0", "b01": "a_0"}.get(bag, bag), *rest) for label, bag, *rest in ROWS]
    with pytest.raises(ConfigError, match=r"set\.csv: bags 'a/0' and 'a_0' would both be files called 'a_0'; rename"):
        run(write(tmp_path / "set.csv", rows), tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"1,a,2\n1,a,2,3\n", "rows of different length"),
        (b"1,2\n3,4\n", "2 columns; needed are label, bag and features"),
        (b"label,bag,x\n1,2,3,4\n", "names 3 columns, the rows have 4"),
        (b"\x89\0\xff", "is no text"),
        (gzip.compress(b"1,a,2\n" * 99, mtime=0)[:-9], "gzip file is damaged"),
    ],
)
def test_damaged_sets_are_told_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "set.csv").write_bytes(data)
    with pytest.raises(CorruptRecordError, match=message):
        run(tmp_path / "set.csv", tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300), st.binary(max_size=3), st.integers(1, 600))
def test_flipped_and_cut_sets_raise_only_errors_for_users(
    tmp_path_factory: Any, position: int, flipped: bytes, length: int
) -> None:
    folder = tmp_path_factory.mktemp("mil")
    data = bytearray(write(folder / "set.csv").read_bytes())
    data[position : position + len(flipped)] = flipped
    (folder / "set.csv").write_bytes(data[:length])
    try:
        run(folder / "set.csv", folder / "out", max_rejects=1.0)
    except PrepError as error:
        assert "\n" not in str(error)


WORKER = """
import sys
from pathlib import Path
from data_prep.medical.wsi.bags.mil_csv import prepare
if __name__ == "__main__":
    raw, out = map(Path, sys.argv[1:])
    prepare("mil-csv", raw, out, ratios=(0.5, 0.25, 0.25), executor="serial", progress=False)
"""


def test_killed_then_continued(tmp_path: Path) -> None:
    path, out = write(tmp_path / "set.csv"), tmp_path / "out"
    run(path, tmp_path / "serial")
    assert kill_and_continue(tmp_path, WORKER, [path, out], out, [1]) == tree(tmp_path / "serial")


@pytest.mark.shared
def test_musk1(tmp_path: Path, shared: Path) -> None:
    card = run(shared / "medical" / "musk1.csv", tmp_path / "out")
    rows = index(tmp_path / "out")
    assert (rows.height, rows["patches"].sum(), card["feature_dim"], rows["label"].sum()) == (92, 476, 166, 47)
    assert bag(tmp_path / "out", "1")[0, :5].tolist() == [42, -198, -109, -75, -117]
    folds = split(tmp_path / "out", tmp_path / "folds", folds=10)["folds"]
    tested = pl.concat(
        [pl.read_csv(tmp_path / "folds" / f"splits_{k}.csv").select("test").drop_nulls() for k in range(10)]
    )
    assert sorted(tested["test"]) == list(range(1, 93))
    assert all(4 <= fold["test"]["classes"][name] <= 5 for fold in folds for name in ("0", "1"))
