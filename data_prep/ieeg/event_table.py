"""A user's table of events, for recordings without annotations of their own (the option `events`)."""

from __future__ import annotations

import difflib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.ieeg.annotations import INTERVAL, Mark
from data_prep.ieeg.find import some
from data_prep.ieeg.tables import Table, number, read_table

_FILE = ("recording", "file", "filename", "file_name", "filepath", "path", "name", "source")
_ONSET = ("onset", "start", "start_time", "begin", "seizure_begin")
_OFFSET = ("offset", "end", "stop", "stop_time", "end_time", "seizure_end")
_DURATION = ("duration", "length")
_LABEL = ("label", "eventtype", "event_type", "trial_type", "event", "annotation", "description", "type")
_CHANNELS = ("channels", "channel")


@dataclass(frozen=True)
class EventTable:
    """Marks of the recordings that a table names.

    Args:
        path: of the table.
        marks: by position in the list of recordings; a recording that is named without an event has an empty list.
        remarks: about the file.
    """

    path: Path
    marks: dict[int, list[Mark]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def read_event_table(path: Path | None, names: Sequence[str], sources: Sequence[str]) -> EventTable | None:
    """Read a table of events: recording (or file), onset, and offset or duration; label and channels where known.

    Times are seconds from the beginning of the recording. A row without onset says that somebody looked at this
    recording and found nothing. Without a column of labels every row is a seizure.

    Args:
        path: CSV or TSV file; None: there is none.
        names: of the recordings.
        sources: their raw files, as paths below the raw folder; a row may name either, or the file without folders.

    Raises:
        DatasetNotFoundError: the table is not there.
        ConfigError: a column is missing, a recording is unknown or ambiguous, or a time is no number.
    """
    if path is None:
        return None
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such table of events")
    table = read_table(path)
    columns = _columns(table)
    index = _index(names, sources)
    marks: dict[int, list[Mark]] = {}
    for row, cells in enumerate(table.rows):
        if not any(cells.values()):
            continue
        place = f"line {row + 2}"
        at = _locate(cells[columns["recording"]], index, names, sources, f"{path}: {place}")
        mark = _mark(cells, columns, row, f"{path}: {place}")
        marks.setdefault(at, [])
        if mark is not None:
            marks[at].append(mark)
    return EventTable(path, marks, table.remarks)


def split_channels(text: str) -> tuple[str, ...]:
    """Names in a cell, with `,`, `;` or `|` between them; none for `all`."""
    for mark in (";", "|"):
        text = text.replace(mark, ",")
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    return () if any(name.casefold() in ("all", "n/a") for name in names) else names


def _columns(table: Table) -> dict[str, str]:
    wanted = {
        "recording": _FILE, "onset": _ONSET, "offset": _OFFSET, "duration": _DURATION, "label": _LABEL,
        "channels": _CHANNELS,
    }  # fmt: skip
    found = {key: column for key, names in wanted.items() if (column := table.find(*names)) is not None}
    for key in ("recording", "onset"):
        if key not in found:
            raise ConfigError(f"{table.path}: has no column {key!r}, only {', '.join(table.columns)}; add it")
    if "offset" not in found and "duration" not in found:
        raise ConfigError(f"{table.path}: has neither a column 'offset' nor 'duration'; add one, in seconds")
    return found


def _index(names: Sequence[str], sources: Sequence[str]) -> dict[str, set[int]]:
    index: defaultdict[str, set[int]] = defaultdict(set)
    for at, (name, source) in enumerate(zip(names, sources, strict=True)):
        path = PurePosixPath(source)
        for key in (name, source, path.with_suffix("").as_posix(), path.name, path.stem):
            index[key.casefold()].add(at)
    return index


def _locate(text: str, index: dict[str, set[int]], names: Sequence[str], sources: Sequence[str], where: str) -> int:
    if not text:
        raise ConfigError(f"{where}: names no recording; fill the cell, or delete the line")
    key = text.replace("\\", "/").casefold()
    # A path that begins further up than the raw folder, or none, counts by its end.
    parts = key.split("/")
    found = next((index[tail] for at in range(len(parts)) if (tail := "/".join(parts[at:])) in index), set())
    exact = {at for at in found if key in (names[at].casefold(), sources[at].casefold())}
    found = exact or found
    if len(found) == 1:
        return next(iter(found))
    if found:
        several = some(sources[at] for at in sorted(found))
        raise ConfigError(f"{where}: {text!r} may be {several}; write the path below the raw folder")
    close = difflib.get_close_matches(parts[-1], list(index), n=3, cutoff=0.5)
    near = some(dict.fromkeys(sources[at] for key in close for at in sorted(index[key])), 3)
    raise ConfigError(f"{where}: there is no recording {text!r}" + (f"; close to it: {near}" if near else ""))


def _mark(cells: dict[str, str], columns: dict[str, str], row: int, where: str) -> Mark | None:
    times = {}
    for key in ("onset", "offset", "duration"):
        cell = cells.get(columns.get(key, ""), "")
        try:
            times[key] = number(cell)
        except ValueError as error:
            raise ConfigError(f"{where}: {key} {cell!r} is no number of seconds; mend it") from error
    if math.isnan(times["onset"]):
        if not math.isnan(times["offset"]):
            raise ConfigError(f"{where}: has an offset without an onset; fill it")
        return None
    duration = times["duration"] if math.isnan(times["offset"]) else times["offset"] - times["onset"]
    if duration <= 0:
        raise ConfigError(f"{where}: ends where it begins, or before; mend it")
    channels = split_channels(cells.get(columns.get("channels", ""), ""))
    place = where.rsplit(": ", 1)[-1]
    if "label" not in columns:
        return Mark(times["onset"], duration, ("seizure",), row, place, channels, INTERVAL)
    return Mark(times["onset"], duration, (cells[columns["label"]],), row, place, channels)
