"""BIDS data sets of iEEG (Holdgraf et al., 2019), also those with SzCORE or HED-SCORE events.

Signals are EDF, BDF or BrainVision. Sidecars are found by the inheritance principle and joined by name; a sidecar that
contradicts the signal is an error, one that is incomplete is told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError, LeakError
from data_prep.common.rejects import Reject
from data_prep.ieeg.bids_join import check_rate, merge_channels, place_channels, read_marks
from data_prep.ieeg.bids_sidecars import SidecarIndex, Sidecars, parse_entities, read_sidecars
from data_prep.ieeg.errors import UnsupportedRecordingError
from data_prep.ieeg.find import check_file, unique_names, walk
from data_prep.ieeg.header import Header
from data_prep.ieeg.listing import Annotated, Gatherer, Identity, check_subjects
from data_prep.ieeg.records import Asked, Listing, Recording
from data_prep.ieeg.tables import number_of, read_json, read_table, text_of

_READ = (".edf", ".bdf", ".vhdr")  # in the order of preference where one recording is there twice
_OTHER = (".set", ".nwb", ".mefd", ".fif", ".gdf", ".cnt", ".edf.gz", ".mef", ".ds", ".sqd", ".con")
_ASIDE = frozenset({"derivatives", "sourcedata", "code", "stimuli", "phenotype"})
_DESCRIPTION = "dataset_description.json"
_ABOVE = 6  # folders above the given one that are looked into
_SECONDS = 1.0  # that a stated duration may differ


@dataclass(frozen=True)
class _DataSet:
    root: Path
    label: str  # before names and subjects, where there are several data sets
    files: tuple[Path, ...]
    signals: tuple[Path, ...]
    twins: Mapping[Path, str]


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List recordings.

    Args:
        raw: a data set, a folder or file in one, or a folder above several.
        asked: options; `subject_pattern` does not count, because BIDS names the subject.

    Raises:
        DatasetNotFoundError: there is no recording.
        LeakError: two subjects have one id, or ids that people take for one.
        ConfigError: an option asks for something that cannot be.
    """
    gatherer = Gatherer(asked)
    sets = [_survey(root, scopes, label) for root, scopes, label in _roots(raw)]
    entries = [(one, path) for one in sets for path in one.signals]
    if not entries:
        raise DatasetNotFoundError(
            f"{raw[0]}: holds no recording called sub-..._ieeg.edf (.bdf, .vhdr); check the path"
        )
    lists: list[Path] = []
    described = [_describe_set(one, lists, gatherer) for one in sets]
    identities = _identify(entries)
    gatherer.read_events(identities)
    indices = {one.root: SidecarIndex.of(one.root, _sidecars(one, gatherer)) for one in sets}
    for at, ((one, path), identity) in enumerate(zip(entries, identities, strict=True)):
        make = partial(_recording, gatherer, path, identity, at, indices[one.root], one.twins.get(path, ""), lists)
        gatherer.add(identity.source, make)
    name, licence = (", ".join(dict.fromkeys(filter(None, texts))) for texts in zip(*described, strict=True))
    return gatherer.finish(name, licence or "not stated", lists)


def _roots(raw: Sequence[Path]) -> list[tuple[Path, list[Path], str]]:
    """Data sets, the given paths in each, and a label where there are several."""
    found: dict[Path, list[Path]] = {}
    for path in raw:
        if not path.exists():
            raise DatasetNotFoundError(f"{path}: no such file or folder; check the path given as raw")
        given = path.resolve()
        here = given if given.is_dir() else given.parent
        around = [folder for folder in [here, *here.parents][:_ABOVE] if (folder / _DESCRIPTION).is_file()]
        inside = [] if around else sorted(one.parent for one in here.glob(f"*/{_DESCRIPTION}"))
        for root in around[:1] or inside or [here]:
            found.setdefault(root, []).append(root if inside else given)
    labels = unique_names(root.name for root in found) if len(found) > 1 else [""]
    return [(root, scopes, label) for (root, scopes), label in zip(found.items(), labels, strict=True)]


def _survey(root: Path, scopes: Sequence[Path], label: str) -> _DataSet:
    """Files of a data set, and its signals below the given paths."""
    files = [path for path in walk([root]) if path.relative_to(root).parts[0] not in _ASIDE]
    signals: dict[Path, None] = {}
    for path in files:
        inside = any(path == scope or path.is_relative_to(scope) for scope in scopes)
        # A recording of the format MEF is a folder.
        folder = next((one for one in path.parents if one.suffix.lower() == ".mefd"), None)
        signal = folder or path
        entities, suffix, extension = parse_entities(signal.name)
        if inside and "sub" in entities and suffix in ("ieeg", "eeg") and extension in (*_READ, *_OTHER):
            signals[signal] = None
    # Scalp recordings beside intracranial ones are other recordings, not worse ones.
    ieeg = [path for path in signals if parse_entities(path.name)[1] == "ieeg"]
    chosen = tuple(ieeg or signals)
    return _DataSet(root, label, tuple(files), chosen, _find_twins(chosen))


def _find_twins(signals: Sequence[Path]) -> dict[Path, str]:
    """Signals that are there in another format as well, which is preferred: its file name."""
    order = (*_READ, *_OTHER)
    first: dict[Path, Path] = {}
    for path in sorted(signals, key=lambda path: order.index(parse_entities(path.name)[2])):
        first.setdefault(path.with_name(path.name.partition(".")[0]), path)
    chosen = {path: first[path.with_name(path.name.partition(".")[0])] for path in signals}
    return {path: other.name for path, other in chosen.items() if other != path}


def _sidecars(found: _DataSet, gatherer: Gatherer) -> list[Path]:
    return [path for path in found.files if gatherer.looks or parse_entities(path.name)[1] != "events"]


def _describe_set(found: _DataSet, lists: list[Path], gatherer: Gatherer) -> tuple[str, str]:
    """Name and licence of a data set; its subjects are checked.

    Raises:
        LeakError: one subject is listed twice, or two have ids that people take for one.
    """
    subjects = [f"sub-{parse_entities(path.name)[0]['sub']}" for path in found.signals]
    participants, description = found.root / "participants.tsv", found.root / _DESCRIPTION
    values: dict[str, Any] = {}
    for path in (participants, description):
        if not path.is_file():
            continue
        try:
            if path == description:
                values, _ = read_json(path)
            else:
                subjects += _participants(path)
        except CorruptRecordError as error:
            gatherer.rejects.append(Reject(path.name, 0, "", f"{error.position}: {error.reason}", ""))
        lists.append(path)
    try:
        check_subjects(subjects)
    except LeakError as error:
        raise LeakError(f"{found.root}: {error}") from error
    return text_of(values.get("Name")) or found.root.name, text_of(values.get("License"))


def _participants(path: Path) -> list[str]:
    table = read_table(path)
    column = table.find("participant_id")
    if column is None:
        return []
    listed = [row[column] for row in table.rows if row[column]]
    twice = [one for one, count in Counter(listed).items() if count > 1]
    if twice:
        raise LeakError(f"{path}: participant_id {twice[0]!r} is there twice: two people with one id? mend the table")
    return [one if one.startswith("sub-") else f"sub-{one}" for one in listed]


def _identify(entries: Sequence[tuple[_DataSet, Path]]) -> list[Identity]:
    stems, subjects, sessions, sources = [], [], [], []
    for one, path in entries:
        entities, suffix, _ = parse_entities(path.name)
        stem = path.name.partition(".")[0].removesuffix(f"_{suffix}")
        prefix = f"{one.label}_" if one.label else ""
        stems.append(f"{prefix}{stem}")
        subjects.append(f"{prefix}sub-{entities['sub']}")
        sessions.append(f"ses-{entities['ses']}" if "ses" in entities else "")
        below = path.relative_to(one.root).as_posix()
        sources.append(f"{one.label}/{below}" if one.label else below)
    names = unique_names(stems)
    return [Identity(*row) for row in zip(names, subjects, sources, sessions, strict=True)]


def _recording(
    gatherer: Gatherer,
    path: Path,
    identity: Identity,
    position: int,
    index: SidecarIndex,
    twin: str,
    lists: list[Path],
) -> Recording:
    _, suffix, extension = parse_entities(path.name)
    if extension not in _READ:
        raise UnsupportedRecordingError(
            path, "file", f"{extension} is not read; convert it to EDF or BrainVision (mne_bids.write_raw_bids)"
        )
    if twin:
        raise UnsupportedRecordingError(path, "file", f"the same recording is there as {twin}, which is read")
    check_file(path)
    header = _describer(extension)(path)
    sidecars = read_sidecars(index, path, suffix)
    remarks = list(sidecars.remarks)
    channels = merge_channels(header.channels, sidecars.channels, remarks)
    channels = place_channels(channels, sidecars.electrodes, remarks)
    annotated = None
    if sidecars.events is not None:
        marks = tuple(read_marks(sidecars.events))
        # Somebody wrote that nothing happened; events of a task, in contrast, say nothing about seizures.
        annotated = Annotated(marks, not marks, sidecars.events.path)
        if not sidecars.events.rows:
            remarks.append(f"{sidecars.events.path.name} has no rows")
    facts, said = _facts(sidecars, gatherer.asked)
    if extension == ".vhdr":
        from data_prep.ieeg.brainvision import signal_files

        facts["files"] = signal_files(header)
    recording = gatherer.build(
        replace(header, channels=tuple(channels)),
        identity,
        annotated,
        position,
        remarks=(*remarks, *said),
        coordinate_system=sidecars.coordinate_system,
        **facts,
    )
    lists += sidecars.files
    return _check_metadata(sidecars, recording)


def _describer(extension: str) -> Callable[[Path], Header]:
    if extension == ".vhdr":
        from data_prep.ieeg.brainvision import describe as describe_brainvision

        return describe_brainvision
    from data_prep.ieeg.edf import describe as describe_edf

    return describe_edf


def _facts(sidecars: Sidecars, asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """Mains, reference and filters, and what of them is to be told."""
    where, metadata = sidecars.metadata_file, sidecars.metadata
    options: dict[str, str] = {}
    remarks: list[str] = []
    mains = number_of(metadata.get("PowerLineFrequency"), where, "PowerLineFrequency")
    reference = text_of(metadata.get("iEEGReference", metadata.get("EEGReference")))
    filters = text_of(metadata.get("SoftwareFilters"))
    if reference:
        options["reference"] = reference
    if filters and filters not in ("{}", "[]"):
        options["software_filters"] = filters
        remarks.append(f"was filtered by software before: {filters}")
    kind = text_of(metadata.get("RecordingType"))
    if kind and kind != "continuous":
        remarks.append(f"RecordingType is {kind!r}: what is prepared takes it for continuous")
    return {"power_line": mains if mains > 0 else asked.mains, "options": options}, remarks


def _check_metadata(sidecars: Sidecars, recording: Recording) -> Recording:
    """Refuse another sampling rate, tell another duration."""
    where, metadata = sidecars.metadata_file, sidecars.metadata
    rate = number_of(metadata.get("SamplingFrequency"), where, "SamplingFrequency")
    if not math.isnan(rate):
        check_rate(rate, recording.rate, where, "SamplingFrequency")
    stated = number_of(metadata.get("RecordingDuration"), where, "RecordingDuration")
    if not abs(stated - recording.duration) > _SECONDS:  # also where none is stated
        return recording
    told = (
        f"{recording.source}: {where.name} says a duration of {stated:g} s, the signal has {recording.duration:g} s: "
        "is the file whole?"
    )
    return replace(recording, remarks=(*recording.remarks, told))
