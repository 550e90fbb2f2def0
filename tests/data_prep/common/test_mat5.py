"""Variables of MATLAB files: numbers, texts, cells and structures, as scipy writes them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common import mat5
from data_prep.common.errors import CorruptRecordError
from data_prep.common.mat5 import read_variables

RECORDS = np.zeros((1, 2), dtype=[("name", object), ("box", object), ("more", object)])
for at, word in enumerate(("first", "Škoda é 車")):
    cell = np.empty((1, 2), dtype=object)
    cell[0] = ["x", np.float64(at)]
    RECORDS["name"][0, at], RECORDS["box"][0, at], RECORDS["more"][0, at] = word, np.arange(4.0) + at, cell
CONTENT = {
    "numbers": np.arange(6, dtype=np.int16).reshape(2, 3),
    "text": "hello",
    "rows": np.array(["ab", "cd"]),
    "nothing": "",
    "records": RECORDS,
    "unwanted": np.ones(3),
}


def save(path, *, packed):
    scipy.io.savemat(path, CONTENT, do_compression=packed)
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_every_kind_of_value(tmp_path, packed):
    found = read_variables(save(tmp_path / "a.mat", packed=packed), set(CONTENT) - {"unwanted"})
    assert set(found) == set(CONTENT) - {"unwanted"}
    np.testing.assert_array_equal(found["numbers"], CONTENT["numbers"])
    assert found["text"] == "hello" and found["rows"] == ["ab", "cd"] and found["nothing"] == ""
    first, second = found["records"]
    assert first["name"] == "first" and second["name"] == "Škoda é 車"
    np.testing.assert_array_equal(second["box"].reshape(-1), np.arange(4.0) + 1)
    assert second["more"][0] == "x" and float(second["more"][1].item()) == 1.0


def test_cells_in_cells_without_end_are_refused(tmp_path):
    inner: object = 1.0
    for _ in range(12):
        cell = np.empty((1, 1), dtype=object)
        cell[0, 0] = inner
        inner = cell
    scipy.io.savemat(tmp_path / "a.mat", {"deep": inner})
    with pytest.raises(CorruptRecordError, match="cells in cells without end"):
        read_variables(tmp_path / "a.mat", ("deep",))


def test_variables_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mat5, "MAX_UNPACKED", 1000)
    scipy.io.savemat(tmp_path / "a.mat", {"zeros": np.zeros(10_000)}, do_compression=True)
    with pytest.raises(CorruptRecordError, match="has a variable of more than 1,000 bytes"):
        read_variables(tmp_path / "a.mat", ("zeros",))


def test_shapes_larger_than_what_is_there_are_refused(tmp_path):
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"cells": np.full((1, 1), 7.0, dtype=object)})
    data = stream.getvalue().replace(struct.pack("<II", 1, 1), struct.pack("<II", 60_000, 60_000), 1)
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(CorruptRecordError, match="the file is damaged"):
        read_variables(tmp_path / "a.mat", ("cells",))


def test_letters_of_more_rows_than_are_there_are_refused(tmp_path):
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"text": "hello"})
    data = stream.getvalue().replace(struct.pack("<II", 1, 5), struct.pack("<II", 1 << 28, 5), 1)
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(CorruptRecordError, match="a shape and letters that contradict each other"):
        read_variables(tmp_path / "a.mat", ("text",))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_and_flipped_files_end_in_one_line(tmp_path, data):
    packed = data.draw(st.booleans())
    path = tmp_path / f"whole-{packed}.mat"
    content = bytearray((path if path.exists() else save(path, packed=packed)).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "damaged.mat").write_bytes(content)
    try:
        read_variables(tmp_path / "damaged.mat", CONTENT)
    except CorruptRecordError as error:
        assert str(error).startswith(str(tmp_path / "damaged.mat")) and "\n" not in str(error)
