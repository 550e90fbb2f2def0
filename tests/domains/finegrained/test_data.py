"""Prepared pictures as batches: what is read, cut, and in which order."""

from __future__ import annotations

import json

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.finegrained.planted import write_planted_identities
from data_prep.finegrained.prepare import prepare
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.indexed import IndexStore
from domains.finegrained.data import ClassData, IdentityData
from domains.finegrained.images import RegionReader, read_region
from domains.finegrained.sampling import IdentitySampling
from tests.data.finegrained.make import write_cub


@pytest.fixture(scope="module")
def cub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cub")
    write_cub(folder / "raw")
    prepare("cub", folder / "raw", folder / "data", crop="box", executor="serial", progress=False)
    return folder / "data"


@pytest.fixture(scope="module")
def persons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("persons")
    write_planted_identities(folder / "raw", identities=12, cameras=2, per_camera=3, size=(40, 20))
    prepare("csv", folder / "raw", folder / "data", valid_identities=0, executor="serial", progress=False)
    return folder / "data"


def test_pictures_are_cut_to_their_boxes_and_resized(cub):
    data = ClassData(str(cub), batch_size=4, image_size=(16, 24), resize=(20, 30))
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (4, 3, 20, 30)
    finished = data.finish(batch)["image"]
    assert finished.shape == (4, 3, 16, 24)
    torch.testing.assert_close(finished, batch["image"][:, :, 2:18, 3:27].float() / 255)
    row = data.index("test")[1].row(0, named=True)
    whole = cv2.cvtColor(cv2.imread(row["path"]), cv2.COLOR_BGR2RGB)
    part = whole[row["top"] : row["bottom"], row["left"] : row["right"]]
    assert part.shape[:2] != whole.shape[:2]
    wanted = cv2.resize(part, (30, 20), interpolation=cv2.INTER_LINEAR)
    assert np.abs(wanted.astype(int) - batch["image"][0].permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_kept_pictures_are_the_same_as_those_read_again(cub):
    store, rows = IndexStore(*ClassData(str(cub)).index("train")), torch.tensor([3, 0, 3])
    kept, read = (RegionReader(store, (20, 30), cache) for cache in (10, 0))
    assert torch.equal(kept.read(rows)["image"], read.read(rows)["image"])
    assert torch.equal(kept.read(rows)["image"], read.read(rows)["image"])


def test_missing_and_damaged_pictures_are_named(tmp_path):
    with pytest.raises(PreparedDataError, match=r"gone\.png"):
        read_region(tmp_path / "gone.png", (0, 0, 1, 1))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(PreparedDataError, match=r"bad\.png"):
        read_region(tmp_path / "bad.png", (0, 0, 1, 1))
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(PreparedDataError, match="was larger"):
        read_region(tmp_path / "small.png", (0, 0, 8, 4))


def test_changes_are_those_of_the_epoch_and_the_row_whatever_the_batch(cub):
    data = ClassData(str(cub), batch_size=4, image_size=(16, 16), resize=(24, 24))
    store = data.store("train")
    collate, whole = data.collate_for(store), store.load(0)
    together = data.finish(collate({name: values[:6] for name, values in whole.items()}), epoch=2)["image"]
    alone = data.finish(collate({name: values[4:5] for name, values in whole.items()}), epoch=2)["image"]
    later = data.finish(collate({name: values[:6] for name, values in whole.items()}), epoch=3)["image"]
    assert torch.equal(together[4:5], alone)
    assert not torch.equal(together, later)


def test_a_batch_shows_identities_with_equally_many_pictures(persons):
    data = IdentityData(str(persons), batch_size=8, instances=2, image_size=(32, 16))
    loader = data.loader("train", training=True)
    batches = list(loader)
    assert len(batches) == len(loader)
    for batch in batches:
        assert batch["label"].view(4, 2).unique(dim=1).shape == (4, 1)
        assert batch["label"].unique().numel() == 4
        assert batch["draw"].unique().numel() == 8
        assert (batch["role"] == 0).all()
    test = torch.cat([batch["role"] for batch in data.test_dataloader()])
    assert set(test.tolist()) == {1, 2}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(1, 4), st.integers(2, 5), st.integers(0, 3))
def test_identity_sampling_deals_fairly(counts, instances, share, epoch):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if len(counts) < share:
        with pytest.raises(ConfigError, match="lower"):
            IdentitySampling(labels, share * instances, instances, 0)
        return
    sampling = IdentitySampling(labels, share * instances, instances, 7)
    rows = sampling(epoch).rows(0)
    assert rows.equal(sampling(epoch).rows(0))
    assert [len(rows)] == sampling(epoch + 1).pool_sizes
    dealt = labels[rows].view(-1, share, instances)
    assert (dealt == dealt[..., :1]).all(), "a hand is of one identity"
    firsts = dealt[..., 0].sort(1).values
    assert (firsts.diff(dim=1) > 0).all(), "no identity twice in a batch"
    for label, count in enumerate(counts):
        mine = rows[labels[rows] == label]
        if count >= instances:
            assert mine.unique().numel() == len(mine), "no picture twice"
    hands = torch.tensor([max(count // instances, 1) for count in counts])
    more = len(dealt) + 1
    assert hands.clamp(max=more).sum() < share * more, "as many batches as can be full"


def test_options_that_cannot_be_are_refused(cub, persons):
    with pytest.raises(ConfigError, match="smaller than"):
        ClassData(str(cub), image_size=(16, 16), resize=(8, 16))
    with pytest.raises(ConfigError, match="multiple"):
        IdentityData(str(persons), batch_size=6, instances=4).loader("train", training=True)
    with pytest.raises(ConfigError, match="two identities"):
        IdentitySampling(torch.tensor([0, 0, 1]), 4, 4, 0)


def test_a_directory_of_another_kind_or_damaged_is_refused(cub, persons, tmp_path):
    with pytest.raises(PreparedDataError, match="needs kind 'identities'"):
        IdentityData(str(cub))
    with pytest.raises(PreparedDataError, match="needs kind 'classes'"):
        ClassData(str(persons))
    card = json.loads((cub / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    part = tmp_path / card["splits"]["train"]["parts"][0]["path"]
    part.parent.mkdir(parents=True)
    pl.DataFrame({"row": [0]}).write_parquet(part)
    with pytest.raises(PreparedDataError, match="lacks column"):
        ClassData(str(tmp_path)).index("train")
