"""The older releases of SWEC-ETHZ: .mat files by the hour, and one .mat for each seizure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.common.rejects import Reject
from data_prep.ieeg.annotations import INTERVAL, Mark
from data_prep.ieeg.errors import AnnotationError, RateError, SidecarError, TruncatedRecordingError
from data_prep.ieeg.find import below, natural_key, some
from data_prep.ieeg.header import Header
from data_prep.ieeg.listing import Annotated, Gatherer, Identity
from data_prep.ieeg.matlab import MatMatrix, describe_matrix, read_numbers
from data_prep.ieeg.records import Channel, Recording

HOUR = 3600.0  # seconds
SHORT_RATE = 512.0  # Hz
AROUND = 180.0  # seconds before and after the seizure of a short recording
VARIABLES = ("EEG", "eeg", "data")
_UNIT = "the file states no unit: microvolts, as the data set describes"

MakeChannels = Callable[[int, float], tuple[Channel, ...]]


@dataclass(frozen=True)
class Entry:
    """A recording that is to be described.

    Args:
        name: what it is to be called.
        subject: id.
        source: its file as a user knows it.
        make: describes it.
    """

    name: str
    subject: str
    source: str
    make: Callable[[Identity, int], Recording]


@dataclass(frozen=True)
class _Info:
    path: Path
    rate: float
    seizures: tuple[Mark, ...] | None


@dataclass(frozen=True)
class _Hour:
    number: int
    path: Path
    matrix: MatMatrix


def describe_short(subject: str, path: Path, source: str, gatherer: Gatherer, make_channels: MakeChannels) -> Entry:
    """A file with one seizure: three minutes, the seizure, three minutes."""

    def make(identity: Identity, position: int) -> Recording:
        matrix = describe_matrix(path, VARIABLES)
        seconds = matrix.samples / SHORT_RATE
        if seconds <= 2 * AROUND:
            raise TruncatedRecordingError(
                path,
                f"variable {matrix.variable}",
                f"{seconds:g} s: no seizure between the {AROUND:g} s before and after it; copy it again",
            )
        mark = Mark(AROUND, seconds - 2 * AROUND, ("seizure",), 0, "file", meaning=INTERVAL)
        header = _header([path], [matrix], SHORT_RATE, make_channels)
        return gatherer.build(header, identity, Annotated((mark,), True), position)

    stem = path.stem if re.search(r"\bID|ID\d", path.stem, re.IGNORECASE) else f"{subject}_{path.stem}"
    return Entry(stem, subject, source, make)


def _header(files: Sequence[Path], matrices: Sequence[MatMatrix], rate: float, make_channels: MakeChannels) -> Header:
    channels = matrices[0].channels
    lengths = tuple(matrix.samples for matrix in matrices)
    return Header(
        files[0],
        "mat",
        make_channels(channels, rate),
        (sum(lengths),) * channels,
        remarks=(_UNIT,),
        options={
            "variables": tuple(matrix.variable for matrix in matrices),
            "lengths": lengths,
            "channels": channels,
        },
    )


def describe_hours(
    subject: str,
    files: Sequence[Path],
    raw: Sequence[Path],
    gatherer: Gatherer,
    lists: list[Path],
    make_channels: MakeChannels,
) -> list[Entry]:
    """Hourly files of one subject: those that follow each other without a missing hour are one recording.

    Args:
        subject: id.
        files: hourly ones, and the one of facts.
        raw: folders that were given.
        gatherer: takes files that cannot be read.
        lists: takes the file of facts.
        make_channels: of a number and a rate.
    """
    hours = _read_hours(files, raw, gatherer)
    first = below(files[0], raw)
    if not hours:
        return []
    try:
        info = _read_info(files, hours[0].path)
    except (CorruptRecordError, DatasetNotFoundError) as error:
        return [Entry(subject, subject, first, _failing(error))]
    lists.append(info.path)
    runs = [[hours[0]]]
    for hour in hours[1:]:
        last = runs[-1][-1]
        if hour.number == last.number + 1 and hour.matrix.channels == last.matrix.channels:
            runs[-1].append(hour)
        else:
            runs.append([hour])
    entries = []
    used: set[int] = set()
    for run in runs:
        name = subject if len(runs) == 1 else f"{subject}_h{run[0].number:03d}-h{run[-1].number:03d}"
        marks = _marks_of(run, info, used)
        entries.append(Entry(name, subject, below(run[0].path, raw), _maker(run, info, marks, gatherer, make_channels)))
    reason = "the seizure lies in an hour whose file is not there"
    gatherer.rejects += [
        Reject(below(info.path, raw), mark.row, "event", reason, f"{mark.onset:g} s")
        for mark in info.seizures or ()
        if mark.row not in used
    ]
    return entries


def _failing(error: Exception) -> Callable[[Identity, int], Recording]:
    def make(identity: Identity, position: int) -> Recording:
        del identity, position
        raise error

    return make


def _read_hours(files: Sequence[Path], raw: Sequence[Path], gatherer: Gatherer) -> list[_Hour]:
    found: dict[int, _Hour] = {}
    for path in sorted(files, key=lambda path: natural_key(path.name)):
        match = re.search(r"_(\d+)h$", path.stem, re.IGNORECASE)
        if not match:
            continue
        number = int(match[1])
        source = below(path, raw)
        if number in found:
            gatherer.rejects.append(
                Reject(source, 0, "", f"hour {number} is there as {found[number].path.name}, too", "")
            )
            continue
        try:
            found[number] = _Hour(number, path, describe_matrix(path, VARIABLES))
        except CorruptRecordError as error:
            gatherer.rejects.append(Reject(source, 0, "", f"{error.position}: {error.reason}", ""))
        except DatasetNotFoundError as error:
            gatherer.rejects.append(Reject(source, 0, "", error.message, ""))
    return [found[number] for number in sorted(found)]


def _read_info(files: Sequence[Path], beside: Path) -> _Info:
    infos = [path for path in files if path.stem.lower().endswith("_info")]
    if len(infos) != 1:
        told = f"{some(path.name for path in infos)} are there" if infos else "is not there"
        raise DatasetNotFoundError(
            f"{beside}: its _info.mat with sampling rate and seizures {told}; put the one that belongs to it beside"
        )
    path = infos[0]
    numbers = read_numbers(path, ("fs", "seizure_begin", "seizure_end"))
    rates = numbers.get("fs", np.empty(0))
    if len(rates) != 1 or not np.isfinite(rates[0]) or rates[0] <= 0:
        raise RateError(path, "variable fs", f"is {rates.tolist()}: no sampling rate")
    if "seizure_begin" not in numbers or "seizure_end" not in numbers:
        return _Info(path, float(rates[0]), None)
    begins, ends = numbers["seizure_begin"], numbers["seizure_end"]
    if len(begins) != len(ends):
        raise SidecarError(
            path, "variable seizure_end", f"has {len(ends)} entries, seizure_begin {len(begins)}; mend the file"
        )
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if not begin < end:
            raise AnnotationError(path, f"seizure {row + 1}", f"begins at {begin:g} s and ends at {end:g} s; mend it")
    marks = tuple(
        Mark(float(begin), float(end - begin), ("seizure",), row, f"seizure {row + 1}", meaning=INTERVAL)
        for row, (begin, end) in enumerate(zip(begins, ends, strict=True))
    )
    return _Info(path, float(rates[0]), marks)


def _marks_of(run: Sequence[_Hour], info: _Info, used: set[int]) -> tuple[Mark, ...]:
    """Seizures that touch a run of hours, in seconds from its beginning."""
    start = (run[0].number - 1) * HOUR
    stop = start + sum(hour.matrix.samples for hour in run) / info.rate
    found = []
    for mark in info.seizures or ():
        if mark.onset < stop and mark.onset + mark.duration > start:
            used.add(mark.row)
            found.append(Mark(mark.onset - start, mark.duration, mark.texts, mark.row, mark.place, meaning=INTERVAL))
    return tuple(found)


def _maker(
    run: Sequence[_Hour], info: _Info, marks: tuple[Mark, ...], gatherer: Gatherer, make_channels: MakeChannels
) -> Callable[[Identity, int], Recording]:
    def make(identity: Identity, position: int) -> Recording:
        files = tuple(hour.path for hour in run)
        header = _header(files, [hour.matrix for hour in run], info.rate, make_channels)
        remarks = []
        odd = [hour.path.name for hour in run[:-1] if abs(hour.matrix.samples - HOUR * info.rate) > 1]
        if odd:
            remarks.append(f"{some(odd)} hold no whole hour; times behind them are counted by their samples")
        if info.seizures is None:
            remarks.append(f"{info.path.name} has no seizure_begin and seizure_end: seizures are unknown")
        annotated = Annotated(marks, info.seizures is not None, info.path)
        return gatherer.build(header, identity, annotated, position, files=files, remarks=remarks)

    return make
