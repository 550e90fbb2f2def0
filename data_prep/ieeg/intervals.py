"""Annotations of one recording -> its seizures: beginnings and ends joined, cut to the recording, overlaps united."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_prep.common.rejects import Reject, excerpt
from data_prep.ieeg.annotations import INTERVAL, OFFSET, ONSET, Labels, Mark
from data_prep.ieeg.errors import AnnotationError
from data_prep.ieeg.find import some
from data_prep.ieeg.records import Event

# Beginnings so close to each other, without an end between them, are of one seizure: on the EEG, and clinically.
ONE_SEIZURE = 120.0  # seconds
LONG = 3600.0  # seconds; longer seizures are told
_NEAR = 1.0  # seconds that an end may lie behind the end of a seizure that has a duration of its own
_NOTHING = 1e-3  # seconds that are cut off without a remark


@dataclass(frozen=True)
class Seizures:
    """Seizures of a recording.

    Args:
        events: by onset, inside the recording, united.
        remarks: what was done to them.
        rejects: those that lie outside.
    """

    events: tuple[Event, ...] = ()
    remarks: tuple[str, ...] = ()
    rejects: tuple[Reject, ...] = ()


@dataclass(frozen=True, slots=True)
class _Labelled:
    mark: Mark
    label: str
    meaning: str

    @property
    def end(self) -> float:
        return self.mark.onset + self.mark.duration


@dataclass
class _Found:
    """Intervals of one group of channels, with the annotation each is of."""

    intervals: list[tuple[float, float, _Labelled]] = field(default_factory=list)
    assumed: list[_Labelled] = field(default_factory=list)
    absorbed: list[_Labelled] = field(default_factory=list)


def find_seizures(
    marks: Sequence[Mark], labels: Labels, duration: float, seizure_seconds: float, where: str, source: str
) -> Seizures:
    """Make seizures of annotations.

    Args:
        marks: of one recording.
        labels: what they mean; each is counted.
        duration: of the recording in seconds.
        seizure_seconds: duration of a seizure whose end is not annotated; 0: there is no such default.
        where: file that the annotations are in, for messages.
        source: the same for rejects.

    Returns:
        The seizures; one that lies wholly outside of the recording is among the rejects.

    Raises:
        AnnotationError: a seizure has no usable beginning or end. To leave it out would call it background.
    """
    groups: defaultdict[tuple[str, ...], list[_Labelled]] = defaultdict(list)
    for mark in marks:
        meaning, label = labels.judge(mark)
        if meaning in (ONSET, OFFSET, INTERVAL):
            _check_times(mark, label, where)
            groups[mark.channels].append(_Labelled(mark, label, meaning))
    remarks: list[str] = []
    intervals: list[tuple[float, float, _Labelled]] = []
    assumed: list[_Labelled] = []
    absorbed: list[_Labelled] = []
    for group in groups.values():
        found = _pair(group, seizure_seconds, where)
        intervals += found.intervals
        assumed += found.assumed
        absorbed += found.absorbed
    if absorbed:
        remarks.append(f"{len(absorbed)} further annotations lie within seizures ({_labels(absorbed)})")
    if assumed:
        remarks.append(
            f"{len(assumed)} seizures without an end are taken for {seizure_seconds:g} s long ({_labels(assumed)})"
        )
    events, cut, rejects = _cut(intervals, duration, source)
    united, overlaps = unite(events)
    if overlaps:
        remarks.append(f"{overlaps} overlapping seizures are united with another")
    remarks += [
        f"the seizure at {event.onset:g} s is {(event.offset - event.onset) / 60:.0f} min long"
        for event in united
        if event.offset - event.onset > LONG
    ]
    return Seizures(united, (*cut, *remarks), tuple(rejects))


def _check_times(mark: Mark, label: str, where: str) -> None:
    if not math.isfinite(mark.onset):
        raise AnnotationError(where, mark.place, f"seizure {excerpt(label)!r} has no onset; write it in seconds")
    if mark.duration < 0 or math.isinf(mark.duration):
        raise AnnotationError(
            where, mark.place, f"seizure {excerpt(label)!r} has the duration {mark.duration:g} s; mend it"
        )


def _labels(found: Sequence[_Labelled]) -> str:
    return some(dict.fromkeys(f"{one.label!r}" for one in found), 4)


def _pair(group: Sequence[_Labelled], seizure_seconds: float, where: str) -> _Found:
    """Join beginnings and ends of one group of channels, in order of time."""
    found = _Found()
    points: list[_Labelled] = []
    for one in group:
        if one.meaning == INTERVAL and one.mark.duration > 0:
            found.intervals.append((one.mark.onset, one.end, one))
        else:
            points.append(one)
    pending: list[_Labelled] = []
    unended: list[list[_Labelled]] = []
    unbegun: list[_Labelled] = []
    # At one time an end comes first: it is that of the seizure before.
    for one in sorted(points, key=lambda one: (one.mark.onset, one.meaning != OFFSET, one.mark.row)):
        if one.meaning == OFFSET:
            if pending:
                found.intervals.append((pending[0].mark.onset, one.mark.onset, pending[0]))
                pending = []
            else:
                unbegun.append(one)
        elif pending and one.mark.onset - pending[-1].mark.onset > ONE_SEIZURE:
            unended.append(pending)
            pending = [one]
        else:
            pending.append(one)
    if pending:
        unended.append(pending)
    for several in unended:
        _end(several, found, seizure_seconds, where)
    for one in unbegun:
        if not any(begin <= one.mark.onset <= end + _NEAR for begin, end, _ in found.intervals):
            raise AnnotationError(
                where,
                one.mark.place,
                f"{excerpt(one.label)!r} ends a seizure that nothing begins; annotate its beginning, "
                "or say in a file for --labels what this label means",
            )
        found.absorbed.append(one)
    return found


def _end(several: Sequence[_Labelled], found: _Found, seizure_seconds: float, where: str) -> None:
    """Beginnings of one seizure that no end follows."""
    first = several[0]
    own = [one for one in several if one.mark.duration > 0]
    if own:
        found.intervals.append((first.mark.onset, max(one.end for one in own), first))
    elif all(any(begin <= one.mark.onset <= end for begin, end, _ in found.intervals) for one in several):
        found.absorbed += several
    elif seizure_seconds > 0:
        found.intervals.append((first.mark.onset, several[-1].mark.onset + seizure_seconds, first))
        found.assumed.append(first)
    else:
        raise AnnotationError(
            where,
            first.mark.place,
            f"seizure {excerpt(first.label)!r} at {first.mark.onset:g} s has no duration and no end; annotate its end, "
            "or give --seizure_seconds",
        )


def _cut(
    intervals: Sequence[tuple[float, float, _Labelled]], duration: float, source: str
) -> tuple[list[Event], list[str], list[Reject]]:
    events, remarks, rejects = [], [], []
    for begin, end, one in intervals:
        if end <= 0 or begin >= duration:
            reason = f"the seizure ({begin:g} to {end:g} s) lies outside of the recording (0 to {duration:g} s)"
            rejects.append(Reject(source, one.mark.row, "event", reason, excerpt(one.label)))
            continue
        kept = (round(max(begin, 0.0), 9), round(min(end, duration), 9))  # sums of decimals are none
        if begin < -_NOTHING or end > duration + _NOTHING:
            remarks.append(
                f"the seizure from {begin:g} to {end:g} s is cut to the recording: {kept[0]:g} to {kept[1]:g} s"
            )
        events.append(Event(*kept, one.label or "seizure", one.mark.channels))
    return events, remarks, rejects


def unite(events: Sequence[Event]) -> tuple[tuple[Event, ...], int]:
    """Events by onset, overlapping ones made one, and how many disappeared by that.

    The label is that of the first; channels are those of all, or none where one of them has none.
    """
    united: list[Event] = []
    for event in sorted(events, key=lambda event: (event.onset, -event.offset, event.label, event.channels)):
        last = united[-1] if united else None
        if last is None or event.onset >= last.offset:
            united.append(event)
            continue
        both = tuple(dict.fromkeys((*last.channels, *event.channels))) if last.channels and event.channels else ()
        united[-1] = Event(last.onset, max(last.offset, event.offset), last.label, both)
    return tuple(united), len(events) - len(united)
