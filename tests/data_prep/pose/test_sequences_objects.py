"""Hostile and damaged npz, MATLAB, HDF5 and cdf files: an error of one line, never a crash, never executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import CorruptRecordError, PrepError
from data_prep.pose.sequences import human36m, mpi_inf_3dhp
from data_prep.pose.sequences.errors import UnsafeFileError
from data_prep.pose.sequences.matlab_cells import read_cells
from data_prep.pose.sequences.objects import read_npy, read_npz
from data_prep.pose.sequences.records import Source
from tests.data.pose import make_sequences as make

SMALL = {
    "S1": {"Walk": [np.arange(12, dtype=np.float32).reshape(2, 3, 2), np.ones((2, 3, 2), ">f8")]},
    "n": [1, -2, 2.5],
}
HEADER = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }"
HEADER = HEADER + b" " * (127 - len(HEADER)) + b"\n"


def stored(value, protocol=4):
    """An object array as a `.npy` file."""
    return HEADER + pickle.dumps(make.as_object(value), protocol=protocol)


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


class Bomb:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class TestGood:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_equals_numpy(self, protocol):
        mine = read_npy(stored(SMALL, protocol), Path("a.npz"), "a")
        assert mine["n"] == SMALL["n"]
        for ours, theirs in zip(mine["S1"]["Walk"], SMALL["S1"]["Walk"], strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize(
        "value",
        [
            np.array([["a", "bc"]]),
            np.arange(3) > 1,
            np.zeros((0, 4)),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.array(7, dtype=np.int16),
        ],
    )
    def test_plain_arrays(self, value, tmp_path):
        np.savez_compressed(tmp_path / "a.npz", value=value, second=1.5)
        found = read_npz(tmp_path / "a.npz")
        np.testing.assert_array_equal(found["value"], value)
        assert found["second"] == 1.5

    def test_object_arrays_of_arrays_and_scalars(self):
        ragged = np.empty(2, dtype=object)
        ragged[:] = [np.zeros((2, 17, 2)), {"f": np.float32(2.5), "i": np.int64(3)}]
        found = read_npy(stored(ragged), Path("a.npz"), "a")
        assert found.shape == (2,)
        assert found[0].shape == (2, 17, 2)
        assert found[1] == {"f": 2.5, "i": 3}


class TestHostile:
    @pytest.mark.parametrize(
        ("function", "arguments", "named"),
        [
            (os.system, ("touch {marker}",), "posix.system"),
            (eval, ("open('{marker}', 'w')",), "builtins.eval"),
            (Path, ("x",), "pathlib.Path"),
            (OrderedDict, (), "collections.OrderedDict"),
        ],
        ids=["system", "eval", "path", "class"],
    )
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_hostile_pickle_is_named_and_never_run(self, function, arguments, named, protocol, tmp_path):
        marker = tmp_path / "ran"
        bomb = Bomb(function, *(text.format(marker=marker) for text in arguments))
        path = npz(tmp_path / "data_3d_h36m.npz", positions_3d=stored({"S1": bomb}, protocol))
        with pytest.raises(
            UnsafeFileError, match=rf"data_3d_h36m\.npz: positions_3d: its pickle asks for .*{named.split('.')[-1]}"
        ):
            read_npz(path)
        assert not marker.exists()

    def test_hostile_words_of_numpy_are_not_called(self):
        for word in ("numpy\nload", "numpy.core.multiarray\nfromfile", "numpy\nndarray"):
            data = HEADER + b"\x80\x02c" + word.encode() + b"\n(X\x01\x00\x00\x00at\x52."
            with pytest.raises(CorruptRecordError):
                read_npy(data, Path("a.npz"), "a")

    def test_lists_that_contain_themselves(self):
        loop: list[object] = []
        loop += [loop] * 50
        with pytest.raises(CorruptRecordError, match="contains itself"):
            read_npy(stored({"a": loop}), Path("a.npz"), "a")

    def test_deep_nesting(self):
        deep: list[object] = []
        for _ in range(200):
            deep = [deep]
        with pytest.raises(CorruptRecordError, match="nested too deeply"):
            read_npy(stored(deep), Path("a.npz"), "a")

    @pytest.mark.parametrize(
        "program",
        [
            b"\x80\x04B\xff\xff\xff\xff12.",  # four gigabytes that are not there
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f1.",
            b"\x80\x04Nr\xff\xff\xff\xff.",  # remembered in the place four thousand million
            b"\x80\x04.",
            b"\x80\x04a.",
            b"\x80\x04]N\x85e.",
            b"",
        ],
    )
    def test_sizes_that_are_not_there(self, program):
        with pytest.raises(CorruptRecordError):
            read_npy(HEADER + program, Path("a.npz"), "a")

    def test_archive_that_unpacks_without_end(self, tmp_path):
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", stored(SMALL))
        data = bytearray(path.read_bytes())
        place = data.rindex(b"PK\x01\x02") + 24  # unpacked size in the directory
        data[place : place + 4] = (1 << 31).to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(CorruptRecordError, match="cannot unpack to the size it says"):
            read_npz(path)

    @settings(max_examples=400, deadline=None)
    @given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
    @example([(0.5, 0x52)])
    def test_flipped_bytes_of_a_pickle_never_crash_or_execute(self, changes):
        data = bytearray(stored(SMALL))
        for place, value in changes:
            data[int(place * (len(data) - 1))] = value
        try:
            found = read_npy(bytes(data), Path("a.npz"), "a")
        except PrepError as error:
            assert "\n" not in str(error)
            assert str(error).startswith("a.npz: a")
        else:
            assert isinstance(found, dict | list | np.ndarray | int | float | str | bytes | None)

    @settings(max_examples=150, deadline=None)
    @given(place=st.floats(0, 1), value=st.integers(0, 255), keep=st.floats(0.2, 1))
    def test_flipped_and_truncated_archives(self, place, value, keep, tmp_path_factory):
        buffer = BytesIO()
        np.savez_compressed(buffer, positions_3d=make.as_object(SMALL), metadata=make.as_object(make.H36M_META))
        data = bytearray(buffer.getvalue())
        data[int(place * (len(data) - 1))] = value
        path = tmp_path_factory.getbasetemp() / "flipped.npz"
        path.write_bytes(data[: int(keep * len(data))])
        try:
            read_npz(path)
        except PrepError as error:
            assert "\n" not in str(error)

    @settings(max_examples=200, deadline=None)
    @given(data=st.binary(max_size=60))
    def test_random_programs(self, data):
        with pytest.raises(PrepError):
            read_npy(HEADER + b"\x80\x04" + data, Path("a.npz"), "a")


@pytest.fixture(scope="module")
def annot(tmp_path_factory):
    """`annot.mat`, packed and not, of three frames."""
    folder = tmp_path_factory.mktemp("annot")
    content = make.hp_train(3, 0, make.hp_cameras(2))
    make.write_annot(folder / "packed.mat", content)
    make.write_annot(folder / "plain.mat", content, compressed=False)
    return folder


class TestDamagedFiles:
    @settings(max_examples=150, deadline=None)
    @given(name=st.sampled_from(["packed", "plain"]), place=st.floats(0, 1), value=st.integers(0, 255))
    def test_flipped_matlab_files(self, annot, name, place, value):
        data = bytearray((annot / f"{name}.mat").read_bytes())
        # headers are small and numbers many: half of the places are among the first bytes
        data[int(place * 2 * 600) if place < 0.5 else int((place - 0.5) * 2 * (len(data) - 1))] = value
        path = annot / "flipped.mat"
        path.write_bytes(data)
        try:
            read_cells(path, ("annot2", "annot3", "univ_annot3"))
        except PrepError as error:
            assert str(error).startswith(str(path))

    @pytest.mark.parametrize("keep", [0, 60, 128, 131, 500, -9])
    @pytest.mark.parametrize("name", ["packed", "plain"])
    def test_truncated_matlab_files(self, annot, name, keep, tmp_path):
        path = tmp_path / "S1" / "Seq1" / "annot.mat"
        path.parent.mkdir(parents=True)
        path.write_bytes((annot / f"{name}.mat").read_bytes()[:keep])
        found = mpi_inf_3dhp.unpack(Source(path, "train", "S1/Seq1/annot.mat"), tmp_path)
        assert found["reason"]

    @pytest.mark.parametrize("keep", [0, 100, 3000])
    def test_truncated_hdf5_files(self, keep, tmp_path):
        path = tmp_path / "TS1" / "annot_data.mat"
        make.write_annot_data(path)
        path.write_bytes(path.read_bytes()[:keep])
        found = mpi_inf_3dhp.unpack(Source(path, "test", "TS1/annot_data.mat"), tmp_path)
        assert "cannot be read" in found["reason"]

    def test_flipped_hdf5_files(self, tmp_path):
        path = tmp_path / "TS1" / "annot_data.mat"
        make.write_annot_data(path, frames=8)
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        for _ in range(60):
            data = bytearray(whole)
            data[rng.integers(min(len(data), 2500))] ^= 1 << rng.integers(8)
            path.write_bytes(data)
            found = mpi_inf_3dhp.unpack(Source(path, "test", "TS1/annot_data.mat"), tmp_path)
            assert found.get("reason") or len(found["arrays"]) == 4

    def test_damaged_cdf_files(self, tmp_path):
        pytest.importorskip("cdflib", reason="the extra pose is not installed")
        path = tmp_path / "S1" / "D3_Positions" / "Eating.cdf"
        make.write_cdf(path, make.h36m_32(make.walk(make.H36M_17, 5)) * 1000)
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        for attempt in range(60):
            data = bytearray(whole)
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            path.write_bytes(data[: rng.integers(len(data))] if attempt % 3 == 0 else data)
            try:
                assert human36m.read_cdf(path).shape[1:] == (32, 3)
            except CorruptRecordError as error:
                assert str(error).startswith(str(path))
