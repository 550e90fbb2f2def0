from __future__ import annotations

import polars as pl
import pytest

from domains.common.errors import PreparedDataError
from domains.common.folds import apply_split_file
from domains.medical.data import BagData

INDEX = {
    "row": [0, 1, 0, 0, 1],
    "name": ["s1.a", "0007", "s2", "s3", "s4"],
    "patient": ["p1", "p1", "p2", "p3", "p4"],
    "label": [0, 0, 1, 1, 1],
    "split": ["train", "train", "valid", "test", "test"],
}


@pytest.fixture
def root(tmp_path):
    """The index of a prepared directory; patient p1 has two slides."""
    (tmp_path / "all").mkdir()
    pl.DataFrame(INDEX).write_parquet(tmp_path / "all" / "part-00000.parquet")
    return tmp_path


def splits(root, *rows, header="train,val,test"):
    path = root / "splits_0.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_sides_are_those_of_the_file_in_the_order_of_the_data(root):
    path = splits(root, "s4,s3,s2", "0007,,", "s1.a,,")
    frame = apply_split_file(root, path, "train")
    assert frame["name"].to_list() == ["s1.a", "0007", "s4"], "a name of digits keeps its zeros"
    assert frame["row"].to_list() == [0, 1, 2]
    assert frame.select("patient", "label").rows() == [("p1", 0), ("p1", 0), ("p4", 1)]
    assert apply_split_file(root, path, "valid")["name"].to_list() == ["s3"]
    assert apply_split_file(root, path, "test")["name"].to_list() == ["s2"]


def test_numbers_of_lines_as_clam_writes_them_and_slides_left_out(root):
    path = splits(root, "0,s1.a,,s3", "1,s2,,", header=",train,val,test")
    assert apply_split_file(root, path, "train")["name"].to_list() == ["s1.a", "s2"]
    assert apply_split_file(root, path, "test")["name"].to_list() == ["s3"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("s1.a,0007,s3", "s2,,"), r"patient 'p1' is on several sides \(1 such patients\)"),
        (("s1.a,s2,unknown", "s3,,also"), r"2 slides are not in .*, such as 'also'"),
        (("s1.a,s2,s3", "s1.a,,"), "lists slide 's1.a' twice"),
        (("s1.a,s2,s3", "0007,,"), "all slides of the column train are of one class"),
        ((",s2,s3",), "column 'train' names no slide"),
    ],
)
def test_files_that_cannot_be_trained_on_are_refused(root, rows, message):
    with pytest.raises(PreparedDataError, match=message) as error:
        apply_split_file(root, splits(root, *rows), "train")
    assert "splits_0.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_split_files_are_named(root):
    with pytest.raises(PreparedDataError, match="lacks column 'val'"):
        apply_split_file(root, splits(root, "s1.a,s3", header="train,test"), "train")
    with pytest.raises(PreparedDataError, match=r"absent\.csv: cannot be read"):
        apply_split_file(root, root / "absent.csv", "train")
    (root / "all" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(PreparedDataError, match=r"all/part-00000\.parquet: cannot be read"):
        apply_split_file(root, splits(root, "s1.a,s2,s3"), "train")


def test_validation_may_be_left_out_and_the_way_is_told(root):
    path = splits(root, "s1.a,,s4", "s3,,")
    assert len(apply_split_file(root, path, "train")) == 2
    with pytest.raises(PreparedDataError, match=r"--select last --trainer\.limit_val_batches 0"):
        apply_split_file(root, path, "valid")


def test_data_of_a_fold_are_its_slides(bags, tmp_path):
    table = pl.read_parquet(bags / "all" / "part-00000.parquet").unique("patient", maintain_order=True)
    names = table["name"].to_list()
    rows = [f"{a},{b},{c}" for a, b, c in zip(names[:10], names[10:20], names[20:30], strict=True)]
    data = BagData(str(bags), splits=str(splits(tmp_path, *rows)))
    for loader, wanted in (
        (data.train_dataloader(), names[:10]),
        (data.val_dataloader(), names[10:20]),
        (data.test_dataloader(), names[20:30]),
        (data.predict_dataloader(), names[20:30]),
    ):
        assert sorted(name for batch in loader for name in batch["name"]) == sorted(wanted)
    labels = dict(table.select("name", "label").iter_rows())
    assert all(labels[batch["name"][0]] == batch["label"][0] for batch in data.test_dataloader())
