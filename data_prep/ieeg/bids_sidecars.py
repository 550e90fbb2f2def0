"""Sidecars of a BIDS recording, found by the inheritance principle and read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import DatasetNotFoundError
from data_prep.ieeg.errors import EmptyFileError, SidecarError
from data_prep.ieeg.tables import Table, read_json, read_table, text_of

_IMPLANT = frozenset({"electrodes", "coordsystem"})  # of the implantation, in several spaces


def parse_entities(name: str) -> tuple[dict[str, str], str, str]:
    """Entities, suffix and extension of a BIDS file name: sub-01_task-rest_ieeg.edf."""
    stem, dot, extension = name.partition(".")
    *parts, suffix = stem.split("_")
    entities = dict(part.split("-", 1) for part in parts if "-" in part)
    return entities, suffix, f"{dot}{extension}".lower()


@dataclass
class SidecarIndex:
    """All sidecars of a data set, by folder.

    Args:
        root: of the data set.
        files: all its files.
    """

    root: Path
    folders: dict[Path, list[tuple[Path, dict[str, str], str, str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, files: Iterable[Path]) -> SidecarIndex:
        """Index the tables and JSON files among some files."""
        folders: defaultdict[Path, list[tuple[Path, dict[str, str], str, str]]] = defaultdict(list)
        for path in files:
            if path.suffix.lower() in (".tsv", ".json"):
                folders[path.parent].append((path, *parse_entities(path.name)))
        return cls(root, dict(folders))

    def find(self, path: Path, suffix: str, extension: str) -> list[Path]:
        """Sidecars that apply to a file, from the top of the data set down, of each folder the most specific one.

        They carry no entity that the file does not; `space` is that of coordinates, and free.
        """
        entities = parse_entities(path.name)[0]
        folders = [self.root, *(self.root / part for part in _parts(path.parent.relative_to(self.root)))]
        found: list[Path] = []
        for folder in folders:
            fitting = [
                (len(own), other)
                for other, own, kind, ending in self.folders.get(folder, ())
                if (kind, ending) == (suffix, extension)
                and all(entities.get(key) == value for key, value in own.items() if key != "space")
            ]
            if fitting and suffix in _IMPLANT:
                found += [other for _, other in fitting]
            elif fitting:
                found.append(max(fitting, key=lambda one: one[0])[1])
        return found


def _parts(path: Path) -> list[Path]:
    return [Path(*path.parts[: at + 1]) for at in range(len(path.parts))]


@dataclass
class Sidecars:
    """What the sidecars of one recording say.

    Args:
        metadata: keys of all `_ieeg.json` that apply; those of a deeper folder count.
        metadata_file: the deepest of them, for messages.
        channels: table of channels.
        events: table of events.
        electrodes: table of electrodes.
        coordinate_system: and its unit; empty: unknown.
        files: that were read.
        remarks: about files that could not be read, or of which several apply.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    metadata_file: Path = Path("_ieeg.json")
    channels: Table | None = None
    events: Table | None = None
    electrodes: Table | None = None
    coordinate_system: str = ""
    files: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read_sidecars(index: SidecarIndex, path: Path, suffix: str) -> Sidecars:
    """Read the sidecars of a recording.

    Args:
        index: of the data set.
        path: of its signal.
        suffix: ieeg or eeg.

    Raises:
        SidecarError: `_ieeg.json`, channels or events are no such files. What is only of use for pictures, electrodes
            and coordinates, may be damaged.
    """
    found = Sidecars()
    for sidecar in index.find(path, suffix, ".json"):
        values, said = read_json(sidecar)
        found.metadata |= values
        found.metadata_file = sidecar
        found.files.append(sidecar)
        found.remarks += said
    found.channels = _table(index.find(path, "channels", ".tsv")[-1:], found)
    try:
        found.events = _table(index.find(path, "events", ".tsv")[-1:], found)
    except EmptyFileError as error:
        found.remarks.append(f"{Path(error.path).name}: {error.reason}; whether there are seizures is unknown")
    try:
        _read_electrodes(index, path, found)
    except (SidecarError, EmptyFileError, DatasetNotFoundError) as error:
        found.remarks.append(f"places of electrodes are not known: {error}")
    return found


def _table(paths: Sequence[Path], found: Sidecars) -> Table | None:
    if not paths:
        return None
    table = read_table(paths[0])
    found.files.append(paths[0])
    found.remarks += table.remarks
    return table


def _read_electrodes(index: SidecarIndex, path: Path, found: Sidecars) -> None:
    tables = index.find(path, "electrodes", ".tsv")
    if not tables:
        return
    deepest = [table for table in tables if table.parent == tables[-1].parent]
    chosen = deepest[0]
    if len(deepest) > 1:
        found.remarks.append(f"of {len(deepest)} files of electrodes, {chosen.name} is taken")
    found.electrodes = _table([chosen], found)
    space = parse_entities(chosen.name)[0].get("space", "")
    systems = index.find(path, "coordsystem", ".json")
    fitting = [one for one in systems if parse_entities(one.name)[0].get("space", "") == space] or systems
    if fitting:
        values, said = read_json(fitting[-1])
        found.files.append(fitting[-1])
        found.remarks += said
        name = text_of(values.get("iEEGCoordinateSystem")) or space
        unit = text_of(values.get("iEEGCoordinateUnits"))
        found.coordinate_system = f"{name} ({unit})" if name and unit else name or unit
