from __future__ import annotations

import polars as pl
import pytest
import torch

from domains.common.errors import PreparedDataError
from domains.common.indexed import IndexStore, read_index
from domains.common.loader import BatchLoader


@pytest.fixture
def prepared(tmp_path):
    """Directory and card of a split in two parts."""
    parts = []
    for number, names in enumerate((["b", "a"], ["ü"])):
        path = tmp_path / "train" / f"part-{number:05}.parquet"
        path.parent.mkdir(exist_ok=True)
        frame = pl.DataFrame({"name": names, "label": [number] * len(names)}, schema_overrides={"label": pl.UInt32})
        frame.write_parquet(path)
        parts.append({"path": f"train/{path.name}", "rows": len(names)})
    return tmp_path, {"splits": {"train": {"parts": parts}, "predict": {"parts": []}}}


def test_parts_are_one_index_in_their_order(prepared):
    frame = read_index(*prepared, "train", ("name", "label"))
    assert frame["name"].to_list() == ["b", "a", "ü"]
    assert len(read_index(*prepared, "predict", ("name",))) == 0


def test_what_is_not_there_is_named(prepared):
    root, card = prepared
    with pytest.raises(PreparedDataError, match="has no split 'test', only train, predict"):
        read_index(root, card, "test", ())
    with pytest.raises(PreparedDataError, match=r"part-00000\.parquet: lacks column 'patient'; prepare the data again"):
        read_index(root, card, "train", ("name", "patient"))


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.unlink()])
def test_damaged_and_lost_parts_are_named(damage, prepared):
    root, card = prepared
    damage(root / "train" / "part-00001.parquet")
    with pytest.raises(PreparedDataError, match=r"part-00001\.parquet: cannot be read"):
        read_index(root, card, "train", ("name",))


def test_rows_are_found_again_in_any_order(prepared):
    root, card = prepared
    store = IndexStore(root, read_index(root, card, "train", ()), "train")
    assert store.sizes == [3]
    assert store.load(0)["label"].dtype == torch.int64
    seen = {}
    for epoch in range(2):
        loader = BatchLoader(store, 2, collate=lambda batch: batch | {"name": store.at(batch["row"])["name"].to_list()})
        loader.shuffle, loader.seed = True, 1
        loader.set_epoch(epoch)
        for batch in loader:
            seen |= dict(zip(batch["name"], batch["label"].tolist(), strict=True))
    assert seen == {"b": 0, "a": 0, "ü": 1}


def test_data_to_predict_have_no_labels(prepared):
    root, _ = prepared
    store = IndexStore(root, pl.DataFrame({"name": ["x"]}))
    assert store.load(0).keys() == {"row"}
    assert len(store.at(torch.zeros(0, dtype=torch.long))) == 0


def test_files_lie_in_the_directory_or_where_they_were_left(prepared, tmp_path):
    store = IndexStore(prepared[0], pl.DataFrame())
    assert store.path("bags/a.h5") == prepared[0] / "bags" / "a.h5"
    assert store.path("/elsewhere/a.h5").as_posix() == "/elsewhere/a.h5"
