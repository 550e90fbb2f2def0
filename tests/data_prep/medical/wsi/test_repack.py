"""Features go from any layout into any other, checked on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import torch

from data_prep.common.errors import ConfigError, IncompleteError, PrepError, RejectsExceededError
from data_prep.medical.wsi.features.layouts import find_features, read_features
from data_prep.medical.wsi.features.repack import repack
from data_prep.medical.wsi.patches.coords import PatchGrid, write_coords
from tests.data_prep.helpers import kill_and_continue, tree

ROWS = {"a.1": 30, "b.2": 1, "c.3": 17}


def values(slide: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(len(slide) + ROWS[slide])
    return rng.normal(size=(ROWS[slide], 6)).astype(np.float32), rng.integers(0, 4000, (ROWS[slide], 2))


@pytest.fixture
def clam(tmp_path: Path) -> Path:
    """Features as CLAM leaves them: chunks of one row, no attributes."""
    for folder in ("h5_files", "pt_files"):
        (tmp_path / "clam" / folder).mkdir(parents=True)
    for slide in ROWS:
        features, coords = values(slide)
        with h5py.File(tmp_path / "clam" / "h5_files" / f"{slide}.h5", "w") as file:
            file.create_dataset("features", data=features, chunks=(1, 6), maxshape=(None, 6))
            file.create_dataset("coords", data=coords.astype(np.int32), chunks=(1, 2), maxshape=(None, 2))
        torch.save(torch.from_numpy(features), tmp_path / "clam" / "pt_files" / f"{slide}.pt")
    return tmp_path / "clam"


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """Coordinate files of the same slides."""
    (tmp_path / "patches").mkdir()
    for slide in ROWS:
        grid = PatchGrid(slide, values(slide)[1], 512.0, 256, 0.5, 5000, 4500)
        write_coords(tmp_path / "patches" / f"{slide}.h5", grid)
    return tmp_path / "patches"


def run(raw: Path, out: Path, **options: Any) -> dict[str, Any]:
    return repack(raw, out, **{"executor": "serial", "progress": False, **options})


def check(out: Path, dtype: str) -> None:
    found = {entry.slide: entry for entry in find_features(out)}
    assert found.keys() == ROWS.keys()
    for slide, entry in found.items():
        features, coords = values(slide)
        stored, places, _ = read_features(entry)
        assert stored.dtype == dtype
        np.testing.assert_array_equal(stored, features.astype(dtype))
        assert places is not None and np.array_equal(places, coords)


def test_around_through_every_layout_and_back(tmp_path: Path, clam: Path, patches: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,label\na.1.svs,tumor\nb.2.svs,normal\nc.3.svs,tumor\n")
    card = run(clam, tmp_path / "native", patches=patches, encoder="resnet18", table=table)
    assert card["mpp"] == 0.5 and card["patch_size"] == 256 and card["encoder"] == {"name": "resnet18"}
    check(tmp_path / "native", "float32")
    with h5py.File(tmp_path / "native" / "features" / "a.1.h5") as file:
        assert file["features"].chunks is None
        assert dict(file["coords"].attrs) == {
            **{"name": "a.1", "patch_size_level0": 512, "patch_size": 256, "target_mpp": 0.5},
            **{"level0_width": 5000, "level0_height": 4500},
        }
    run(tmp_path / "native", tmp_path / "trident", layout="trident")
    assert (tmp_path / "trident" / "features_resnet18" / "b.2.h5").is_file()
    check(tmp_path / "trident", "float32")
    run(tmp_path / "trident", tmp_path / "acmil", layout="acmil", dtype="float32", table=table)
    assert (tmp_path / "acmil" / "patch_feats_pretrain_resnet18.h5").is_file()
    check(tmp_path / "acmil", "float32")
    assert {entry.slide: entry.label for entry in find_features(tmp_path / "acmil")} == {"a.1": 1, "b.2": 0, "c.3": 1}
    run(tmp_path / "acmil", tmp_path / "again", layout="clam")
    check(tmp_path / "again", "float32")
    tensor = torch.load(tmp_path / "again" / "pt_files" / "c.3.pt", weights_only=True)
    assert tensor.dtype == torch.float32 and np.array_equal(tensor.numpy(), values("c.3")[0])
    run(tmp_path / "acmil", tmp_path / "labelled")
    assert [entry.label for entry in find_features(tmp_path / "labelled")] == [1, 0, 1]


def test_types_to_store(tmp_path: Path, clam: Path) -> None:
    for layout, dtype, found in (
        ("native", "float16", "float16"),
        ("native", None, "float32"),
        ("acmil", None, "float16"),
        ("clam", None, "float32"),
    ):
        out = tmp_path / f"{layout}-{dtype}"
        run(clam, out, layout=layout, dtype=dtype)
        check(out, found)
    run(tmp_path / "native-float16", tmp_path / "stored")
    check(tmp_path / "stored", "float16")


def test_a_slide_beyond_float16_stays_float32(tmp_path: Path, clam: Path) -> None:
    with h5py.File(clam / "h5_files" / "a.1.h5", "a") as file:
        file["features"][3, 2] = 1e5
    run(clam, tmp_path / "out", dtype="float16")
    assert [entry.dtype for entry in find_features(tmp_path / "out")] == ["float32", "float16", "float16"]
    assert pl.read_parquet(tmp_path / "out" / "slides.parquet")["dtype"].to_list() == ["float32", "float16", "float16"]


def test_tensor_files_get_their_coordinates(tmp_path: Path, clam: Path, patches: Path) -> None:
    run(clam / "pt_files", tmp_path / "without")
    assert {entry.coords for entry in find_features(tmp_path / "without")} == {""}
    run(clam / "pt_files", tmp_path / "out", patches=patches)
    check(tmp_path / "out", "float32")
    with pytest.raises(RejectsExceededError, match=r"TRIDENT's layout holds them and the size of patches"):
        run(clam / "pt_files", tmp_path / "trident", layout="trident")


def test_coordinates_that_are_not_those_of_the_features(tmp_path: Path, clam: Path, patches: Path) -> None:
    coords = values("a.1")[1]
    coords[4, 1] += 1
    write_coords(patches / "a.1.h5", PatchGrid("a.1", coords, 512.0, 256, 0.5, 5000, 4500))
    write_coords(patches / "c.3.h5", PatchGrid("c.3", values("c.3")[1][1:], 512.0, 256, 0.5, 5000, 4500))
    (patches / "b.2.h5").write_bytes((patches / "a.1.h5").read_bytes())
    with pytest.raises(RejectsExceededError, match=r"3 of 3 slides") as error:
        run(clam, tmp_path / "out", patches=patches)
    assert "a.1.h5: slide a.1: row 4 is of the patch at" in str(error.value)
    assert "17 rows of features, but 16 coordinates in c.3.h5" in str(error.value)
    assert "b.2.h5 holds coordinates of slide 'a.1'" in str(error.value)


def test_damaged_slides_are_told_and_the_others_published(tmp_path: Path, clam: Path) -> None:
    with h5py.File(clam / "h5_files" / "a.1.h5", "a") as file:
        file["features"][[3, 5], 1] = np.nan
    (clam / "h5_files" / "b.2.h5").write_bytes(b"no HDF5 file")
    (clam / "pt_files" / "b.2.pt").unlink()
    with h5py.File(clam / "h5_files" / "c.3.h5", "a") as file:
        file["coords"].resize((16, 2))
    with pytest.raises(RejectsExceededError, match=r"2 of 3 slides") as error:
        run(clam, tmp_path / "out")
    assert "c.3.h5: slide c.3: 17 rows of features but 16 coordinates" in str(error.value)
    assert "b.2.h5: file: is damaged" in str(error.value)
    rows = pl.read_parquet(tmp_path / "out" / "slides.parquet").sort("slide")
    assert rows["status"].to_list() == ["done", "failed", "failed"]
    assert rows["bad"].to_list() == [2, 0, 0] and rows["patches"].to_list() == [28, 0, 0]
    (entry,) = find_features(tmp_path / "out")
    np.testing.assert_array_equal(read_features(entry)[0], np.delete(values("a.1")[0], [3, 5], axis=0))
    with pytest.raises(RejectsExceededError, match="2 of 3"):
        run(clam, tmp_path / "out")
    run(clam, tmp_path / "out", max_rejects=0.7)
    with pytest.raises(PrepError, match=r"NaN or infinity in 2 of 30 rows, more than max_bad 1.00%"):
        run(clam, tmp_path / "strict", max_bad=0.01)


def test_features_of_two_encoders_are_not_mixed(tmp_path: Path, clam: Path) -> None:
    run(clam, tmp_path / "one", encoder="x")
    with h5py.File(tmp_path / "one" / "features" / "c.3.h5", "a") as file:
        file["features"].attrs["encoder"] = "y"
    with pytest.raises(RejectsExceededError, match=r"c.3.h5: slide c.3: made by encoder 'y', others by 'x'"):
        run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("layout", ["native", "clam", "trident", "acmil"])
def test_shards_and_repeated_runs_give_the_same_bytes(tmp_path: Path, clam: Path, patches: Path, layout: str) -> None:
    options = {"layout": layout, "patches": patches, "encoder": "x"}
    run(clam, tmp_path / "one", **options)
    run(clam, tmp_path / "again", **options)
    assert tree(tmp_path / "again") == tree(tmp_path / "one")
    for _ in range(4):
        for index in range(2):
            try:
                run(clam, tmp_path / "two", shard=f"{index}/2", **options)
            except IncompleteError:
                continue
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    with pytest.raises(ConfigError, match="other options or other files"):
        run(clam, tmp_path / "one", **{**options, "dtype": "float16"}, max_bad=0.2)


WORKER = """
import sys
from pathlib import Path
from data_prep.medical.wsi.features.repack import repack
if __name__ == "__main__":
    repack(Path(sys.argv[1]), Path(sys.argv[2]), executor=sys.argv[3], workers=2, progress=False)
"""


@pytest.mark.parametrize(("executor", "kills"), [("serial", [1, 4]), ("local", [])])
def test_killed_then_continued(tmp_path: Path, clam: Path, executor: str, kills: list[int]) -> None:
    run(clam, tmp_path / "wanted")
    out = tmp_path / "out"
    assert kill_and_continue(tmp_path, WORKER, [clam, out, executor], out, kills) == tree(tmp_path / "wanted")


def test_mistakes_in_options(tmp_path: Path, clam: Path) -> None:
    for options in ({"layout": "zarr"}, {"dtype": "int8"}, {"max_bad": 1.0}, {"max_rejects": -1.0}):
        with pytest.raises(ConfigError, match=r"choose one of native, clam, trident, acmil"):
            run(clam, tmp_path / "out", **options)
    with pytest.raises(PrepError, match=r"absent.csv: no such table"):
        run(clam, tmp_path / "out", table=tmp_path / "absent.csv")
    assert not (tmp_path / "out").exists()
