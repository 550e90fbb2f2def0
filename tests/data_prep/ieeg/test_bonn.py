"""Bonn EEG: folders and zip files, blocks for subjects, segments that are damaged."""

from __future__ import annotations

import dataclasses
import zipfile

import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.ieeg import bonn
from data_prep.ieeg.signals import open_signal
from tests.data.ieeg import make
from tests.data_prep.ieeg.helpers import run
from tests.data_prep.ieeg.reading import ASKED, survives, whole


def read(path, **asked):
    return bonn.read([path], dataclasses.replace(ASKED, **asked))


@pytest.mark.parametrize("archive", [False, True])
def test_segments(tmp_path, archive):
    raw = make.bonn(tmp_path / "bonn", archive=archive)
    listing = read(raw)
    assert listing.rejects == ()
    assert len(listing.recordings) == 15
    found = {one.name: one for one in listing.recordings}
    assert {one.subject for one in listing.recordings} == {"block-01", "block-02", "block-05"}
    assert found["N021"].subject == found["S021"].subject == "block-02"
    assert [len(one.events) for name, one in found.items() if name[0] == "S"] == [1] * 3
    assert not any(one.events for name, one in found.items() if name[0] != "S")
    seizure = found["S001"]
    assert (seizure.events[0].onset, seizure.events[0].offset) == (0, pytest.approx(4097 / 173.61))
    assert (found["Z001"].kept[0].kind, seizure.kept[0].kind) == ("EEG", "SEEG")
    np.testing.assert_array_equal(whole(found["N100"])[0], np.rint(make.signal(1, 4097, seed=300)[0]))
    assert "patients are unknown" in listing.notes["subjects"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file())[:1] == (
        ["bonn.zip"] if archive else ["F001.txt"]
    )


def test_letters_of_the_later_names(tmp_path):
    make.bonn(tmp_path / "bonn", "NS", (1,))
    (tmp_path / "bonn" / "N" / "N001.TXT").rename(tmp_path / "bonn" / "N" / "C001.TXT")
    (tmp_path / "bonn" / "S" / "S001.txt").rename(tmp_path / "bonn" / "S" / "E001.txt")
    assert [(one.name, len(one.events)) for one in read(tmp_path).recordings] == [("N001", 0), ("S001", 1)]


def test_the_scalp_can_be_left_out(tmp_path):
    raw = make.bonn(tmp_path / "bonn")
    labels = tmp_path / "labels.yaml"
    labels.write_text('"[ZO]": exclude\n"S": interval\n"[NF]": ignore\n')
    listing = read(raw, labels=labels)
    assert {one.name[0] for one in listing.recordings} == {"N", "F", "S"}
    assert listing.notes["excluded_segments"] == {"O": 3, "Z": 3}
    listing = read(raw, channels="iEEG")
    assert {one.name[0] for one in listing.recordings} == {"N", "F", "S"}
    assert len(listing.rejects) == 6
    listing = read(raw, version="nfe")
    assert {one.name[0] for one in listing.recordings} == {"N", "F", "S"}
    assert listing.rejects == ()
    with pytest.raises(ConfigError, match="letters of sets, of Z, O, N, F, S"):
        read(raw, version="XY")


def test_damaged_segments_are_rejected_by_the_preparation(tmp_path):
    raw = make.bonn(tmp_path / "bonn", "NS", (1, 2, 21))
    path = raw / "S" / "S001.txt"
    path.write_text(path.read_text()[:-3000])
    options = {"reference": "none", "rate": 173.61, "highpass": 0.0, "lowpass": 40.0, "max_rejects": 0.5}
    card = run(raw, tmp_path / "out", "bonn", **options)
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert rejects["source"].to_list() == ["S/S001.txt"]
    assert card["rejects"]["count"] == 1


def test_damaged_and_truncated_segments(tmp_path):
    raw = make.bonn(tmp_path / "bonn", "ZS", (1, 2, 3))
    good = (raw / "Z" / "Z001.txt").read_text()
    (raw / "Z" / "Z001.txt").write_text("\n".join(good.split()[:4000]))
    (raw / "Z" / "Z002.txt").write_text(good + "3\n")
    (raw / "Z" / "Z003.txt").write_text("")
    (raw / "S" / "S001.txt").write_text(good.replace("\n", "\nx\n", 1))
    (raw / "S" / "S002.txt").write_text("1 " * (1 << 20))
    listing = read(raw)
    assert [one.name for one in listing.recordings] == ["S003"]
    reasons = [reject.reason for reject in listing.rejects]
    for told in ("truncated: 4,000 of 4,097", "4,098 samples", "0 bytes", "'x' is no whole number", "larger than any"):
        assert sum(told in reason for reason in reasons) == 1


def test_a_segment_twice(tmp_path):
    raw = make.bonn(tmp_path / "bonn", "S", (1,))
    make.bonn(tmp_path / "bonn", "S", (1,), archive=True)
    listing = read(raw)
    assert len(listing.recordings) == 1
    assert "is there as" in listing.rejects[0].reason


def test_damaged_and_truncated_archives(tmp_path):
    archive = make.bonn(tmp_path, "ZS", (1, 2), archive=True)
    recording = read(archive).recordings[0]
    data = archive.read_bytes()
    rng = np.random.default_rng(3)
    for number in range(40):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 5):
            damaged[place] = rng.integers(256)
        archive.write_bytes(damaged[: rng.integers(len(data))] if number % 4 == 0 else damaged)
        survives(bonn.read, archive)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("other.txt", "1")
    with pytest.raises(CorruptRecordError, match="not in the zip file"):
        open_signal(recording)
    with pytest.raises(DatasetNotFoundError, match=r"Z001\.txt"):
        read(archive)


@pytest.mark.shared
def test_the_real_data_set(shared):
    archive = shared / "ieeg" / "bonn.zip"
    listing = read(archive)
    assert len(listing.recordings) == 500
    assert listing.rejects == ()
    assert listing.notes["sets"] == {"F": 100, "N": 100, "O": 100, "S": 100, "Z": 100}
    recording = next(one for one in listing.recordings if one.name == "N028")
    with zipfile.ZipFile(archive) as file:
        expected = [int(word) for word in file.read("N/N028.TXT").split()]
    np.testing.assert_array_equal(whole(recording)[0], expected)
    blocks = {one.subject for one in listing.recordings}
    assert blocks == {f"block-0{number}" for number in range(1, 6)}
