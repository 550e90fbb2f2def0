"""Recordings as hospitals leave them: each fault is named with its file, and nothing else is ever raised."""

from __future__ import annotations

import json
import warnings

import edfio
import mne
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import ConfigError, LeakError, PrepError
from data_prep.ieeg import bids, brainvision, edf
from data_prep.ieeg.planted_bids import write_planted_bids
from data_prep.ieeg.records import Asked
from data_prep.ieeg.signals import open_signal

RATE = 100


def write(path, names=("A1", "A2", "ECG"), unit="uV", seconds=10, rates=None, annotations=(), top=500.0):
    rng = np.random.default_rng(0)
    units = unit if isinstance(unit, tuple) else (unit,) * len(names)
    signals = [
        edfio.EdfSignal(
            rng.normal(0, top / 6, seconds * rate).clip(-top, top),
            rate,
            label=name,
            physical_dimension=one,
            physical_range=(-top, top),
        )
        for name, one, rate in zip(names, units, rates or (RATE,) * len(names), strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    edfio.Edf(signals, annotations=[edfio.EdfAnnotation(*entry) for entry in annotations]).write(path)
    return path


def patch(path, place, text):
    data = bytearray(path.read_bytes())
    data[place : place + len(text)] = text.encode("latin-1")
    path.write_bytes(data)


def patch_units(path, text):
    count = int(path.read_bytes()[252:256])  # of signals, annotations among them
    for i in range(3):
        patch(path, 256 + count * 96 + 8 * i, text.ljust(8))


def reasons(listing):
    return [reject.reason for reject in listing.rejects]


def only(listing):
    assert not listing.rejects, reasons(listing)
    (recording,) = listing.recordings
    return recording


def test_samples_are_those_of_mne_in_microvolts(tmp_path):
    path = write(tmp_path / "a.edf", annotations=[(2.0, 3.0, "seizure"), (7.5, None, "eyes open")])
    recording = only(edf.read([path], Asked()))
    raw = mne.io.read_raw_edf(path, verbose="error")
    assert [channel.name for channel in recording.kept] == ["A1", "A2"]
    ours = open_signal(recording).read(137, 912)
    theirs = raw.get_data(picks=["A1", "A2"], start=137, stop=912) * 1e6
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert [(event.onset, event.offset) for event in recording.events] == [(2.0, 5.0)]
    assert recording.annotated


@pytest.mark.parametrize(("unit", "scale"), [("mV", 1e3), ("V", 1e6), ("µV", 1.0), ("nV", 1e-3)])
def test_units_become_microvolts_and_are_told(unit, scale, tmp_path):
    path = write(tmp_path / "a.edf", unit="uV")
    plain = open_signal(only(edf.read([path], Asked()))).read(0, 100)
    patch_units(path, unit)
    recording = only(edf.read([path], Asked()))
    np.testing.assert_allclose(open_signal(recording).read(0, 100), plain * scale, rtol=1e-5)
    if unit != "µV":
        assert any(unit in line for line in recording.remarks)


def test_unknown_and_blank_units_are_refused_or_asked_for(tmp_path):
    path = write(tmp_path / "a.edf", unit="")
    for text in ("", "foo"):
        patch_units(path, text)
        assert "unit" in reasons(edf.read([path], Asked()))[0]
        assert only(edf.read([path], Asked(unit="uV"))).kept[0].scale == 1.0


def test_truncated_file_says_how_much_is_there(tmp_path):
    path = write(tmp_path / "a.edf", seconds=60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    (reason,) = reasons(edf.read([path], Asked()))
    assert "60" in reason
    assert "copy" in reason


def test_damaged_headers_are_told(tmp_path):
    for place, text, word in (
        (184, "999     ", "header"),
        (252, "0   ", "signal"),
        (244, "0       ", "records of 0 s"),
        (0, "garbage!", "EDF"),
    ):
        path = write(tmp_path / "a.edf")
        patch(path, place, text)
        (reason,) = reasons(edf.read([path], Asked()))
        assert word.casefold() in reason.casefold(), reason
    path.write_bytes(b"")
    assert "0 bytes" in reasons(edf.read([path], Asked()))[0]


def test_an_unknown_number_of_records_is_counted(tmp_path):
    path = write(tmp_path / "a.edf")
    patch(path, 236, "-1      ")
    recording = only(edf.read([path], Asked()))
    assert recording.samples == 10 * RATE
    assert recording.remarks


def test_names_that_occur_twice_or_not_at_all_are_made_unique(tmp_path):
    path = write(tmp_path / "a.edf", names=("A1", "A1", "B2"))
    patch(path, 256 + 32, " " * 16)
    recording = only(edf.read([path], Asked(channels=".*")))
    names = [channel.name for channel in recording.channels]
    assert names[:3] == ["A1", "A1-2", "channel-003"]
    assert any("A1" in line for line in recording.remarks)


def test_mixed_rates_keep_the_majority_or_are_refused(tmp_path):
    path = write(tmp_path / "a.edf", names=("A1", "A2", "A3"), rates=(100, 100, 50))
    recording = only(edf.read([path], Asked()))
    assert [channel.name for channel in recording.kept] == ["A1", "A2"]
    assert "50 Hz" in recording.channels[2].reason
    path = write(tmp_path / "a.edf", names=("A1", "A2"), rates=(100, 50))
    assert "rate" in reasons(edf.read([path], Asked()))[0]


def test_annotations_in_other_languages_and_encodings(tmp_path):
    marks = [
        (1.0, None, "Anfall Beginn"),
        (3.0, None, "Anfall Ende"),
        (5.0, 2.0, "crise focale"),
        (8.0, 1.0, "pas de crise"),
    ]
    path = write(tmp_path / "a.edf", annotations=[*marks, (9.0, None, "Müdigkeit")])
    data = path.read_bytes()
    assert "Müdigkeit".encode() in data
    path.write_bytes(data.replace("Müdigkeit".encode(), "Müdigkeit".encode("latin-1") + b"\x14"))
    recording = only(edf.read([path], Asked()))
    assert [(event.onset, event.offset) for event in recording.events] == [(1.0, 3.0), (5.0, 7.0)]
    notes = edf.read([path], Asked()).notes["labels"]
    assert notes["pas de crise"]["meaning"] == "ignore"
    assert notes["Müdigkeit"]["meaning"] == "unmatched"


def test_events_that_cannot_be(tmp_path):
    path = write(tmp_path / "a.edf", annotations=[(1.0, 3.0, "seizure"), (2.0, 4.0, "seizure"), (50.0, 5.0, "seizure")])
    listing = edf.read([path], Asked())
    (recording,) = listing.recordings
    assert [(event.onset, event.offset) for event in recording.events] == [(1.0, 6.0)], "overlapping ones are one"
    assert any("outside" in reason or "after" in reason or "beyond" in reason for reason in reasons(listing))
    path = write(tmp_path / "a.edf", annotations=[(1.0, None, "seizure")])
    assert "seizure_seconds" in reasons(edf.read([path], Asked()))[0].replace("-", "_")
    recording = only(edf.read([path], Asked(seizure_seconds=4.0)))
    assert [(event.onset, event.offset) for event in recording.events] == [(1.0, 5.0)]


def test_a_table_of_events_names_recordings_that_are_there(tmp_path):
    write(tmp_path / "raw" / "p1" / "night.edf")
    table = tmp_path / "events.csv"
    table.write_text("file,onset,duration,label\nnight.edf,2,3,seizure\n")
    recording = only(edf.read([tmp_path / "raw"], Asked(events=table)))
    assert [(event.onset, event.offset) for event in recording.events] == [(2.0, 5.0)]
    table.write_text("file,onset,duration,label\nnihgt.edf,2,3,seizure\n")
    with pytest.raises(PrepError, match="night"):
        edf.read([tmp_path / "raw"], Asked(events=table))


def test_subjects_by_folder_or_pattern(tmp_path):
    write(tmp_path / "raw" / "p1" / "x" / "a.edf")
    write(tmp_path / "raw" / "p2" / "b.edf")
    assert [r.subject for r in edf.read([tmp_path / "raw"], Asked()).recordings] == ["p1", "p2"]
    found = edf.read([tmp_path / "raw"], Asked(subject_pattern=r"([ab])\.edf"))
    assert [r.subject for r in found.recordings] == ["a", "b"]
    with pytest.raises(ConfigError, match="subject_pattern"):
        edf.read([tmp_path / "raw"], Asked(subject_pattern="("))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 1300), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_raise_nothing_else(flips, tmp_path):
    path = tmp_path / "a.edf"
    if not (tmp_path / "whole").exists():
        (tmp_path / "whole").write_bytes(write(path, annotations=[(1.0, 2.0, "seizure")]).read_bytes())
    data = bytearray((tmp_path / "whole").read_bytes())
    for place, value in flips:
        data[place] = value
    path.write_bytes(data)
    try:
        listing = edf.read([path], Asked(unit="uV"))
        for recording in listing.recordings:
            open_signal(recording).read(0, min(recording.samples, 50))
    except PrepError:
        return


@pytest.fixture
def planted(tmp_path):
    return write_planted_bids(
        tmp_path / "bids", subjects=2, recordings=1, minutes=0.5, channels=5, rate=64.0, seizures=0
    )


def sidecar(root, ending):
    return next(root.rglob(f"sub-01*{ending}"))


class TestBids:
    def test_rows_are_joined_by_name(self, planted):
        path = sidecar(planted.root, "_channels.tsv")
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text(
            "\n".join([lines[0], *reversed(lines[1:]), lines[1].replace("A1", "ZZ9")]) + "\n", encoding="utf-8"
        )
        recording = bids.read([planted.root], Asked()).recordings[0]
        assert [channel.name for channel in recording.channels] == ["A1", "A2", "A3", "A4", "A5"]
        assert any("ZZ9" in line for line in recording.remarks)
        assert recording.channels[0].place[0] == recording.channels[0].place[0]

    def test_a_sidecar_that_disagrees_is_an_error_that_names_both(self, planted):
        path = sidecar(planted.root, "_ieeg.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "SamplingFrequency": 500}))
        (reason,) = reasons(bids.read([planted.root], Asked()))
        assert "500" in reason
        assert "64" in reason

    def test_zero_byte_data_files_are_told(self, planted):
        sidecar(planted.root, "_ieeg.edf").write_bytes(b"")
        assert "0 bytes" in reasons(bids.read([planted.root], Asked()))[0]

    def test_no_events_file_is_not_no_seizure(self, planted):
        sidecar(planted.root, "_events.tsv").unlink()
        annotated = {r.subject: r.annotated for r in bids.read([planted.root], Asked()).recordings}
        assert sorted(annotated.values()) == [False, True]

    def test_seizures_of_szcore_and_unknown_labels(self, planted):
        path = sidecar(planted.root, "_events.tsv")
        path.write_text("onset\tduration\teventType\n3\t4\tsz_foc_ia\n0\t3\tbckg\n12\tn/a\twhatever\n")
        listing = bids.read([planted.root], Asked())
        recording = next(r for r in listing.recordings if "01" in r.subject)
        assert [(event.onset, event.offset) for event in recording.events] == [(3.0, 7.0)]
        assert listing.notes["labels"]["whatever"]["meaning"] == "unmatched"

    def test_two_subjects_with_one_id_are_refused(self, planted):
        (planted.root / "sub-02").rename(planted.root / "sub-1")
        for path in list((planted.root / "sub-1").rglob("sub-02*")):
            path.rename(path.with_name(path.name.replace("sub-02", "sub-1")))
        with pytest.raises(LeakError, match=r"sub-0?1"):
            bids.read([planted.root], Asked())

    def test_tables_that_are_not_utf8_are_read_and_told(self, planted):
        path = sidecar(planted.root, "_channels.tsv")
        path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
        recording = bids.read([planted.root], Asked()).recordings[0]
        assert recording.kept
        assert any("UTF-8" in line for line in recording.remarks)


def write_brainvision(folder, signal, unit="µV"):
    import pybv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pybv.write_brainvision(
            data=signal * 1e-6, sfreq=RATE, ch_names=[f"A{i + 1}" for i in range(len(signal))], fname_base="rec",
            folder_out=folder, unit=unit, fmt="binary_float32", events=np.array([[200, 1]]),
        )  # fmt: skip
    return folder / "rec.vhdr"


class TestBrainVision:
    def test_samples_are_those_of_mne_in_microvolts(self, tmp_path):
        signal = np.random.default_rng(0).normal(0, 40, (3, 1000))
        path = write_brainvision(tmp_path, signal)
        recording = only(brainvision.read([tmp_path], Asked()))
        raw = mne.io.read_raw_brainvision(path, verbose="error")
        ours = open_signal(recording).read(100, 600)
        np.testing.assert_allclose(ours, raw.get_data(start=100, stop=600) * 1e6, rtol=1e-5, atol=1e-3)

    def test_missing_and_truncated_parts_are_told(self, tmp_path):
        write_brainvision(tmp_path, np.random.default_rng(0).normal(0, 40, (3, 1000)))
        data = tmp_path / "rec.eeg"
        whole = data.read_bytes()
        data.write_bytes(whole[:-7])
        listing = brainvision.read([tmp_path], Asked())
        assert listing.rejects or listing.recordings[0].remarks
        data.unlink()
        assert "rec.eeg" in reasons(brainvision.read([tmp_path], Asked()))[0]

    def test_missing_values_are_counted_and_never_spread(self, tmp_path, capsys):
        from tests.data_prep.ieeg.helpers import run

        signal = np.random.default_rng(0).normal(0, 40, (4, 70 * RATE))
        signal[1, 1000:1050] = np.nan
        for number in range(3):
            folder = tmp_path / "raw" / f"p{number}"
            folder.mkdir(parents=True)
            write_brainvision(folder, signal + number)
        run(tmp_path / "raw", tmp_path / "out", "brainvision")
        table = pl.read_parquet(tmp_path / "out" / "channels.parquet")
        assert table["missing_share"].max() == pytest.approx(50 / 7000)
        assert np.isfinite(table["variance"].to_numpy()).all()
        assert "values are missing" in capsys.readouterr().err
