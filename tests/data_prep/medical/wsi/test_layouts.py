"""Feature files of every tool are read as they are, and told apart from damaged ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, PrepError
from data_prep.medical.wsi.features.foreign_layouts import merge_acmil, write_clam, write_trident
from data_prep.medical.wsi.features.layouts import find_features, read_features, write_features

KNOWN = {"patch_size_level0": 512, "patch_size": 256, "level0_width": 9000, "level0_height": 8000, "target_mpp": 0.5}
Array = npt.NDArray[Any]


def some(rows: int = 7, dim: int = 5, seed: int = 0, dtype: str = "float32") -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, dim)).astype(dtype), rng.integers(0, 7000, (rows, 2))


def write_h5(path: Path, features: Array, coords: Array | None = None, **chunks: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, **chunks)
        if coords is not None:
            file["coords"] = coords
    return path


def same(path: Path, features: Array, coords: Array | None) -> None:
    entries = find_features(path)
    assert len(entries) == 1
    found, places, _ = read_features(entries[0])
    np.testing.assert_array_equal(found, features)
    assert (entries[0].rows, entries[0].dim, entries[0].dtype) == (*features.shape, str(features.dtype))
    if coords is None:
        assert places is None and entries[0].coords == ""
    else:
        assert places is not None and places.dtype == np.int64
        np.testing.assert_array_equal(places, coords)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    dim=st.integers(1, 9),
    seed=st.integers(0, 9),
    dtype=st.sampled_from(["float16", "float32"]),
    slide=st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("C",)), min_size=1).filter(
        lambda name: len(name.encode()) < 100 and name not in (".", "..") and not name.startswith(".")
    ),
)
def test_every_layout_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: int, dim: int, seed: int, dtype: Any, slide: str
) -> None:
    folder = tmp_path_factory.mktemp("layouts")
    features, coords = some(rows, dim, seed, dtype)
    (folder / "native").mkdir()
    native = folder / "native" / f"{slide}.h5"
    write_features(native, features, coords, {**KNOWN, "name": slide, "encoder": "e"}, dtype)
    for layout in ("clam", "trident", "acmil"):
        (folder / layout).mkdir()
    write_clam(folder / "clam", slide, features, coords, dtype)
    write_trident(folder / "trident", slide, features, coords, {**KNOWN, "encoder": "e"}, dtype)
    merge_acmil([(slide, native, 3)], folder / "acmil" / "patch_feats_pretrain_e.h5")
    for layout in ("native", "clam", "trident", "acmil"):
        same(folder / layout, features, coords)
        (entry,) = find_features(folder / layout)
        assert entry.slide == slide
        assert entry.label == (3 if layout == "acmil" else None)
    assert read_features(find_features(folder / "native")[0])[2] == {
        **KNOWN,
        "name": slide,
        "encoder": "e",
        "bad_rows": 0,
    }
    trident = read_features(find_features(folder / "trident")[0])[2]
    assert trident["target_magnification"] == 20 and trident["level0_magnification"] == 40
    assert {name: trident[name] for name in KNOWN} == KNOWN


def test_native_files_are_contiguous_and_their_bytes_repeat(tmp_path: Path) -> None:
    features, coords = some(20_000, 8)
    for name in ("a", "b"):
        write_features(tmp_path / f"{name}.h5", features, coords, {**KNOWN, "name": "s"}, "float16")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["features"].chunks is None and file["coords"].chunks is None
        assert file["features"].dtype == np.float16 and file["coords"].dtype == np.int64
        np.testing.assert_array_equal(file["features"][()], features.astype(np.float16))
    assert len(list(tmp_path.iterdir())) == 2


def test_too_large_for_float16_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    features, coords = some()
    features[2, 3] = 70_000
    with pytest.raises(PrepError, match="1 values are beyond 65,504"):
        write_features(tmp_path / "a.h5", features, coords, {}, "float16")
    assert not list(tmp_path.iterdir())
    write_features(tmp_path / "a.h5", features, coords, {}, "float32")
    same(tmp_path, features, coords)


def test_clam_features_with_a_leading_axis_row_chunks_and_int32_coordinates(tmp_path: Path) -> None:
    features, coords = some()
    write_h5(tmp_path / "h5_files" / "s.h5", features[None], coords.astype(np.int32), chunks=(1, 1, 5))
    same(tmp_path, features, coords)


def test_clam_folders_count_once_and_those_with_coordinates_win(tmp_path: Path) -> None:
    features, coords = some()
    write_h5(tmp_path / "h5_files" / "a.b.c.h5", features, coords)
    (tmp_path / "pt_files").mkdir()
    torch.save(torch.from_numpy(features), tmp_path / "pt_files" / "a.b.c.pt")
    torch.save(torch.from_numpy(features * 2), tmp_path / "pt_files" / "only.pt")
    found = find_features(tmp_path)
    assert [(entry.slide, entry.path.suffix, entry.dataset) for entry in found] == [
        ("a.b.c", ".h5", "features"),
        ("only", ".pt", ""),
    ]
    np.testing.assert_array_equal(read_features(found[1])[0], features * 2)


def test_tensor_files_of_every_age_and_type(tmp_path: Path) -> None:
    features, coords = some()
    tensor = torch.from_numpy(features)
    torch.save(tensor, tmp_path / "new.pt")
    torch.save(tensor, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(tensor.bfloat16(), tmp_path / "short.pt")
    torch.save(tensor.requires_grad_()[None], tmp_path / "axis.pt")
    torch.save({"features": tensor.detach(), "coords": torch.from_numpy(coords)}, tmp_path / "both.pt")
    found = {entry.slide: entry for entry in find_features(tmp_path)}
    for name in ("new", "old", "axis", "both"):
        np.testing.assert_array_equal(read_features(found[name])[0], features)
    short = read_features(found["short"])[0]
    assert short.dtype == np.float32 and found["short"].dtype == "float32"
    np.testing.assert_allclose(short, features, rtol=0.01)
    places = read_features(found["both"])[1]
    assert places is not None and np.array_equal(places, coords)


class _Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_never_executed(tmp_path: Path, zipped: bool) -> None:
    mark, good = tmp_path / "executed", torch.zeros(3, 2)
    (tmp_path / "files").mkdir()
    torch.save(good, tmp_path / "files" / "good.pt")
    for name, content in {"bare": _Hostile(mark), "beside": {"features": good, "x": _Hostile(mark)}}.items():
        path = tmp_path / "files" / f"{name}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CorruptRecordError, match=f"{name}.pt: .*was not executed"):
            find_features(path)
    problems: list[CorruptRecordError] = []
    assert [entry.slide for entry in find_features(tmp_path / "files", problems)] == ["good"]
    assert len(problems) == 2 and not mark.exists()


def test_folders_of_other_things_are_passed_by(tmp_path: Path) -> None:
    features, coords = some()
    write_h5(tmp_path / "20x" / "features_e" / "s.h5", features, coords)
    write_h5(tmp_path / "20x" / "slide_features_t" / "s.h5", features[0])
    (tmp_path / "20x" / "patches").mkdir()
    with h5py.File(tmp_path / "20x" / "patches" / "s_patches.h5", "w") as file:
        file["coords"] = coords
    (tmp_path / "20x" / "._s.h5").write_bytes(b"of another system")
    (tmp_path / "dataset.json").write_text('{"of": "another program"}')
    same(tmp_path, features, coords)
    write_h5(tmp_path / "20x" / "features_f" / "s.h5", features, coords)
    with pytest.raises(ConfigError, match="several encoders: features_e, features_f; give one"):
        find_features(tmp_path)
    with pytest.raises(CorruptRecordError, match="holds patches, but no features; make them with"):
        find_features(tmp_path / "20x" / "patches")


def test_links_that_lead_back_and_files_given_twice(tmp_path: Path) -> None:
    features, coords = some()
    path = write_h5(tmp_path / "x" / "s.h5", features, coords)
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    assert len(find_features([tmp_path, path, tmp_path / "x"])) == 1


def test_one_id_in_two_places_is_named_with_both(tmp_path: Path) -> None:
    features, coords = some()
    for name in ("camelyon", "tcga"):
        write_h5(tmp_path / name / "slide_1.h5", features, coords)
    with pytest.raises(ConfigError, match=r"tcga/slide_1.h5: slide 'slide_1' is also in .*camelyon/slide_1.h5"):
        find_features(tmp_path)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        for group in ("x/s", "y/s"):
            file[f"{group}/feat"] = features
    with pytest.raises(ConfigError, match="slide 's' is also in"):
        find_features(tmp_path / "one.h5")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="no such file or folder"):
        find_features(tmp_path / "absent")
    with pytest.raises(DatasetNotFoundError, match=r"no feature file here .*heptad medical features"):
        find_features(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(CorruptRecordError, match=r"x.h5: file: is damaged or no feature file"):
        find_features(tmp_path)


def test_features_and_coordinates_of_different_length(tmp_path: Path) -> None:
    features, coords = some()
    path = write_h5(tmp_path / "s.h5", features, coords[:-2])
    with pytest.raises(CorruptRecordError, match=r"s.h5: slide s: 7 rows of features but 5 coordinates; extract"):
        read_features(find_features(path)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_with_nan_are_named_or_left_out(tmp_path: Path, bad: float) -> None:
    features, coords = some()
    features[4, 1] = features[6, 0] = bad
    path = write_h5(tmp_path / "s.h5", features, coords)
    (entry,) = find_features(path)
    with pytest.raises(CorruptRecordError, match=r"s.h5: slide s, rows 4, 6: NaN or infinity in 2 of 7 rows"):
        read_features(entry)
    found, places, attributes = read_features(entry, "drop")
    assert attributes["bad_rows"] == 2 and places is not None
    np.testing.assert_array_equal(found, features[[0, 1, 2, 3, 5]])
    np.testing.assert_array_equal(places, coords[[0, 1, 2, 3, 5]])
    assert len(read_features(entry, "keep")[0]) == 7
    write_h5(path, np.full((3, 2), bad), coords[:3])
    with pytest.raises(CorruptRecordError, match=r"rows 0, 1, 2: NaN or infinity in 3 of 3 rows"):
        read_features(find_features(path)[0], "drop")


def test_empty_bag(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "s.h5", np.zeros((0, 5), np.float32), np.zeros((0, 2), np.int64))
    (entry,) = find_features(path)
    assert entry.rows == 0
    with pytest.raises(CorruptRecordError, match=r"s.h5: slide s: no patches, an empty bag"):
        read_features(entry)


def test_coordinates_of_another_slide(tmp_path: Path) -> None:
    features, coords = some()
    coords[3] = (9000, 5)
    path = tmp_path / "s.h5"
    write_features(path, features, coords, {**KNOWN, "name": "s"}, "float32")
    with pytest.raises(CorruptRecordError, match=r"row 3: the patch at \(9000, 5\) is outside the slide of 9,000 x"):
        read_features(find_features(path)[0])
    write_features(path, *some(), {**KNOWN, "name": "s"}, "float32")
    with h5py.File(path, "a") as file:
        file["coords"].attrs["name"] = "t"
    with pytest.raises(CorruptRecordError, match="features of slide 's' beside coordinates of slide 't'"):
        read_features(find_features(path)[0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros((2, 3, 4), np.float32), r"shape \(2, 3, 4\), type float32; needed is a row of floats per patch"),
        (np.zeros(3, np.float32), r"shape \(3,\)"),
        (np.zeros((4, 3), np.int64), "type int64"),
        (np.zeros((4, 0), np.float32), r"shape \(4, 0\)"),
    ],
)
def test_what_is_no_table_of_numbers(tmp_path: Path, content: Array, reason: str) -> None:
    with pytest.raises(CorruptRecordError, match=reason):
        find_features(write_h5(tmp_path / "s.h5", content))


def test_clam_attributes_give_the_size_in_level_0_pixels(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "s.h5", *some())
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0001, 4.0])})
    assert read_features(find_features(path)[0])[2]["patch_size_level0"] == 1024


def test_rows_that_were_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("features", shape=(100_000, 384), dtype="float32")
    with pytest.raises(CorruptRecordError, match=r"s.h5: slide s: says that it holds 153,600,000 bytes of features"):
        find_features(tmp_path)


def test_damaged_files_only_raise_what_users_can_act_on(tmp_path: Path) -> None:
    features, coords = some(60, 16)
    whole = write_h5(tmp_path / "s.h5", features, coords, chunks=(4, 16), compression="gzip").read_bytes()
    tensor = tmp_path / "t.pt"
    torch.save(torch.from_numpy(features), tensor)
    rng = np.random.default_rng(0)
    for name, data in (("s.h5", whole), ("t.pt", tensor.read_bytes())):
        path = tmp_path / name
        for case in range(60):
            bad = bytearray(data)
            if case % 2:
                bad = bad[: int(rng.integers(len(bad)))]
            else:
                for place in rng.integers(0, len(bad), 4):
                    bad[place] ^= int(rng.integers(1, 256))
            path.write_bytes(bad)
            problems: list[CorruptRecordError] = []
            for entry in find_features(path, problems):
                try:
                    read_features(entry)
                except PrepError as error:
                    assert name in str(error)
