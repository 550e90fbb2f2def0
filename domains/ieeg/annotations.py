"""Files of detected seizures that other programs read: BIDS events.tsv with the columns of SzCORE, and EDF+."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from domains.common.errors import ConfigError, MissingExtraError, PreparedDataError
from domains.common.writing import write_whole

TRIAL_TYPE = "seizure"
SZCORE = ("eventType", "dateTime", "recordingDuration")
_COLUMNS = {
    "onset": "Beginning of the detection, s from the beginning of the recording.",
    "duration": "Length of the detection, s.",
    "trial_type": "seizure; n/a in the row that SzCORE wants of a recording without seizures.",
    "eventType": "sz: seizure; bckg: background, the recording has no seizure.",
    "confidence": "Highest probability of the windows of the detection.",
    "channels": "Channels of the event; n/a: not told apart.",
    "dateTime": "Begin of the recording.",
    "recordingDuration": "Length of the recording, s.",
}


def write_events_tsv(
    path: Path,
    events: pl.DataFrame,
    duration: float,
    *,
    started: datetime.datetime | None = None,
    szcore: bool = True,
) -> Path:
    """Write the detections of one recording as a BIDS events file, whole or not at all.

    MNE-BIDS reads `onset`, `duration` and `trial_type`; the programs of SzCORE read the other columns. A recording
    without detections gets the row of background that SzCORE demands, which MNE-BIDS leaves out.

    Args:
        path: ends in .tsv.
        events: columns `onset`, `offset` (s), and `confidence` where it is known.
        duration: s, of the recording.
        started: begin of the recording; n/a where it is unknown, which the reader of the SzCORE programs refuses.
        szcore: also write the columns eventType, dateTime and recordingDuration.

    Returns:
        The path.

    Raises:
        ConfigError: an event or the duration makes no sense, or the name of the file does not end in .tsv.
    """
    rows = _checked(path, ".tsv", events, duration)
    names = [name for name in _COLUMNS if szcore or name not in SZCORE]
    date = "n/a" if started is None else started.strftime("%Y-%m-%d %H:%M:%S")
    common = {"channels": "n/a", "dateTime": date, "recordingDuration": _number(duration)}
    table = [
        {
            "onset": _number(onset),
            "duration": _number(offset - onset),
            "trial_type": TRIAL_TYPE,
            "eventType": "sz",
            "confidence": "n/a" if confidence is None else f"{confidence:.4f}",
            **common,
        }
        for onset, offset, confidence in rows
    ]
    if not table and szcore:
        background = {"trial_type": "n/a", "eventType": "bckg", "confidence": "n/a"}
        table = [{"onset": "0", "duration": _number(duration), **background, **common}]
    lines = ["\t".join(names), *("\t".join(row[name] for name in names) for row in table)]
    write_whole(path, ("\n".join(lines) + "\n").encode())
    return path


def write_edf_annotations(
    path: Path, events: pl.DataFrame, duration: float, *, started: datetime.datetime | None = None
) -> Path:
    """Write the detections of one recording as an EDF+ file that holds annotations only, whole or not at all.

    Viewers show it beside the recording; `mne.read_annotations` reads it.

    Args:
        path: ends in .edf.
        events: columns `onset`, `offset` (s).
        duration: s, of the recording.
        started: begin of the recording.

    Returns:
        The path.

    Raises:
        ConfigError: see `write_events_tsv`.
        MissingExtraError: edfio is not installed.
    """
    try:
        import edfio
    except ImportError:
        raise MissingExtraError("edfio", "ieeg") from None
    rows = _checked(path, ".edf", events, duration)
    notes = [edfio.EdfAnnotation(onset, offset - onset, TRIAL_TYPE) for onset, offset, _ in rows]
    # an empty list would be refused, an empty iterator makes a valid file without annotations
    file = edfio.Edf(
        [],
        annotations=iter(notes),
        recording=None if started is None else edfio.Recording(startdate=started.date()),
        starttime=None if started is None else started.time().replace(microsecond=0),
    )
    write_whole(path, file.to_bytes())
    return path


def write_detections(
    directory: Path,
    events: pl.DataFrame,
    durations: Mapping[str, float],
    *,
    started: Mapping[str, datetime.datetime] | None = None,
    edf: bool = True,
) -> list[Path]:
    """Write `<recording>_events.tsv` and `<recording>_annotations.edf` of each recording, and what the columns mean.

    Args:
        directory: where.
        events: see `detected_events`.
        durations: recording -> s; recordings without detections have files, too.
        started: recording -> begin, where it is known.
        edf: also write EDF+ files.

    Returns:
        The files.

    Raises:
        PreparedDataError: events of a recording whose duration is not given, or a name that is no file name.
        ConfigError: see `write_events_tsv`.
    """
    unknown = sorted(set(events["recording"].to_list()) - set(durations))
    if unknown:
        raise PreparedDataError(f"detections of recording {unknown[0]}, whose duration is unknown; give it")
    parts = {str(key[0]): part for key, part in events.partition_by("recording", as_dict=True).items()}
    written = []
    for name in sorted(durations):
        if not name or Path(name).name != name:
            raise PreparedDataError(f"recording {name!r} has no name that a file can have; prepare the data again")
        own = parts.get(name, events.clear())
        begin = (started or {}).get(name)
        written.append(write_events_tsv(directory / f"{name}_events.tsv", own, durations[name], started=begin))
        if edf:
            path = directory / f"{name}_annotations.edf"
            written.append(write_edf_annotations(path, own, durations[name], started=begin))
    meaning = {name: {"Description": text} for name, text in _COLUMNS.items()}
    write_whole(directory / "events.json", json.dumps(meaning, indent=2).encode() + b"\n")
    return [*written, directory / "events.json"]


def _checked(path: Path, ending: str, events: pl.DataFrame, duration: float) -> list[tuple[float, float, float | None]]:
    """Onset, offset and confidence of each event, by onset."""
    if path.suffix != ending:
        raise ConfigError(f"{path}: the name must end in {ending}, by which readers know the format")
    if not 0 < duration < math.inf:
        raise ConfigError(f"{path}: the recording has a duration of {duration} s; give more than 0")
    known = "confidence" in events.columns
    rows = []
    for row in events.sort("onset", "offset").iter_rows(named=True):
        onset, offset = float(row["onset"]), float(row["offset"])
        if not 0 <= onset <= offset < math.inf:
            raise ConfigError(f"{path}: an event goes from {onset} to {offset} s; it must not end before it begins")
        rows.append((onset, offset, float(row["confidence"]) if known else None))
    return rows


def _number(seconds: float) -> str:
    """Microseconds are enough, and free of the noise of binary fractions."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
