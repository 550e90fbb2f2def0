"""EDF, EDF+, BDF and BDF+ recordings in folders, one subject in each, or named by a pattern.

EDF is what most hospitals export. Units are converted only where they are known; a file that is shorter than its
header says, or that was interrupted, is refused with the reason: the seconds behind would be another time.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep.ieeg.edf_annotations import read_annotations
from data_prep.ieeg.edf_header import EdfHeader, EdfSignal, read_header
from data_prep.ieeg.electrodes import parse_name
from data_prep.ieeg.errors import HeaderError
from data_prep.ieeg.find import below, find_files, find_subject, name_recordings, some, subject_pattern
from data_prep.ieeg.header import Header, distinct_names
from data_prep.ieeg.listing import ONE_PATIENT, Gatherer, Identity
from data_prep.ieeg.records import Asked, Channel, Listing, Recording
from data_prep.ieeg.units import is_absurd, microvolts, tell_absurd

MIXED = "subjects_of_several_patients"  # among the notes
SUFFIXES = frozenset({".edf", ".bdf", ".rec"})
# What a header's patient field may hold without naming a patient: placeholders, sexes, ages; dates of birth.
_NOBODY = re.compile(
    r"x+|0+|[afhmnuw]|na|nn|none|null|no|name|id|male|female|anon\w*|unknown|unbekannt|inconnue?|sconosciuto|patient|"
    r"subject|de|deidentified|identified|removed|hidden|unnamed|noname|undefined|unspecified|default|\d{1,3}(?:y|yrs?|years?)"
)
_DATE = re.compile(r"\d{1,4}[-./](?:[^\W\d_]{3}|\d{1,2})[-./]\d{1,4}")


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List recordings.

    Args:
        raw: folders with EDF or BDF files (the first folder below is the subject), or files.
        asked: options; all count.

    Raises:
        DatasetNotFoundError: there is no such file.
        ConfigError: an option asks for something that cannot be.
        LeakError: two subjects have ids that people take for one.
    """
    gatherer = Gatherer(asked)
    pattern = subject_pattern(asked.subject_pattern)
    files = find_files(raw, SUFFIXES, "EDF or BDF file")
    sources = [below(path, raw) for path in files]
    names = name_recordings(sources)
    identities = [
        Identity(name, find_subject(source, pattern), source) for name, source in zip(names, sources, strict=True)
    ]
    gatherer.read_events(identities)
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for at, (path, identity) in enumerate(zip(files, identities, strict=True)):
        gatherer.add(identity.source, partial(_recording, gatherer, path, identity, at, patients))
    shared = shared_patients(patients)
    gatherer.recordings = [_tell_shared(recording, shared) for recording in gatherer.recordings]
    mixed = mixed_patients(patients)
    gatherer.recordings = _tell_mixed(gatherer.recordings, mixed)
    notes = {**({ONE_PATIENT: shared} if shared else {}), **({MIXED: len(mixed)} if mixed else {})}
    return gatherer.finish("EDF recordings", "not stated", notes=notes)


def _tell_shared(recording: Recording, shared: Sequence[Sequence[str]]) -> Recording:
    others = [one for group in shared if recording.subject in group for one in group if one != recording.subject]
    if not others:
        return recording
    told = f"{recording.source}: its header names the same patient as files of {some(others)}: one person, two ids?"
    return replace(recording, remarks=(*recording.remarks, told))


def _tell_mixed(recordings: Sequence[Recording], mixed: Mapping[str, int]) -> list[Recording]:
    first = {recording.subject: at for at, recording in reversed(list(enumerate(recordings)))}
    found = list(recordings)
    for subject, count in mixed.items():
        one = found[first[subject]]
        told = f"{one.source}: the headers of files of {subject} name {count} patients: two people with one id?"
        found[first[subject]] = replace(one, remarks=(*one.remarks, told))
    return found


def _recording(
    gatherer: Gatherer, path: Path, identity: Identity, position: int, patients: defaultdict[str, set[str]]
) -> Recording:
    header = read_header(path)
    recording = gatherer.build(describe_header(header), identity, position=position)
    patients[identity.subject].add(" ".join(header.patient.split()).casefold())
    return recording


def describe(path: Path) -> Header:
    """A file by its header and its annotations.

    Raises:
        DatasetNotFoundError: it is not there.
        CorruptRecordError: it is damaged, shorter than it says, or was interrupted.
    """
    return describe_header(read_header(path))


def describe_header(header: EdfHeader) -> Header:
    """Likewise, of a header that is read."""
    if header.seconds == 0 and not all(signal.annotations for signal in header.signals):
        raise HeaderError(header.path, "header", "records of 0 s: the sampling rate cannot be known")
    if all(signal.annotations for signal in header.signals):
        raise HeaderError(header.path, "header", "holds annotations only, no signal")
    found = read_annotations(header)
    names, remarks = distinct_names([signal.label for signal in header.signals])
    channels = tuple(
        _channel(at, signal, name, header.seconds)
        for at, (signal, name) in enumerate(zip(header.signals, names, strict=True))
    )
    absurd = [
        at
        for at, (signal, channel) in enumerate(zip(header.signals, channels, strict=True))
        if channel.keep and is_absurd(signal.low, signal.high, signal.unit)
    ]
    if absurd:
        one = header.signals[absurd[0]]
        remarks.append(tell_absurd(one.low, one.high, one.unit, [header.signals[at].label for at in absurd]))
    return Header(
        header.path,
        "edf",
        channels,
        tuple(signal.samples * header.records for signal in header.signals),
        marks=tuple(found.marks),
        faults=tuple(found.faults),
        remarks=(*header.remarks, *remarks, *found.remarks),
        options=_options(header),
        doubtful=frozenset(absurd),
    )


def _channel(at: int, signal: EdfSignal, name: str, seconds: float) -> Channel:
    kind, reason = "", signal.fault
    if signal.annotations:
        kind, reason = "MISC", "holds annotations"
    elif not signal.samples:
        reason = "has no samples"
    elif not signal.label:
        kind = "MISC"
    contact = parse_name(signal.label)  # of the label as written: a second A1 is called A1-2 and is no pair
    return Channel(
        name,
        at,
        kind,
        microvolts(signal.unit),
        signal.unit,
        signal.samples / seconds if seconds else 0.0,
        not reason,
        reason,
        contact.shaft,
        contact.number,
    )


def _options(header: EdfHeader) -> dict[str, str]:
    filters = Counter(
        signal.prefiltering for signal in header.signals if signal.prefiltering and not signal.annotations
    )
    return {"prefiltering": filters.most_common(1)[0][0]} if filters else {}


def shared_patients(patients: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of subjects whose files name one and the same patient: probably one person under several ids.

    The name itself is not told. A date of birth alone names nobody: devices fill it in.

    Args:
        patients: the headers' patient fields of each subject.
    """
    subjects: defaultdict[str, set[str]] = defaultdict(set)
    for subject, texts in patients.items():
        for text in texts:
            if _names_somebody(text):
                subjects[text].add(subject)
    return sorted(sorted(several) for several in subjects.values() if len(several) > 1)


def mixed_patients(patients: Mapping[str, set[str]]) -> dict[str, int]:
    """Subjects whose files name several patients, and how many: probably several people with one id.

    Args:
        patients: the headers' patient fields of each subject.
    """
    counts = {subject: sum(map(_names_somebody, texts)) for subject, texts in patients.items()}
    return {subject: count for subject, count in counts.items() if count > 1}


def _names_somebody(text: str) -> bool:
    words = re.findall(r"[^\W_]+", _DATE.sub(" ", text.casefold()))
    return any(_NOBODY.fullmatch(word) is None for word in words)
