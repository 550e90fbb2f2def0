"""Files of coordinates as CLAM (new and old), TRIDENT and ACMIL write them, and ours."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.medical.wsi.patches.coords import PatchGrid, read_coords, write_coords

COORDS = np.array([[320, 838], [320, 1862], [832, 70]], np.int64)


def write(path, coords=COORDS, attributes=None, **datasets):
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("coords", data=coords, maxshape=(None, 2), chunks=(1, 2))
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
        for name, value in (attributes or {}).items():
            (file["imgs"] if "imgs" in datasets else dataset).attrs[name] = value
    return path


CLAM = {
    "patch_size": 256,
    "patch_level": 1,
    "downsample": np.array([4.0003, 4.0003]),
    "downsampled_level_dim": np.array([500, 400]),
    "level_dim": np.array([500, 400]),
    "name": "A.1",
    "save_path": "/data/patches",
}
TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 507,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "name": "A.1",
    "savetodir": "/data",
    "level0_width": 4443,
    "level0_height": 3567,
}


@pytest.mark.parametrize("layout", ["trident", "clam"])
def test_what_is_written_is_read(tmp_path, layout):
    grid = PatchGrid("A.1", COORDS, 507.0, 256, 0.5, 4443, 3567, np.array([0, 1, 0]))
    write_coords(tmp_path / "a.h5", grid, layout, {"target_mpp": 0.5})
    found = read_coords(tmp_path / "a.h5")
    assert np.array_equal(found.coords, COORDS) and found.coords.dtype == np.int64
    assert np.array_equal(found.labels, grid.labels)
    assert (found.slide, found.size_level0, found.mpp, found.width, found.height) == ("A.1", 507.0, 0.5, 4443, 3567)
    assert found.size == (256 if layout == "trident" else 507)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["coords"].chunks is None


def test_same_bytes_whenever_it_is_written(tmp_path):
    grid = PatchGrid("A.1", COORDS, 512.0, 256, 0.5, 4443, 3567)
    for name in ("a.h5", "b.h5"):
        write_coords(tmp_path / name, grid)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_trident_attributes_agree_with_each_other(tmp_path):
    write_coords(tmp_path / "a.h5", PatchGrid("A.1", COORDS, 507.0, 256, 0.5, 4443, 3567))
    with h5py.File(tmp_path / "a.h5") as file:
        found = dict(file["coords"].attrs)
    assert set(TRIDENT) <= set(found)
    assert found["level0_magnification"] / found["target_magnification"] == pytest.approx(507 / 256)
    assert found["patch_size_level0"] == 507 and isinstance(found["patch_size_level0"], np.integer)


def test_clam(tmp_path):
    found = read_coords(write(tmp_path / "x.h5", attributes=CLAM))
    assert (found.slide, found.size, found.size_level0, found.mpp) == ("A.1", 256, 1024.0, None)
    assert (found.width, found.height) == (2000, 1600)
    custom = read_coords(write(tmp_path / "y.h5", attributes={**CLAM, "custom_downsample": 2}))
    assert (custom.size, custom.size_level0) == (128, 1024.0)


def test_acmil_labels(tmp_path):
    found = read_coords(write(tmp_path / "x.h5", attributes=CLAM, labels=np.array([1, 0, 1])))
    assert found.labels.tolist() == [1, 0, 1]


def test_old_clam_coordinates_are_brought_to_level_0(tmp_path):
    attributes = {
        "patch_level": 1,
        "wsi_name": np.bytes_("B.2"),
        "downsample": np.array([4.0, 4.0]),
        "level_dim": np.array([500, 400]),
        "downsampled_level_dim": np.array([500, 400]),
    }
    images = np.zeros((3, 8, 8, 3), np.uint8)
    path = write(tmp_path / "x.h5", (COORDS // 4).astype(np.int32), attributes, imgs=images)
    found = read_coords(path)
    assert np.array_equal(found.coords, COORDS // 4 * 4)
    assert (found.slide, found.size, found.size_level0) == ("B.2", 8, 32.0)
    attributes["downsampled_level_dim"] = np.array([250, 200])
    shrunk = read_coords(write(tmp_path / "y.h5", (COORDS // 8).astype(np.int32), attributes, imgs=images))
    assert np.array_equal(shrunk.coords, COORDS // 8 * 8) and shrunk.size_level0 == 64


def test_trident(tmp_path):
    found = read_coords(write(tmp_path / "A.1_patches.h5", attributes=TRIDENT))
    assert (found.slide, found.size, found.size_level0, found.mpp) == ("A.1", 256, 507.0, 0.5)
    assert (found.width, found.height) == (4443, 3567) and found.attributes["overlap"] == 0


def test_no_patch_and_no_name(tmp_path):
    nameless = {name: value for name, value in TRIDENT.items() if name != "name"}
    found = read_coords(write(tmp_path / "C.3_patches.h5", np.zeros((0, 2), np.int64), nameless))
    assert found.coords.shape == (0, 2) and found.slide == "C.3"


@pytest.mark.parametrize(
    ("coords", "attributes", "datasets", "said"),
    [
        (COORDS, {}, {}, "downsample"),
        (COORDS.astype(float), TRIDENT, {}, "float64"),
        (COORDS, TRIDENT, {"labels": np.zeros(2)}, "3 coordinates and 2 labels"),
        (COORDS, {**TRIDENT, "patch_size": "large"}, {}, "large"),
    ],
)
def test_what_is_no_file_of_coordinates_is_refused(tmp_path, coords, attributes, datasets, said):
    path = write(tmp_path / "x.h5", coords, attributes, **datasets)
    with pytest.raises(CorruptRecordError, match=f"x.h5: coordinates: cannot be read.*{said}"):
        read_coords(path)


def test_damaged_truncated_and_absent(tmp_path):
    path = write(tmp_path / "x.h5", attributes=TRIDENT)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(CorruptRecordError, match="make the file again"):
        read_coords(path)
    (tmp_path / "y.h5").write_bytes(b"no HDF5")
    with pytest.raises(CorruptRecordError, match="make the file again"):
        read_coords(tmp_path / "y.h5")
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file["features"] = np.zeros(3)
    with pytest.raises(CorruptRecordError, match="no dataset 'coords'"):
        read_coords(tmp_path / "z.h5")
    with pytest.raises(DatasetNotFoundError, match="no such file"):
        read_coords(tmp_path / "w.h5")
