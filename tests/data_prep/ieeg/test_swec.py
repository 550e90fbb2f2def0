"""SWEC-ETHZ in its three layouts: parts, hours, single seizures, and files that are damaged or point elsewhere."""

from __future__ import annotations

import dataclasses
import pickle
import shutil

import h5py
import numpy as np
import pytest

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, LeakError
from data_prep.ieeg import swec
from data_prep.ieeg.errors import MissingFilterError
from data_prep.ieeg.signals import open_signal
from tests.data.ieeg import make
from tests.data_prep.ieeg.reading import ASKED, only, survives, whole, why


def read(path, **asked):
    return swec.read([path], dataclasses.replace(ASKED, **asked))


@pytest.mark.parametrize("virtual", [True, False])
def test_long_term(tmp_path, virtual):
    values = make.swec_hdf5(tmp_path, 19, virtual=virtual)
    listing = read(tmp_path)
    recording = only(listing)
    assert (recording.name, recording.subject, recording.rate) == ("ID19", "ID19", 512)
    assert [(event.onset, event.offset) for event in recording.events] == [(1, 2.5), (4.5, 6)]
    assert recording.annotated
    assert [channel.name for channel in recording.kept] == ["iEEG01", "iEEG02", "iEEG03", "iEEG04"]
    np.testing.assert_array_equal(whole(recording), values)
    assert [path.name for path in recording.signal_files] == (
        ["ID19_part_1.h5", "ID19_part_2.h5"] if virtual else ["ID19_total.h5"]
    )
    assert "CDLA-Permissive-2.0" in listing.licence
    assert repr(pickle.loads(pickle.dumps(recording))) == repr(recording)  # places are NaN


def test_a_total_that_points_at_another_subject(tmp_path):
    values = make.swec_hdf5(tmp_path, 19, points_at=7)
    recording = only(read(tmp_path))
    assert any("another subject" in remark and "ID07_part_1.h5" in remark for remark in recording.remarks)
    np.testing.assert_array_equal(whole(recording), values)
    for path in (tmp_path / "ID19").glob("*part*"):
        path.unlink()
    assert "are not there" in why(read(tmp_path))


def test_a_missing_part_is_no_zeros(tmp_path):
    make.swec_hdf5(tmp_path, 19, parts=3)
    (tmp_path / "ID19" / "ID19_part_2.h5").unlink()
    assert "ID19_part_2.h5" in why(read(tmp_path))
    make.swec_hdf5(tmp_path, 20, parts=3, points_at=7)
    (tmp_path / "ID20" / "ID20_part_2.h5").unlink()
    assert any("one is missing?" in reject.reason for reject in read(tmp_path).rejects)


def test_parts_without_a_total(tmp_path):
    values = make.swec_hdf5(tmp_path, 19, parts=11)
    (tmp_path / "ID19" / "ID19_total.h5").unlink()
    recording = only(read(tmp_path))
    assert not recording.annotated
    assert any("unknown" in remark for remark in recording.remarks)
    np.testing.assert_array_equal(whole(recording), values)


def test_known_copies_are_told(tmp_path):
    for number in (1, 20, 18):
        make.swec_hdf5(tmp_path, number, parts=1)
    listing = read(tmp_path)
    assert listing.notes["known_copies"] == {"ID01": "ID20", "ID18": "ID40"}
    assert listing.notes["known_copies_with_original"] == {"ID01": "ID20"}
    assert any("copy of ID20" in remark for remark in listing.recordings[0].remarks)
    assert len(swec.COPIES) == 18


def test_a_missing_filter_names_what_to_install(tmp_path, monkeypatch):
    make.swec_hdf5(tmp_path, 19)
    monkeypatch.setattr("data_prep.ieeg.swec_hdf5.h5py.h5z.filter_avail", lambda number: number != 32004)
    with pytest.raises(MissingFilterError, match="pip install hdf5plugin") as caught:
        read(tmp_path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_damaged_hdf5(tmp_path):
    make.swec_hdf5(tmp_path, 19, parts=1)
    total = tmp_path / "ID19" / "ID19_total.h5"
    with h5py.File(total, "r+") as file:
        del file["data/seizures"]
        file["data/seizures"] = np.arange(4.0)
    assert "onsets and offsets" in why(read(tmp_path))
    with h5py.File(total, "r+") as file:
        del file["data/seizures"]
        file.attrs["sampling_rate"] = -3
    assert "sampling_rate" in why(read(tmp_path))
    data = total.read_bytes()
    total.write_bytes(data[: len(data) // 2])
    assert "ID19_total" in read(tmp_path).rejects[0].source
    total.write_bytes(b"")
    assert "0 bytes" in why(read(tmp_path))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_and_flipped_parts(tmp_path, share):
    make.swec_hdf5(tmp_path, 19, parts=1)
    part = tmp_path / "ID19" / "ID19_part_1.h5"
    data = part.read_bytes()
    part.write_bytes(data[: int(len(data) * share)])
    survives(swec.read, tmp_path)
    flipped = bytearray(data)
    for place in range(int(len(data) * share), min(int(len(data) * share) + 2000, len(data))):
        flipped[place] ^= 0xFF
    part.write_bytes(flipped)
    survives(swec.read, tmp_path)


@pytest.mark.parametrize("version", ["5", "7", "7.3"])
def test_hours(tmp_path, version):
    values = make.swec_hours(tmp_path, 1, (1, 2, 3), version=version)
    recording = only(read(tmp_path))
    assert (recording.name, recording.subject, recording.samples) == ("ID01", "ID01", 10_800)
    assert [(event.onset, event.offset) for event in recording.events] == [(1000, 1060), (3590, 3610)]
    np.testing.assert_array_equal(whole(recording), values)
    assert [path.name for path in recording.signal_files] == ["ID1_1h.mat", "ID1_2h.mat", "ID1_3h.mat"]


def test_a_missing_hour_makes_two_recordings(tmp_path):
    seizures = ((1000, 1060), (3600 + 5, 3600 + 9), (7190, 7210), (4 * 3600 + 5, 4 * 3600 + 9))
    make.swec_hours(tmp_path, 1, (1, 3, 4, 10), seizures)
    listing = read(tmp_path)
    spans = {one.name: [(event.onset, event.offset) for event in one.events] for one in listing.recordings}
    assert spans == {"ID01_h001-h001": [(1000, 1060)], "ID01_h003-h004": [(0, 10)], "ID01_h010-h010": []}
    assert [reject.record for reject in listing.rejects] == [1, 3]
    assert all("is not there" in reject.reason for reject in listing.rejects)
    make.swec_hours(tmp_path / "b", 1, (1, 2), ((100, 200),))
    data = (tmp_path / "b" / "ID1" / "ID1_2h.mat").read_bytes()
    (tmp_path / "b" / "ID1" / "ID1_2h.mat").write_bytes(data[:100])
    listing = read(tmp_path / "b")
    assert [one.name for one in listing.recordings] == ["ID01"]
    assert listing.rejects[0].source == "ID1/ID1_2h.mat"


def test_hours_without_facts(tmp_path):
    make.swec_hours(tmp_path, 1)
    info = tmp_path / "ID1" / "ID1_info.mat"
    make.mat(info, {"fs": 1.0}, "5")
    recording = only(read(tmp_path))
    assert not recording.annotated
    make.mat(info, {"fs": 1.0, "seizure_begin": [1.0, 2.0], "seizure_end": [3.0]}, "5")
    assert "1 entries, seizure_begin 2" in why(read(tmp_path))
    make.mat(info, {"fs": 1.0, "seizure_begin": [5.0], "seizure_end": [3.0]}, "5")
    assert "begins at 5 s" in why(read(tmp_path))
    make.mat(info, {"fs": "x"}, "5")
    assert "no number" in why(read(tmp_path))
    info.unlink()
    assert "_info.mat" in why(read(tmp_path))


def test_short_term(tmp_path):
    values = make.swec_short(tmp_path)
    first, second = read(tmp_path).recordings
    assert (first.name, first.subject) == ("ID03_Sz1", "ID03")
    assert [(event.onset, event.offset) for event in first.events] == [(180, 200)]
    assert second.duration == 391.5
    np.testing.assert_array_equal(whole(second), values[1])
    make.mat(tmp_path / "ID3" / "Sz1.mat", {"EEG": np.zeros((300 * 512, 2), np.float32)})
    assert "no seizure between" in read(tmp_path).rejects[0].reason


def test_two_folders_of_one_subject_and_several_layouts(tmp_path):
    make.swec_short(tmp_path / "a", 3)
    shutil.copytree(tmp_path / "a" / "ID3", tmp_path / "a" / "ID03")
    with pytest.raises(LeakError, match="ID03"):
        read(tmp_path / "a")
    make.swec_short(tmp_path / "b", 3)
    make.swec_hours(tmp_path / "b", 4)
    with pytest.raises(ConfigError, match="--version"):
        read(tmp_path / "b")
    assert {one.subject for one in read(tmp_path / "b", version="hourly").recordings} == {"ID04"}
    with pytest.raises(ConfigError, match="long-term"):
        read(tmp_path / "b", version="long-term")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"EGG": np.zeros((3, 9))}, "no matrix 'EEG', only EGG"),
        ({"EEG": "text"}, "no matrix"),
        ({"EEG": np.zeros((2000, 2000))}, "which axis is time"),
        ({"EEG": np.zeros((2, 3, 4))}, "no channels x samples"),
        ({"EEG": np.zeros((0, 3))}, "no channels x samples"),
    ],
)
@pytest.mark.parametrize("version", ["7", "7.3"])
def test_no_such_signal(tmp_path, variables, told, version):
    if version == "7.3" and isinstance(variables.get("EEG"), str):
        variables = {"note": np.zeros((3, 3))}
    make.mat(tmp_path / "ID1" / "Sz1.mat", variables, version)
    assert told in why(read(tmp_path))


def test_nothing_there_and_empty_files(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="SWEC-ETHZ"):
        read(tmp_path)
    (tmp_path / "ID1").mkdir()
    (tmp_path / "ID1" / "Sz1.mat").touch()
    assert "0 bytes" in why(read(tmp_path))


def test_flipped_and_truncated_matlab_files(tmp_path):
    rng = np.random.default_rng(5)
    for version in ("5", "7"):
        path = make.mat(tmp_path / "ID1" / "Sz1.mat", {"EEG": make.signal(2, 370 * 512).T.astype(np.float32)}, version)
        data = path.read_bytes()
        for number in range(40):
            damaged = bytearray(data)
            for place in rng.integers(0, 400 if number % 2 else len(data), 3):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged[: rng.integers(len(data))] if number % 5 == 0 else damaged)
            survives(swec.read, tmp_path)


def test_files_that_change_after_they_were_listed(tmp_path):
    make.swec_short(tmp_path)
    recording = read(tmp_path).recordings[0]
    make.mat(recording.path, {"EEG": np.zeros((400 * 512, 2), np.float32)})
    with pytest.raises(CorruptRecordError, match="has changed"):
        open_signal(recording)
