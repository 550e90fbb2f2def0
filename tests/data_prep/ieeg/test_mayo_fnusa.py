"""MAYO and FNUSA: one recording for each segment, pathological ones are events."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.ieeg import mayo_fnusa
from tests.data.ieeg import make
from tests.data_prep.ieeg.reading import ASKED, survives, whole


def read(path, **asked):
    return mayo_fnusa.read([path], dataclasses.replace(ASKED, **asked))


def test_segments(tmp_path):
    make.mayo(tmp_path)
    listing = read(tmp_path)
    assert listing.rejects == ()
    assert [(one.name, one.subject) for one in listing.recordings] == [
        ("MAYO_1_0a", "MAYO_1"), ("MAYO_1_0b", "MAYO_1"), ("MAYO_2_0c", "MAYO_2"), ("MAYO_3_0d", "MAYO_3"),
        ("MAYO_10_0e", "MAYO_10"),
    ]  # fmt: skip
    spans = [[(event.onset, event.offset, event.label) for event in one.events] for one in listing.recordings]
    assert spans == [[], [(0, 3, "pathology")], [], [], [(0, 3, "pathology")]]
    first = listing.recordings[0]
    assert (first.rate, first.samples, first.kept[0].name, first.kept[0].shaft) == (5000, 15_000, "LA1", "LA")
    np.testing.assert_array_equal(whole(first), make.signal(1, 15_000).astype(np.float32))
    assert listing.notes["labels"]["noise"] == {"count": 1, "meaning": "ignore"}


def test_a_file_of_labels_leaves_segments_out(tmp_path):
    make.mayo(tmp_path)
    labels = tmp_path / "labels.yaml"
    labels.write_text('"noise|powerline": exclude\n"pathology": interval\n"physiology": ignore\n')
    listing = read(tmp_path, labels=labels)
    assert [one.name for one in listing.recordings] == ["MAYO_1_0a", "MAYO_1_0b", "MAYO_10_0e"]
    assert listing.notes["excluded_segments"] == {"noise": 1, "powerline": 1}
    assert listing.rejects == ()
    labels.write_text('"pathology": interval\n')
    assert all("--labels" in reject.reason for reject in read(tmp_path, labels=labels).rejects)


def test_reviewers(tmp_path):
    top = make.mayo(tmp_path)
    table = top / "segments.csv"
    rows = table.read_text()
    table.write_text(rows + "5,3,LA1,depth,MAYO,1,2,0a,0,physiology\n6,3,LA2,depth,MAYO,1,2,0b,0,physiology\n")
    listing = read(tmp_path)
    assert [one.name for one in listing.recordings][:2] == ["MAYO_1_0a", "MAYO_2_0c"]
    assert "several categories" in listing.rejects[0].reason


def test_categories_by_number(tmp_path):
    top = make.mayo(tmp_path)
    (top / "segments.csv").write_text("segment_id,category_id,patient_id\n0a,3,1\n0b,2,1\n0c.mat,1,2\n")
    listing = read(tmp_path)
    assert [len(one.events) for one in listing.recordings] == [0, 1, 0]
    assert listing.recordings[0].subject == "MAYO_1"


def test_damaged_segments(tmp_path):
    top = make.mayo(tmp_path)
    (top / "0a.mat").unlink()
    (top / "0b.mat").write_bytes(b"")
    (top / "0c.mat").write_bytes((top / "0c.mat").read_bytes()[:60])
    table = top / "segments.csv"
    table.write_text(table.read_text() + "9,9,A1,depth,MAYO,,1,0f,0,noise\n")
    listing = read(tmp_path)
    assert [one.name for one in listing.recordings] == ["MAYO_3_0d", "MAYO_10_0e"]
    reasons = " ".join(reject.reason for reject in listing.rejects)
    assert all(text in reasons for text in ("no patient", "is not there", "0 bytes"))
    table.write_text("segment,patient\n0d,1\n")
    with pytest.raises(CorruptRecordError, match="category_name"):
        read(tmp_path)
    table.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"segments\.csv"):
        read(tmp_path)


def test_two_sites(tmp_path):
    make.mayo(tmp_path)
    top = make.mayo(tmp_path / "b").rename(tmp_path / "DATASET_FNUSA")
    (top / "segments.csv").write_text((top / "segments.csv").read_text().replace("MAYO", "FNUSA"))
    assert {one.subject for one in read(tmp_path).recordings} >= {"MAYO_1", "FNUSA_1"}
    only = read(tmp_path, version="fnusa")
    assert (only.name, len(only.recordings)) == ("FNUSA", 5)
    with pytest.raises(ConfigError, match="version"):
        read(tmp_path, version="bern")


def test_flipped_tables(tmp_path):
    top = make.mayo(tmp_path)
    rng = np.random.default_rng(1)
    data = (top / "segments.csv").read_bytes()
    for _ in range(40):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            damaged[place] = rng.integers(256)
        (top / "segments.csv").write_bytes(damaged)
        survives(mayo_fnusa.read, tmp_path)
