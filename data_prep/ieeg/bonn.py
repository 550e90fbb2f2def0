"""Bonn EEG (Andrzejak et al., Physical Review E 64, 061907, 2001): five sets of 100 segments of one channel, 23.6 s.

Z (also called A) scalp, eyes open; O (B) scalp, eyes closed; N (C) and F (D) within the brain between seizures,
opposite to and in the epileptogenic zone; S (E) within the brain, seizures. One integer of microvolts per line, 173.61
Hz. Which of the five patients a segment is of was never published: blocks of file numbers stand for subjects, the same
numbers of all sets in one block. Segments are read from folders or from zip files, without unpacking them to disk.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.common.rejects import Reject
from data_prep.ieeg.annotations import EXCLUDE, IGNORE, INTERVAL, Mark
from data_prep.ieeg.errors import HeaderError, TruncatedRecordingError
from data_prep.ieeg.find import below, check_file, walk
from data_prep.ieeg.header import Header
from data_prep.ieeg.listing import Annotated, Gatherer, Identity
from data_prep.ieeg.records import F32, Asked, Channel, Listing, Recording

RATE = 173.61  # Hz
SAMPLES = 4097
BLOCK = 20  # file numbers
RULES = ((r"^[SE]$", INTERVAL), (r"^[ZONFABCD]$", IGNORE))
LICENCE = "not stated in the files; cite Andrzejak et al. (2001)"
_SETS = {"A": "Z", "B": "O", "C": "N", "D": "F", "E": "S"}
_SCALP = "ZO"
_FILE = re.compile(r"([ZONFSABCDE])(\d{3})\.txt", re.IGNORECASE)
_LARGEST = 1 << 20  # bytes of a segment
NOTE = "patients are unknown; a subject is a block of 20 file numbers, the same in all sets"


@dataclass(frozen=True, slots=True)
class _Segment:
    group: str
    number: int
    path: Path
    member: str
    source: str


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List segments, each of which is one recording.

    Args:
        raw: the folders, or the zip file or files.
        asked: options; `version`: letters of the sets that are wanted, such as NFS; in a file of `labels` the labels
            are the sets.

    Raises:
        DatasetNotFoundError: there is no segment.
        ConfigError: `version` asks for other sets.
    """
    gatherer = Gatherer(asked, RULES, segments=True)
    wanted = {_SETS.get(letter, letter) for letter in asked.version.upper()} or set(_SETS.values())
    if not wanted <= set(_SETS.values()):
        raise ConfigError(f"version {asked.version!r}: give letters of sets, of {', '.join(_SETS.values())}")
    segments = [segment for segment in _find(raw, gatherer) if segment.group in wanted]
    if not segments and not gatherer.rejects:
        raise DatasetNotFoundError(
            f"{raw[0]}: holds no Z001.txt ... S100.txt, nor a zip file with them; check the path"
        )
    identities = [
        Identity(f"{one.group}{one.number:03d}", f"block-{(one.number - 1) // BLOCK + 1:02d}", one.source)
        for one in segments
    ]
    gatherer.read_events(identities)
    excluded: Counter[str] = Counter()
    for at, (segment, identity) in enumerate(zip(segments, identities, strict=True)):
        gatherer.add(segment.source, partial(_recording, gatherer, segment, identity, at, excluded))
    notes = {
        "sets": dict(sorted(Counter(one.group for one in segments).items())),
        "excluded_segments": dict(excluded),
        "subjects": NOTE,
    }
    return gatherer.finish("Bonn EEG", LICENCE, notes=notes)


def _find(raw: Sequence[Path], gatherer: Gatherer) -> list[_Segment]:
    found: dict[tuple[str, int], _Segment] = {}
    for path in walk(raw):
        source = below(path, raw)
        if path.suffix.lower() == ".zip":
            try:
                members = [(name, f"{source}/{name}") for name in _members(path)]
            except (CorruptRecordError, DatasetNotFoundError) as error:
                gatherer.rejects.append(Reject(source, 0, "", error.message.removeprefix(f"{path}: "), ""))
                continue
        else:
            members = [("", source)]
        for member, place in members:
            name = _FILE.fullmatch((member or path.name).rsplit("/", 1)[-1])
            if not name:
                continue
            letter = name[1].upper()
            segment = _Segment(_SETS.get(letter, letter), int(name[2]), path, member, place)
            first = found.setdefault((segment.group, segment.number), segment)
            if first is not segment:
                gatherer.rejects.append(Reject(place, 0, "", f"the segment is there as {first.source}, too", ""))
    return [found[key] for key in sorted(found)]


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        with translate_os_errors(path):
            yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        if isinstance(error, CorruptRecordError):
            raise
        raise CorruptRecordError(path, "zip file", f"cannot be unpacked ({error}); copy it again") from error


def _members(path: Path) -> list[str]:
    check_file(path)
    with _told(path), zipfile.ZipFile(path) as archive:
        return [
            entry.filename for entry in archive.infolist() if not entry.is_dir() and "__MACOSX" not in entry.filename
        ]


def read_segment(path: Path, member: str) -> F32:
    """Numbers of a segment.

    Args:
        path: text file, or zip file.
        member: its name in the zip file; empty: the file is no zip file.

    Shape:
        -> (4097,) float32, microvolts.

    Raises:
        DatasetNotFoundError: it is not there.
        EmptyFileError: it has 0 bytes.
        CorruptRecordError: it is damaged, or has another number of lines.
    """
    size = check_file(path)
    with _told(path):
        if member:
            with zipfile.ZipFile(path) as archive:
                size = archive.getinfo(member).file_size if member in archive.namelist() else -1
                data = archive.read(member) if 0 <= size <= _LARGEST else b""
        else:
            data = path.read_bytes() if size <= _LARGEST else b""
    place = f"{member}: line" if member else "line"
    if size < 0:
        raise CorruptRecordError(path, member, "is not in the zip file any more; run again")
    if size > _LARGEST:
        raise HeaderError(path, member or "file", f"{size:,} bytes: larger than any segment")
    words = data.split()
    try:
        values = np.array([int(word) for word in words], dtype=np.float32)
    except ValueError:
        at = next(at for at, word in enumerate(words) if not re.fullmatch(rb"[+-]?\d+", word))
        told = words[at][:20].decode("latin-1")
        raise CorruptRecordError(path, f"{place} {at + 1:,}", f"{told!r} is no whole number; copy it again") from None
    if len(values) < SAMPLES:
        raise TruncatedRecordingError(
            path,
            f"{place} {len(values):,}",
            f"truncated: {len(values):,} of {SAMPLES:,} samples are there; copy it again",
        )
    if len(values) > SAMPLES:
        raise HeaderError(path, f"{place} {SAMPLES + 1:,}", f"{len(values):,} samples, a segment has {SAMPLES:,}")
    return values


def _recording(
    gatherer: Gatherer, segment: _Segment, identity: Identity, position: int, excluded: Counter[str]
) -> Recording | None:
    mark = Mark(0.0, SAMPLES / RATE, (segment.group,), 0, "segment")
    if gatherer.labels.meaning(segment.group) == EXCLUDE:
        gatherer.labels.judge(mark)
        excluded[segment.group] += 1
        return None
    read_segment(segment.path, segment.member)
    scalp = segment.group in _SCALP
    channel = Channel("EEG" if scalp else "iEEG", 0, "EEG" if scalp else "SEEG", rate=RATE)
    header = Header(segment.path, "bonn", (channel,), (SAMPLES,), options={"member": segment.member}, scalp=True)
    return gatherer.build(header, identity, Annotated((mark,), True), position)


class BonnReader:
    """Reads one segment; it is so short that it stays in memory.

    Args:
        recording: as `read` describes it.
    """

    def __init__(self, recording: Recording) -> None:
        scale = recording.kept[0].scale
        self.values = read_segment(recording.path, str(recording.options["member"])) * np.float32(scale)

    def read(self, start: int, stop: int) -> F32:
        """Samples in microvolts.

        Shape:
            -> (1, stop - start) float32.
        """
        return self.values[None, start:stop].copy()

    def close(self) -> None:
        """Nothing is open."""


def open_recording(recording: Recording) -> BonnReader:
    """Open a recording of the format `bonn`."""
    return BonnReader(recording)
