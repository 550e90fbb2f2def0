from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domains.common.errors import ConfigError, PreparedDataError
from domains.expression.augment import Augmentation, DrawnChanges
from domains.expression.data import MEAN, STD, ExpressionData
from domains.expression.sampling import BalancedEpochs
from tests.domains.expression.face_helpers import CLASSES, module, prepare_planted


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return prepare_planted(tmp_path_factory.mktemp("faces"))


def opened(root, **options):
    data = ExpressionData(str(root), batch_size=16, **options)
    data.take_shape(module())
    return data


class TestReading:
    def test_a_batch_holds_the_prepared_pixels_normalised(self, faces):
        data = opened(faces)
        batch = data.finish(next(iter(data.test_dataloader())))
        assert batch["image"].shape[1:] == (1, 24, 24) and batch["image"].dtype == torch.float32
        stored = np.load(faces / "test" / "faces-00000.npy")[batch["row"].numpy(), ..., 0]
        restored = batch["image"][:, 0] * np.mean(STD) + np.mean(MEAN)
        np.testing.assert_allclose(restored.numpy() * 255, stored, atol=1e-3)
        index = pl.read_parquet(faces / "test" / "part-00000.parquet")
        assert batch["name"] == index["name"].head(16).to_list()
        assert batch["label"].tolist() == index["label"].head(16).to_list()
        assert sorted(data.classes) == sorted(CLASSES)

    @pytest.mark.parametrize("cache_mb", [0, 64])
    def test_files_and_packed_arrays_give_the_same_pixels(self, faces, cache_mb, tmp_path):
        files = prepare_planted(tmp_path, storage="files")
        one, two = (next(iter(opened(root, cache_mb=cache_mb).val_dataloader())) for root in (faces, files))
        assert torch.equal(one["image"], two["image"])
        again = next(iter(opened(faces, cache_mb=cache_mb).val_dataloader()))
        assert torch.equal(one["image"], again["image"])

    def test_grey_faces_become_colour_where_the_network_wants_it(self, faces):
        data = ExpressionData(str(faces))
        data.take_shape(module(channels=3, image_size=32))
        image = next(iter(data.val_dataloader()))["image"]
        assert image.shape[1:] == (3, 32, 32)
        assert torch.equal(image[:, 0], image[:, 2])

    def test_damaged_payload_is_named(self, faces, tmp_path):
        root = prepare_planted(tmp_path)
        path = root / "valid" / "faces-00000.npy"
        content = path.read_bytes()
        for cut in (0, 60, len(content) - 500):
            path.write_bytes(content[:cut])
            with pytest.raises(PreparedDataError, match=r"faces-00000\.npy: "):
                list(opened(root, workers=0).val_dataloader())
        path.unlink()
        with pytest.raises(PreparedDataError, match=r"faces-00000\.npy: cannot be read"):
            list(opened(root, workers=0).val_dataloader())

    def test_an_array_that_ends_before_a_row_of_a_fold_is_named(self, tmp_path):
        root = prepare_planted(tmp_path)
        path = root / "train" / "faces-00000.npy"
        np.save(path, np.load(path)[:-1])
        folds = [opened(root, fold=fold, workers=0) for fold in range(3)]
        broken = 0
        for data in folds:
            try:
                list(data.test_dataloader())
            except PreparedDataError as error:
                broken += "faces-00000.npy: is no array of" in str(error)
        assert broken == 1, "each image is tested in one fold"

    def test_a_report_is_told_how_the_data_are_used(self, faces):
        data = opened(faces, fold=1, per_class=9)
        assert data.card["used"] == {"fold": 1, "per_class": 9, "balanced_loss": False}
        data.take_shape(module(balanced_loss=True))
        assert data.card["used"]["balanced_loss"] is True

    def test_folds_keep_subjects_apart_and_test_each_image_once(self, faces):
        tested = []
        for fold in range(3):
            data = opened(faces, fold=fold)
            sides = {split: data.index(split)[1] for split in ("train", "valid", "test")}
            subjects = [set(side["subject"]) for side in sides.values()]
            assert not subjects[0] & subjects[1] and not subjects[0] & subjects[2] and not subjects[1] & subjects[2]
            tested += sides["test"]["name"].to_list()
        names = pl.concat([pl.read_parquet(path) for path in (faces / "all").glob("*.parquet")])["name"]
        assert sorted(tested) == sorted(names)
        with pytest.raises(ConfigError, match="has no such fold; it has folds 0 to 2"):
            opened(faces, fold=3).index("train")

    def test_another_kind_of_data_is_refused(self, faces, tmp_path):
        card = json.loads((faces / "dataset.json").read_text())
        (tmp_path / "dataset.json").write_text(json.dumps(card | {"kind": "voices"}))
        with pytest.raises(PreparedDataError, match="holds 'voices'"):
            ExpressionData(str(tmp_path))


class TestSampling:
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 40), st.integers(0, 3))
    def test_every_class_comes_as_often_and_its_images_equally_often(self, labels, per_class, epoch):
        sampling = BalancedEpochs(torch.tensor(labels), 5, per_class, seed=1)
        order = sampling(epoch)
        rows = order.rows(0)
        assert len(rows) == order.pool_sizes[0] == per_class * len(set(labels))
        drawn = torch.bincount(rows, minlength=len(labels))
        for label in set(labels):
            own = drawn[torch.tensor(labels) == label]
            assert own.sum() == per_class and own.max() - own.min() <= 1
        assert torch.equal(rows, sampling(epoch).rows(0))

    @given(
        st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 3)
    )
    def test_no_video_gives_more_than_its_share(self, sources, most, epoch):
        labels = torch.zeros(len(sources), dtype=torch.int64)
        order = BalancedEpochs(labels, 1, 0, seed=1, per_source=most, sources=sources)(epoch)
        rows = order.rows(0).tolist()
        assert len(rows) == order.pool_sizes[0] == len(set(rows))
        for name in {"a", "b", "c"} & set(sources):
            assert sum(sources[row] == name for row in rows) == min(most, sources.count(name))
        assert sum(sources[row] == "" for row in rows) == sources.count("")

    def test_epochs_differ(self):
        sampling = BalancedEpochs(torch.arange(100) % 2, 2, 20, seed=1)
        assert not torch.equal(sampling(0).rows(0), sampling(1).rows(0))

    def test_batches_of_an_epoch_say_how_their_images_change(self, faces):
        data = opened(faces, per_class=40)
        data.setup("fit")
        loader = data.train_dataloader()
        draws = torch.cat([batch["draw"] for batch in loader])
        assert len(draws) == 120 == len(draws.unique()), "an image that comes twice changes in two ways"

    def test_votes_are_targets(self, tmp_path):
        root = prepare_planted(tmp_path)
        path = root / "train" / "part-00000.parquet"
        table = pl.read_parquet(path)
        shares = [[0.5, 0.25, 0.25] if row % 2 else None for row in range(len(table))]
        table.with_columns(target=pl.Series(shares, dtype=pl.List(pl.Float32))).write_parquet(path)
        batch = next(iter(opened(root).loader("train")))
        for row, target, label in zip(batch["row"], batch["target"], batch["label"], strict=True):
            assert target.tolist() == ([0.5, 0.25, 0.25] if row % 2 else torch.eye(3)[label].tolist())
        assert "target" not in next(iter(opened(root, soft_targets=False).loader("train")))


class TestAugmentation:
    def test_changes_depend_on_seed_epoch_and_row_alone(self):
        images = torch.rand(6, 3, 24, 24)
        whole = DrawnChanges(Augmentation(), 1, 2, torch.arange(6)).apply(images)
        part = DrawnChanges(Augmentation(), 1, 2, torch.tensor([4])).apply(images[4:5])
        torch.testing.assert_close(part, whole[4:5])
        other = DrawnChanges(Augmentation(), 1, 3, torch.arange(6)).apply(images)
        assert not torch.allclose(whole, other, atol=0.01)
        assert whole.min() >= 0 and whole.max() <= 1

    def test_nothing_asked_for_nothing_changed(self):
        none = Augmentation(1.0, 0.0, 0.0, False, 0.0, 0.0, 0.0, 0.0)
        images = torch.rand(3, 1, 24, 24)
        torch.testing.assert_close(DrawnChanges(none, 0, 0, torch.arange(3)).apply(images), images, atol=1e-5, rtol=0)

    def test_padding_of_turned_faces_repeats_the_edge(self):
        moved = Augmentation(1.4, 45.0, 0.3, True, 0.0, 0.0, 0.0, 0.0)
        images = torch.full((8, 1, 24, 24), 0.7)
        changed = DrawnChanges(moved, 0, 0, torch.arange(8)).apply(images)
        torch.testing.assert_close(changed, images)  # no dark corner tells how a face was turned

    def test_half_are_mirrored(self):
        flips = Augmentation(1.0, 0.0, 0.0, True, 0.0, 0.0, 0.0, 0.0)
        images = torch.rand(1, 1, 8, 8).expand(400, 1, 8, 8)
        changed = DrawnChanges(flips, 0, 0, torch.arange(400)).apply(images)
        mirrored = (changed - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
        kept = (changed - images).abs().amax(dim=(1, 2, 3)) < 1e-5
        assert (mirrored ^ kept).all() and 150 < mirrored.sum() < 250

    def test_erased_places_have_the_share_asked_for(self):
        options = Augmentation(1.0, 0.0, 0.0, False, 0.0, 0.0, 0.0, 1.0, (0.2, 0.2))
        images = torch.rand(50, 1, 40, 40)
        changed = DrawnChanges(options, 0, 0, torch.arange(50)).apply(images)
        shares = ((changed - images).abs() > 1e-5).float().mean(dim=(1, 2, 3))
        assert (shares - 0.2).abs().max() < 0.04

    @pytest.mark.parametrize(
        "wrong", [{"crop": 0.5}, {"erase_area": (0.2, 0.1)}, {"rotation": -1.0}, {"erase": 2.0}], ids=str
    )
    def test_ranges_that_cannot_be_are_refused(self, wrong):
        with pytest.raises(ConfigError, match=f"augmentation.{next(iter(wrong))}"):
            Augmentation(**wrong)


@pytest.mark.gpu
def test_gpu_equals_cpu_in_random_changes():
    images, draws = torch.rand(4, 3, 24, 24), torch.arange(4)
    on_cpu = DrawnChanges(Augmentation(), 1, 2, draws).apply(images)
    on_gpu = DrawnChanges(Augmentation(), 1, 2, draws.cuda()).apply(images.cuda())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-4, rtol=1e-4)
