"""New recordings are prepared as those of the training were."""

from __future__ import annotations

import h5py
import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, ManifestError, PrepError
from data_prep.ieeg.apply import apply
from data_prep.ieeg.planted_bids import write_planted_bids
from data_prep.ieeg.series import prepare_series
from tests.data.ieeg import make
from tests.data.ieeg.series import write_series
from tests.data_prep.ieeg.helpers import NAMES, run, signal, write_subjects

BROKEN = make.Annotation(60.0, -3.0, "sz")


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


def test_annotations_of_new_recordings_are_not_looked_at(tmp_path, capsys):
    raw = write_subjects(tmp_path / "raw", 3)
    run(raw, tmp_path / "out", events=raw / "events.csv")
    notes = [make.Annotation(5.0, None, "Seizure onset"), make.Annotation(9.0, None, "Anfallsende"), BROKEN]
    make.edf(tmp_path / "new" / "p" / "a.edf", signal(1), 128, NAMES, span=2000, annotations=notes)
    capsys.readouterr()
    card = apply(tmp_path / "out", tmp_path / "new", tmp_path / "encoded", executor="serial", progress=False)
    assert card["rejects"]["count"] == 0
    row = pl.read_parquet(tmp_path / "encoded" / "predict" / "part-00000.parquet").row(0, named=True)
    assert (row["annotated"], row["seizures"]) == (False, 0)
    assert "nothing tells" not in capsys.readouterr().err


@pytest.mark.parametrize("events", ["onset\tduration\ttrial_type\n5\t0\tsz\n", "when\twhat\n5\tsz\n", "a\ta\n"])
def test_events_of_a_new_data_set_are_not_looked_at(tmp_path, events):
    planted = write_planted_bids(tmp_path / "raw", subjects=3, recordings=1, minutes=1.2, channels=6, rate=128.0)
    run(planted.root, tmp_path / "out", "bids")
    (path,) = (planted.root / "sub-02").rglob("*_events.tsv")
    path.write_text(events)
    card = apply(tmp_path / "out", planted.root / "sub-02", tmp_path / "new", executor="serial", progress=False)
    assert (card["splits"]["predict"]["rows"], card["rejects"]["count"]) == (1, 0)


def test_segments_without_a_category_are_predicted(tmp_path):
    make.mayo(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "out", "mayo-fnusa", reference="none")
    make.mayo(tmp_path / "new", [("0f", "to be said", 1, "LA1"), ("0g", "", 1, "LA2")])
    card = apply(tmp_path / "out", tmp_path / "new", tmp_path / "encoded", executor="serial", progress=False)
    assert (card["splits"]["predict"]["rows"], card["rejects"]["count"]) == (2, 0)


def test_new_recordings_get_pseudonyms_with_the_secret(tmp_path, capsys):
    raw = write_subjects(tmp_path / "raw", 3)
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    run(raw, tmp_path / "out", anonymise=key)
    options = {"executor": "serial", "progress": False}
    apply(tmp_path / "out", raw, tmp_path / "new", anonymise=key, **options)
    rows = [pl.read_parquet(path) for folder in ("out", "new") for path in (tmp_path / folder).glob("*/part-*.parquet")]
    assert pl.concat(rows)["subject"].n_unique() == 3
    assert b"pat1" not in b"".join(path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file())
    assert "keep their names" not in capsys.readouterr().err
    apply(tmp_path / "out", raw, tmp_path / "named", **options)
    assert "these recordings keep their names" in capsys.readouterr().err
    key.write_text("another secret, as long as one has to be")
    with pytest.raises(ConfigError, match="another secret than that of the preparation"):
        apply(tmp_path / "out", raw, tmp_path / "other", anonymise=key, **options)


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
