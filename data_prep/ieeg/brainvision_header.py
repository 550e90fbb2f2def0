"""Headers and marker files of BrainVision recordings (Core Data Format 1.0 and 2.0, Brain Products).

A recording is a text header (.vhdr), its samples (.eeg) and its markers (.vmrk). mne converts known units and takes
others for volts in silence, so the header is read here, and every field compared with the files.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import DatasetNotFoundError
from data_prep.ieeg.annotations import Mark
from data_prep.ieeg.errors import GapError, HeaderError, TruncatedRecordingError, UnsupportedRecordingError
from data_prep.ieeg.find import check_file
from data_prep.ieeg.tables import read_text

_DTYPES = {"INT_16": "i2", "UINT_16": "u2", "INT_32": "i4", "IEEE_FLOAT_32": "f4", "IEEE_FLOAT_64": "f8"}
_ORIENTATIONS = ("MULTIPLEXED", "VECTORIZED")
_DATA_SUFFIXES = (".eeg", ".dat", ".seg", ".avg")
_CHANNELS = 4096
_DEFAULT_UNIT = "\u00b5V"  # of the format, where a channel has none


@dataclass(frozen=True, slots=True)
class BrainVisionHeader:
    """A recording by its header.

    Args:
        path: of the header.
        data: file of the samples.
        markers: file of the markers; None: there is none.
        rate: Hz.
        vectorized: one channel after the other instead of one sample after the other.
        dtype: of a number, as numpy calls it.
        names: of the channels.
        resolutions: of each: its unit per number.
        units: of each, as written; empty: none is.
        samples: of each.
        remarks: what was unusual.
    """

    path: Path
    data: Path
    markers: Path | None
    rate: float
    vectorized: bool
    dtype: str
    names: tuple[str, ...]
    resolutions: tuple[float, ...]
    units: tuple[str, ...]
    samples: int
    remarks: tuple[str, ...]


def read_header(path: Path) -> BrainVisionHeader:
    """Read and check a header.

    Raises:
        DatasetNotFoundError: it, or the file of the samples, is not there.
        EmptyFileError: one of them has 0 bytes.
        HeaderError: it contradicts itself or the samples.
        TruncatedRecordingError: samples are missing.
        UnsupportedRecordingError: text samples, or spectra.
    """
    sections, said = _read_sections(path, "header")
    remarks = list(said)
    common = sections.get("common infos", {})
    if common.get("dataformat", "BINARY").upper() != "BINARY":
        raise UnsupportedRecordingError(path, "DataFormat", "samples as text are not read; export them as BINARY")
    if common.get("datatype", "TIMEDOMAIN").upper() != "TIMEDOMAIN":
        raise UnsupportedRecordingError(path, "DataType", f"{common['datatype']!r} is no signal in time")
    orientation = common.get("dataorientation", "MULTIPLEXED").upper()
    if orientation not in _ORIENTATIONS:
        raise HeaderError(path, "DataOrientation", f"{orientation!r} is none of {', '.join(_ORIENTATIONS)}")
    binary = sections.get("binary infos", {})
    dtype = _DTYPES.get(binary.get("binaryformat", "INT_16").upper())
    if dtype is None:
        raise HeaderError(path, "BinaryFormat", f"{binary['binaryformat']!r} is none of {', '.join(_DTYPES)}")
    order = ">" if binary.get("usebigendianorder", "NO").upper() == "YES" else "<"
    count = _number(common, "numberofchannels", path)
    if count != int(count) or not 1 <= count <= _CHANNELS:
        raise HeaderError(path, "NumberOfChannels", f"{count:g} is damaged")
    interval = _number(common, "samplinginterval", path)
    if interval <= 0:
        raise HeaderError(path, "SamplingInterval", f"{interval:g} us is damaged")
    names, resolutions, units = _channels(sections.get("channel infos", {}), int(count), path)
    data = _sibling(path, common.get("datafile", ""), _DATA_SUFFIXES, remarks)
    if data is None:
        raise DatasetNotFoundError(
            f"{path}: its samples {common.get('datafile', '')!r} are not there; put the .eeg file beside"
        )
    markers = _sibling(path, common.get("markerfile", ""), (".vmrk",), remarks)
    width = int(dtype[1]) * int(count)
    samples = _samples(data, width, common.get("datapoints", ""), path)
    return BrainVisionHeader(
        path, data, markers, 1e6 / interval, orientation == "VECTORIZED", order + dtype, names, resolutions, units,
        samples, tuple(remarks),
    )  # fmt: skip


def _read_sections(path: Path, kind: str) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Keys (in lower case) and values of each section; what follows `[Comment]` is free text."""
    text, remarks = read_text(path)
    lines = text.splitlines()
    if not lines or not re.search(r"brain ?vision", lines[0], re.IGNORECASE):
        raise HeaderError(path, "line 1", f"is no BrainVision {kind}: it does not begin with its name")
    sections: dict[str, dict[str, str]] = {}
    section = ""
    for line in lines[1:]:
        stripped = line.strip()
        title = re.fullmatch(r"\[(.+)\]", stripped)
        if title:
            section = title[1].strip().lower()
            if section == "comment":
                break
        elif stripped and stripped[0] != ";" and "=" in stripped:
            key, _, value = stripped.partition("=")
            sections.setdefault(section, {})[key.strip().lower()] = value.strip()
    return sections, remarks


def _number(section: dict[str, str], key: str, path: Path) -> float:
    text = section.get(key, "")
    try:
        value = float(text.replace("_", "x"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise HeaderError(path, key, f"{text!r} is no number; the header is damaged")
    return value


def _channels(
    section: dict[str, str], count: int, path: Path
) -> tuple[tuple[str, ...], tuple[float, ...], tuple[str, ...]]:
    names, resolutions, units = [], [], []
    listed = sum(re.fullmatch(r"ch\d+", key) is not None for key in section)
    if listed != count:
        raise HeaderError(path, "Channel Infos", f"describes {listed} channels, NumberOfChannels says {count}")
    for number in range(1, count + 1):
        if f"ch{number}" not in section:
            raise HeaderError(path, "Channel Infos", f"has no Ch{number}")
        name, _, resolution, unit = ([*section[f"ch{number}"].split(","), "", "", ""])[:4]
        names.append(name.replace(r"\1", ",").strip())
        values = {"resolution": resolution.strip() or "1"}
        resolutions.append(_number(values, "resolution", path))
        units.append(unit.strip())
        if resolutions[-1] == 0:
            raise HeaderError(path, f"Ch{number}", "has the resolution 0; the header is damaged")
    return tuple(names), tuple(resolutions), tuple(units)


def _sibling(path: Path, name: str, suffixes: tuple[str, ...], remarks: list[str]) -> Path | None:
    """A file that the header names, else the one called like the header: who renames files forgets what is in them."""
    name = name.replace("$b", path.stem)
    # Folders in a header are those of another machine.
    plain = name.replace("\\", "/").rsplit("/", 1)[-1]
    named = path.with_name(plain) if plain.strip(". \x00") and "\x00" not in plain else None
    if named is not None and (named.is_file() or named.is_symlink()):
        return named
    for suffix in suffixes:
        for spelling in (suffix, suffix.upper()):
            other = path.with_suffix(spelling)
            if other.is_file() or other.is_symlink():
                remarks.append(f"{name!r}, which the header names, is not there; {other.name} is read")
                return other
    if name and suffixes == (".vmrk",):
        remarks.append(f"the marker file {name!r} is not there")
    return None


def _samples(data: Path, width: int, stated: str, path: Path) -> int:
    size = check_file(data)
    samples, rest = divmod(size, width)
    if stated:
        points = _number({"datapoints": stated}, "datapoints", path)
        if samples < points:
            raise TruncatedRecordingError(
                data, f"sample {samples:,}", f"truncated: {samples:,} of {points:,.0f} samples are there; copy it again"
            )
        if samples > points or rest:
            raise HeaderError(
                path, "DataPoints", f"says {points:,.0f} samples, {data.name} holds {size / width:,.1f}; it is damaged"
            )
    if rest or not samples:
        raise TruncatedRecordingError(
            data, f"sample {samples:,}", f"truncated: {size:,} bytes are no whole number of samples of {width:,} bytes"
        )
    return samples


def read_markers(header: BrainVisionHeader) -> tuple[list[Mark], tuple[tuple[int, str, str], ...], tuple[str, ...]]:
    """Markers other than `New Segment`, those that cannot be read, and remarks.

    Raises:
        GapError: a segment begins within the recording: it was interrupted.
        CorruptRecordError: the file is no marker file.
    """
    if header.markers is None:
        return [], (), ()
    sections, remarks = _read_sections(header.markers, "marker file")
    marks: list[Mark] = []
    faults: list[tuple[int, str, str]] = []
    segments: list[tuple[int, str]] = []
    for row, (key, value) in enumerate(sections.get("marker infos", {}).items()):
        kind, text, position, size, channel, date = ([*value.split(","), "", "", "", "", ""])[:6]
        if not re.fullmatch(r"mk\d+", key):
            continue
        if not position.strip().isdecimal():
            faults.append((row, "the position of a marker is no number", value[:120]))
            continue
        at = int(position) - 1
        if kind.strip().casefold() == "new segment":
            segments.append((at, date.strip()))
            continue
        length = int(size) if size.strip().isdecimal() else 0
        texts = tuple(part.replace(r"\1", ",").strip() for part in (text, kind))
        number = int(channel) if channel.strip().isdecimal() else 0
        seen = (header.names[number - 1],) if 1 <= number <= len(header.names) else ()
        # A marker of one sample is a point in time.
        duration = length / header.rate if length > 1 else math.nan
        marks.append(Mark(at / header.rate, duration, texts, row, key.capitalize(), seen))
    _check_segments(header, segments)
    return marks, tuple(faults), remarks


def _check_segments(header: BrainVisionHeader, segments: list[tuple[int, str]]) -> None:
    begun = next((date for at, date in segments if at <= 0), "")
    for at, date in segments:
        if at <= 0:
            continue
        gap = _seconds(date) - _seconds(begun) - at / header.rate
        if not abs(gap) < 0.005 + 2 / header.rate:  # also where a date is missing
            told = f"{gap:g} s are missing" if math.isfinite(gap) else "the recording was interrupted"
            raise GapError(
                header.path,
                f"sample {at:,}",
                f"{told} at {at / header.rate:g} s (New Segment); cut it there into files",
            )


def _seconds(date: str) -> float:
    """Time of a date such as 20240131235959123456, in seconds of its month."""
    if not re.fullmatch(r"\d{20}", date):
        return math.nan
    days, hours, minutes = int(date[6:8]), int(date[8:10]), int(date[10:12])
    return ((days * 24 + hours) * 60 + minutes) * 60 + int(date[12:14]) + int(date[14:]) / 1e6
