"""SWEC-ETHZ iEEG (Burrello et al., 2018, 2019; Carzaniga et al., 2025): long-term HDF5, hourly and short-term .mat.

| layout | files | seizures |
|---|---|---|
| long-term, 68 folders | `IDxx/IDxx_total.h5` over `IDxx_part_k.h5` | `data/seizures` in seconds |
| long-term, by the hour | `IDx_yh.mat` with `EEG`, `IDx_info.mat` with `fs` | `seizure_begin`, `seizure_end` |
| short-term | one .mat for each seizure, with `EEG` at 512 Hz | all but the first and last 3 min |

The signals are band-passed (0.5 to 150 Hz) and referenced to the median. Of the 68 folders, 18 are copies of others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, DatasetNotFoundError, LeakError
from data_prep.ieeg.find import below, natural_key, unique_names, walk
from data_prep.ieeg.header import Header
from data_prep.ieeg.listing import Annotated, Gatherer, Identity
from data_prep.ieeg.records import Asked, Channel, Listing, Recording
from data_prep.ieeg.swec_mat import Entry, describe_hours, describe_short

LICENCE = "CDLA-Permissive-2.0 (long-term HDF5 release of SWEC-ETHZ; research only)"
# Folders of the HDF5 release that hold the same recordings: two public audits, and the official table of channels.
_ORIGINALS = (20, 21, 22, 24, 25, 27, 28, 29, 30, 31, 32, 34, 35, 36, 37, 38, 39, 40)
COPIES = {f"ID{number:02d}": f"ID{original:02d}" for number, original in enumerate(_ORIGINALS, 1)}
VERSIONS = ("long-term", "hourly", "short-term")
_ID = re.compile(r"(?<![a-z])(?:ID|P|PAT(?:IENT)?)[\s_-]*0*(\d+)", re.IGNORECASE)


@dataclass
class _Subject:
    """Files of one subject in one layout."""

    layout: str
    subject: str
    files: list[Path] = field(default_factory=list)


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List recordings.

    Args:
        raw: folders with the files of one or more subjects.
        asked: options; `version`: long-term, hourly or short-term, where several are there.

    Raises:
        DatasetNotFoundError: there is no such file.
        ConfigError: several layouts are there and none is chosen.
        LeakError: two folders hold files of one subject.
    """
    gatherer = Gatherer(asked)
    groups = _group(raw)
    layouts = list(dict.fromkeys(group.layout for group in groups))
    if asked.version:
        groups = [group for group in groups if group.layout == asked.version]
        if asked.version not in VERSIONS or not groups:
            raise ConfigError(f"version {asked.version!r}: {raw[0]} holds {', '.join(layouts)}")
    elif len(layouts) > 1:
        raise ConfigError(f"{raw[0]}: holds {', '.join(layouts)}; choose one with --version")
    lists: list[Path] = []
    entries = [entry for group in groups for entry in _ENTRIES[group.layout](group, raw, gatherer, lists)]
    names = unique_names(entry.name for entry in entries)
    identities = [Identity(name, one.subject, one.source) for name, one in zip(names, entries, strict=True)]
    gatherer.read_events(identities)
    for at, (identity, entry) in enumerate(zip(identities, entries, strict=True)):
        gatherer.add(entry.source, partial(entry.make, identity, at))
    long = groups[0].layout == "long-term"
    notes = _known_copies({recording.subject for recording in gatherer.recordings}) if long else {}
    licence = LICENCE if long else "not stated (older SWEC-ETHZ releases, research only)"
    return gatherer.finish(f"SWEC-ETHZ iEEG, {groups[0].layout}", licence, lists, notes)


def _group(raw: Sequence[Path]) -> list[_Subject]:
    found: dict[tuple[str, str, Path], _Subject] = {}
    for path in walk(raw):
        layout = _layout(path)
        if layout:
            subject = find_id(path)
            group = found.setdefault((layout, subject, path.parent), _Subject(layout, subject))
            group.files.append(path)
    folders: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
    for layout, subject, folder in found:
        folders[layout, subject].append(folder)
    for (_, subject), several in folders.items():
        if len(several) > 1:
            raise LeakError(
                f"{several[0]} and {several[1]}: both hold files of {subject}: two subjects with one id, or one twice; "
                "rename or remove one"
            )
    if not found:
        raise DatasetNotFoundError(
            f"{raw[0]}: holds no file of SWEC-ETHZ (IDxx_total.h5, IDxx_yh.mat with IDxx_info.mat, or one .mat per "
            "seizure); check the path"
        )
    return sorted(found.values(), key=lambda group: (VERSIONS.index(group.layout), natural_key(group.subject)))


def _layout(path: Path) -> str:
    if path.suffix.lower() in (".h5", ".hdf5"):
        return "long-term" if re.search(r"_(total|part_?\d+)$", path.stem, re.IGNORECASE) else ""
    if path.suffix.lower() != ".mat":
        return ""
    return "hourly" if re.search(r"_(\d+h|info)$", path.stem, re.IGNORECASE) else "short-term"


def find_id(path: Path) -> str:
    """`ID07` of a file, by its name or else by the folders above it."""
    for name in (path.stem, *(parent.name for parent in path.parents)):
        found = _ID.search(name)
        if found:
            return f"ID{int(found[1]):02d}"
    return path.parent.name or path.stem


def make_channels(count: int, rate: float) -> tuple[Channel, ...]:
    """Contacts are numbered; where they lay was withheld."""
    return tuple(Channel(f"iEEG{at + 1:02d}", at, "SEEG", rate=rate) for at in range(count))


def _long_term(group: _Subject, raw: Sequence[Path], gatherer: Gatherer, lists: list[Path]) -> list[Entry]:
    totals = [path for path in group.files if path.stem.lower().endswith("_total")]
    parts = [path for path in group.files if path not in totals]
    total = totals[0] if totals else None
    source = below(total or parts[0], raw)

    def make(identity: Identity, position: int) -> Recording:
        from data_prep.ieeg.swec_hdf5 import describe_files

        found = describe_files(total, parts, group.subject)
        options = {"datasets": found.datasets, "lengths": found.lengths, "channels": found.channels}
        header = Header(
            found.files[0],
            "swec-h5",
            make_channels(found.channels, found.rate),
            (sum(found.lengths),) * found.channels,
            remarks=found.remarks,
            options=options,
        )
        remarks = []
        if group.subject in COPIES:
            remarks.append(
                f"{group.subject} is known to be a copy of {COPIES[group.subject]}: one person under two ids"
            )
        annotated = Annotated(found.marks or (), found.marks is not None, total)
        recording = gatherer.build(header, identity, annotated, position, files=found.files, remarks=remarks)
        if total is not None and total not in found.files:
            lists.append(total)
        return recording

    return [Entry(group.subject, group.subject, source, make)]


def _known_copies(subjects: set[str]) -> dict[str, Any]:
    there = {copy: original for copy, original in COPIES.items() if copy in subjects}
    if not there:
        return {}
    both = {copy: original for copy, original in there.items() if original in subjects}
    return {"known_copies": there, "known_copies_with_original": both}


def _hourly(group: _Subject, raw: Sequence[Path], gatherer: Gatherer, lists: list[Path]) -> list[Entry]:
    return describe_hours(group.subject, group.files, raw, gatherer, lists, make_channels)


def _short_term(group: _Subject, raw: Sequence[Path], gatherer: Gatherer, lists: list[Path]) -> list[Entry]:
    del lists
    return [describe_short(group.subject, path, below(path, raw), gatherer, make_channels) for path in group.files]


_ENTRIES = {"long-term": _long_term, "hourly": _hourly, "short-term": _short_term}
