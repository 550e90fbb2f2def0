from __future__ import annotations

import io
import json

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from jsonargparse import ArgumentParser

from domains.common.draws import hashed_uniforms
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.loader import mix_seed
from domains.medical.augment import Augmentation, DrawnChanges
from domains.medical.image_data import ImageData, LungData
from domains.medical.images import resize_mask, z_scores
from domains.medical.sampling import BalancedSampling
from tests.domains.medical.xray_helpers import write_images, write_png

SIDES = {"side": 28, "gray_side": 24}
NONE = Augmentation(rotation=0, shift=0, zoom=0, aspect=0, brightness=0, flip=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    rows = {"train": 37, "valid": 9, "test": 8}
    return write_images(tmp_path_factory.mktemp("prepared"), rows, masks=True, share=0.4)


def centres(images):
    """Centre of mass of each image (B, 1, S, S) as (x, y), shares of the side."""
    places = (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1]
    weight = images.sum((1, 2, 3))
    return (
        torch.stack([(images.sum((1, 2)) * places).sum(1), (images.sum((1, 3)) * places).sum(1)], 1) / weight[:, None]
    )


def test_a_discs_centre_agrees_in_both_views_and_the_mask(tmp_path):
    """The official script moves one view and not the other."""
    write_images(tmp_path, {"train": 1}, side=480)
    disc = np.zeros((480, 480), np.uint8)
    cv2.circle(disc, (300, 200), 40, 255, -1)
    write_png(tmp_path / "images/train-0.png", disc)
    write_png(tmp_path / "masks/train-0.png", disc)
    path = tmp_path / "train/part-00000.parquet"
    frame = pl.read_parquet(path).with_columns(mask=pl.lit("masks/train-0.png"))
    frame.write_parquet(path)
    data = ImageData(str(tmp_path), side=480, gray_side=256, masks=True)
    batch = next(iter(data.train_dataloader()))
    places = []
    for epoch in range(100):
        views = data.finish(batch, epoch)
        gray = views["gray"] - views["gray"].amin()
        found = [centres(view) for view in (views["image"], gray, views["mask"])]
        assert (found[0] - found[1]).abs().max() < 0.02
        assert (found[0] - found[2]).abs().max() < 0.02
        places.append(found[0])
    assert torch.cat(places).std(0).min() > 0.04  # it does move


def test_random_changes_depend_on_seed_epoch_and_row_alone(root):
    def views(batch_size, epoch, **options):
        data = ImageData(str(root), batch_size=batch_size, **SIDES, **options)
        loader = data.train_dataloader()
        loader.set_epoch(epoch)
        found = [data.finish(batch, epoch) for batch in loader]
        order = torch.cat([batch["row"] for batch in found]).argsort()
        return {name: torch.cat([batch[name] for batch in found])[order] for name in ("image", "gray")}

    first = views(5, 3)
    for other in (views(37, 3), views(8, 3, cache_mb=0, workers=0)):
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["image"], views(5, 4)["image"])
    assert not torch.equal(first["image"], views(5, 3, seed=1)["image"])


def test_uniform_numbers_are_those_of_the_scalar_hash_and_uniform():
    got = hashed_uniforms(3, 5, torch.arange(20_000), 4)
    for row, place in ((0, 0), (7, 3), (19_999, 1)):
        assert float(got[row, place]) == (mix_seed(3, 5, row, place) << 1 >> 40) / (1 << 24)
    assert (got.mean(0) - 0.5).abs().max() < 0.01
    assert (got.var(0) * 12 - 1).abs().max() < 0.02
    assert torch.corrcoef(got.T).triu(1).abs().max() < 0.03


def test_no_change_is_no_change(root):
    image = torch.rand(4, 1, 20, 20)
    changes = DrawnChanges(NONE, 0, 0, torch.arange(4))
    torch.testing.assert_close(changes.image(image), image, atol=1e-5, rtol=0)
    assert torch.equal(changes.mask((image > 0.5).float()), (image > 0.5).float())


@pytest.mark.parametrize("cache_mb", [0, 1024])
def test_a_process_without_a_row_of_the_last_batch_has_empty_views(root, cache_mb):
    data = ImageData(str(root), batch_size=6, masks=True, cache_mb=cache_mb, **SIDES)
    loader = data.train_dataloader()
    loader.rank, loader.world = 1, 2
    *_, last = loader
    assert len(last["row"]) == 0  # 37 rows: the last batch has one, which is the other process's
    views = data.finish(last, epoch=0)
    shapes = {"image": (0, 1, 28, 28), "gray": (0, 1, 24, 24), "mask": (0, 1, 24, 24), "has_mask": (0,)}
    assert {name: tuple(views[name].shape) for name in shapes} == shapes
    assert views["has_mask"].dtype == torch.bool
    changes = DrawnChanges(Augmentation(), 0, 0, last["draw"])
    assert changes.image(views["image"]).shape == changes.mask(views["image"]).shape == (0, 1, 28, 28)


def test_changes_stay_within_their_ranges():
    draws = torch.arange(5000)
    changes = DrawnChanges(Augmentation(), 0, 0, draws)
    assert changes.angle.abs().max() <= np.radians(10)
    assert changes.angle.abs().max() > np.radians(9.9)
    assert changes.shift.abs().max() <= 0.2  # of sides that are 2 long
    assert 0.9 <= changes.brightness.min() < changes.brightness.max() <= 1.1
    ratio = changes.scale[:, 0] / changes.scale[:, 1]
    assert 0.27 < ((ratio - 1).abs() > 1e-6).float().mean() < 0.33
    assert 0.45 < (changes.sign < 0).float().mean() < 0.55
    assert (DrawnChanges(Augmentation(flip=False), 0, 0, draws).sign == 1).all()


@pytest.mark.parametrize("option", [{"rotation": -1.0}, {"zoom": 1.0}, {"aspect_share": 2.0}, {"brightness": -0.1}])
def test_ranges_that_cannot_be_are_refused(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        Augmentation(**option)


def test_views_have_their_sizes_and_scales(root):
    data = ImageData(str(root), batch_size=4, masks=True, **SIDES)
    batch = data.finish(next(iter(data.val_dataloader())))
    assert batch["image"].shape == (4, 1, 28, 28)
    assert batch["gray"].shape == batch["mask"].shape == (4, 1, 24, 24)
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    torch.testing.assert_close(batch["gray"].mean((1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch["gray"].std((1, 2, 3), unbiased=False), torch.ones(4))
    assert set(batch["mask"].unique().tolist()) == {0.0, 1.0}
    assert batch["name"] == [f"valid-{row}.png" for row in range(4)]
    assert batch["source"] == ["", "here", "", "here"]


def test_equal_grey_views_are_decoded_once(root):
    batch = next(iter(ImageData(str(root), side=28, gray_side=28).val_dataloader()))
    assert "gray" not in batch
    assert ImageData(str(root), side=28, gray_side=28).finish(batch)["gray"].shape == (9, 1, 28, 28)


def test_constant_images_have_scores_of_zero():
    assert torch.equal(z_scores(torch.full((2, 1, 5, 5), 0.3)), torch.zeros(2, 1, 5, 5))


def test_resized_masks_stay_masks():
    assert set(np.unique(resize_mask(np.array([[0, 127], [128, 255]], np.uint8), 7)).tolist()) == {0, 1}


def test_a_cached_split_is_read_once(root, monkeypatch):
    data = ImageData(str(root), batch_size=5, **SIDES)
    loader = data.val_dataloader()
    first = [batch["image"] for batch in loader]
    monkeypatch.setattr("domains.medical.images.read_picture", lambda *_: pytest.fail("read again"))
    assert all(torch.equal(a, b["image"]) for a, b in zip(first, loader, strict=True))


def test_views_are_kept_where_they_fit_into_mebibytes(tmp_path):
    write_images(tmp_path, {"test": 16}, side=8)
    for side, kept in ((256, True), (257, False)):  # 16 x 256 x 256 bytes are one mebibyte
        data = ImageData(str(tmp_path), side=side, gray_side=side, cache_mb=1)
        data.store("test")
        assert (data._readers["test"]._kept is not None) == kept


def test_damaged_truncated_and_missing_images_are_named(tmp_path):
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:20]), lambda path: path.unlink()):
        write_images(tmp_path, {"test": 2})
        damage(tmp_path / "images/test-1.png")
        with pytest.raises(PreparedDataError, match=r"test-1\.png.*prepare the data again"):
            list(ImageData(str(tmp_path)).test_dataloader())


def test_lung_data_has_the_rows_with_masks_and_says_when_there_are_none(root, tmp_path):
    data = LungData(str(root), gray_side=24)
    batch = next(iter(data.val_dataloader()))
    assert batch["has_mask"].all()
    assert batch["row"].tolist() == list(range(len(batch["row"])))
    assert "valid-4.png" not in batch["name"]
    write_images(tmp_path, {"train": 3})
    with pytest.raises(PreparedDataError, match="no lung masks"):
        LungData(str(tmp_path)).train_dataloader()


def test_lung_data_takes_the_options_of_images_but_those_that_it_sets(root, tmp_path):
    data = LungData(str(root), gray_side=24, batch_size=3, seed=5, augment=False, workers=1, drop_last=True)
    assert (data.side, data.gray_side, data.channels, data.masks, data.balanced) == (24, 24, 1, True, False)
    assert (data.batch_size, data.seed, data.augment, data.workers, data.drop_last) == (3, 5, False, 1, True)
    parser = ArgumentParser()
    parser.add_class_arguments(LungData, "data")
    options = set(vars(parser.get_defaults()["data"]))
    own = {"root", "batch_size", "seed", "gray_side", "augment", "augmentation", "cache_mb", "workers", "drop_last"}
    assert options == own | {"predict_root"}
    said = io.StringIO()
    parser.print_help(said)
    assert "images of a global batch over all processes" in said.getvalue()


def test_other_kinds_are_refused(root, tmp_path):
    card = json.loads((root / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(card | {"kind": "bags"}))
    with pytest.raises(PreparedDataError, match="slides"):
        ImageData(str(tmp_path))


@pytest.mark.parametrize("option", [{"side": 0}, {"channels": 2}, {"cache_mb": -1}, {"workers": -1}])
def test_options_out_of_range_are_named(root, option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        ImageData(str(root), **option)


class TestBalancedSampling:
    def test_every_batch_has_equal_shares_and_an_epoch_is_a_pass_over_the_negatives(self, root):
        data = ImageData(str(root), batch_size=6, balanced=True, **SIDES)
        loader = data.train_dataloader()
        seen = []
        for batch in loader:
            assert batch["label"].float().mean() == 0.5
            assert len(set(batch["row"].tolist())) == len(batch["row"])  # none twice in a batch
            seen += batch["row"][batch["label"] == 0].tolist()
        labels = data.store("train").load(0)["label"]
        assert sorted(seen) == (labels == 0).nonzero().squeeze(1).tolist()
        assert len(loader) == -(-len(seen) // 3)

    def test_positives_are_dealt_evenly(self):
        labels = torch.tensor([0] * 240 + [1] * 10)
        rows = BalancedSampling(labels, 2, 8, seed=0)(0).rows(0)
        counts = rows[rows >= 240].bincount()[240:]
        assert counts.sum() == 240
        assert counts.min() >= 20

    def test_an_image_that_comes_again_is_changed_in_another_way(self, root):
        data = ImageData(str(root), batch_size=2, balanced=True, **SIDES)
        draws = torch.cat([batch["draw"] for batch in data.train_dataloader()])
        assert len(draws.unique()) == len(draws)

    @pytest.mark.parametrize("world", [2, 3])
    def test_processes_share_the_same_batches_and_a_resumed_epoch_continues(self, root, world):
        def batches(**place):
            data = ImageData(str(root), batch_size=6, balanced=True, seed=4, **SIDES)
            loader = data.train_dataloader()
            for name, value in place.items():
                setattr(loader, name, value)
            loader.set_epoch(2)
            return [batch["draw"].tolist() for batch in loader]

        whole = batches()
        parts = [batches(rank=rank, world=world) for rank in range(world)]
        for i, wanted in enumerate(whole):
            assert sorted(draw for part in parts for draw in part[i]) == sorted(wanted)
        assert batches(skip=3) == whole[3:]

    def test_three_classes(self):
        labels = torch.tensor([0, 1, 2] * 20 + [0] * 11)
        rows = BalancedSampling(labels, 3, 9, seed=1)(0).rows(0)
        for batch in rows.split(9):
            counts = labels[batch].bincount(minlength=3)
            assert (counts == counts[0]).all()

    def test_what_cannot_be_balanced_is_refused(self, root):
        labels = torch.tensor([0] * 20 + [1] * 2)
        with pytest.raises(ConfigError, match="divide evenly"):
            BalancedSampling(labels, 2, 5, seed=0)
        with pytest.raises(ConfigError, match="class 1"):
            BalancedSampling(labels, 2, 8, seed=0)
