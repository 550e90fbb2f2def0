"""New recordings are prepared as those of the training were."""

from __future__ import annotations

import h5py
import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ManifestError, PrepError
from data_prep.ieeg.apply import apply
from data_prep.ieeg.series import prepare_series
from tests.data.ieeg.series import write_series
from tests.data_prep.ieeg.helpers import run, write_subjects


def test_new_recordings_get_the_same_numbers(tmp_path):
    raw = write_subjects(tmp_path / "raw", 3)
    run(raw, tmp_path / "out", reference="median")
    card = apply(tmp_path / "out", raw / "pat1", tmp_path / "new", executor="serial", progress=False)
    assert list(card["splits"]) == ["predict"]
    row = pl.read_parquet(tmp_path / "new" / "predict" / "part-00000.parquet").row(0, named=True)
    with (
        h5py.File(tmp_path / "new" / row["files"][0]) as new,
        h5py.File(tmp_path / "out" / "recordings" / "pat1_night" / "part-00000.h5") as old,
    ):
        np.testing.assert_array_equal(new["signal"][:], old["signal"][:])
    again = apply(tmp_path / "out", raw / "pat1", tmp_path / "new", executor="serial", progress=False)
    assert again == card


def test_what_is_no_preparation_is_told(tmp_path):
    raw = write_subjects(tmp_path / "raw", 3)
    with pytest.raises(PrepError, match="no prepared data here"):
        apply(tmp_path / "none", raw, tmp_path / "new")
    run(raw, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrepError):
        apply(tmp_path / "out", tmp_path / "empty", tmp_path / "new", executor="serial", progress=False)
    text = (tmp_path / "out" / "dataset.json").read_text().replace('"ieeg"', '"ctr"')
    (tmp_path / "out" / "dataset.json").write_text(text)
    with pytest.raises(ManifestError, match="no preparation of recordings"):
        apply(tmp_path / "out", raw, tmp_path / "new")


def test_a_series_is_continued_from_its_end(tmp_path):
    write_series(tmp_path / "series.csv", rows=300)
    prepare_series("series", tmp_path / "series.csv", tmp_path / "out")
    write_series(tmp_path / "longer.csv", rows=340)
    card = apply(tmp_path / "out", tmp_path / "longer.csv", tmp_path / "new")
    assert pl.read_parquet(tmp_path / "new" / "series.parquet").height == 340
    assert card["variates"] == ["HUFL", "LULL", "OT"]
