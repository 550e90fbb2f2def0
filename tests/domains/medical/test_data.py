from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import polars as pl
import pytest
import torch

from domains.common.errors import ConfigError, PreparedDataError
from domains.medical.bags import BagReader
from domains.medical.data import BagData


def batches(root, split="test", **options):
    return list(BagData(str(root), **{"batch_size": 4} | options).loader(split))


def index(root, split):
    return pl.read_parquet(root / split / "part-00000.parquet")


def features(root, entry):
    with h5py.File(root / entry["file"]) as file:
        return file[entry["dataset"]][()], file[entry["coords"]][()]


@pytest.fixture
def copy(bags, tmp_path):
    return shutil.copytree(bags, tmp_path / "copy")


class TestBatches:
    def test_they_are_the_prepared_slides(self, bags):
        got = batches(bags)
        entries = index(bags, "test").to_dicts()
        assert [name for batch in got for name in batch["name"]] == [entry["name"] for entry in entries]
        assert [patient for batch in got for patient in batch["patient"]] == [entry["patient"] for entry in entries]
        assert [site for batch in got for site in batch["site"]] == [entry["site"] for entry in entries]
        assert torch.cat([batch["label"] for batch in got]).tolist() == [entry["label"] for entry in entries]
        pieces = [x for batch in got for x in batch["x"].split(batch["sizes"])]
        places = [coords for batch in got for coords in batch["coords"].split(batch["sizes"])]
        for entry, x, coords in zip(entries, pieces, places, strict=True):
            wanted = features(bags, entry)
            np.testing.assert_array_equal(x, wanted[0])
            np.testing.assert_array_equal(coords, wanted[1])
        canvas = torch.cat([batch["canvas"] for batch in got]).tolist()
        assert canvas == [[entry["width"], entry["height"]] for entry in entries]
        assert set(torch.cat([batch["patch_size"] for batch in got]).tolist()) == {512.0}

    @pytest.mark.parametrize("split", ["train", "valid"])
    def test_places_are_read_where_they_are_used(self, bags, split):
        assert "coords" not in batches(bags, split)[0]
        assert "coords" in batches(bags, "predict")[0]

    @pytest.mark.parametrize("workers", [0, 1, 3])
    @pytest.mark.parametrize("cache_mb", [0, 100])
    def test_threads_and_memory_change_nothing(self, bags, workers, cache_mb):
        loader = BagData(str(bags), 4, seed=3, workers=workers, cache_mb=cache_mb).train_dataloader()
        plain = BagData(str(bags), 4, seed=3, workers=0, cache_mb=0).train_dataloader()
        orders = []
        for epoch in (0, 1, 0):
            loader.set_epoch(epoch)
            plain.set_epoch(epoch)
            orders.append([])
            for batch, wanted in zip(loader, plain, strict=True):
                assert batch["name"] == wanted["name"]
                assert torch.equal(batch["x"], wanted["x"])
                orders[-1] += batch["name"]
        assert orders[0] == orders[2] != orders[1]
        assert sorted(orders[0]) == sorted(orders[1]) == sorted(index(bags, "train")["name"])

    @pytest.mark.parametrize("world", [2, 3])
    def test_processes_share_a_batch(self, bags, world):
        whole = BagData(str(bags), 4, seed=3).train_dataloader()
        parts = [BagData(str(bags), 4, seed=3).train_dataloader() for _ in range(world)]
        for rank, part in enumerate(parts):
            part.rank, part.world = rank, world
        for batch, *shares in zip(whole, *parts, strict=True):
            assert sorted(name for share in shares for name in share["name"]) == sorted(batch["name"])
            assert {int(share["global_size"]) for share in shares} == {len(batch["name"])}
            assert all(len(share["x"]) == sum(share["sizes"]) for share in shares)

    def test_what_fits_is_kept_in_memory(self, bags, monkeypatch):
        data = BagData(str(bags), cache_mb=100)
        loader = data.val_dataloader()
        first = [batch["x"] for batch in loader]
        monkeypatch.setattr("domains.medical.bags._read", lambda *_: pytest.fail("read again"))
        assert all(torch.equal(a, batch["x"]) for a, batch in zip(first, loader, strict=True))

    def test_what_does_not_fit_is_read_again(self, bags):
        reader = BagReader(BagData(str(bags)).store("train"))
        reader._room = 10_000  # bytes: the first slide or two
        sizes = [reader({"row": torch.tensor([row])})["x"].nbytes for row in range(10)]
        assert 0 < sum(kept.nbytes for kept in reader._kept.values()) <= 10_000 < sum(sizes)

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_half_precision_stays_half_and_a_leading_axis_of_one_goes(self, copy, dtype):
        entry = index(copy, "test").row(0, named=True)
        x, _ = features(copy, entry)
        with h5py.File(copy / entry["file"], "a") as file:
            del file[entry["dataset"]]
            file[entry["dataset"]] = x[None].astype(dtype)
        got = batches(copy, batch_size=1)[0]["x"]
        assert got.dtype == {np.float16: torch.float16, np.float64: torch.float32}[dtype]
        np.testing.assert_allclose(got, x, atol=0.01)

    def test_slides_without_places_say_so(self, copy):
        table = index(copy, "test").with_columns(coords=pl.lit(""), size_level0=None, width=None, height=None)
        table.write_parquet(copy / "test" / "part-00000.parquet")
        batch = batches(copy)[0]
        assert (batch["coords"] == -1).all()
        assert len(batch["coords"]) == len(batch["x"])
        assert batch["patch_size"].tolist() == [0.0] * 4
        assert (batch["canvas"] == 0).all()

    def test_statistics_are_of_the_training_slides_alone(self, bags):
        mean, deviation = BagData(str(bags)).feature_statistics()
        every = np.concatenate([features(bags, entry)[0] for entry in index(bags, "train").to_dicts()])
        np.testing.assert_allclose(mean, every.mean(0), atol=1e-5)
        np.testing.assert_allclose(deviation, every.std(0), rtol=1e-5)


def rewrite(name, change):
    """Damage that replaces an entry of a feature file."""

    def damage(path):
        with h5py.File(path, "a") as file:
            values = change(file[name][()])
            del file[name]
            if values is not None:
                file[name] = values

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "cannot be read"),
        (lambda path: path.write_bytes(b"not an h5 file"), "cannot be read"),
        (rewrite("features", lambda values: None), "'features' cannot be read"),
        (rewrite("features", lambda values: values[:-1]), "the index says"),
        (rewrite("features", lambda values: values[0]), "has shape"),
        (rewrite("features", lambda values: values[:0]), "the index says"),
        (rewrite("coords", lambda values: values[1:]), "coordinates of"),
        (rewrite("coords", lambda values: None), "'coords' cannot be read"),
    ],
)
def test_damaged_and_changed_files_are_named_in_one_line(damage, message, copy):
    path = copy / index(copy, "test")["file"][1]
    damage(path)
    with pytest.raises(PreparedDataError, match=message) as error:
        batches(copy)
    assert str(path) in str(error.value)
    assert "prepare the data again" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "dataset.json").unlink(), "not found; make it with `heptad medical prep"),
        (lambda root: (root / "dataset.json").write_text("{"), "cannot be read"),
        (lambda root: change_card(root, kind="images"), "holds X-rays, this system needs kind 'bags'"),
        (lambda root: change_card(root, domain="ctr"), "of domain 'ctr'"),
        (lambda root: (root / "train" / "part-00000.parquet").unlink(), r"part-00000\.parquet: cannot be read"),
        (lambda root: pl.DataFrame({"row": [0]}).write_parquet(root / "train" / "part-00000.parquet"), "lacks column"),
    ],
)
def test_damaged_directories_are_named(damage, message, copy):
    damage(copy)
    with pytest.raises(PreparedDataError, match=message):
        batches(copy, "train")


def change_card(root, **entries):
    card = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(card | entries))


def test_an_index_without_labels_can_be_predicted_and_features_of_another_width_cannot(bags, copy):
    index(copy, "test").drop("label").write_parquet(copy / "test" / "part-00000.parquet")
    splits = json.loads((copy / "dataset.json").read_text())["splits"]
    change_card(copy, splits={"predict": splits["test"]})
    got = batches(bags, "predict", predict_root=str(copy))
    assert "label" not in got[0]
    assert [name for batch in got for name in batch["name"]] == index(bags, "test")["name"].to_list()
    change_card(copy, feature_dim=384)
    with pytest.raises(PreparedDataError, match="features of width 384, the model takes 16; extract them"):
        batches(bags, "predict", predict_root=str(copy))


@pytest.mark.parametrize(
    ("option", "message"), [({"cache_mb": -1}, "cache_mb"), ({"workers": -1}, "workers"), ({"batch_size": 0}, "batch")]
)
def test_options_out_of_range_are_named(bags, option, message):
    with pytest.raises(ConfigError, match=message):
        BagData(str(bags), **option)


def test_one_slide_more_than_a_batch_can_be_left_out(bags):
    rows = len(index(bags, "train"))
    assert len(BagData(str(bags), rows - 1, drop_last=True).train_dataloader()) == 1
    assert len(BagData(str(bags), rows - 1).train_dataloader()) == 2
    with pytest.raises(ConfigError, match="drop_last leaves none"):
        BagData(str(bags), rows + 1, drop_last=True).train_dataloader()
