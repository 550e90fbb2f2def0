from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch

from domains.common.errors import ConfigError, PreparedDataError
from domains.ctr.data import ClickData


def batches(root, split="test", **options):
    return list(ClickData(str(root), batch_size=64, **options).loader(split))


def test_batches_are_the_prepared_rows(prepared):
    data = ClickData(str(prepared))
    card = json.loads((prepared / "dataset.json").read_text())
    frame = pl.concat([pl.read_parquet(prepared / part["path"]) for part in card["splits"]["test"]["parts"]])
    got = batches(prepared)
    rows = torch.cat([b["row"] for b in got])
    assert rows.tolist() == frame["row"].to_list()
    assert torch.cat([b["label"] for b in got]).tolist() == frame["label"].to_list()
    assert len(torch.cat([b["group"] for b in got]).unique()) == frame["group"].n_unique()
    ids, values = torch.cat([b["ids"] for b in got]), torch.cat([b["values"] for b in got])
    owner = got[0]["slot_field"]
    for i, (field, offset) in enumerate(zip(data.layout.fields, data.layout.offsets, strict=True)):
        columns = (owner == i).nonzero().squeeze(1)
        mine, value = ids[:, columns] - offset, values[:, columns]
        if field.kind == "numerical":
            assert (mine == 0).all()
            np.testing.assert_allclose(value[:, 0], frame[field.name].fill_null(0))
        elif field.kind == "categorical":
            assert mine[:, 0].tolist() == frame[field.name].to_list()
            assert value[:, 0].tolist() == [float(x > 0) for x in frame[field.name].to_list()]
        else:
            lists = [row[keep].tolist() for row, keep in zip(mine, value > 0, strict=True)]
            assert lists == frame[field.name].to_list()


def test_missing_categories_may_be_learned(tmp_path, prepared):
    root = tmp_path / "copy"
    shutil.copytree(prepared, root)
    part = next((root / "test").iterdir())
    frame = pl.read_parquet(part).with_columns(
        site=pl.lit(0, dtype=pl.UInt32), topics=pl.lit([], dtype=pl.List(pl.UInt32))
    )
    frame.write_parquet(part)
    site = ClickData(str(root)).layout.names.index("site")
    zero, learned = batches(root)[0], batches(root, missing="learned")[0]
    assert (zero["values"][:, site] == 0).all()
    assert (learned["values"][:, site] == 1).all()
    assert (learned["values"][:, zero["slot_field"] == ClickData(str(root)).layout.names.index("topics")] == 0).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "dataset.json").unlink(), "not found; make it with `heptad ctr prep"),
        (lambda root: (root / "dataset.json").write_text("{"), "cannot be read"),
        (
            lambda root: (root / "dataset.json").write_text('{"format": "other/9"}'),
            "prepare the data with this version",
        ),
        (lambda root: next((root / "train").iterdir()).write_bytes(b"PAR1"), "cannot be read"),
        (lambda root: next((root / "train").iterdir()).unlink(), r"part-.*cannot be read"),
        (lambda root: pl.DataFrame({"row": [1]}).write_parquet(next((root / "train").iterdir())), "lacks field"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, prepared, damage, message):
    root = tmp_path / "copy"
    shutil.copytree(prepared, root)
    damage(root)
    with pytest.raises(PreparedDataError, match=message) as error:
        batches(root, "train")
    assert "\n" not in str(error.value)


def test_options_that_leave_nothing(prepared):
    with pytest.raises(ConfigError, match="at least 1"):
        ClickData(str(prepared), batch_size=0)
    with pytest.raises(ConfigError, match="drop_last leaves none"):
        ClickData(str(prepared), batch_size=10**6, drop_last=True).train_dataloader()
    with pytest.raises(PreparedDataError, match="no split 'dev'"):
        ClickData(str(prepared)).loader("dev")
