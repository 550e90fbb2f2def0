"""The published tables of a preparation: index, channels, events."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.files import write_atomic
from data_prep.common.mapping import Done
from data_prep.ieeg.decide import Decided
from data_prep.ieeg.signal.reference import make_reference

INDEX: dict[str, Any] = {
    "row": pl.UInt32,
    "name": pl.String,
    "subject": pl.String,
    "session": pl.String,  # null: unknown
    "source": pl.String,
    "duration": pl.Float64,  # s
    "samples": pl.UInt64,
    "channels": pl.UInt32,
    "annotated": pl.Boolean,
    "seizures": pl.UInt32,
    "seizure_seconds": pl.Float64,
    "files": pl.List(pl.String),
    "file_samples": pl.List(pl.UInt64),
}
CHANNELS: dict[str, Any] = {
    "recording": pl.String,
    "position": pl.UInt32,  # in the prepared signal; null: not there
    "name": pl.String,
    "type": pl.String,
    "shaft": pl.String,
    "contact": pl.UInt32,  # null: unknown
    "x": pl.Float64,
    "y": pl.Float64,
    "z": pl.Float64,
    "status": pl.String,  # good, bad (as the data say), doubtful (as measured), or other (not intracranial)
    "reason": pl.String,
    "variance": pl.Float64,  # of the prepared signal, uV²
    "kurtosis": pl.Float64,  # likewise; a normal one has 3
    "mains": pl.Float64,  # power at the mains over that beside it in the raw signal, dB
    "flat_share": pl.Float64,
    "missing_share": pl.Float64,
}
EVENTS: dict[str, Any] = {
    "recording": pl.String,
    "subject": pl.String,
    "onset": pl.Float64,
    "offset": pl.Float64,
    "label": pl.String,
    "kind": pl.String,
    "channels": pl.List(pl.String),
}


@dataclass(frozen=True)
class Prepared:
    """One prepared recording.

    Args:
        decided: what it is made of.
        parts: its finished tasks, in order of time.
    """

    decided: Decided
    parts: tuple[Done, ...]

    @property
    def samples(self) -> list[int]:
        """Of each part."""
        return [int(part.info["samples"]) for part in self.parts]

    @property
    def files(self) -> list[str]:
        """Path of each part below the prepared directory."""
        name = self.decided.work.recording.name
        return [f"recordings/{name}/part-{number:05d}.h5" for number in range(len(self.parts))]


def write_index(
    prepared: Sequence[Prepared], splits: Sequence[str], names: Iterable[str], folder: Path
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write the index of each split.

    Args:
        prepared: recordings.
        splits: of each.
        names: of the splits, in order; those without recordings get an empty part.
        folder: where to write.

    Returns:
        Path inside the prepared directory -> file, and the `splits` entry of `dataset.json`.
    """
    files: dict[str, Path] = {}
    entries: dict[str, Any] = {}
    for split in names:
        rows = [_index_row(entry) for entry, side in zip(prepared, splits, strict=True) if side == split]
        table = pl.DataFrame(rows, schema={name: kind for name, kind in INDEX.items() if name != "row"}, orient="row")
        data = to_parquet(table.with_row_index("row").cast({"row": pl.UInt32}))
        path = f"{split}/part-00000.parquet"
        files[path] = folder / f"{split}-part-00000.parquet"
        write_atomic(files[path], data)
        part = {"path": path, "rows": len(rows), "sha256": hashlib.sha256(data).hexdigest()}
        entries[split] = {"rows": len(rows), "parts": [part]}
    return files, entries


def _index_row(entry: Prepared) -> tuple[Any, ...]:
    recording, samples = entry.decided.work.recording, entry.samples
    rate = float(entry.parts[0].info["rate"])
    return (
        recording.name,
        recording.subject,
        recording.session or None,
        recording.source,
        sum(samples) / rate,
        sum(samples),
        len(entry.parts[0].info["channels"]),
        recording.annotated,
        len(recording.events),
        float(sum(event.offset - event.onset for event in recording.events)),
        entry.files,
        samples,
    )


def channel_table(prepared: Sequence[Prepared]) -> pl.DataFrame:
    """Every channel of every raw recording, and of bipolar ones every pair."""
    rows: list[dict[str, Any]] = []
    for entry in prepared:
        rows += _channel_rows(entry)
    return pl.DataFrame(rows, schema=CHANNELS)


def _channel_rows(entry: Prepared) -> list[dict[str, Any]]:
    work, found = entry.decided.work, entry.decided.found
    recording = work.recording
    kept = [channel for channel, keep in zip(recording.kept, work.keep, strict=True) if keep]
    reference = make_reference(work.reference, kept, np.array(work.good)[np.array(work.keep)])
    variance, kurtosis = _moments(entry.parts)
    position = {channel.name: place for place, channel in enumerate(reference.channels)}
    scanned = {channel.name: i for i, channel in enumerate(recording.kept)}
    noise = found.mains_ratio(entry.decided.mains or 50.0)
    doubts = dict(zip(scanned, entry.decided.doubts, strict=True))
    for channel, pair in zip(reference.channels, reference.pairs, strict=False):  # no pairs but of a bipolar one
        doubts[channel.name] = "; ".join(f"{name}: {doubts[name]}" for name in pair if doubts[name])
    rows = []
    own = [channel for channel in reference.channels if channel.name not in {c.name for c in recording.channels}]
    for channel in (*recording.channels, *own):
        place, i = position.get(channel.name), scanned.get(channel.name)
        doubt = doubts.get(channel.name, "")
        status = "good" if channel.keep and not doubt else "doubtful" if channel.keep else "bad"
        if not channel.keep and channel.kind not in ("SEEG", "ECOG", "DBS"):
            status = "other"
        row: dict[str, Any] = {"recording": recording.name, "position": place, "name": channel.name}
        row |= {"type": channel.kind, "shaft": channel.shaft, "status": status}
        row["contact"] = channel.contact if channel.contact >= 0 else None
        row |= dict(zip("xyz", (None if v != v else v for v in channel.place), strict=True))
        row["reason"] = channel.reason or doubt
        if place is not None:
            row |= {"variance": variance[place], "kurtosis": kurtosis[place]}
        if i is not None:
            row |= {
                "mains": round(float(noise[i]), 3),
                "flat_share": float(found.flat[i] / max(found.seconds, 1)),
                "missing_share": float(found.missing[i] / max(found.samples, 1)),
            }
        rows.append({**dict.fromkeys(CHANNELS), **row})
    return rows


def _moments(parts: Sequence[Done]) -> tuple[list[float], list[float]]:
    """Variance and kurtosis of the prepared channels over all parts."""
    sums = np.sum([part.info["moments"] for part in parts], axis=0)
    count = sum(part.info["samples"] for part in parts)
    m1, m2, m3, m4 = sums / max(count, 1)
    variance = np.maximum(m2 - m1**2, 0.0)
    central = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    kurtosis = np.divide(central, variance**2, out=np.full_like(variance, 3.0), where=variance > 0)
    return [float(f"{v:.9g}") for v in variance], [float(f"{k:.9g}") for k in kurtosis]


def event_table(prepared: Sequence[Prepared]) -> pl.DataFrame:
    """Seizures, by recording and onset."""
    rows = [
        (recording.name, recording.subject, event.onset, event.offset, event.label, "seizure", list(event.channels))
        for recording in (entry.decided.work.recording for entry in prepared)
        for event in recording.events
    ]
    return pl.DataFrame(rows, schema=EVENTS, orient="row").sort("recording", "onset", maintain_order=True)


def to_parquet(table: pl.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def signal_files(prepared: Sequence[Prepared]) -> Mapping[str, Path]:
    """Path inside the prepared directory -> finished file."""
    return {
        name: part.folder / "part.h5" for entry in prepared for name, part in zip(entry.files, entry.parts, strict=True)
    }
