"""EDF, EDF+ and BDF: values, units, annotations, and files that are damaged or say what is not so."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil

import edfio
import mne
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, LeakError
from data_prep.ieeg import edf
from data_prep.ieeg.records import Asked
from data_prep.ieeg.signals import open_signal
from tests.data.ieeg import make
from tests.data.ieeg.make import Annotation
from tests.data_prep.ieeg.reading import ASKED, only, survives, whole, why

SEIZURE = [Annotation(2.0, 3.0, "Seizure")]


def read(path, **asked):
    return edf.read([path], dataclasses.replace(ASKED, **asked))


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("seconds", [1.0, 0.5, 2.0])
def test_values_are_those_of_mne(tmp_path, bits, seconds):
    path = make.edf(tmp_path / f"a.{'edf' if bits == 16 else 'bdf'}", bits=bits, seconds=seconds, annotations=SEIZURE)
    recording = only(read(path))
    opened = mne.io.read_raw_bdf if bits == 24 else mne.io.read_raw_edf
    raw = opened(path, preload=True, verbose="error")
    assert [channel.name for channel in recording.kept] == raw.ch_names
    np.testing.assert_allclose(whole(recording), raw.get_data() * 1e6, rtol=0, atol=2e-4)
    assert (recording.rate, recording.samples) == (256, raw.n_times)


def test_values_of_unlike_ranges(tmp_path):
    spans = [(-500, 500), (0, 3000), (-32768, 32767), (400, -400), (-1, 999)]
    path = make.edf(tmp_path / "a.edf", make.signal() + 10, span=spans)
    data = mne.io.read_raw_edf(path, preload=True, verbose="error").get_data() * 1e6
    np.testing.assert_allclose(whole(only(read(path))), data, rtol=0, atol=3e-4)


def test_a_file_of_edfio(tmp_path):
    values = make.signal(3)
    signals = [
        edfio.EdfSignal(row, 256, label=name, physical_dimension="uV", physical_range=(-800, 800))
        for name, row in zip("ABC", values, strict=True)
    ]
    annotations = [edfio.EdfAnnotation(1.25, 2.5, "crise"), edfio.EdfAnnotation(7, None, "yeux ouverts")]
    written = edfio.Edf(signals, annotations=annotations, starttime=datetime.time(1, 2, 3, 250_000))
    written.write(tmp_path / "a.edf")
    recording = only(read(tmp_path / "a.edf"))
    again = edfio.read_edf(tmp_path / "a.edf")
    np.testing.assert_allclose(whole(recording), [signal.data for signal in again.signals], atol=1e-3)
    assert [(event.onset, event.offset) for event in recording.events] == [(1.25, 3.75)]


def test_bulk_does_not_depend_on_the_other_channels(tmp_path):
    values = make.signal(6)
    names = ["A1", "ECG", "A2", "Fp1", "A3", "A4"]
    path = make.edf(tmp_path / "a.edf", values, names=names, annotations=[])
    recording = only(read(path))
    assert [channel.name for channel in recording.kept] == ["A1", "A2", "A3", "A4"]
    np.testing.assert_allclose(whole(recording), values[[0, 2, 4, 5]], atol=0.01)
    assert {channel.name: channel.kind for channel in recording.channels}["ECG"] == "ECG"
    assert any("scalp" in remark for remark in recording.remarks)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("uV", 1), ("mV", 1e3), ("V", 1e6), ("nV", 1e-3), (b"\xb5V", 1), ("\u00b5V", 1), ("\u03bcV", 1), ("UV", 1)],
)
def test_units_are_converted(tmp_path, unit, factor):
    values = make.signal()
    path = make.edf(tmp_path / "a.edf", values / factor, units=unit, span=500 / factor)
    recording = only(read(path))
    np.testing.assert_allclose(whole(recording), values, atol=0.01)
    assert any("converted" in remark for remark in recording.remarks) == (factor != 1)


def test_volts_with_a_range_of_microvolts_are_told(tmp_path):
    recording = only(read(make.edf(tmp_path / "a.edf", units="V", span=80)))
    assert any("doubtful" in remark and "-80 to 80 V" in remark for remark in recording.remarks)


@pytest.mark.parametrize("unit", ["", "furlong", "%", "MV"])
def test_an_unknown_unit_is_refused_not_taken_for_volts(tmp_path, unit):
    path = make.edf(tmp_path / "a.edf", units=unit)
    reason = why(read(path))
    assert "unit" in reason
    assert "--unit" in reason
    if unit != "%":
        assert any("taken for mV" in remark for remark in only(read(path, unit="mV")).remarks)
        np.testing.assert_allclose(whole(only(read(path, unit="mV"))), make.signal() * 1e3, atol=10)
    else:
        assert "unit" in why(read(path, unit="mV"))
    with pytest.raises(ConfigError, match="mile"):
        read(path, unit="mile")


def test_one_channel_with_an_unknown_unit_is_left_out(tmp_path):
    recording = only(read(make.edf(tmp_path / "a.edf", units=["uV", "uV", "", "uV", "uV"])))
    assert [channel.name for channel in recording.kept] == ["A1", "A2", "B'1", "B'2"]
    assert recording.channels[2].reason == "has no unit"
    assert any("A3" in remark for remark in recording.remarks)


def test_duplicated_and_missing_names(tmp_path):
    path = make.edf(tmp_path / "a.edf", names=["A1", "A1", "A1-2", "", "A1"])
    recording = only(read(path))
    assert [channel.name for channel in recording.channels] == ["A1", "A1-3", "A1-2", "channel-004", "A1-4"]
    assert [channel.keep for channel in recording.channels] == [True, True, True, False, True]
    assert any("more than once" in remark for remark in recording.remarks)
    assert any("no name" in remark for remark in recording.remarks)
    assert only(read(path, channels="channel-.*")).kept[0].name == "channel-004"
    assert "none of 5" in why(read(make.edf(tmp_path / "b.edf", names=[""] * 5)))


def test_mixed_sampling_rates(tmp_path):
    slow = make.edf(tmp_path / "a.edf", counts=[256, 256, 256, 256, 64])
    recording = only(read(slow))
    assert (len(recording.kept), recording.rate) == (4, 256)
    assert recording.channels[4].reason == "sampled at 64 Hz, most channels at 256 Hz"
    assert any("B'2" in remark for remark in recording.remarks)
    half = make.edf(tmp_path / "b.edf", counts=[256, 256, 128, 128, 64])
    assert "mixed sampling rates" in why(read(half))
    assert only(read(half, channels="A[12]")).rate == 256


def test_a_recording_with_one_channel(tmp_path):
    recording = only(read(make.edf(tmp_path / "a.edf", make.signal(1), names=["A1"])))
    assert whole(recording).shape == (1, 2560)


def test_channel_without_samples_or_scale(tmp_path):
    path = make.edf(tmp_path / "a.edf", counts=[256, 0, 256, 256, 256], span=[(-9, 9)] * 2 + [(5, 5)] + [(-9, 9)] * 2)
    recording = only(read(path))
    assert [channel.reason for channel in recording.channels] == [
        "", "has no samples", "its physical minimum and maximum are both 5: no scale", "", "",
    ]  # fmt: skip


def test_truncated(tmp_path):
    path = make.edf(tmp_path / "a.edf", annotations=SEIZURE)
    data = path.read_bytes()
    path.write_bytes(data[: 256 * 7 + (len(data) - 256 * 7) * 2 // 3])
    assert "truncated: 6 of 10 s are there" in why(read(path))
    path.write_bytes(data[:300])
    assert "header" in why(read(path))
    path.write_bytes(data[:100])
    assert "header" in why(read(path))


def test_truncated_while_it_is_read(tmp_path):
    path = make.edf(tmp_path / "a.edf")
    recording = only(read(path))
    reader = open_signal(recording)
    with path.open("r+b") as stream:
        stream.truncate(256 * 6 + 3000)
    with pytest.raises(CorruptRecordError, match="shorter"):
        reader.read(0, recording.samples)


def test_number_of_records(tmp_path):
    path = make.edf(tmp_path / "a.edf", records=-1)
    path.write_bytes(path.read_bytes() + b"12345")
    recording = only(read(path))
    assert recording.samples == 2560
    assert any("-1" in remark for remark in recording.remarks)
    assert any("not whole" in remark for remark in recording.remarks)
    assert "holds 10" in why(read(make.edf(tmp_path / "b.edf", records=7)))
    assert "0 records" in why(read(make.edf(tmp_path / "c.edf", records=0)))
    behind = make.edf(tmp_path / "d.edf")
    behind.write_bytes(behind.read_bytes() + b"12345")
    assert any("behind the last record" in remark for remark in only(read(behind)).remarks)


def test_zero_length(tmp_path):
    path = make.edf(tmp_path / "a.edf", counts=[0] * 5)
    assert "0 bytes" in why(read(path))
    empty = tmp_path / "b.edf"
    empty.touch()
    assert "0 bytes" in why(read(empty))
    headers_only = make.edf(tmp_path / "c.edf", np.zeros((5, 0)))
    assert "no length" in why(read(headers_only))


def test_records_without_duration(tmp_path):
    path = make.edf(tmp_path / "a.edf")
    path.write_bytes(path.read_bytes()[:244] + b"0       " + path.read_bytes()[252:])
    assert "records of 0 s" in why(read(path))


def test_wrong_header_length(tmp_path):
    assert "length 1,024 bytes" in why(read(make.edf(tmp_path / "a.edf", header=1024)))


def test_a_placeholder_and_a_link_to_nothing(tmp_path):
    (tmp_path / "a.edf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    (tmp_path / "b.edf").symlink_to(tmp_path / "annex" / "nothing")
    good = make.edf(tmp_path / "c.edf")
    listing = read(tmp_path)
    assert [recording.path for recording in listing.recordings] == [good]
    assert ["placeholder" in listing.rejects[0].reason, "link" in listing.rejects[1].reason] == [True, True]
    assert str(tmp_path) not in json.dumps(listing.rejects)


def test_interrupted_recordings_are_refused(tmp_path):
    stamps = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13]
    path = make.edf(tmp_path / "a.edf", annotations=SEIZURE, variety="EDF+D", stamps=stamps)
    reason = why(read(path))
    assert "4 s are missing at 4 s" in reason
    whole_file = make.edf(tmp_path / "b.edf", annotations=SEIZURE, variety="EDF+D")
    assert only(read(whole_file)).events[0].onset == 2
    assert "missing" in why(read(make.edf(tmp_path / "c.edf", annotations=SEIZURE, variety="EDF+C", stamps=stamps)))
    assert "cannot be known" in why(read(make.edf(tmp_path / "d.edf", variety="EDF+D")))
    back = [0, 1, 2, 3, 2, 3, 4, 5, 6, 7]
    assert "overlap" in why(read(make.edf(tmp_path / "e.edf", annotations=[], stamps=back)))


def test_a_drifting_clock(tmp_path):
    stamps = [at * 1.002 + 0.5 for at in range(10)]
    path = make.edf(tmp_path / "a.edf", annotations=[Annotation(8.516, 1.0, "sz")], stamps=stamps)
    recording = only(read(path))
    assert any("drifts" in remark for remark in recording.remarks)
    assert recording.events[0].onset == pytest.approx(8.0, abs=1e-6)


def test_time_of_the_first_record_counts(tmp_path):
    path = make.edf(tmp_path / "a.edf", annotations=[Annotation(2.75, 3, "sz")], stamps=[at + 0.75 for at in range(10)])
    assert only(read(path)).events[0].onset == 2


@pytest.mark.parametrize("text", ["début de crise tonique", "Anfälle", "ataque: crisis epiléptica"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_annotations_in_other_languages_and_encodings(tmp_path, text, encoding):
    path = make.edf(tmp_path / "a.edf", annotations=[Annotation(2.0, 3.0, text.encode(encoding))])
    recording = only(read(path))
    assert [event.label for event in recording.events] == [text]
    assert any("Latin-1" in remark for remark in recording.remarks) == (encoding == "latin-1")


def test_annotations_of_one_channel_and_damaged_ones(tmp_path):
    notes = [Annotation(1, 2, "sz@@A2"), Annotation(5, None, "eyes open")]
    path = make.edf(tmp_path / "a.edf", annotations=notes)
    assert only(read(path)).events[0].channels == ("A2",)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"+5\x14eyes", b"?5\x14eyes"))
    listing = read(path)
    assert len(listing.recordings) == 1
    assert "cannot be read" in listing.rejects[0].reason


def test_annotated_only_with_an_entry_about_seizures(tmp_path):
    assert not only(read(make.edf(tmp_path / "a.edf"))).annotated
    assert not only(read(make.edf(tmp_path / "b.edf", annotations=[]))).annotated
    for label in ("eyes open", "Recording starts"):  # nobody looked for seizures by writing this
        path = make.edf(tmp_path / "c.edf", annotations=[Annotation(1, None, label)])
        assert not only(read(path)).annotated
    for label in ("bckg", "no seizure", "movement artefact", "sz"):
        path = make.edf(tmp_path / "c.edf", annotations=[Annotation(1, 2, label), Annotation(1, None, "eyes open")])
        assert only(read(path)).annotated


def test_events_outside_are_rejected_and_partly_outside_cut(tmp_path):
    notes = [Annotation(8, 9, "sz"), Annotation(50, 9, "sz"), Annotation(-3, 5, "sz")]
    listing = read(make.edf(tmp_path / "a.edf", annotations=notes))
    (recording,) = listing.recordings
    assert [(event.onset, event.offset) for event in recording.events] == [(0, 2), (8, 10)]
    assert "outside of the recording" in listing.rejects[0].reason
    assert sum("cut to the recording" in remark for remark in recording.remarks) == 2


def test_subjects_and_names(tmp_path):
    for name in ("P2/b/n.edf", "P10/n.edf", "P2/a n.EDF", "P2/a_n.edf"):
        make.edf(tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    make.edf(tmp_path / ".hidden" / "x.edf")
    listing = read(tmp_path)
    assert [recording.subject for recording in listing.recordings] == ["P2", "P2", "P2", "P10"]
    assert [recording.name for recording in listing.recordings] == ["P2_a_n", "P2_a_n-2", "P2_b_n", "P10_n"]
    shutil.move(tmp_path, tmp_path.with_name("elsewhere"))
    again = read(tmp_path.with_name("elsewhere"))
    assert [one.name for one in again.recordings] == [one.name for one in listing.recordings]
    named = read(tmp_path.with_name("elsewhere"), subject_pattern=r"P(\d+)/")
    assert {recording.subject for recording in named.recordings} == {"2", "10"}
    with pytest.raises(ConfigError, match="brackets"):
        read(tmp_path.with_name("elsewhere"), subject_pattern=r"P\d+/")
    with pytest.raises(ConfigError, match="finds no subject"):
        read(tmp_path.with_name("elsewhere"), subject_pattern=r"patient(\d+)/")


def test_two_subjects_with_one_id(tmp_path):
    make.edf(tmp_path / "sub-01" / "a.edf")
    make.edf(tmp_path / "sub-1" / "a.edf")
    with pytest.raises(LeakError, match="sub-01"):
        read(tmp_path)


def test_one_patient_under_two_ids_is_told(tmp_path):
    for subject in ("x", "y"):
        make.edf(tmp_path / subject / "a.edf", patient="4711 F 01-JAN-1970 Quittengasse")
        make.edf(tmp_path / f"{subject}2" / "b.edf", patient="X F X X")
    listing = read(tmp_path)
    told = [recording.subject for recording in listing.recordings if any("two ids" in one for one in recording.remarks)]
    assert told == ["x", "y"]
    assert "Quittengasse" not in repr(listing)
    assert listing.notes["subjects_of_one_patient"] == [["x", "y"]]


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("X X X X", False), ("", False), ("X F X X", False), ("anonymous M 01-JAN-1900 Unknown", False),
        ("X X 02-MAY-1951 X", False), ("000000 M 45yr n/a", False), ("de-identified 1951-05-02", False),
        ("MCH-0234567 F 02-MAY-1951 X", True), ("X X X Haagse_Harry", True), ("Erika Mustermann 12.08.1964", True),
    ],
)  # fmt: skip
def test_headers_that_name_nobody_join_nobody(field, named):
    shared = edf.shared_patients({"a": {field.casefold()}, "b": {field.casefold(), "x x x x"}})
    assert shared == ([["a", "b"]] if named else [])


def test_two_patients_under_one_id_are_told(tmp_path):
    for name, patient in (("a", "4711 F X Quittengasse"), ("b", "4712 M X Apfelweg"), ("c", "X X X X")):
        make.edf(tmp_path / "p" / f"{name}.edf", patient=patient)
        make.edf(tmp_path / "q" / f"{name}.edf", patient="4713 M X Birnbaum" if name != "c" else "X X X X")
    listing = read(tmp_path)
    told = [line for recording in listing.recordings for line in recording.remarks if "two people with one id" in line]
    assert told == ["p/a.edf: the headers of files of p name 2 patients: two people with one id?"]
    assert listing.notes["subjects_of_several_patients"] == 1
    assert not any(name in repr(listing) for name in ("Quittengasse", "Apfelweg", "Birnbaum"))


def test_channels_by_name(tmp_path):
    path = make.edf(tmp_path / "a.edf")
    assert [channel.name for channel in only(read(path, channels="A.*", exclude="A2")).kept] == ["A1", "A3"]
    assert "--channels" in why(read(path, channels="Q"))
    with pytest.raises(ConfigError, match="no regular expression"):
        read(path, channels="(")


def test_nothing_there(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="no EDF"):
        read(tmp_path)
    with pytest.raises(DatasetNotFoundError, match="no such file"):
        read(tmp_path / "nothing")


def test_no_edf_at_all(tmp_path):
    (tmp_path / "a.edf").write_bytes(b"not an EDF file " * 100)
    make.edf(tmp_path / "b.edf")
    listing = read(tmp_path)
    assert len(listing.recordings) == 1
    assert "no EDF" in listing.rejects[0].reason


@pytest.fixture(scope="module")
def flipped_file(tmp_path_factory):
    path = make.edf(tmp_path_factory.mktemp("flipped") / "a.edf", annotations=SEIZURE)
    return path, path.read_bytes()


@given(st.lists(st.tuples(st.integers(0, 256 * 7 + 200), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_headers(flipped_file, changes):
    path, data = flipped_file
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place] = value
    path.write_bytes(damaged)
    survives(edf.read, path, Asked(seizure_seconds=1))


@given(place=st.integers(184, 256), text=st.text("0123456789.-+eE, nainf_", min_size=1, max_size=8))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_numbers_of_the_header(flipped_file, place, text):
    path, data = flipped_file
    path.write_bytes(data[:place] + text.encode() + data[place + len(text) :])
    survives(edf.read, path)


@given(cut=st.integers(0, 256 * 7 + 30_000))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_anywhere(flipped_file, cut):
    path, data = flipped_file
    path.write_bytes(data[:cut])
    if cut < len(data):
        assert read(path).recordings == ()
