"""BrainVision recordings (.vhdr, .eeg, .vmrk) in folders, one subject in each, or named by a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_prep.ieeg.brainvision_header import read_header, read_markers
from data_prep.ieeg.electrodes import parse_name
from data_prep.ieeg.find import below, find_files, find_subject, name_recordings, subject_pattern
from data_prep.ieeg.header import Header, distinct_names
from data_prep.ieeg.listing import Gatherer, Identity
from data_prep.ieeg.records import Asked, Channel, Listing, Recording
from data_prep.ieeg.units import is_absurd, microvolts, tell_absurd

SUFFIXES = frozenset({".vhdr"})


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List recordings.

    Args:
        raw: folders with .vhdr files (the first folder below is the subject), or such files.
        asked: options; all count.

    Raises:
        DatasetNotFoundError: there is no such file.
        ConfigError: an option asks for something that cannot be.
        LeakError: two subjects have ids that people take for one.
    """
    gatherer = Gatherer(asked)
    pattern = subject_pattern(asked.subject_pattern)
    files = find_files(raw, SUFFIXES, "BrainVision header")
    sources = [below(path, raw) for path in files]
    identities = [
        Identity(name, find_subject(source, pattern), source)
        for name, source in zip(name_recordings(sources), sources, strict=True)
    ]
    gatherer.read_events(identities)
    lists: list[Path] = []
    for at, (path, identity) in enumerate(zip(files, identities, strict=True)):
        gatherer.add(identity.source, partial(_recording, gatherer, path, identity, at, lists))
    return gatherer.finish("BrainVision recordings", "not stated", lists)


def _recording(gatherer: Gatherer, path: Path, identity: Identity, position: int, lists: list[Path]) -> Recording:
    header = describe(path)
    recording = gatherer.build(header, identity, position=position, files=signal_files(header))
    if header.options["markers"]:
        lists.append(path.with_name(header.options["markers"]))
    return recording


def signal_files(header: Header) -> tuple[Path, ...]:
    """Header and samples of a recording."""
    return (header.path, header.path.with_name(header.options["data"]))


def describe(path: Path) -> Header:
    """A recording by its header and its markers.

    Raises:
        DatasetNotFoundError: a file is not there.
        CorruptRecordError: a file is damaged or shorter than it says, or the recording was interrupted.
    """
    header = read_header(path)
    marks, faults, said = read_markers(header)
    names, remarks = distinct_names(header.names)
    if "" in header.units:
        remarks.append(f"{header.units.count('')} channels have no unit: microvolts, as the format says")
    channels = tuple(
        _channel(at, label, name, unit, header.rate)
        for at, (label, name, unit) in enumerate(zip(header.names, names, header.units, strict=True))
    )
    absurd: list[int] = []
    if header.dtype[1:] in ("i2", "u2"):  # wider numbers have a range that tells nothing
        ends = [abs(resolution) * (1 << 15) for resolution in header.resolutions]
        absurd = [at for at, end in enumerate(ends) if is_absurd(-end, end, channels[at].unit)]
        if absurd:
            end, unit = ends[absurd[0]], channels[absurd[0]].unit
            remarks.append(tell_absurd(-end, end, unit, [header.names[at] for at in absurd]))
    return Header(
        path,
        "brainvision",
        channels,
        (header.samples,) * len(channels),
        marks=tuple(marks),
        faults=faults,
        remarks=(*header.remarks, *remarks, *said),
        options={"data": header.data.name, "markers": header.markers.name if header.markers else ""},
        doubtful=frozenset(absurd),
    )


def _channel(at: int, label: str, name: str, unit: str, rate: float) -> Channel:
    contact = parse_name(label)
    scale = microvolts(unit) if unit else 1.0
    kind = "" if label else "MISC"
    return Channel(name, at, kind, scale, unit or "uV", rate, shaft=contact.shaft, contact=contact.number)
