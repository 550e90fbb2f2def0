"""Tables of a BIDS recording, joined to its channels by name, and its events."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.ieeg.annotations import Mark
from data_prep.ieeg.electrodes import INTRACRANIAL, core_name
from data_prep.ieeg.errors import SidecarError
from data_prep.ieeg.event_table import split_channels
from data_prep.ieeg.find import some
from data_prep.ieeg.records import Channel
from data_prep.ieeg.tables import Table, number
from data_prep.ieeg.units import microvolts

# Columns that may hold what was annotated: BIDS, SzCORE, HED-SCORE, and what data sets call it.
LABEL_COLUMNS = (
    "trial_type", "eventType", "event_type", "annotation_type", "seizure_info", "HED_annotations", "label",
    "annotation", "event", "description", "event_description", "name", "text", "value",
)  # fmt: skip
_RATE = 1e-4  # relative difference of rates that rounding makes


def merge_channels(channels: Sequence[Channel], table: Table | None, remarks: list[str]) -> list[Channel]:
    """Put type, unit, status and group of `channels.tsv` to the channels of a file, by name.

    The file is believed where both tell a unit.

    Raises:
        SidecarError: the table has no names, none that the file has, or another sampling rate.
    """
    if table is None:
        remarks.append("no channels.tsv: what channels are is guessed from their names")
        return list(channels)
    column = table.find("name")
    if column is None:
        raise SidecarError(table.path, "header", "has no column 'name'; add it")
    rows = _by_name(table, column, remarks)
    found: list[Channel] = []
    missing: list[str] = []
    used: set[int] = set()
    for channel in channels:
        row = _look_up(rows, channel.name)
        if row is None:
            found.append(channel)
            if channel.keep:
                missing.append(channel.name)
            continue
        used.add(id(row))
        found.append(_merge(channel, row, table, remarks))
    extra = [row[column] for row in table.rows if row[column] and id(row) not in used]
    if not used:
        raise SidecarError(
            table.path, "column name", f"has none of the channels of the file ({some(c.name for c in channels)})"
        )
    if missing:
        remarks.append(f"{len(missing)} channels are not in {table.path.name}: {some(missing)}")
    if extra:
        remarks.append(f"{len(extra)} rows of {table.path.name} are not in the file: {some(extra)}")
    return found


def _by_name(table: Table, column: str, remarks: list[str]) -> dict[str, dict[str, str]]:
    """Rows by name, and, where that is unique, by what is left of a name without case and decoration."""
    rows: dict[str, dict[str, str]] = {}
    loose: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    twice = []
    for row in table.rows:
        name = row[column]
        if not name:
            continue
        if name in rows:
            twice.append(name)
            continue
        rows[name] = row
        loose[_loose(name)].append(row)
    if twice:
        remarks.append(f"{table.path.name} has rows twice, the first counts: {some(twice)}")
    return {**{key: several[0] for key, several in loose.items() if len(several) == 1}, **rows}


def _loose(name: str) -> str:
    # The mark keeps such keys apart from names.
    return "\x00" + core_name(name).casefold().replace(" ", "")


def _look_up(rows: Mapping[str, dict[str, str]], name: str) -> dict[str, str] | None:
    return rows.get(name) or rows.get(_loose(name))


def _merge(channel: Channel, row: dict[str, str], table: Table, remarks: list[str]) -> Channel:
    cells = {
        key: row.get(table.find(key) or "", "") for key in ("type", "units", "status", "status_description", "group")
    }
    _check_rate(channel, row, table)
    kind = cells["type"].upper() or channel.kind
    changes: dict[str, Any] = {"kind": "SEEG" if kind == "IEEG" else kind}
    if cells["group"] and not channel.shaft:
        changes["shaft"] = cells["group"]
    if cells["units"]:
        scale = microvolts(cells["units"])
        if not channel.scale and scale:
            changes |= {"scale": scale, "unit": cells["units"]}
            said = f"units of channels whose file tells none are those of {table.path.name}"
        else:
            said = f"{table.path.name} says {cells['units']}, the file {channel.unit}: the file is believed"
            said = said if channel.scale and scale and scale != channel.scale else ""
        if said and said not in remarks:
            remarks.append(said)
    if cells["status"].casefold() == "bad" and channel.keep:
        why = f": {cells['status_description']}" if cells["status_description"] else ""
        changes |= {"keep": False, "reason": f"bad{why}"}
    return replace(channel, **changes)


def _check_rate(channel: Channel, row: dict[str, str], table: Table) -> None:
    cell = row.get(table.find("sampling_frequency") or "", "")
    try:
        rate = number(cell)
    except ValueError:
        rate = math.nan
    if channel.keep and math.isfinite(rate):
        check_rate(rate, channel.rate, table.path, f"channel {channel.name}")


def check_rate(stated: float, rate: float, path: Path, place: str) -> None:
    """Refuse a sidecar that states another sampling rate than the file has.

    Raises:
        SidecarError: naming both.
    """
    if abs(stated - rate) > _RATE * max(rate, 1.0):
        raise SidecarError(
            path, place, f"says {stated:g} Hz, the signal file {rate:g} Hz; correct the one that is wrong"
        )


def place_channels(channels: Sequence[Channel], table: Table | None, remarks: list[str]) -> list[Channel]:
    """Put coordinates of `electrodes.tsv` to channels, by name; nothing here ends a preparation."""
    if table is None:
        return list(channels)
    column = table.find("name")
    axes = [table.find(axis) for axis in ("x", "y", "z")]
    if column is None or None in axes:
        remarks.append(f"{table.path.name} has no columns name, x, y, z: places of electrodes are not known")
        return list(channels)
    rows = _by_name(table, column, remarks)
    found: list[Channel] = []
    missing: list[str] = []
    used: set[int] = set()
    for channel in channels:
        row = _look_up(rows, channel.name)
        if row is None:
            if channel.kind in INTRACRANIAL:
                missing.append(channel.name)
            found.append(channel)
            continue
        used.add(id(row))
        x, y, z = (_coordinate(row[axis or ""]) for axis in axes)
        found.append(replace(channel, place=(x, y, z)))
    extra = [row[column] for row in table.rows if row[column] and id(row) not in used]
    if missing:
        remarks.append(f"{len(missing)} channels are not in {table.path.name}: {some(missing)}")
    if extra:
        remarks.append(f"{len(extra)} electrodes of {table.path.name} have no channel: {some(extra)}")
    return found


def _coordinate(cell: str) -> float:
    try:
        return number(cell)
    except ValueError:
        return math.nan


def read_marks(table: Table) -> list[Mark]:
    """Rows of `events.tsv`; of several columns of labels, the first with a meaning counts.

    Raises:
        SidecarError: there is no column of onsets.
    """
    onset, duration = table.find("onset"), table.find("duration")
    if onset is None:
        raise SidecarError(table.path, "header", f"has no column 'onset', only {some(table.columns)}; add it")
    labels = [column for name in LABEL_COLUMNS if (column := table.find(name)) is not None]
    seen = table.find("channels", "channel")
    marks = []
    for row, cells in enumerate(table.rows):
        if not any(cells.values()):
            continue
        texts = tuple(cells[column] for column in labels)
        channels = split_channels(cells[seen]) if seen is not None else ()
        times = (_coordinate(cells[onset]), _coordinate(cells[duration]) if duration is not None else math.nan)
        marks.append(Mark(*times, texts, row, f"line {row + 2}", channels))
    return marks
