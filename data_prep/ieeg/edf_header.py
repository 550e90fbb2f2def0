"""Headers of EDF, EDF+, BDF and BDF+ (Kemp et al., 1992; Kemp and Olivan, 2003), every field checked against the file.

A library would hand out what the header says; here it is compared with what is there, before a sample is read: edfio
shortens a truncated file and goes on, mne takes unknown units for volts and resamples channels of another rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.files import translate_os_errors
from data_prep.ieeg.errors import HeaderError, TruncatedRecordingError
from data_prep.ieeg.find import check_file
from data_prep.ieeg.tables import decode

FIXED = 256  # bytes, and as many per signal
_FIELDS = (
    ("label", 16), ("transducer", 80), ("unit", 8), ("physical_min", 8), ("physical_max", 8), ("digital_min", 8),
    ("digital_max", 8), ("prefiltering", 80), ("samples", 8), ("reserved", 32),
)  # fmt: skip
_SIGNALS = 4096  # more than any amplifier has
_DIGITS = {2: 1 << 15, 3: 1 << 23}  # by bytes per sample: one above the largest number


@dataclass(frozen=True, slots=True)
class EdfSignal:
    """One signal by its header.

    Args:
        label: as written, without blanks at its ends.
        unit: likewise.
        prefiltering: likewise.
        samples: per record.
        gain: physical units of one digital step; NaN: the range is empty or no number.
        base: physical value of digital 0.
        low: physical minimum.
        high: physical maximum.
        fault: why it has no gain.
        start: its first sample in a record.
    """

    label: str
    unit: str
    prefiltering: str
    samples: int
    gain: float
    base: float
    low: float
    high: float
    fault: str
    start: int

    @property
    def annotations(self) -> bool:
        """Whether it holds annotations instead of a signal."""
        return self.label in ("EDF Annotations", "BDF Annotations")


@dataclass(frozen=True, slots=True)
class EdfHeader:
    """A file by its header.

    Args:
        path: of the file.
        width: bytes per sample: 2 EDF, 3 BDF.
        patient: the field of the patient, never to be written.
        variety: such as EDF+C; empty: EDF.
        records: that are in the file.
        seconds: of a record.
        signals: annotations included.
        remarks: what was unusual, or repaired.
    """

    path: Path
    width: int
    patient: str
    variety: str
    records: int
    seconds: float
    signals: tuple[EdfSignal, ...]
    remarks: tuple[str, ...]

    @property
    def offset(self) -> int:
        """First byte of the records."""
        return FIXED * (len(self.signals) + 1)

    @property
    def record_samples(self) -> int:
        """Samples of all signals in a record."""
        return sum(signal.samples for signal in self.signals)

    @property
    def interrupted(self) -> bool:
        """Whether the file says that records need not follow each other."""
        return self.variety.endswith("+D")


def read_header(path: Path) -> EdfHeader:
    """Read and check a header.

    Raises:
        DatasetNotFoundError: the file is not there.
        EmptyFileError: it has 0 bytes.
        HeaderError: it contradicts itself, or is no EDF.
        TruncatedRecordingError: the file ends before the last record.
    """
    size = check_file(path)
    with translate_os_errors(path), path.open("rb") as stream:
        fixed = stream.read(FIXED)
        if len(fixed) < FIXED:
            raise TruncatedRecordingError(path, "header", f"{size:,} bytes: ends inside the header; copy it again")
        width = _width(fixed, path)
        count = _integer(fixed[252:256], "number of signals", path)
        stated = _integer(fixed[184:192], "header length", path)
        if not 1 <= count <= _SIGNALS:
            raise HeaderError(path, "header", f"{count:,} signals: damaged, or no EDF")
        if stated != FIXED * (count + 1):
            raise HeaderError(
                path,
                "header",
                f"length {stated:,} bytes, but {count} signals take {FIXED * (count + 1):,}; it is damaged",
            )
        if size < stated:
            raise TruncatedRecordingError(path, "header", f"{size:,} bytes: ends inside the header; copy it again")
        table = stream.read(stated - FIXED)
    remarks: list[str] = []
    seconds = _number(fixed[244:252], "duration of a record", path, remarks)
    signals = _signals(table, count, width, path, remarks)
    records = _records(fixed, size - stated, signals, seconds, width, path, remarks)
    text = _text(table)[1] if _text(table)[1] != "UTF-8" else _text(fixed)[1]
    if text != "UTF-8":
        remarks.append(f"the header is not UTF-8, read as {text}")
    return EdfHeader(
        path, width, _text(fixed[8:88])[0], _variety(fixed), records, seconds, signals, tuple(dict.fromkeys(remarks))
    )


def _width(fixed: bytes, path: Path) -> int:
    if fixed[:8] == b"\xffBIOSEMI":
        return 3
    if fixed[:8].strip() == b"0":
        return 2
    raise HeaderError(path, "byte 0", "is no EDF or BDF: it does not begin with 0 or BIOSEMI")


def _variety(fixed: bytes) -> str:
    text = fixed[192:236].decode("latin-1").strip()[:5].upper()
    return text if text in ("EDF+C", "EDF+D", "BDF+C", "BDF+D") else ""


def _text(data: bytes) -> tuple[str, str]:
    text, encoding = decode(data)
    return text.strip(" \x00"), encoding


def _integer(data: bytes, what: str, path: Path) -> int:
    text = data.strip(b" \x00")
    try:
        return int(text)
    except ValueError:
        said = text.decode("latin-1")
        raise HeaderError(path, "header", f"{what} {said!r} is no number; it is damaged") from None


def _number(data: bytes, what: str, path: Path, remarks: list[str]) -> float:
    text = data.strip(b" \x00").decode("latin-1")
    value = _float(text)
    if not math.isfinite(value) or value < 0:
        raise HeaderError(path, "header", f"{what} {text!r} is no number of seconds; it is damaged")
    if "," in text:
        remarks.append("numbers of the header have a decimal comma")
    return value


def _float(text: str) -> float:
    try:
        return float(text.replace(",", ".").replace("_", "x"))  # Python would take 1_0 for 10
    except ValueError:
        return math.nan


def _signals(table: bytes, count: int, width: int, path: Path, remarks: list[str]) -> tuple[EdfSignal, ...]:
    columns: dict[str, list[bytes]] = {}
    place = 0
    for name, length in _FIELDS:
        columns[name] = [table[place + at * length : place + (at + 1) * length] for at in range(count)]
        place += length * count
    signals = []
    start = 0
    for at in range(count):
        samples = _integer(columns["samples"][at], f"samples per record of signal {at + 1}", path)
        if samples < 0:
            raise HeaderError(path, f"signal {at + 1}", f"{samples} samples per record; it is damaged")
        ends = [columns[name][at].strip(b" \x00").decode("latin-1") for name, _ in _FIELDS[3:7]]
        if any("," in end for end in ends):
            remarks.append("numbers of the header have a decimal comma")
        gain, base, low, high, fault = _calibrate([_float(end) for end in ends], _DIGITS[width])
        label, unit = _text(columns["label"][at])[0], _text(columns["unit"][at])[0]
        prefiltering = _text(columns["prefiltering"][at])[0]
        signals.append(EdfSignal(label, unit, prefiltering, samples, gain, base, low, high, fault, start))
        start += samples
    return tuple(signals)


def _calibrate(ends: list[float], digits: int) -> tuple[float, float, float, float, str]:
    """Gain, base, physical ends, and what is wrong with them: physical = gain * digital + base."""
    low, high, first, last = ends
    if not (math.isfinite(low) and math.isfinite(high)):
        return math.nan, math.nan, low, high, "its physical range is no number"
    if low == high:
        return math.nan, math.nan, low, high, f"its physical minimum and maximum are both {low:g}: no scale"
    if not (-digits <= first < last < digits):
        return math.nan, math.nan, low, high, f"its digital range {first:g} to {last:g} is none"
    gain = (high - low) / (last - first)
    return gain, low - gain * first, low, high, ""


def _records(
    fixed: bytes,
    size: int,
    signals: tuple[EdfSignal, ...],
    seconds: float,
    width: int,
    path: Path,
    remarks: list[str],
) -> int:
    """How many records there are; the header and the size of the file must agree."""
    stated = _integer(fixed[236:244], "number of records", path)
    length = width * sum(signal.samples for signal in signals)
    if length == 0:
        raise HeaderError(path, "header", "no signal has samples: records of 0 bytes")
    there, rest = divmod(size, length)
    if stated == -1:
        if there == 0:
            raise TruncatedRecordingError(path, "record 0", "no whole record is there; the recording is empty")
        remarks.append(f"the number of records was never written (-1); {there:,} are there by the file's size")
        if rest:
            remarks.append(f"the last record is not whole and left out ({rest:,} of {length:,} bytes)")
        return there
    if stated < -1:
        raise HeaderError(path, "header", f"{stated} records; it is damaged")
    if stated == 0:
        raise TruncatedRecordingError(path, "header", "0 records: the recording has no length")
    if there < stated:
        told = f"{there * seconds:g} of {stated * seconds:g} s" if seconds else f"{there:,} of {stated:,} records"
        raise TruncatedRecordingError(
            path, f"record {there:,}", f"truncated: {told} are there; copy it again, or, if this is all there is, "
            f"write the number of whole records ({there:,}) into its header"
        )  # fmt: skip
    if there > stated:
        raise HeaderError(
            path,
            "header",
            f"{stated:,} records, but the file holds {there:,}; it is damaged, or two recordings are in one file",
        )
    if rest:
        remarks.append(f"{rest:,} bytes behind the last record are left out")
    return stated
