"""Makes miniature recordings and data sets in the original layouts, whole and damaged.

    python -m tests.data.ieeg.make FOLDER

All signals are drawn from a seed. Files are written byte by byte where libraries refuse to write what devices do.
"""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import hdf5plugin
import numpy as np
import scipy.io

NAMES = ("A1", "A2", "A3", "B'1", "B'2")


def signal(channels: int = 5, samples: int = 2560, seed: int = 0) -> np.ndarray:
    """Microvolts, tens of them, unlike in every channel."""
    rng = np.random.default_rng([seed, channels])
    walk = np.cumsum(rng.normal(0, 2, (channels, samples)), axis=1)
    return (walk - walk.mean(axis=1, keepdims=True) + rng.normal(0, 5, (channels, samples))).astype(np.float64)


class Annotation(NamedTuple):
    onset: float
    duration: float | None
    text: bytes | str


def _field(value: Any, length: int) -> bytes:
    data = value if isinstance(value, bytes) else str(value).encode()
    return data[:length].ljust(length)


def _number(value: float) -> str:
    return f"{value:.6g}"[:8]


def edf(
    path: Path,
    values: np.ndarray | None = None,
    rate: int = 256,
    names: Sequence[str | bytes] = NAMES,
    units: Sequence[str | bytes] | str | bytes = "uV",
    *,
    span: float | Sequence[tuple[float, float]] = 500.0,
    bits: int = 16,
    seconds: float = 1.0,
    annotations: Sequence[Annotation] | None = None,
    variety: str | None = None,
    stamps: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    patient: str = "X X X X",
    records: int | None = None,
    header: int | None = None,
) -> Path:
    """Write EDF, or BDF with 24 `bits`, byte by byte.

    Args:
        path: file.
        values: (C, n) in the unit of each channel; default `signal()`.
        rate: Hz of all channels.
        names: of channels.
        units: of each channel, or of all.
        span: physical ends: of all +-span, or of each.
        bits: 16 or 24.
        seconds: of a record.
        annotations: of the file; None: no annotation channel.
        variety: such as EDF+D; default EDF+C where there are annotations.
        stamps: time of each record.
        counts: samples per record of each channel; the first ones of `values` are written.
        patient: field of the header.
        records: what the header says, if it is to lie.
        header: likewise its length.
    """
    values = signal() if values is None else np.asarray(values, dtype=np.float64)
    channels = len(values)
    per_record = list(counts or [round(rate * seconds)] * channels)
    number = values.shape[1] // max(round(rate * seconds), 1)
    top = (1 << (bits - 1)) - 1
    spans = [(-span, span)] * channels if isinstance(span, int | float) else list(span)
    all_units = [units] * channels if isinstance(units, str | bytes) else list(units)
    blocks: list[list[bytes]] = [[] for _ in range(number)]
    for row, (low, high), count in zip(values, spans, per_record, strict=True):
        gain = (high - low) / (2 * top + 1) or 1.0
        digital = np.clip(np.rint((row - low) / gain) - top - 1, -top - 1, top).astype("<i4")
        for at in range(number):
            piece = np.resize(digital[at * round(rate * seconds) :][: max(count, 1)], count)
            blocks[at].append(_pack(piece, bits))
    labels: list[str | bytes] = list(names)
    width = bits // 8
    form = "BDF" if bits == 24 else "EDF"
    if annotations is not None:
        cells = _annotation_cells(annotations, number, seconds, stamps)
        size = math.ceil((max(map(len, cells)) + 1) / width) * width
        for at, cell in enumerate(cells):
            blocks[at].append(cell.ljust(size, b"\0"))
        labels, all_units = [*labels, f"{form} Annotations"], [*all_units, ""]
        spans, per_record = [*spans, (-1, 1)], [*per_record, size // width]
    reserved = variety if variety is not None else f"{form}+C" if annotations is not None else ""
    total = len(labels)
    head = b"\xffBIOSEMI" if bits == 24 else _field("0", 8)
    head += _field(patient, 80) + _field("Startdate 01-JAN-2020 X X X", 80) + _field("01.01.20", 8)
    head += _field("00.00.00", 8) + _field(256 * (total + 1) if header is None else header, 8) + _field(reserved, 44)
    head += _field(number if records is None else records, 8) + _field(_number(seconds), 8) + _field(total, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    signals = _edf_signals(labels, all_units, spans, per_record, top)
    path.write_bytes(head + signals + b"".join(b"".join(block) for block in blocks))
    return path


def _edf_signals(
    labels: Sequence[str | bytes],
    units: Sequence[str | bytes],
    spans: Sequence[tuple[float, float]],
    samples: Sequence[int],
    top: int,
) -> bytes:
    """Header fields of all signals: each field of all signals, then the next field."""
    blank = [""] * len(labels)
    columns: list[tuple[int, Sequence[Any]]] = [
        (16, labels), (80, blank), (8, units), (8, [_number(low) for low, _ in spans]),
        (8, [_number(high) for _, high in spans]), (8, [-top - 1] * len(labels)), (8, [top] * len(labels)), (80, blank),
        (8, samples), (32, blank),
    ]  # fmt: skip
    return b"".join(_field(cell, length) for length, cells in columns for cell in cells)


def _pack(values: np.ndarray, bits: int) -> bytes:
    if bits == 16:
        return values.astype("<i2").tobytes()
    return values.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def _annotation_cells(
    annotations: Sequence[Annotation], records: int, seconds: float, stamps: Sequence[float] | None
) -> list[bytes]:
    cells = []
    for at in range(records):
        stamp = at * seconds if stamps is None else stamps[at]
        cell = f"+{stamp:.10g}".encode() + b"\x14\x14\0"
        for one in annotations:
            own = min(int(max(one.onset, 0) // seconds), records - 1)
            if own == at:
                text = one.text if isinstance(one.text, bytes) else one.text.encode()
                length = b"" if one.duration is None else b"\x15" + f"{one.duration:g}".encode()
                cell += f"{one.onset:+g}".encode() + length + b"\x14" + text + b"\x14\0"
        cells.append(cell)
    return cells


def brainvision(
    folder: Path,
    stem: str = "rec",
    values: np.ndarray | None = None,
    rate: float = 500.0,
    names: Sequence[str] = NAMES,
    *,
    units: Sequence[str] | str = "\u00b5V",
    resolution: float = 0.1,
    vectorized: bool = False,
    binary: str = "INT_16",
    markers: Sequence[tuple[str, str, int, int]] = (),
    encoding: str = "utf-8",
    points: bool = True,
) -> Path:
    """Write .vhdr, .eeg and .vmrk; markers are (type, text, first sample from 1, samples)."""
    values = signal() if values is None else values
    units = [units] * len(values) if isinstance(units, str) else units
    dtype = {"INT_16": "<i2", "INT_32": "<i4", "IEEE_FLOAT_32": "<f4"}[binary]
    digital = values / resolution
    digital = digital.astype(dtype) if binary == "IEEE_FLOAT_32" else np.rint(digital).astype(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.eeg").write_bytes((digital if vectorized else digital.T).tobytes())
    lines = [
        "Brain Vision Data Exchange Header File Version 1.0", "; made up", "", "[Common Infos]",
        f"Codepage={'UTF-8' if encoding == 'utf-8' else 'ANSI'}", f"DataFile={stem}.eeg", f"MarkerFile={stem}.vmrk",
        "DataFormat=BINARY", f"DataOrientation={'VECTORIZED' if vectorized else 'MULTIPLEXED'}",
        f"NumberOfChannels={len(values)}", f"SamplingInterval={1e6 / rate:.10g}",
    ]  # fmt: skip
    lines += [f"DataPoints={values.shape[1]}"] if points else []
    lines += ["", "[Binary Infos]", f"BinaryFormat={binary}", "", "[Channel Infos]"]
    lines += [
        f"Ch{at + 1}={name.replace(',', chr(92) + '1')},,{resolution:g},{unit}"
        for at, (name, unit) in enumerate(zip(names, units, strict=True))
    ]
    path = folder / f"{stem}.vhdr"
    path.write_bytes("\n".join([*lines, "", "[Comment]", "Ch1=not a channel", ""]).encode(encoding))
    marks = ["Mk1=New Segment,,1,1,0,20200101000000000000"]
    marks += [f"Mk{at + 2}={kind},{text},{first},{size},0" for at, (kind, text, first, size) in enumerate(markers)]
    start = ["Brain Vision Data Exchange Marker File, Version 1.0", "", "[Common Infos]", f"DataFile={stem}.eeg", ""]
    (folder / f"{stem}.vmrk").write_bytes("\n".join([*start, "[Marker Infos]", *marks, ""]).encode(encoding))
    return path


BIDS_CHANNELS = """name\ttype\tunits\tsampling_frequency\tstatus\tstatus_description
A1\tSEEG\tuV\t256\tgood\tn/a
A2\tSEEG\tuV\t256\tbad\tflat
A3\tSEEG\tuV\tn/a\tgood\tn/a
B'1\tECOG\tuV\t256\tn/a\tn/a
B'2\tSEEG\tuV\t256\tgood\tn/a
ECG1\tECG\tuV\t256\tgood\tn/a
"""
BIDS_ELECTRODES = """name\tx\ty\tz\tsize
B'1\t4.5\t-2\t30\tn/a
A1\t1\t2\t3\t5
Z9\t0\t0\t0\tn/a
A3\tn/a\tn/a\tn/a\tn/a
"""
BIDS_EVENTS = """onset\tduration\ttrial_type\tvalue
2.5\t3\tSeizure\tn/a
1\t0\teyes open\t7
"""


def bids(
    root: Path,
    subjects: Sequence[str] = ("01", "02"),
    *,
    events: str | bytes | None = BIDS_EVENTS,
    channels: str | None = BIDS_CHANNELS,
    electrodes: str | None = BIDS_ELECTRODES,
    metadata: dict[str, Any] | None = None,
    datatype: str = "ieeg",
) -> Path:
    """A data set with one recording (EDF, 10 s) of each subject; `_ieeg.json` lies at the top, to be inherited."""
    root.mkdir(parents=True, exist_ok=True)
    described = {"Name": "miniature", "BIDSVersion": "1.9.0", "License": "CC0"}
    (root / "dataset_description.json").write_text(json.dumps(described))
    (root / "participants.tsv").write_text("participant_id\tage\n" + "".join(f"sub-{one}\tn/a\n" for one in subjects))
    about = {"SamplingFrequency": 256, "PowerLineFrequency": 50, "iEEGReference": "A1", "SoftwareFilters": "n/a"}
    (root / f"task-rest_{datatype}.json").write_text(json.dumps({**about, **(metadata or {})}))
    for at, subject in enumerate(subjects):
        folder = root / f"sub-{subject}" / "ses-1" / datatype
        stem = f"sub-{subject}_ses-1"
        edf(folder / f"{stem}_task-rest_run-1_{datatype}.edf", signal(6, seed=at), names=[*NAMES, "ECG1"])
        if channels is not None:
            (folder / f"{stem}_task-rest_run-1_channels.tsv").write_text(channels)
        if electrodes is not None:
            (folder / f"{stem}_space-MNI_electrodes.tsv").write_text(electrodes)
            system = {"iEEGCoordinateSystem": "MNI152Lin", "iEEGCoordinateUnits": "mm"}
            (folder / f"{stem}_space-MNI_coordsystem.json").write_text(json.dumps(system))
        if events is not None:
            data = events if isinstance(events, bytes) else events.encode()
            (folder / f"{stem}_task-rest_run-1_events.tsv").write_bytes(data)
    return root


def swec_hdf5(
    folder: Path, number: int = 19, parts: int = 2, *, points_at: int | None = None, virtual: bool = True, seed: int = 0
) -> np.ndarray:
    """`IDxx_total.h5` over its parts, LZ4 in chunks of time; returns the whole signal (4, n) at 512 Hz.

    Args:
        folder: of all subjects.
        number: of the subject.
        parts: how many.
        points_at: subject whose parts the total names; default its own.
        virtual: whether the total refers to parts, or holds the samples itself.
        seed: of the signal.
    """
    values = signal(4, 2048 * parts, seed).astype(np.float32)
    name, other = f"ID{number:02d}", f"ID{number if points_at is None else points_at:02d}"
    (folder / name).mkdir(parents=True, exist_ok=True)
    seizures = np.array([(1.0, 2.5), (4.5, 6.0)], dtype=[("onsets", "<f8"), ("offsets", "<f8")])
    layout = h5py.VirtualLayout(values.shape, "<f4")
    options = {"chunks": (4, 1024), **hdf5plugin.LZ4()}
    for at in range(parts if virtual else 0):
        piece = values[:, at * 2048 : (at + 1) * 2048]
        with h5py.File(folder / name / f"{name}_part_{at + 1}.h5", "w") as file:
            file.attrs["sampling_rate"] = 512
            file.create_dataset("data/ieeg", data=piece, **options)
        source = h5py.VirtualSource(f"{other}_part_{at + 1}.h5", "data/ieeg", piece.shape)
        layout[:, at * 2048 : (at + 1) * 2048] = source
    with h5py.File(folder / name / f"{name}_total.h5", "w") as file:
        file.attrs["sampling_rate"] = 512
        group = file.create_group("data")
        if virtual:
            group.create_virtual_dataset("ieeg", layout)
        else:
            group.create_dataset("ieeg", data=values, **options)
        group.create_dataset("seizures", data=seizures)
    return values


def mat(path: Path, variables: dict[str, Any], version: str = "7") -> Path:
    """Write a MATLAB file: 5, 7 (compressed) or 7.3 (HDF5, with axes the other way round, as MATLAB does)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if version != "7.3":
        scipy.io.savemat(path, variables, do_compression=version == "7")
        return path
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            file[name] = np.atleast_2d(value).T
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, made up".ljust(116) + b"\0" * 8 + b"\x00\x02IM")
    return path


def swec_hours(
    folder: Path,
    number: int = 1,
    hours: Sequence[int] = (1, 2),
    seizures: Sequence[tuple[float, float]] = ((1000.0, 1060.0), (3590.0, 3610.0)),
    version: str = "7",
    rate: int = 1,
) -> np.ndarray:
    """`IDx_yh.mat` (channels x samples) and `IDx_info.mat`; returns the signal of these hours. The rate is tiny."""
    name = f"ID{number}"
    pieces = []
    for hour in hours:
        pieces.append(signal(3, 3600 * rate, seed=hour).astype(np.float32))
        mat(folder / name / f"{name}_{hour}h.mat", {"EEG": pieces[-1]}, version)
    begins, ends = np.array(seizures, dtype=float).reshape(-1, 2).T
    info = {"fs": float(rate), "seizure_begin": begins[:, None], "seizure_end": ends[:, None]}
    mat(folder / name / f"{name}_info.mat", info, "5")
    return np.concatenate(pieces, axis=1)


def swec_short(folder: Path, number: int = 3, seizures: Sequence[float] = (20.0, 31.5)) -> list[np.ndarray]:
    """`IDx/Szk.mat` (samples x channels) with seizures of some seconds; returns the signals (2, n)."""
    made = []
    for at, seconds in enumerate(seizures):
        values = signal(2, round((360 + seconds) * 512), seed=at).astype(np.float32)
        mat(folder / f"ID{number}" / f"Sz{at + 1}.mat", {"EEG": values.T})
        made.append(values)
    return made


MAYO_ROWS = (
    ("0a", "physiology", 1, "LA1"), ("0b", "pathology", 1, "LA2"), ("0c", "noise", 2, "RH3"),
    ("0d", "powerline", 3, "RH4"), ("0e", "pathology", 10, "G12"),
)  # fmt: skip


def mayo(folder: Path, rows: Sequence[tuple[str, str, int, str]] = MAYO_ROWS, samples: int = 15000) -> Path:
    """`DATASET_MAYO` with `segments.csv` and a .mat for each segment: segment, category, patient, channel."""
    top = folder / "DATASET_MAYO"
    lines = ["index,category_id,channel,electrode_type,institution,patient_id,reviewer_id,segment_id,soz,category_name"]
    ids = {"powerline": 0, "noise": 1, "pathology": 2, "physiology": 3}
    for at, (segment, category, patient, channel) in enumerate(rows):
        lines.append(f"{at},{ids.get(category, 9)},{channel},depth,MAYO,{patient},1,{segment},0,{category}")
        mat(top / f"{segment}.mat", {"data": signal(1, samples, seed=at).astype(np.float32)}, "5")
    (top / "segments.csv").write_text("\n".join(lines) + "\n")
    return top


def bonn(folder: Path, sets: str = "ZONFS", numbers: Sequence[int] = (1, 21, 100), archive: bool = False) -> Path:
    """Folders of the sets with `Z001.txt`, those of N in capitals; or one zip file of them."""
    texts = {}
    for at, letter in enumerate(sets):
        for number in numbers:
            values = np.rint(signal(1, 4097, seed=100 * at + number)[0]).astype(int)
            name = f"{letter}/{letter}{number:03d}.{'TXT' if letter == 'N' else 'txt'}"
            texts[name] = "\r\n".join(map(str, values)) + "\r\n"
    folder.mkdir(parents=True, exist_ok=True)
    if archive:
        with zipfile.ZipFile(folder / "bonn.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, text in texts.items():
                file.writestr(name, text)
        return folder / "bonn.zip"
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


if __name__ == "__main__":
    top = Path(sys.argv[1])
    edf(top / "edf" / "P1" / "night.edf", annotations=[Annotation(2.0, 3.0, "Seizure")])
    brainvision(top / "brainvision" / "P1", markers=[("Comment", "Seizure", 500, 1000)])
    bids(top / "bids")
    swec_hdf5(top / "swec")
    swec_hours(top / "swec_hours")
    swec_short(top / "swec_short")
    mayo(top / "mayo")
    bonn(top / "bonn")
