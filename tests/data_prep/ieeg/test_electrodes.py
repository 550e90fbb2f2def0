"""Names of channels, units, and which channels are prepared."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.ieeg.channels import Choice, choose
from data_prep.ieeg.electrodes import guess_kinds, parse_name
from data_prep.ieeg.errors import NoChannelError, RateError
from data_prep.ieeg.find import natural_key, safe_name, unique_names
from data_prep.ieeg.header import Header, distinct_names
from data_prep.ieeg.records import Asked, Channel
from data_prep.ieeg.units import is_absurd, is_other, microvolts


@pytest.mark.parametrize(
    ("name", "shaft", "contact"),
    [
        ("A'12", "A'", 12), ("v\u201912", "v'", 12), ("TBa1", "TBa", 1), ("LAH03", "LAH", 3), ("POL A1", "A", 1),
        ("EEG A1-Ref", "A", 1), ("A1-A2", "A", 1), ("A1-2", "A", 1), ("A 01", "A", 1), ("G_12", "G", 12),
        ("RF-1", "RF", 1), ("T1L5", "T1L", 5), ("GRID64", "GRID", 64), ("A1-B1", "", -1), ("iEEG01", "", -1),
        ("Ch 7", "", -1), ("EEG 001", "", -1), ("A", "", -1), ("", "", -1), ("A1234", "", -1), ("12", "", -1),
    ],
)  # fmt: skip
def test_electrode_and_contact(name, shaft, contact):
    found = parse_name(name)
    assert (found.shaft, found.number) == (shaft, contact)


def test_bipolar_names():
    assert parse_name("LA1-LA2").other == parse_name("LA1-2").other == 2
    assert parse_name("A1").other == parse_name("RF-1").other == -1


@given(st.text(max_size=30))
def test_any_name_is_read(name):
    assert parse_name(name).number >= -1
    assert len(guess_kinds([name, "A1", name])) == 3


def test_kinds_by_name():
    names = [
        "ECG",
        "EKG1",
        "EEG ECG-Ref",
        "EOG1",
        "LOC",
        "LOC1",
        "EMG chin",
        "DC01",
        "TRIG",
        "Status",
        "SpO2",
        "E",
        "E1",
    ]
    kinds = ["ECG", "ECG", "ECG", "EOG", "EOG", "SEEG", "EMG", "MISC", "TRIG", "TRIG", "MISC", "MISC", "SEEG"]
    assert guess_kinds(names) == kinds
    assert guess_kinds(["EDF Annotations", "", "$A1", "POST1"]) == ["MISC", "MISC", "MISC", "SEEG"]


def test_scalp_by_name_and_company():
    assert guess_kinds(["Fp1", "C3", "Cz", "EEG F8-Ref", "A1", "A2"]) == ["EEG"] * 6
    assert guess_kinds(["Fp1", "C3", "Cz", "F8", "A1", "A2", "A3"]) == ["EEG"] * 4 + ["SEEG"] * 3
    assert guess_kinds(["F1", "F2", "F3", "F4", "F11", "O1", "O2", "O3"]) == ["SEEG"] * 8
    assert guess_kinds(["F1", "F2", "F3", "F4", "AF7", "Fz", "Cz"]) == ["EEG"] * 7
    assert guess_kinds(["A1", "A2"]) == ["SEEG"] * 2
    assert guess_kinds(["Fp1-F7", "F7-T3", "A1-A2"]) == ["EEG", "EEG", "SEEG"]


@pytest.mark.parametrize(
    ("unit", "scale"),
    [
        ("uV", 1), ("µV", 1), ("μV", 1), ("\u00c2\u00b5V", 1), ("\ufffdV", 1), ("[uV]", 1), (" u V ", 1),
        ("microvolts", 1), ("mV", 1e3), ("V", 1e6), ("Volt", 1e6), ("nV", 1e-3), ("MV", 0), ("", 0), ("%", 0),
        ("fT", 0), ("uV^2", 0),
    ],
)  # fmt: skip
def test_units(unit, scale):
    assert microvolts(unit) == scale


def test_other_units_and_ranges():
    assert is_other("%")
    assert is_other("°C")
    assert not is_other("furlong")
    assert is_absurd(-80, 80, "V")
    assert is_absurd(-5, 5, "uV")
    assert not is_absurd(-3276.8, 3276.7, "uV")
    assert not is_absurd(-0.4, 0.4, "V")
    assert not is_absurd(-80, 80, "")


def header(*channels, lengths=None):
    return Header(Path("a.edf"), "edf", channels, lengths or (1000,) * len(channels))


def channel(name, index=0, rate=100.0, **facts):
    return Channel(name, index, facts.pop("kind", ""), rate=rate, **facts)


def test_reasons():
    given = header(
        channel("A1"), channel("A2", keep=False, reason="bad"), channel("ECG"), channel("Fp1"), channel("B1", rate=0.5),
        channel("B2"), channel("A3"), channel("A4", rate=float("nan")), lengths=(1000,) * 5 + (0, 900, 9),
    )  # fmt: skip
    found = choose(given, Choice.of(Asked()))
    assert [one.reason for one in found.channels] == [
        "", "bad", "ECG, not intracranial", "EEG, not intracranial", "sampling rate 0.5 Hz is none of a brain signal",
        "has no samples", "has 900 samples, others 1,000", "sampling rate nan Hz is none of a brain signal",
    ]  # fmt: skip
    assert (found.rate, found.samples) == (100, 1000)
    with pytest.raises(NoChannelError, match="none of 1"):
        choose(header(channel("ECG")), Choice.of(Asked()))
    with pytest.raises(RateError, match="1 at 100 Hz, 1 at 200 Hz"):
        choose(header(channel("A1"), channel("A2", rate=200.0)), Choice.of(Asked()))
    assert choose(header(channel("ECG")), Choice.of(Asked(channels="ECG"))).channels[0].keep


def test_bipolar_channels_are_told():
    found = choose(header(channel("A1-A2"), channel("A2-A3")), Choice.of(Asked()))
    assert any("bipolar already" in remark for remark in found.remarks)


@given(st.lists(st.sampled_from(["A1", "A1-2", "", "B", "channel-001"]), max_size=9))
def test_distinct_names(names):
    found, _ = distinct_names(names)
    assert len(set(found)) == len(names)
    assert "" not in found
    for before, after in zip(names, found, strict=True):
        assert after == before or before == "" or after.startswith(before)


def test_names_of_recordings():
    assert sorted(["r10", "r9", "R1"], key=natural_key) == ["R1", "r9", "r10"]
    assert safe_name("a b/ç:*?.é") == "a_b_ç_.é"
    assert unique_names(["a b", "A_b", "a/b", ""]) == ["a_b", "A_b-2", "a_b-3", "recording"]
    long = safe_name("ä" * 300)
    assert len(long.encode()) <= 120
    assert long != safe_name("ä" * 299)
