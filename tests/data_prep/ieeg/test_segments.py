"""Bonn and MAYO/FNUSA: sets of short segments of one channel."""

from __future__ import annotations

import zipfile

import numpy as np
import polars as pl
import pytest
import scipy.io

from data_prep.common.errors import ConfigError, DatasetNotFoundError, PrepError
from data_prep.ieeg import bonn, mayo_fnusa
from data_prep.ieeg.records import Asked
from data_prep.ieeg.signals import open_signal
from tests.data_prep.ieeg.helpers import run


def write_bonn(folder, numbers=(1, 2, 21), sets="NFS", archive=False):
    rng = np.random.default_rng(0)
    texts = {
        f"{letter}/{letter}{number:03d}.{'TXT' if letter == 'N' else 'txt'}": "\n".join(
            map(str, rng.normal(0, 50 if letter != "S" else 300, bonn.SAMPLES).astype(int))
        )
        for letter in sets
        for number in numbers
    }
    folder.mkdir(parents=True, exist_ok=True)
    if archive:
        with zipfile.ZipFile(folder / "bonn.zip", "w") as file:
            for name, text in texts.items():
                file.writestr(name, text)
        return folder / "bonn.zip"
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("archive", [False, True])
def test_bonn_segments_are_listed_and_read(archive, tmp_path):
    raw = write_bonn(tmp_path / "raw", archive=archive)
    listing = bonn.read([raw], Asked())
    assert len(listing.recordings) == 9
    assert {recording.subject for recording in listing.recordings} == {"block-1", "block-2"}
    for recording in listing.recordings:
        assert recording.annotated
        assert [(e.onset, round(e.offset, 6)) for e in recording.events] == (
            [(0.0, round(4097 / 173.61, 6))] if recording.name.startswith("S") else []
        )
        values = open_signal(recording).read(10, 4097)
        assert values.shape == (1, 4087)
        assert values.dtype == np.float32
        assert (values == np.round(values)).all()
    assert "not published" in listing.notes["subjects"]


def test_other_sets_are_asked_for_by_letter(tmp_path):
    raw = write_bonn(tmp_path / "raw", sets="ZOS")
    # scalp channels are no intracranial ones
    listing = bonn.read([raw], Asked(version="ZS", channels=".*"))
    assert {recording.name[0] for recording in listing.recordings} == {"Z", "S"}
    with pytest.raises(ConfigError, match="letters of sets"):
        bonn.read([raw], Asked(version="XY"))
    with pytest.raises(DatasetNotFoundError, match="no segment"):
        bonn.read([write_bonn(tmp_path / "other", sets="Z")], Asked())


def test_damaged_segments_are_rejected(tmp_path):
    raw = write_bonn(tmp_path / "raw")
    path = raw / "S" / "S001.txt"
    path.write_text(path.read_text()[:-3000])
    (raw / "F" / "F001.txt").write_text("12\nabc\n" * 2048 + "7")
    options = {"reference": "none", "rate": 173.61, "highpass": 0.0, "lowpass": 40.0, "max_rejects": 0.5}
    card = run(raw, tmp_path / "out", "bonn", **options)
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert sorted(rejects["source"]) == ["F/F001.txt", "S/S001.txt"]
    assert any("of 4,097 numbers" in reason for reason in rejects["reason"])
    assert card["rejects"]["count"] == 2


@pytest.mark.shared
def test_the_real_set(shared):
    listing = bonn.read([shared / "ieeg" / "bonn.zip"], Asked())
    assert len(listing.recordings) == 300
    assert sum(len(recording.events) for recording in listing.recordings) == 100
    reader = open_signal(listing.recordings[0])
    assert reader.read(0, 4097).shape == (1, 4097)


def write_mayo(folder, categories=("pathology", "physiology", "artifacts", "powerline"), patients=3):
    rng = np.random.default_rng(0)
    (folder / "DATASET_MAYO").mkdir(parents=True)
    rows = []
    for patient in range(patients):
        for at, category in enumerate(categories):
            name = f"seg{patient}{at}"
            scipy.io.savemat(folder / "DATASET_MAYO" / f"{name}.mat", {"data": rng.normal(0, 40, 15000)})
            rows.append((name, category, patient, f"B{at + 1}"))
    columns = ["segment_id", "category_name", "patient_id", "channel"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(folder / "DATASET_MAYO" / "segments.csv")
    return folder


def test_mayo_segments_are_listed_and_read(tmp_path):
    listing = mayo_fnusa.read([write_mayo(tmp_path / "raw")], Asked())
    assert len(listing.recordings) == 6, "artefacts and power line are left out"
    assert {recording.subject for recording in listing.recordings} == {"MAYO-0", "MAYO-1", "MAYO-2"}
    assert sum(bool(recording.events) for recording in listing.recordings) == 3
    recording = listing.recordings[0]
    assert (recording.rate, recording.samples) == (5000.0, 15000)
    assert open_signal(recording).read(100, 200).shape == (1, 100)
    assert listing.notes["labels"]["artifacts"]["meaning"] == "exclude"


def test_tables_that_do_not_fit_are_told(tmp_path):
    raw = write_mayo(tmp_path / "raw")
    path = raw / "DATASET_MAYO" / "segments.csv"
    text = path.read_text()
    path.write_text(text.replace("pathology", "mystery"))
    with pytest.raises(PrepError, match="nobody says what category 'mystery' means"):
        mayo_fnusa.read([raw], Asked())
    path.write_text(text.replace("patient_id", "who"))
    with pytest.raises(PrepError, match="lacks a column patient_id"):
        mayo_fnusa.read([raw], Asked())
    path.write_text(text)
    (raw / "DATASET_MAYO" / "seg00.mat").unlink()
    with pytest.raises(PrepError, match=r"1 segments have no .mat file \(seg00\)"):
        mayo_fnusa.read([raw], Asked())
    path.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"no segments.csv"):
        mayo_fnusa.read([raw], Asked())
