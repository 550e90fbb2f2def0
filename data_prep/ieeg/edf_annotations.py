"""Annotations and time stamps of EDF+ and BDF+ files.

Each record begins with a time stamp, so the annotation channel also tells whether the recording was interrupted and
whether the clock of the recorder ran with the samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_prep.common.rejects import excerpt
from data_prep.ieeg.annotations import Mark
from data_prep.ieeg.edf_header import EdfHeader
from data_prep.ieeg.edf_records import map_records
from data_prep.ieeg.errors import GapError

F64 = npt.NDArray[np.float64]
_TIME = re.compile(rb"([+-]?\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?")
_BLOCK = 1 << 24  # bytes of records that are looked through at once
_TOLERANCE = 0.005  # seconds; time stamps are rounded
_FAULTS = 100  # that are listed


@dataclass
class EdfAnnotations:
    """What the annotation channels hold.

    Args:
        marks: annotations; onsets are seconds from the first sample.
        faults: entries that cannot be read: record, reason, excerpt.
        remarks: about time stamps and encodings.
        stamps: time of each record as written, NaN where none is.
    """

    marks: list[Mark] = field(default_factory=list)
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    stamps: F64 = field(default_factory=lambda: np.empty(0))


def read_annotations(header: EdfHeader) -> EdfAnnotations:
    """Read all annotations, and check the time stamps of all records.

    Raises:
        GapError: records do not follow each other, or nothing tells whether they do where the header says so.
        CorruptRecordError: the file cannot be read.
    """
    found = EdfAnnotations(stamps=np.full(header.records, math.nan))
    channels = [signal for signal in header.signals if signal.annotations and signal.samples]
    latin = 0
    entries: list[tuple[float, float, str, int]] = []
    for record, channel, data in _cells(header):
        for at, piece in enumerate(data.split(b"\x00")):
            if not piece:
                continue
            head, *texts = piece.split(b"\x14")
            time = _TIME.fullmatch(head)
            if time is None or not texts:
                _fault(found, record, piece)
                continue
            onset = float(time[1])
            if channel == 0 and at == 0:
                found.stamps[record] = onset
            for raw in texts:
                if raw.strip():
                    text, is_latin = _decode(raw)
                    latin += is_latin
                    entries.append((onset, float(time[2]) if time[2] else math.nan, text, record))
    if latin:
        found.remarks.append(f"{latin} annotations are not UTF-8, read as Latin-1")
    if len(found.faults) > _FAULTS:
        found.remarks.append(f"{len(found.faults)} annotations cannot be read")
        del found.faults[_FAULTS:]
    times = check_times(header, found.stamps, bool(channels), found.remarks)
    for number, (onset, duration, text, record) in enumerate(entries):
        label, channels_of = _split_channel(text)
        place = f"annotation {number + 1:,} (record {record:,})"
        found.marks.append(Mark(_to_samples(onset, times), duration, (label,), number, place, channels_of))
    return found


def _cells(header: EdfHeader) -> Iterator[tuple[int, int, bytes]]:
    """Record, number of the annotation channel, and its bytes there; empty ones are passed over."""
    channels = [signal for signal in header.signals if signal.annotations and signal.samples]
    if not channels:
        return
    step = max(1, _BLOCK // (header.record_samples * header.width))
    for begin in range(0, header.records, step):
        end = min(begin + step, header.records)
        records = map_records(header, begin, end).reshape(end - begin, -1)
        blocks = []
        for signal in channels:
            first = signal.start * header.width
            blocks.append(np.ascontiguousarray(records[:, first : first + signal.samples * header.width]))
        for at in range(end - begin):
            for number, block in enumerate(blocks):
                data = block[at].tobytes().rstrip(b"\x00")
                if data:
                    yield begin + at, number, data


def _fault(found: EdfAnnotations, record: int, piece: bytes) -> None:
    reason = "an entry of the annotation channel cannot be read"
    found.faults.append((record, reason, excerpt(piece.decode("latin-1"))))


def _decode(raw: bytes) -> tuple[str, bool]:
    try:
        return " ".join(raw.decode().split()), False
    except UnicodeDecodeError:
        return " ".join(raw.decode("latin-1").split()), True


def _split_channel(text: str) -> tuple[str, tuple[str, ...]]:
    """`Spike@@EEG A1` is seen on channel `EEG A1` only."""
    label, _, channel = text.partition("@@")
    return label.strip(), (channel.strip(),) if channel.strip() else ()


def check_times(header: EdfHeader, stamps: F64, stamped: bool, remarks: list[str]) -> tuple[F64, F64] | float:
    """Whether records follow each other without a gap.

    Args:
        header: of the file.
        stamps: time of each record as written, NaN where none is.
        stamped: whether there is a channel for them.
        remarks: to add to.

    Returns:
        What converts written times: the time of the first sample, or, where the clock of the recorder drifted, times as
        written and the same times by the samples.

    Raises:
        GapError: naming the first gap.
    """
    missing = np.isnan(stamps)
    path = header.path
    if missing.any():
        if header.interrupted:
            first = int(missing.argmax())
            raise GapError(path, f"record {first:,}", f"{header.variety} without time stamps: gaps cannot be known")
        if stamped:
            remarks.append(f"{int(missing.sum()):,} of {len(stamps):,} records have no time stamp")
        known = stamps[~missing]
        # Only a stamp of the first record itself says when that record begins.
        return float(stamps[0]) if len(known) and not missing[0] else 0.0
    fastest = max(signal.samples for signal in header.signals if not signal.annotations)
    tolerance = max(_TOLERANCE, 2 * header.seconds / max(fastest, 1))
    steps = np.diff(stamps) - header.seconds
    odd = np.abs(steps) > tolerance
    if odd.any():
        at = int(odd.argmax())
        begin = stamps[at] + header.seconds
        what = "are missing" if steps[at] > 0 else "overlap"
        raise GapError(
            path,
            f"record {at + 1:,}",
            f"{abs(steps[at]):g} s {what} at {begin - stamps[0]:g} s ({int(odd.sum()):,} such places; "
            f"{header.variety or 'EDF'}); cut the recording there into files",
        )
    samples = np.asarray(np.arange(len(stamps)) * header.seconds, dtype=np.float64)
    drift = stamps - stamps[0] - samples
    if np.abs(drift).max(initial=0.0) > tolerance:
        remarks.append(
            f"the clock drifts against the samples by {drift[int(np.abs(drift).argmax())]:+.3f} s; annotations are "
            "moved to the samples they were written at"
        )
        return stamps, samples
    return float(stamps[0])


def _to_samples(onset: float, times: tuple[F64, F64] | float) -> float:
    if isinstance(times, float):
        return onset - times
    written, by_samples = times
    if onset <= written[0]:
        return onset - float(written[0])
    if onset >= written[-1]:
        return onset - float(written[-1] - by_samples[-1])
    return float(np.interp(onset, written, by_samples))
