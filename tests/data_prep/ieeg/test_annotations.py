"""Labels to seizures: built-in words, mapping files, beginnings and ends, tables of events."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.common.errors import ConfigError, DatasetNotFoundError, PrepError
from data_prep.ieeg import edf
from data_prep.ieeg.annotations import BUILT_IN, Mark, make_labels, read_labels
from data_prep.ieeg.errors import AnnotationError
from data_prep.ieeg.event_table import read_event_table, split_channels
from data_prep.ieeg.intervals import find_seizures, unite
from data_prep.ieeg.records import Event
from tests.data.ieeg import make
from tests.data.ieeg.make import Annotation
from tests.data_prep.ieeg.reading import ASKED, only

WORDS = {
    "interval": (
        "sz|SZ|Seizure|crise|Crisi|Anfall|Anfälle|Krampfanfall|sz_foc_ia|fnsz|subclinical seizure|Seizure 3|crisis|"
        "SZ EVENT # (PB SZ)|Tonic-clonic-motor-onset-seizure|focal onset seizure|FBTCS|crise tonique|Sz1|"
        "crisi parziale|epileptischer Anfall|Seizure - right temporal|electrographic seizure"
    ),
    "onset": (
        "eeg sz start|Seizure onset|seizure_begin|seizure-start|ictal onset|Anfallsbeginn|Beginn des Anfalls|"
        "crise début|début de crise|debut de la crise|inizio crisi|inicio de la crisis|comienzo crisis|EEG onset|"
        "clinical onset|SZ START|Seizure 2 onset|Start seizure 3|iktaler Beginn|Sz on"
    ),
    "offset": (
        "eeg sz end|Seizure offset|seizure_end|ictal offset|Anfallsende|Ende des Anfalls|fin de crise|fine crisi|"
        "sz end|fin de la crisis|Seizure 2 end|end of seizure|crise fin|SZ OFF|clinical offset|fine della crisi"
    ),
    "ignore": (
        "no seizure|No seizures seen|post-ictal|postictal|interictal|inter-ictal spikes|seizure-like artefact|bckg|"
        "seizure like activity|kein Anfall|keine Anfälle|pas de crise|nessuna crisi|sin crisis|preictal|seizure free|"
        "anfallsfrei|after seizure|nach dem Anfall|PNES|non-epileptic seizure|seizure onset zone|artefact|postiktal|"
        "no electrographic or clinical seizure|interictal onset|ohne Anfall"
    ),
    "unmatched": (
        "eyes open|photic|A1+A2|spike|movement|Recording starts|Z1|offset|onset|OFF|stim|chewing|resize|critical|aura|"
        "S 1|crispy|user start"
    ),
}


@pytest.mark.parametrize("meaning", WORDS)
def test_built_in_words(meaning):
    labels = make_labels(BUILT_IN)
    wrong = {word: labels.meaning(word) for word in WORDS[meaning].split("|") if labels.meaning(word) != meaning}
    assert wrong == {}


@given(st.text(max_size=400))
@settings(deadline=2000)
def test_any_label_has_a_meaning(text):
    assert make_labels(BUILT_IN).meaning(text) in WORDS


def seizures(marks, duration=100.0, seizure_seconds=0.0, rules=BUILT_IN):
    rows = [Mark(*mark[:2], (mark[2],), row, f"line {row + 2}", *mark[3:]) for row, mark in enumerate(marks)]
    return find_seizures(rows, make_labels(rules), duration, seizure_seconds, "events.tsv", "events.tsv")


def spans(found):
    return [(event.onset, event.offset) for event in found.events]


def test_beginnings_and_ends_are_joined():
    nan = math.nan
    assert spans(seizures([(5, nan, "sz start"), (15, nan, "sz end"), (15, 0, "sz start"), (20, nan, "sz end")])) == [
        (5, 15), (15, 20),
    ]  # fmt: skip
    assert spans(seizures([(20, 0, "sz end"), (5, 0, "eeg sz start"), (8, 0, "clinical onset")])) == [(5, 20)]
    assert spans(seizures([(5, 0, "Seizure"), (20, 0, "seizure end")])) == [(5, 20)]
    found = seizures([(5, 10, "Seizure"), (15.5, 0, "seizure end")])
    assert spans(found) == [(5, 15)]
    assert any("within seizures" in remark for remark in found.remarks)
    assert spans(seizures([(5, 4, "seizure onset")])) == [(5, 9)]


def test_an_end_far_away_belongs_to_another_seizure():
    marks = [(100, 0, "sz start"), (5000, 0, "sz start"), (5060, 0, "sz end")]
    with pytest.raises(AnnotationError, match=r"events.tsv: line 2: seizure 'sz start' at 100 s"):
        seizures(marks, 9000)
    assert spans(seizures(marks, 9000, 30)) == [(100, 130), (5000, 5060)]


def test_what_cannot_be_used_is_an_error():
    nan = math.nan
    for mark, told in [
        ((5, nan, "sz"), "no duration and no end"),
        ((nan, 3, "sz"), "no onset"),
        ((5, -1, "sz"), "duration -1"),
        ((5, math.inf, "sz"), "duration inf"),
        ((math.inf, 1, "sz"), "no onset"),
        ((50, 0, "sz end"), "nothing begins"),
    ]:
        with pytest.raises(AnnotationError, match=told):
            seizures([(1, 2, "eyes open"), mark])
    assert seizures([(nan, -3, "eyes open"), (5, -1, "no seizure")]).events == ()


def test_outside_overlapping_and_long():
    found = seizures([(-5, 3, "sz"), (-5, 10, "sz"), (90, 20, "sz"), (100, 3, "sz"), (3, 5, "crise")])
    assert spans(found) == [(0, 8), (90, 100)]
    assert len(found.rejects) == 2
    assert all("outside of the recording (0 to 100 s)" in reject.reason for reject in found.rejects)
    assert [reject.record for reject in found.rejects] == [0, 3]
    assert any("overlapping" in remark for remark in found.remarks)
    assert any("min long" in remark for remark in seizures([(0, 4000, "sz")], 5000).remarks)


def test_channels_are_paired_apart():
    marks = [
        (1, 0, "sz start", ("A1",)),
        (2, 0, "sz start", ("B1",)),
        (5, 0, "sz end", ("A1",)),
        (9, 0, "sz end", ("B1",)),
    ]
    (event,) = seizures(marks).events
    assert event == Event(1, 9, "sz start", ("A1", "B1"))
    assert unite([Event(0, 2), Event(1, 3, "x", ("A1",))]) == ((Event(0, 3),), 1)
    assert unite([Event(0, 2), Event(2, 3)])[1] == 0
    assert split_channels("A1; B'2 | C3,A1") == ("A1", "B'2", "C3")
    assert split_channels("all") == split_channels("") == ()


@given(st.lists(st.tuples(st.floats(-10, 120), st.floats(0.01, 50), st.just("sz")), max_size=12))
def test_events_are_inside_sorted_and_apart(marks):
    found = seizures(marks)
    assert len(found.events) <= len(marks)
    for event in found.events:
        assert 0 <= event.onset < event.offset <= 100
    for before, after in zip(found.events, found.events[1:], strict=False):
        assert before.offset <= after.onset


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_mapping_file(tmp_path, suffix):
    rules = {"^spindle$": "interval", "rest (start|begin)": "onset", "rest end": "offset", ".*": "ignore"}
    path = tmp_path / f"labels.{suffix}"
    path.write_text(json.dumps(rules) if suffix == "json" else "\n".join(f"'{key}': {rules[key]}" for key in rules))
    notes = [Annotation(1, 2, "Spindle"), Annotation(4, None, "rest begin"), Annotation(6, None, "Rest end")]
    notes.append(Annotation(7, 2, "seizure"))
    file = make.edf(tmp_path / "a.edf", annotations=notes)
    listing = edf.read([file], dataclasses.replace(ASKED, labels=path))
    assert [(event.onset, event.offset) for event in only(listing).events] == [(1, 3), (4, 6)]
    assert listing.notes["labels"]["seizure"] == {"count": 1, "meaning": "ignore"}
    assert path in listing.lists


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sz: begin", "'begin' is none of"),
        ("'(': onset", "no regular expression"),
        ("- sz", "one entry per line"),
        ("", "0 bytes"),
        ("a: [", "no valid YAML"),
        ("sz: exclude", "'exclude' is none of"),
        ("sz: 3", "3 is none of"),
    ],
)
def test_damaged_mapping_files(tmp_path, text, told):
    path = tmp_path / "labels.yaml"
    path.write_text(text)
    with pytest.raises(PrepError, match=told.replace("(", r"\(")):
        read_labels(path)
    with pytest.raises(DatasetNotFoundError):
        read_labels(tmp_path / "nothing.yaml")


def test_labels_without_a_meaning_are_counted(tmp_path):
    notes = [Annotation(at % 9, None, f"note {at}") for at in range(600)] + [Annotation(1, 1, "sz")] * 2
    file = make.edf(tmp_path / "a.edf", annotations=[*notes, Annotation(2, None, "eyes open")] * 2)
    counted = edf.read([file], ASKED).notes["labels"]
    assert next(iter(counted.items())) == ("sz", {"count": 4, "meaning": "interval"})
    assert len(counted) == 502
    assert sum(row["count"] for row in counted.values()) == 1206
    assert any("rarer labels" in label for label in counted)


NAMES, SOURCES = ["P1_n", "P1_m", "P2_n"], ["P1/n.edf", "P1/m.edf", "P2/n.edf"]


def table(tmp_path, text, name="events.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_event_table(path, NAMES, SOURCES)


@pytest.mark.parametrize("name", ["P1_m", "P1/m.edf", "P1/m", "m.edf", "M.EDF", "/data/x/P1/m.edf", "C:\\x\\P1\\m.edf"])
def test_a_table_of_events(tmp_path, name):
    found = table(tmp_path, f"file;start;stop;type;channels\n{name};1,5;4;sz;A1,A2\n")
    assert found.marks == {1: [Mark(1.5, 2.5, ("sz",), 0, "line 2", ("A1", "A2"))]}
    found = table(tmp_path, f"Recording\tOnset\tDuration\n{name}\t1.5\t2.5\n", "events.tsv")
    assert found.marks[1][0].meaning == "interval"
    assert table(tmp_path, f"recording,onset,offset\n{name},,\n").marks == {1: []}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("recording,onset,offset\nP1_x,1,2\n", "line 2: there is no recording 'P1_x'; close to it: P1/"),
        ("recording,onset,offset\nn.edf,1,2\n", "may be P1/n.edf, P2/n.edf"),
        ("recording,onset,offset\n,1,2\n", "names no recording"),
        ("recording,onset,offset\nP1_n,5,2\n", "ends where it begins, or before"),
        ("recording,onset,duration\nP1_n,5,0\n", "ends where it begins, or before"),
        ("recording,onset,duration\nP1_n,5,\n", "no duration and no end"),
        ("recording,onset,offset\nP1_n,one,2\n", "'one' is no number"),
        ("recording,onset,offset\nP1_n,,2\n", "offset without an onset"),
        ("recording,onset\nP1_n,1\n", "neither a column 'offset' nor 'duration'"),
        ("onset,offset\n1,2\n", "no column 'recording'"),
        ("recording,onset,onset\nP1_n,1,2\n", "twice"),
        ("recording,onset,offset\nP1_n,1,2,3,4\n", "cannot be read"),
    ],
)
def test_damaged_tables_of_events(tmp_path, text, told):
    if "no duration" in told:
        marks = table(tmp_path, text).marks[0]
        with pytest.raises(AnnotationError, match=told):
            find_seizures(marks, make_labels(BUILT_IN), 100, 0, "events.csv", "events.csv")
        return
    with pytest.raises((ConfigError, PrepError), match=told):
        table(tmp_path, text)


def test_a_table_instead_of_annotations(tmp_path):
    for name in ("a", "b", "c"):
        make.edf(tmp_path / f"{name}.edf", annotations=[Annotation(1, 1, "sz")] if name == "c" else None)
    path = tmp_path / "events.csv"
    path.write_bytes("file,onset,duration,label\na.edf,2,3,début crise tonique\nb.edf,,,\n".encode("latin-1"))
    listing = edf.read([tmp_path], dataclasses.replace(ASKED, events=path))
    told = {recording.name: (recording.annotated, len(recording.events)) for recording in listing.recordings}
    assert told == {"a": (True, 1), "b": (True, 0), "c": (True, 1)}
    assert path in listing.lists
    said = {recording.name: recording.remarks for recording in listing.recordings}
    assert said == {"a": (), "b": (), "c": ("c.edf: is not in events.csv; its own annotations count",)}
    path.write_text("file,onset,duration\nc.edf,2,3\n")
    recordings = edf.read([tmp_path], dataclasses.replace(ASKED, events=path)).recordings
    (c,) = (recording for recording in recordings if recording.name == "c")
    assert c.remarks == ("c.edf: its own annotations are replaced by those of events.csv",)
    assert [event.onset for event in c.events] == [2.0]
    path.write_text("file,onset,duration,label\na.edf,2,3,eyes open\n")
    listing = edf.read([tmp_path], dataclasses.replace(ASKED, events=path))
    assert {recording.name: recording.annotated for recording in listing.recordings}["a"] is False
    with pytest.raises(DatasetNotFoundError, match="no such table"):
        edf.read([tmp_path], dataclasses.replace(ASKED, events=tmp_path / "nothing.csv"))
