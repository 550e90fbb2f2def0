"""From headers, sidecars and annotations to a `Listing`: what every reader of a data set does in the same way."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.common.anonymise import pseudonym
from data_prep.common.errors import ConfigError, CorruptRecordError, LeakError, PrepError
from data_prep.common.rejects import Reject
from data_prep.ieeg.annotations import BUILT_IN, UNMATCHED, Mark, read_labels
from data_prep.ieeg.channels import Choice, choose
from data_prep.ieeg.event_table import EventTable, read_event_table
from data_prep.ieeg.find import natural_key, some
from data_prep.ieeg.header import Header
from data_prep.ieeg.intervals import Seizures, find_seizures
from data_prep.ieeg.records import Asked, Channel, Listing, Recording

ONE_PATIENT = "subjects_of_one_patient"  # among the notes: groups of subjects that are probably one person
LABELS = "labels"  # likewise: what was annotated
WITHHELD = "withheld: it may quote names or notes; it was told when the data were prepared"
# Reasons of these fields hold numbers and channels alone, and these notes words of the program.
_HARMLESS_FIELDS = frozenset({"event", "category", "unit", "signal", "channels"})
_HARMLESS_NOTES = frozenset({"sets", "published_split", "subjects"})
_KINDS = frozenset(
    {
        *("SEEG", "ECOG", "DBS", "EEG", "EOG", "VEOG", "HEOG", "ECG", "EMG", "TRIG", "AUDIO", "PD", "EYEGAZE", "PUPIL"),
        *("MISC", "SYSCLOCK", "ADC", "DAC", "REF", "RESP", "GSR", "PPG", "OTHER", ""),
    }
)
_SPACE = re.compile(
    r"(?:ACPC|CapTrak|Pixels|ScanRAS|fsnative|Talairach|Other|individual|(?:MNI|ICBM|IXI|NIHPD|OASIS|UNCInfant|fsaverage|"
    r"fsLR|ESTEEM)\w{0,24})?(?: ?\((?:mm|cm|m|pixels)\))?"
)


@dataclass(frozen=True)
class AskedToPredict(Asked):
    """Options of a listing for prediction: annotations are not looked at, so that none of them is at fault."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a recording is called.

    Args:
        name: unique in the listing.
        subject: subject id.
        source: its raw file as a user knows it.
        session: session id; empty: unknown.
    """

    name: str
    subject: str
    source: str
    session: str = ""


@dataclass(frozen=True)
class Annotated:
    """Annotations of a recording.

    Args:
        marks: all of them.
        looked: whether somebody looked for seizures, whatever the labels are.
        where: file they are in; None: the signal file.
    """

    marks: tuple[Mark, ...] = ()
    looked: bool = False
    where: Path | None = None


@dataclass
class Gatherer:
    """Collects recordings, rejects and facts; one recording that cannot be used does not end the run.

    Args:
        asked: options.
        rules: built-in meanings of labels.
        segments: whether the data set is of short segments, which a label may exclude.
    """

    asked: Asked
    rules: Iterable[tuple[str, str]] = BUILT_IN
    segments: bool = False
    recordings: list[Recording] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    table: EventTable | None = None

    def __post_init__(self) -> None:
        """Check the options before any file is opened."""
        self.labels = read_labels(self.asked.labels, self.rules, self.segments)
        self.choice = Choice.of(self.asked)
        if self.asked.seizure_seconds < 0:
            raise ConfigError(f"seizure_seconds {self.asked.seizure_seconds:g}: give 0 or more")
        if self.asked.mains < 0:
            raise ConfigError(f"mains {self.asked.mains:g}: give 0 (unknown) or a frequency in Hz")

    @property
    def looks(self) -> bool:
        """Whether annotations are looked at."""
        return not isinstance(self.asked, AskedToPredict)

    def read_events(self, identities: Sequence[Identity]) -> None:
        """Read the table of the option `events` for these recordings."""
        names, sources = [one.name for one in identities], [one.source for one in identities]
        self.table = read_event_table(self.asked.events, names, sources)

    def add(self, source: str, make: Callable[[], Recording | None]) -> None:
        """Take a recording, or the reason why there is none.

        Args:
            source: its raw file as a user knows it.
            make: describes it; None: it is left out on purpose.
        """
        before = len(self.rejects)
        try:
            recording = make()
        except PrepError as error:
            if isinstance(error, ConfigError | ImportError | LeakError):
                raise  # wrong for every recording
            del self.rejects[before:]  # events of a recording that is rejected as a whole
            self.rejects.append(Reject(source, 0, "", _reason(error, source), ""))
            return
        if recording is not None:
            self.recordings.append(recording)

    def build(
        self,
        header: Header,
        identity: Identity,
        annotated: Annotated | None = None,
        position: int = -1,
        **facts: Any,
    ) -> Recording:
        """A recording of its header: channels chosen, annotations turned into seizures.

        Args:
            header: of the signal, with what sidecars say about its channels.
            identity: what it is called.
            annotated: annotations of a sidecar; None: those of the header.
            position: of the recording in the table of events.
            facts: further fields of `Recording`; `remarks` and `options` are put to those of the header.
        """
        chosen = choose(header, self.choice)
        duration = chosen.samples / chosen.rate
        found, looked = self._seizures(header, identity, annotated, position, duration)
        said = (*header.remarks, *facts.pop("remarks", ()), *chosen.remarks, *found.remarks)
        options = {**header.options, **facts.pop("options", {})}
        facts.setdefault("power_line", self.asked.mains)
        return Recording(
            name=identity.name,
            subject=identity.subject,
            path=header.path,
            format=header.format,
            rate=chosen.rate,
            samples=chosen.samples,
            channels=chosen.channels,
            events=found.events,
            annotated=looked,
            source=identity.source,
            session=identity.session,
            remarks=tuple(f"{identity.source}: {line}" for line in dict.fromkeys(said)),
            options=options,
            **facts,
        )

    def _seizures(
        self, header: Header, identity: Identity, annotated: Annotated | None, position: int, duration: float
    ) -> tuple[Seizures, bool]:
        if not self.looks:
            return Seizures(), False
        given = Annotated(header.marks) if annotated is None else annotated
        told = self._tell_table(position, given.marks)
        if self.table is not None and position in self.table.marks:
            marks = tuple(self.table.marks[position])
            given = Annotated(marks, not marks, self.table.path)
        elif annotated is None:
            self.rejects += [Reject(identity.source, row, "event", reason, text) for row, reason, text in header.faults]
        source = given.where.name if given.where is not None else identity.source
        where = str(given.where or header.path)
        found = find_seizures(given.marks, self.labels, duration, self.asked.seizure_seconds, where, source)
        found = replace(found, remarks=(*told, *found.remarks))
        self.rejects += found.rejects
        # Notes of other things, such as "recording starts" or stimuli, do not tell that anybody looked for seizures.
        return found, given.looked or any(self.labels.means(mark) for mark in given.marks)

    def _tell_table(self, position: int, own: Sequence[Mark]) -> tuple[str, ...]:
        """Which of a recording's annotations and the table of events counts, where both say something."""
        if self.table is None or not any(self.labels.means(mark) for mark in own):
            return ()
        if position in self.table.marks:
            return (f"its own annotations are replaced by those of {self.table.path.name}",)
        return (f"is not in {self.table.path.name}; its own annotations count",)

    def finish(
        self, name: str, licence: str, lists: Iterable[Path] = (), notes: Mapping[str, Any] | None = None
    ) -> Listing:
        """The listing of what was gathered.

        Raises:
            LeakError: two subjects have ids that people take for one.
        """
        check_subjects(recording.subject for recording in self.recordings)
        given = (self.asked.labels, self.asked.events)
        files = dict.fromkeys([*lists, *(path for path in given if path is not None)])
        counted = self.labels.told()
        recordings = sorted(
            self.recordings,
            key=lambda one: (natural_key(one.subject), natural_key(one.session), natural_key(one.name)),
        )
        all_notes = {**(notes or {}), **({LABELS: counted} if counted else {})}
        # Events that lie in no file that is there are no fault of what is predicted.
        rejects = [one for one in self.rejects if self.looks or one.field != "event"]
        return Listing(tuple(recordings), name, tuple(files), licence, tuple(rejects), all_notes)


def _reason(error: PrepError, source: str) -> str:
    if not isinstance(error, CorruptRecordError):
        # The reject names the file already, and not where it lies.
        head, colon, rest = error.message.partition(": ")
        return rest if colon and Path(head).name == Path(source).name else error.message
    # An error of a sidecar names that sidecar: the reject is of the recording.
    told = "" if Path(error.path).name == Path(source).name else f"{Path(error.path).name}: "
    return PrepError(f"{told}{error.position}: {error.reason}").message


def subject_key(subject: str) -> str:
    """Ids that people take for one have one key: case, blanks and leading zeros do not count."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_-]+", "-", subject.strip().casefold()))


def check_subjects(subjects: Iterable[str]) -> None:
    """Refuse ids of subjects that differ in case, blanks or leading zeros alone.

    Raises:
        LeakError: naming two of them.
    """
    spellings: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for subject in subjects:
        spellings[subject_key(subject)][subject] = None
    for several in spellings.values():
        if len(several) > 1:
            first, second = list(several)[:2]
            raise LeakError(
                f"subjects {first!r} and {second!r} have one id but for case, blanks or zeros, and could be on both "
                "sides of a split; give them ids that differ, or one id if they are one"
            )


def publish_labels(notes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """Notes with those labels alone that mean something, and, to be told, how often each of the others was met.

    What means nothing is any text that was typed during a recording, which may name people: it is counted.
    """
    labels: Mapping[str, Any] = notes.get(LABELS, {})
    others = {label: entry["count"] for label, entry in labels.items() if entry["meaning"] == UNMATCHED}
    known = {label: entry for label, entry in labels.items() if label not in others}
    found = {name: value for name, value in notes.items() if name != LABELS}
    found |= {LABELS: known} if known else {}
    return found | ({"annotations_without_meaning": sum(others.values())} if others else {}), others


def tell_unknown(unknown: int, recordings: int, labels: Mapping[str, int]) -> list[str]:
    """What a user should know of annotations that tell nothing about seizures, one line each.

    Args:
        unknown: recordings of which nothing tells whether anybody looked for seizures.
        recordings: in all.
        labels: that mean nothing, and how often each was met.
    """
    told = []
    if labels:
        told.append(
            f"{sum(labels.values()):,} annotations mean nothing to the preparation ({some(map(repr, labels))}); "
            "a file for --labels can say what they mean"
        )
    if unknown:
        told.append(
            f"{unknown:,} of {recordings:,} recordings: nothing tells whether anybody looked for seizures, so they are "
            "no part of learning and measuring; if all were looked through, give --reviewed true"
        )
    return told


def withhold(listing: Listing, key: bytes) -> Listing:
    """A listing whose recordings have pseudonyms, also without any other text that may name a person.

    Numbers, what labels mean, names of channels and electrodes and the licence stay.

    Args:
        listing: with notes of `publish_labels`.
        key: of the pseudonyms.
    """
    notes = {name: _withhold_note(name, value, key) for name, value in listing.notes.items()}
    rejects = (one._replace(source=pseudonym(key, "source", one.source)) for one in listing.rejects)
    return replace(
        listing,
        recordings=tuple(sorted(map(_withhold_texts, listing.recordings), key=lambda one: one.name)),
        name="",
        rejects=tuple(withhold_reason(one) for one in rejects),
        notes=notes,
    )


def withhold_reason(reject: Reject) -> Reject:
    """A reject without text of the data: reasons may quote labels and name sidecars."""
    if reject.field in _HARMLESS_FIELDS:
        return reject._replace(excerpt="")
    return reject._replace(field="", reason=WITHHELD, excerpt="")


def _withhold_note(name: str, value: Any, key: bytes) -> Any:
    if name == ONE_PATIENT:
        return sorted(sorted(pseudonym(key, "subject", subject) for subject in group) for group in value)
    if name == LABELS:
        counts: dict[str, int] = defaultdict(int)
        for entry in value.values():
            counts[entry["meaning"]] += entry["count"]
        return {f"({meaning})": {"count": count, "meaning": meaning} for meaning, count in counts.items()}
    if name in _HARMLESS_NOTES or isinstance(value, int | float):
        return value
    entries = value.values() if isinstance(value, Mapping) else [value]
    return sum(entry if isinstance(entry, int) else 1 for entry in entries)


def _withhold_texts(recording: Recording) -> Recording:
    names = {channel.name for channel in recording.channels}
    return replace(
        recording,
        channels=tuple(_withhold_channel(channel) for channel in recording.channels),
        events=tuple(
            replace(event, label="seizure", channels=tuple(name for name in event.channels if name in names))
            for event in recording.events
        ),
        coordinate_system=recording.coordinate_system if _SPACE.fullmatch(recording.coordinate_system) else "Other",
    )


def _withhold_channel(channel: Channel) -> Channel:
    """Without the remark of a `channels.tsv`, a type that is none, and a unit that is quoted."""
    kind = channel.kind if channel.kind in _KINDS else "OTHER"
    reason = "bad" if channel.reason.startswith("bad") else channel.reason.replace(channel.kind, kind)
    return replace(channel, kind=kind, reason=re.sub(r"'.*'|\".*\"", "(withheld)", reason))
