"""From headers, sidecars and annotations to a `Listing`: what every reader of a data set does in the same way."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, CorruptRecordError, LeakError, PrepError
from data_prep.common.rejects import Reject
from data_prep.ieeg.annotations import BUILT_IN, Mark, read_labels
from data_prep.ieeg.channels import Choice, choose
from data_prep.ieeg.event_table import EventTable, read_event_table
from data_prep.ieeg.find import natural_key
from data_prep.ieeg.header import Header
from data_prep.ieeg.intervals import Seizures, find_seizures
from data_prep.ieeg.records import Asked, Listing, Recording


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
        looked: whether somebody looked for seizures.
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
        given = Annotated(header.marks, header.looked_at) if annotated is None else annotated
        if self.table is not None and position in self.table.marks:
            given = Annotated(tuple(self.table.marks[position]), True, self.table.path)
        elif annotated is None:
            self.rejects += [Reject(identity.source, row, "event", reason, text) for row, reason, text in header.faults]
        source = given.where.name if given.where is not None else identity.source
        where = str(given.where or header.path)
        found = find_seizures(given.marks, self.labels, duration, self.asked.seizure_seconds, where, source)
        self.rejects += found.rejects
        return found, given.looked

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
        told = {"recordings_without_annotation": sum(not one.annotated for one in recordings)}
        all_notes = {**told, **(notes or {}), **({"labels": counted} if counted else {})}
        return Listing(tuple(recordings), name, tuple(files), licence, tuple(self.rejects), all_notes)


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
