"""Bonn EEG (Andrzejak et al., Physical Review E 64, 2001): five sets of 100 segments of one channel; research use.

| set | letter | what | seizure |
|---|---|---|---|
| A, B | Z, O | scalp, eyes open and closed | no |
| C, D | N, F | depth electrodes between seizures: other hemisphere, epileptogenic zone | no |
| E | S | depth electrodes during seizures | the whole segment |

Text files of 4,097 whole numbers in microvolts, one per line, 173.61 Hz, in folders or zip files. No patients are
published: twenty neighbouring file numbers of all sets are taken for one subject here, which keeps neighbours together
and promises nothing more.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.ieeg.annotations import INTERVAL, Mark
from data_prep.ieeg.errors import TruncatedRecordingError
from data_prep.ieeg.find import below, walk
from data_prep.ieeg.header import Header
from data_prep.ieeg.listing import Annotated, Gatherer, Identity
from data_prep.ieeg.records import F32, Asked, Channel, Listing, Recording

RATE = 173.61  # Hz
SAMPLES = 4097
BLOCK = 20  # file numbers that are taken for one subject
SETS = {"Z": "scalp, eyes open", "O": "scalp, eyes closed", "N": "interictal", "F": "interictal", "S": "seizure"}
DEPTH = ("N", "F", "S")
_NAME = re.compile(r"(?:.*/)?([ZONFS])(\d{3})\.txt", re.IGNORECASE)


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List recordings: the segments of depth electrodes, or those of the sets of the option `version`, such as ZONFS.

    Args:
        raw: folders with text files, or zip files.
        asked: options.

    Raises:
        DatasetNotFoundError: there is no such segment.
        ConfigError: the option names other sets.
    """
    gatherer = Gatherer(asked)
    wanted = asked.version.upper() or "".join(DEPTH)
    if set(wanted) - set(SETS):
        raise ConfigError(f"version {asked.version!r}: give letters of sets, of {', '.join(SETS)}")
    found = sorted(
        (letter, number, path, member) for letter, number, path, member in _segments(raw) if letter in wanted
    )
    if not found:
        raise DatasetNotFoundError(f"{raw[0]}: holds no segment such as S001.txt of the sets {wanted}")
    names = [f"{letter}{number:03d}" for letter, number, _, _ in found]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise ConfigError(f"{raw[0]}: segment {twice} is there twice; give one copy of the set")
    identities = []
    for (_, number, path, member), name in zip(found, names, strict=True):
        source = f"{below(path, raw)}/{member}" if member else below(path, raw)
        identities.append(Identity(name, f"block-{(number - 1) // BLOCK + 1}", source))
    gatherer.read_events(identities)
    for at, (identity, segment) in enumerate(zip(identities, found, strict=True)):
        gatherer.add(identity.source, partial(_describe, gatherer, identity, at, *segment))
    notes = {"subjects": f"not published; {BLOCK} neighbouring file numbers of all sets are taken for one"}
    return gatherer.finish("Bonn EEG", "research use (Andrzejak et al., 2001)", (), notes)


def _segments(raw: Sequence[Path]) -> Iterator[tuple[str, int, Path, str]]:
    for path in walk(raw):
        if path.suffix.lower() == ".zip":
            with translate_os_errors(path):
                try:
                    members = zipfile.ZipFile(path).namelist()
                except zipfile.BadZipFile as error:
                    raise CorruptRecordError(path, "file", f"is no zip file ({error}); fetch it again") from None
            for member in members:
                parts = _NAME.fullmatch(member)
                if parts:
                    yield parts[1].upper(), int(parts[2]), path, member
        elif parts := _NAME.fullmatch(path.name):
            yield parts[1].upper(), int(parts[2]), path, ""


def _describe(
    gatherer: Gatherer, identity: Identity, position: int, letter: str, number: int, path: Path, member: str
) -> Recording:
    del number
    kind = "SEEG" if letter in DEPTH else "EEG"
    channel = Channel("depth" if letter in DEPTH else "scalp", 0, kind, unit="uV", rate=RATE)
    header = Header(path, "bonn", (channel,), (SAMPLES,), options={"member": member})
    text = (SETS[letter],)
    marks = (Mark(0.0, SAMPLES / RATE, text, 0, "file", meaning=INTERVAL),) if letter == "S" else ()
    return gatherer.build(header, identity, Annotated(marks, True), position)


class TextReader:
    """One segment, read whole: it has 4,097 numbers.

    Args:
        recording: of the format `bonn`.

    Raises:
        CorruptRecordError: a line is no number, or lines are missing.
    """

    def __init__(self, recording: Recording) -> None:
        path, member = recording.path, str(recording.options["member"])
        with translate_os_errors(path):
            try:
                data = zipfile.ZipFile(path).read(member) if member else path.read_bytes()
            except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
                raise CorruptRecordError(path, member, f"cannot be unpacked ({error}); fetch it again") from None
        lines = data.split()
        if len(lines) != SAMPLES:
            raise TruncatedRecordingError(path, member or "file", f"holds {len(lines):,} of {SAMPLES:,} numbers")
        try:
            self.values: F32 = np.array(lines, dtype=np.float64).astype(np.float32)[None]
        except ValueError as error:
            raise CorruptRecordError(path, member or "file", f"{error}; fetch it again") from None
        self.scale = np.float32(recording.kept[0].scale)

    def read(self, start: int, stop: int) -> F32:
        """See `SignalReader`."""
        return np.asarray(self.values[:, start:stop] * self.scale, dtype=np.float32)

    def close(self) -> None:
        """Nothing is open."""


def open_recording(recording: Recording) -> TextReader:
    """Open a recording of the format `bonn`."""
    return TextReader(recording)
