"""BIDS: sidecars found and joined, contradictions refused, what is missing told."""

from __future__ import annotations

import dataclasses
import json

import mne
import mne_bids
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import DatasetNotFoundError, LeakError
from data_prep.ieeg import bids
from data_prep.ieeg.bids_sidecars import SidecarIndex, parse_entities
from tests.data.ieeg import make
from tests.data_prep.ieeg.reading import ASKED, only, survives, whole, why

STEM = "sub-01_ses-1_task-rest_run-1"


def read(path, **asked):
    return bids.read([path], dataclasses.replace(ASKED, **asked))


def one(tmp_path, **options):
    return make.bids(tmp_path / "set", ["01"], **options)


def file(root, suffix):
    return root / "sub-01" / "ses-1" / "ieeg" / f"{STEM}_{suffix}"


def test_all_sidecars(tmp_path):
    listing = read(make.bids(tmp_path / "set"))
    assert (listing.name, listing.licence, listing.rejects) == ("miniature", "CC0", ())
    first, second = listing.recordings
    assert (first.name, first.subject, first.session) == (STEM, "sub-01", "ses-1")
    assert first.source == f"sub-01/ses-1/ieeg/{STEM}_ieeg.edf"
    assert (first.power_line, first.coordinate_system) == (50, "MNI152Lin (mm)")
    assert first.options["reference"] == "A1"
    assert [channel.name for channel in first.kept] == ["A1", "A3", "B'1", "B'2"]
    channels = {channel.name: channel for channel in first.channels}
    assert (channels["A2"].reason, channels["ECG1"].kind) == ("bad: flat", "ECG")
    assert channels["B'1"].kind == "ECOG"
    assert (channels["B'1"].shaft, channels["B'1"].contact, channels["B'1"].place) == ("B'", 1, (4.5, -2, 30))
    assert np.isnan(channels["A3"].place).all()
    assert [(event.onset, event.offset, event.label) for event in first.events] == [(2.5, 5.5, "Seizure")]
    assert first.annotated
    assert any("A2, B'2" in remark and "electrodes" in remark for remark in first.remarks)
    assert any("Z9" in remark for remark in first.remarks)
    assert listing.notes["labels"]["eyes open"] == {"count": 2, "meaning": "unmatched"}
    assert {path.name for path in listing.lists} >= {"participants.tsv", "task-rest_ieeg.json", f"{STEM}_channels.tsv"}
    np.testing.assert_allclose(whole(second), make.signal(6, seed=1)[[0, 2, 3, 4]], atol=0.01)


@pytest.mark.parametrize("form", ["BrainVision", "EDF"])
def test_a_data_set_of_mne_bids(tmp_path, form):
    values = make.signal(4, 5120) * 1e-6
    raw = mne.io.RawArray(
        values, mne.create_info(["LA1", "LA2", "LB1", "EKG"], 512, ["seeg"] * 3 + ["ecg"]), verbose="error"
    )
    raw.info["line_freq"] = 60
    raw.set_annotations(mne.Annotations([1.5, 4], [2, 0], ["seizure", "rest"]))
    where = mne_bids.BIDSPath(subject="x1", session="pre", task="rest", root=tmp_path / "set", datatype="ieeg")
    mne_bids.write_raw_bids(raw, where, format=form, allow_preload=True, verbose="error")
    recording = only(read(tmp_path / "set"))
    again = mne_bids.read_raw_bids(where, verbose="error").load_data(verbose="error")
    np.testing.assert_allclose(whole(recording), again.get_data(picks="seeg") * 1e6, atol=1e-3)
    assert (recording.subject, recording.session, recording.power_line) == ("sub-x1", "ses-pre", 60)
    assert [(event.onset, event.offset) for event in recording.events] == [(1.5, 3.5)]


def test_the_inheritance_principle(tmp_path):
    root = one(tmp_path)
    (root / "sub-01" / "sub-01_task-rest_ieeg.json").write_text('{"PowerLineFrequency": 60}')
    (root / "sub-01" / "sub-01_task-other_ieeg.json").write_text('{"PowerLineFrequency": 1}')
    assert only(read(root)).power_line == 60
    index = SidecarIndex.of(root, sorted(root.rglob("*")))
    found = index.find(file(root, "ieeg.edf"), "ieeg", ".json")
    assert [path.name for path in found] == ["task-rest_ieeg.json", "sub-01_task-rest_ieeg.json"]
    assert parse_entities("sub-01_task-rest_run-02_ieeg.edf.gz") == (
        {"sub": "01", "task": "rest", "run": "02"}, "ieeg", ".edf.gz",
    )  # fmt: skip


@pytest.mark.parametrize("rate", [512, "512", 255.9])
def test_a_sidecar_that_disagrees_about_the_rate(tmp_path, rate):
    reason = why(read(one(tmp_path, metadata={"SamplingFrequency": rate})))
    assert "256 Hz" in reason
    assert f"{float(rate):g} Hz" in reason


def test_a_channel_table_that_disagrees(tmp_path):
    root = one(tmp_path, channels=make.BIDS_CHANNELS.replace("\t256\tgood\tn/a\nA2", "\t1024\tgood\tn/a\nA2"))
    assert "channel A1: says 1024 Hz" in why(read(root))
    file(root, "channels.tsv").write_text("name\ttype\nQ1\tSEEG\nQ2\tSEEG\n")
    assert "none of the channels" in why(read(root))
    file(root, "channels.tsv").write_text("nom\ttype\nQ1\tSEEG\n")
    assert "no column 'name'" in why(read(root))


def test_names_are_joined_not_positions(tmp_path):
    lines = make.BIDS_CHANNELS.splitlines()
    shuffled = "\n".join([lines[0], *reversed(lines[1:]), "EXTRA\tSEEG\tuV\tn/a\tgood\tn/a"]) + "\n"
    recording = only(read(one(tmp_path, channels=shuffled)))
    assert [channel.name for channel in recording.kept] == ["A1", "A3", "B'1", "B'2"]
    assert any("EXTRA" in remark for remark in recording.remarks)


def test_units_of_the_file_are_believed(tmp_path):
    root = one(tmp_path, channels=make.BIDS_CHANNELS.replace("uV", "V"))
    recording = only(read(root))
    assert {channel.scale for channel in recording.kept} == {1.0}
    assert any("the file is believed" in remark for remark in recording.remarks)
    make.edf(file(root, "ieeg.edf"), make.signal(6), names=[*make.NAMES, "ECG1"], units="")
    recording = only(read(root))
    assert {channel.scale for channel in recording.kept} == {1e6}


def test_without_tables(tmp_path):
    recording = only(read(one(tmp_path, channels=None, electrodes=None, events=None)))
    assert [channel.name for channel in recording.kept] == list(make.NAMES)
    assert not recording.annotated
    assert any("no channels.tsv" in remark for remark in recording.remarks)


@pytest.mark.parametrize(
    ("rows", "annotated"),
    [
        ("", True),  # somebody wrote that nothing happened
        ("n/a\tn/a\tn/a\n", True),
        ("1\t0\tgo\n3\t0\tstimulus\n", False),
        ("1\t0\tgo\n3\t1\tbckg\n", True),
        ("1\t2\tseizure\n", True),
    ],
)
def test_events_of_a_task_tell_nothing_about_seizures(tmp_path, rows, annotated):
    recording = only(read(one(tmp_path, events=f"onset\tduration\ttrial_type\n{rows}")))
    assert recording.annotated == annotated


def test_damaged_electrodes_do_not_matter(tmp_path):
    for text in ("x\ty\n1\t2\n", "name\tx\ty\tz\nA1\tleft\t1\t2\n", "", "name\tname\n"):
        recording = only(read(one(tmp_path, electrodes=text)))
        assert len(recording.kept) == 4
        assert any("electrodes" in remark for remark in recording.remarks)


def test_several_spaces(tmp_path):
    root = one(tmp_path)
    folder = root / "sub-01" / "ses-1" / "ieeg"
    (folder / "sub-01_ses-1_space-Other_electrodes.tsv").write_text(make.BIDS_ELECTRODES)
    recording = only(read(root))
    assert recording.coordinate_system == "MNI152Lin (mm)"
    assert any("of 2 files of electrodes" in remark for remark in recording.remarks)


def test_szcore_and_hed_score(tmp_path):
    szcore = "onset\tduration\teventType\tconfidence\tchannels\n0\t2\tbckg\tn/a\tn/a\n2\t4\tsz_foc_ia\tn/a\tall\n"
    recording = only(read(one(tmp_path, events=szcore)))
    assert [(event.onset, event.offset, event.label) for event in recording.events] == [(2, 6, "sz_foc_ia")]
    hed = (
        "onset\tduration\tannotation_type\tseizure_info\tchannel\n"
        "1\t4\tfinding\tfocal onset seizure\tA1,A3\n3\t3\tseizure\tn/a\tB'1\n8\t1\tartifact\tn/a\tA1\n"
    )
    recording = only(read(one(tmp_path, events=hed)))
    assert [(event.onset, event.offset, event.channels) for event in recording.events] == [(1, 6, ("A1", "A3", "B'1"))]
    assert any("overlapping" in remark for remark in recording.remarks)


def test_events_in_another_encoding(tmp_path):
    table = "onset\tduration\ttrial_type\n2\t3\tdébut\n4\t3\tcrise généralisée\n".encode("latin-1")
    recording = only(read(one(tmp_path, events=table)))
    assert recording.events[0].label == "crise généralisée"
    assert any("Latin-1" in remark for remark in recording.remarks)


def test_a_seizure_without_an_end(tmp_path):
    root = one(tmp_path, events="onset\tduration\tevent_type\n2\t0\tSeizure\n")
    reason = why(read(root))
    assert f"{STEM}_events.tsv: line 2" in reason
    assert "--seizure_seconds" in reason
    assert only(read(root, seizure_seconds=4)).events[0].offset == 6


def test_empty_and_missing_cells(tmp_path):
    table = "onset\tduration\ttrial_type\nn/a\tn/a\trest\n\n3\tn/a\tn/a\n1\t2\tseizure\n"
    assert len(only(read(one(tmp_path, events=table))).events) == 1
    assert "no onset" in why(read(one(tmp_path, events="onset\tduration\ttrial_type\nn/a\t3\tseizure\n")))
    assert "duration -3" in why(read(one(tmp_path, events="onset\tduration\ttrial_type\n5\t-3\tseizure\n")))
    recording = only(read(one(tmp_path, events="")))
    assert not recording.annotated
    assert any("0 bytes" in remark for remark in recording.remarks)


def test_empty_data_files(tmp_path):
    root = make.bids(tmp_path / "set")
    file(root, "ieeg.edf").write_bytes(b"")
    listing = read(root)
    assert [recording.subject for recording in listing.recordings] == ["sub-02"]
    assert "0 bytes" in listing.rejects[0].reason


def test_damaged_metadata(tmp_path):
    root = one(tmp_path)
    (root / "task-rest_ieeg.json").write_text('{"SamplingFrequency": 256,,}')
    assert "task-rest_ieeg.json: line 1" in why(read(root))
    (root / "task-rest_ieeg.json").write_text('{"SamplingFrequency": "fast"}')
    assert "'fast' is no number" in why(read(root))
    about = {"RecordingDuration": 100, "RecordingType": "epoched", "SoftwareFilters": {"notch": 50}}
    (root / "task-rest_ieeg.json").write_text(json.dumps(about))
    told = " ".join(only(read(root)).remarks)
    assert all(text in told for text in ("100 s", "epoched", "notch"))


def test_formats_that_are_not_read(tmp_path):
    root = make.bids(tmp_path / "set")
    folder = root / "sub-02" / "ses-1" / "ieeg"
    stem = "sub-02_ses-1_task-rest_run-"
    (folder / f"{stem}2_ieeg.set").write_bytes(b"x" * 2000)
    (folder / f"{stem}3_ieeg.nwb").write_bytes(b"x" * 2000)
    (folder / f"{stem}4_ieeg.mefd" / "A1.timd").mkdir(parents=True)
    for name in ("x.tdat", "y.tmet"):
        (folder / f"{stem}4_ieeg.mefd" / "A1.timd" / name).write_bytes(b"x")
    (folder / f"{stem}1_ieeg.set").write_bytes(b"x" * 2000)
    listing = read(root)
    assert len(listing.recordings) == 2
    reasons = sorted(reject.reason for reject in listing.rejects)
    assert len(reasons) == 4
    assert all(any(f".{form} is not read" in one for one in reasons) for form in ("set", "nwb", "mefd"))


def test_the_same_recording_in_two_formats(tmp_path):
    root = one(tmp_path)
    make.brainvision(root / "sub-01" / "ses-1" / "ieeg", f"{STEM}_ieeg")
    listing = read(root)
    assert [recording.format for recording in listing.recordings] == ["edf"]
    assert "the same recording" in listing.rejects[0].reason


@pytest.mark.parametrize("subjects", [["01", "1"], ["ab", "AB"], ["p1", "p01"]])
def test_two_subjects_with_one_id(tmp_path, subjects):
    with pytest.raises(LeakError, match=f"sub-{subjects[0]}.*sub-{subjects[1]}|sub-{subjects[1]}.*sub-{subjects[0]}"):
        read(make.bids(tmp_path / "set", subjects))


def test_a_participant_listed_twice(tmp_path):
    root = make.bids(tmp_path / "set")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t3\nsub-02\t4\nsub-01\t5\n")
    with pytest.raises(LeakError, match="sub-01"):
        read(root)


def test_parts_of_a_data_set_and_several(tmp_path):
    root = make.bids(tmp_path / "all" / "one")
    (root / "derivatives").mkdir()
    make.edf(root / "derivatives" / "sub-01" / "ieeg" / "sub-01_task-x_ieeg.edf")
    assert [one.subject for one in read(root / "sub-02").recordings] == ["sub-02"]
    assert [one.subject for one in read(file(root, "ieeg.edf")).recordings] == ["sub-01"]
    assert only(read(root / "sub-02")).power_line == 50
    make.bids(tmp_path / "all" / "two", ["01"])
    listing = read(tmp_path / "all")
    assert [one.subject for one in listing.recordings] == ["one_sub-01", "one_sub-02", "two_sub-01"]
    assert len({one.name for one in listing.recordings}) == 3


def test_scalp_data_sets(tmp_path):
    root = one(tmp_path, datatype="eeg", channels=make.BIDS_CHANNELS.replace("SEEG", "EEG").replace("ECOG", "EEG"))
    assert "--channels" in why(read(root))
    assert len(only(read(root, channels="[AB].*")).kept) == 4


def test_nothing_there(tmp_path):
    (tmp_path / "sub-01_task-x_bold.nii").write_bytes(b"x")
    with pytest.raises(DatasetNotFoundError, match="sub-"):
        read(tmp_path)
    with pytest.raises(DatasetNotFoundError, match="no such"):
        read(tmp_path / "nothing")


def test_a_table_of_events_counts_more(tmp_path):
    table = tmp_path / "events.csv"
    table.write_text(f"recording,onset,offset\n{STEM},6,7\n")
    recording = only(read(one(tmp_path), events=table))
    assert [(event.onset, event.offset) for event in recording.events] == [(6, 7)]


@pytest.fixture(scope="module")
def flipped_set(tmp_path_factory):
    root = make.bids(tmp_path_factory.mktemp("flipped") / "set", ["01"])
    files = [path for path in sorted(root.rglob("*")) if path.suffix in (".tsv", ".json")]
    return root, {path: path.read_bytes() for path in files}


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_and_truncated_sidecars(flipped_set, data):
    root, files = flipped_set
    for path, content in files.items():
        path.write_bytes(content)
    path = data.draw(st.sampled_from(sorted(files)))
    damaged = bytearray(files[path])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    path.write_bytes(damaged[:cut] if data.draw(st.booleans()) else damaged)
    survives(bids.read, root)
