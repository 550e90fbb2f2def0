"""What the readers of data sets hand to the engine: one `Recording` per raw recording, and what is known about all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_prep.common.rejects import Reject

F32 = npt.NDArray[np.float32]
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of a raw recording.

    Args:
        name: as the file, or its sidecar, has it; unique in the recording.
        index: its place in the raw file.
        kind: SEEG, ECOG, EEG, ECG, EOG, EMG, TRIG, MISC, ...: BIDS types; guessed from the name where nobody tells.
        scale: what one unit of the reader's numbers is in microvolts; 0: the unit is no voltage, or unknown.
        unit: as the file has it, for messages.
        rate: sampling rate in Hz.
        keep: whether it is to be prepared: an intracranial channel that nobody called bad.
        reason: why it is not kept, or empty.
        shaft: letters of the electrode (or grid) it belongs to, primes included; empty: unknown.
        contact: number of the contact on its electrode; -1: unknown.
        place: x, y, z; NaN: unknown.
    """

    name: str
    index: int
    kind: str = "SEEG"
    scale: float = 1.0
    unit: str = "uV"
    rate: float = 0.0
    keep: bool = True
    reason: str = ""
    shaft: str = ""
    contact: int = -1
    place: tuple[float, float, float] = (NAN, NAN, NAN)


@dataclass(frozen=True, slots=True)
class Event:
    """One annotated event that counts, such as a seizure.

    Args:
        onset: seconds from the first sample of the recording.
        offset: likewise; above `onset`.
        label: as it was annotated.
        channels: names of the channels where it was seen; empty: all, or unknown.
    """

    onset: float
    offset: float
    label: str = "seizure"
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """One raw recording, described without reading its signal.

    Args:
        name: unique in its listing, safe as a file name, the same whatever folder the data lie in.
        subject: subject id.
        path: the file of the signal; of a recording cut into files, the first.
        format: which `SignalReader` opens it, see `data_prep.ieeg.signals.open_signal`.
        rate: sampling rate of all kept channels in Hz.
        samples: of each kept channel.
        channels: all channels of the raw file, in its order.
        events: seizures, by onset; overlapping ones united.
        annotated: whether somebody looked for seizures; without it, no event does not mean no seizure.
        source: the raw file as a user knows it: its path below the given folder.
        session: session id; empty: unknown.
        files: all files of the signal, where there are several, in order of time.
        power_line: Hz of the mains, where the data tell; 0: unknown.
        coordinate_system: of the channels' places; empty: unknown.
        split: of a split that comes with the data; empty: to be drawn.
        remarks: what a user should know, one line each.
        options: what the reader of the format needs besides, as plain values.
    """

    name: str
    subject: str
    path: Path
    format: str
    rate: float
    samples: int
    channels: tuple[Channel, ...]
    events: tuple[Event, ...] = ()
    annotated: bool = False
    source: str = ""
    session: str = ""
    files: tuple[Path, ...] = ()
    power_line: float = 0.0
    coordinate_system: str = ""
    split: str = ""
    remarks: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples / self.rate

    @property
    def kept(self) -> tuple[Channel, ...]:
        """The channels that are to be prepared."""
        return tuple(channel for channel in self.channels if channel.keep)

    @property
    def signal_files(self) -> tuple[Path, ...]:
        """The files that hold the signal."""
        return self.files or (self.path,)


class SignalReader(Protocol):
    """An open recording whose samples are read in pieces; nothing is held in memory between two reads."""

    def read(self, start: int, stop: int) -> F32:
        """Samples `start` (included) to `stop` (excluded) of the kept channels, in microvolts.

        Shape:
            -> (C, stop - start) float32; C kept channels in their order.

        Raises:
            CorruptRecordError: they cannot be read.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@dataclass(frozen=True)
class Listing:
    """All recordings of a data set, before any signal is read.

    Args:
        recordings: in a stable order: by subject, session, name.
        name: of the data set; empty: as the reader is called.
        lists: files that tell about them: sidecars, tables, annotation files.
        licence: of the data set.
        rejects: files and annotations that cannot be used, with the reason.
        notes: facts for `counts` of `dataset.json`, such as the labels that were annotated and what became of them.
    """

    recordings: tuple[Recording, ...]
    name: str = ""
    lists: tuple[Path, ...] = ()
    licence: str = "not stated"
    rejects: tuple[Reject, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """Options that decide what is listed.

    Args:
        labels: YAML or JSON file that says which annotations are seizures, see `data_prep.ieeg.annotations`.
        events: CSV or TSV file of events (recording or file, onset, and offset or duration, and label), for data
            without annotations of their own.
        channels: regular expression of the names of channels to keep; empty: all intracranial ones.
        exclude: regular expression of the names of channels to leave out.
        unit: unit of channels whose unit is blank or unknown, such as uV, or whose stated range no amplifier has;
            empty: they are refused.
        subject_pattern: regular expression whose bracket finds the subject in a file's path; empty: the first folder
            below the given one, or the file's own name.
        seizure_seconds: duration of seizures that are annotated without an end; 0: they are refused.
        mains: Hz of the mains, where the data do not tell; 0: unknown.
        version: of the data set, where there are several.
    """

    labels: Path | None = None
    events: Path | None = None
    channels: str = ""
    exclude: str = ""
    unit: str = ""
    subject_pattern: str = ""
    seizure_seconds: float = 0.0
    mains: float = 0.0
    version: str = ""
