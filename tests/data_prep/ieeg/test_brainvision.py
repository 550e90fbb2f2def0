"""BrainVision: values, units, markers, and files that are damaged or contradict each other."""

from __future__ import annotations

import dataclasses

import mne
import numpy as np
import pybv
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.ieeg import brainvision
from data_prep.ieeg.signals import open_signal
from tests.data.ieeg import make
from tests.data_prep.ieeg.reading import ASKED, only, survives, whole, why

SEIZURE = [("Comment", "Seizure", 501, 1000)]


def read(path, **asked):
    return brainvision.read([path], dataclasses.replace(ASKED, **asked))


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("binary", ["INT_16", "INT_32", "IEEE_FLOAT_32"])
@pytest.mark.parametrize("unit", ["µV", "uV", "mV", "nV", "V"])
def test_values_are_those_of_mne(tmp_path, vectorized, binary, unit):
    path = make.brainvision(tmp_path, vectorized=vectorized, binary=binary, units=unit, markers=SEIZURE)
    recording = only(read(path))
    raw = mne.io.read_raw_brainvision(path, preload=True, verbose="error")
    assert [channel.name for channel in recording.kept] == raw.ch_names
    np.testing.assert_allclose(whole(recording), raw.get_data() * 1e6, rtol=1e-6, atol=1e-4)
    assert recording.rate == raw.info["sfreq"]
    assert any("converted" in remark for remark in recording.remarks) == (unit not in ("µV", "uV"))
    assert [(event.onset, event.offset) for event in recording.events] == [(1, 3)]
    assert raw.annotations.onset[0] == 1
    assert recording.signal_files == (path, path.with_suffix(".eeg"))


@pytest.mark.parametrize("form", ["binary_int16", "binary_float32"])
def test_files_of_pybv(tmp_path, form):
    values = make.signal()
    events = [{"onset": 500, "duration": 1000, "type": "Comment", "description": "seizure"}]
    pybv.write_brainvision(
        data=values * 1e-6, sfreq=512, ch_names=list(make.NAMES), fname_base="a", folder_out=tmp_path, events=events,
        resolution=0.1, unit="µV", fmt=form,
    )  # fmt: skip
    recording = only(read(tmp_path))
    np.testing.assert_allclose(whole(recording), values, atol=0.1)  # pybv cuts decimals off
    assert [(event.onset, event.offset) for event in recording.events] == [(500 / 512, pytest.approx(1500 / 512))]


def test_units_of_each_channel(tmp_path):
    path = make.brainvision(tmp_path, units=["µV", "", "mV", "°C", "ARU"])
    recording = only(read(path))
    assert [channel.scale for channel in recording.kept] == [1, 1, 1000]
    assert [channel.reason for channel in recording.channels[3:]] == [
        "unit '°C' is no voltage",
        "unit 'ARU' is no voltage",
    ]
    assert any("no unit" in remark for remark in recording.remarks)
    assert "no voltage" in why(read(make.brainvision(tmp_path / "b", units="furlong")))


def test_latin_1(tmp_path):
    path = make.brainvision(tmp_path, names=["Ä1", "Ä2", "a,b1", "B1", "B2"], encoding="latin-1", markers=SEIZURE)
    recording = only(read(path))
    assert [channel.name for channel in recording.channels[:3]] == ["Ä1", "Ä2", "a,b1"]
    assert recording.channels[0].scale == 1
    assert any("Latin-1" in remark for remark in recording.remarks)


def test_stimuli_tell_nothing_about_seizures(tmp_path):
    assert not only(read(make.brainvision(tmp_path / "a", markers=[("Stimulus", "S  1", 10, 1)]))).annotated
    marked = [("Stimulus", "S  1", 10, 1), ("Comment", "bckg", 20, 1)]
    assert only(read(make.brainvision(tmp_path / "b", markers=marked))).annotated
    assert only(read(make.brainvision(tmp_path / "c", markers=SEIZURE))).annotated


def test_missing_files(tmp_path):
    path = make.brainvision(tmp_path, markers=SEIZURE)
    path.with_suffix(".vmrk").unlink()
    recording = only(read(path))
    assert not recording.annotated
    assert any("marker file" in remark for remark in recording.remarks)
    path.with_suffix(".eeg").rename(tmp_path / "other.eeg")
    assert ".eeg file beside" in why(read(path))


def test_renamed_files(tmp_path):
    make.brainvision(tmp_path, markers=SEIZURE)
    for suffix in (".vhdr", ".eeg", ".vmrk"):
        (tmp_path / f"rec{suffix}").rename(tmp_path / f"new{suffix}")
    recording = only(read(tmp_path))
    assert len(recording.events) == 1
    assert any("new.eeg is read" in remark for remark in recording.remarks)


def test_truncated(tmp_path):
    path = make.brainvision(tmp_path, markers=SEIZURE)
    data = path.with_suffix(".eeg").read_bytes()
    path.with_suffix(".eeg").write_bytes(data[:-1000])
    assert "truncated: 2,460 of 2,560 samples" in why(read(path))
    path.with_suffix(".eeg").write_bytes(data + bytes(10))
    assert "holds 2,561" in why(read(path))
    path.with_suffix(".eeg").write_bytes(b"")
    assert "0 bytes" in why(read(path))
    path = make.brainvision(tmp_path, points=False)
    path.with_suffix(".eeg").write_bytes(data[:-1001])
    assert "no whole number" in why(read(path))


def test_truncated_while_it_is_read(tmp_path):
    path = make.brainvision(tmp_path)
    recording = only(read(path))
    reader = open_signal(recording)
    path.with_suffix(".eeg").write_bytes(bytes(100))
    with pytest.raises(CorruptRecordError, match="shorter"):
        reader.read(0, recording.samples)
    with pytest.raises(CorruptRecordError):
        open_signal(recording)


def test_interrupted_recordings_are_refused(tmp_path):
    path = make.brainvision(tmp_path, markers=SEIZURE)
    markers = path.with_suffix(".vmrk")
    text = markers.read_text()
    markers.write_text(text + "Mk9=New Segment,,1001,1,0,20200101000010000000\n")
    assert "8 s are missing at 2 s" in why(read(path))
    markers.write_text(text + "Mk9=New Segment,,1001,1,0\n")
    assert "interrupted" in why(read(path))
    markers.write_text(text + "Mk9=New Segment,,1001,1,0,20200101000002000000\n")
    assert len(only(read(path)).events) == 1


def test_markers_of_a_point_need_an_end(tmp_path):
    path = make.brainvision(tmp_path, markers=[("Comment", "sz start", 501, 1), ("Comment", "sz end", 1001, 1)])
    assert [(event.onset, event.offset) for event in only(read(path)).events] == [(1, 2)]
    path = make.brainvision(tmp_path, markers=[("Comment", "Seizure", 501, 1)])
    assert "Mk2" in why(read(path))
    assert only(read(path, seizure_seconds=2)).events[0].offset == 3


def test_a_damaged_marker_is_told(tmp_path):
    path = make.brainvision(tmp_path, markers=[("Comment", "Seizure", 501, 1000), ("Comment", "x", -5, 1)])
    listing = read(path)
    assert len(listing.recordings) == 1
    assert "position" in listing.rejects[0].reason


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("BINARY", "ASCII", "text"),
        ("INT_16", "INT_17", "INT_17"),
        ("NumberOfChannels=5", "NumberOfChannels=6", "describes 5"),
        ("SamplingInterval=2000", "SamplingInterval=0", "SamplingInterval"),
        ("SamplingInterval=2000", "SamplingInterval=x", "no number"),
        ("Ch2=A2,,0.1", "Ch2=A2,,0", "resolution 0"),
        ("Brain Vision", "Brian Vision", "no BrainVision"),
    ],
)
def test_damaged_headers(tmp_path, old, new, told):
    path = make.brainvision(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert told in why(read(path))


def test_nothing_there(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="BrainVision"):
        read(tmp_path)


@pytest.fixture(scope="module")
def flipped_file(tmp_path_factory):
    path = make.brainvision(tmp_path_factory.mktemp("flipped"), markers=SEIZURE)
    return path, path.read_bytes(), path.with_suffix(".vmrk").read_bytes()


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 9),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_headers_and_markers(flipped_file, marker, changes, cut):
    path, header, markers = flipped_file
    data = bytearray(markers if marker else header)
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(header)
    path.with_suffix(".vmrk").write_bytes(markers)
    (path.with_suffix(".vmrk") if marker else path).write_bytes(data[: len(data) - cut * 20])
    survives(brainvision.read, path)
