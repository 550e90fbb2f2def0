"""MATLAB files of version 5 to 7, compared with scipy; damaged ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import PrepError
from data_prep.ieeg.errors import HeaderError, TruncatedRecordingError
from data_prep.ieeg.mat5 import list_variables, read_variable
from data_prep.ieeg.matlab import describe_matrix, read_numbers
from tests.data.ieeg import make

VARIABLES = {
    **{
        f"a_{kind}": np.arange(24).reshape(4, 6).astype(kind)
        for kind in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4")
    },
    "wide": np.linspace(-1, 1, 3000).reshape(3, 1000),
    "cube": np.arange(60.0).reshape(3, 4, 5),
    "one": 3.0,
    "none": np.zeros((0, 3)),
    "text": "words",
    "cell": np.array(["a", 1.0], dtype=object),
    "struct": {"x": 1},
    "complex": np.array([1 + 2j]),
    "a_rather_long_name_of_a_variable": np.int16([[7]]),
}


@pytest.mark.parametrize("version", ["5", "7"])
def test_numbers_are_those_of_scipy(tmp_path, version):
    path = make.mat(tmp_path / "a.mat", VARIABLES, version)
    expected = scipy.io.loadmat(path)
    found = {variable.name: variable for variable in list_variables(path)}
    assert set(found) == set(VARIABLES)
    for name, variable in found.items():
        if name in ("text", "cell", "struct", "complex"):
            assert not variable.kind
        else:
            np.testing.assert_array_equal(read_variable(path, variable), expected[name], err_msg=name)
    assert isinstance(read_variable(path, found["wide"]), np.memmap) == (version == "5")


@pytest.mark.parametrize("version", ["5", "7", "7.3"])
def test_a_few_numbers(tmp_path, version):
    path = make.mat(
        tmp_path / "a.mat", {"fs": 512.0, "begin": np.array([[1.0, 2.0]]), "end": np.zeros((0, 1))}, version
    )
    numbers = read_numbers(path, ("fs", "begin", "end", "other"))
    assert {name: values.tolist() for name, values in numbers.items()} == {"fs": [512], "begin": [1, 2], "end": []}
    matrix = describe_matrix(make.mat(tmp_path / "b.mat", {"EEG": np.zeros((900, 3))}, version), ("eeg", "EEG"))
    assert (matrix.variable, matrix.channels, matrix.samples) == ("EEG", 3, 900)


def test_other_files(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"EEG": np.zeros((3, 9))}, format="4")
    with pytest.raises(HeaderError, match="version 5"):
        list_variables(path)
    make.mat(path, VARIABLES)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TruncatedRecordingError, match="truncated"):
        list_variables(path)


@pytest.fixture(scope="module")
def flipped_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flipped")
    data = {version: make.mat(folder / "a.mat", VARIABLES, version).read_bytes() for version in ("5", "7")}
    return folder / "a.mat", data


@given(
    st.sampled_from(["5", "7"]), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4)
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_files(flipped_file, version, changes):
    path, data = flipped_file
    damaged = bytearray(data[version])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    path.write_bytes(damaged)
    try:
        for variable in list_variables(path):
            if variable.kind:
                assert read_variable(path, variable).shape == variable.shape
    except PrepError as error:
        assert "\n" not in str(error)
