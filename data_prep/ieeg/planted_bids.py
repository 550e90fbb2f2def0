"""A BIDS iEEG data set on disk, of made-up recordings or of given ones: EDF files with all their sidecars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import edfio
import numpy as np

from data_prep.ieeg.planted import F32, PlantedSeizure, add_seizure, background, draw_seizures

SHAFTS = ("A", "B'", "HL", "C", "TB", "D'")


class Planted(NamedTuple):
    """What was written.

    Args:
        root: the data set.
        seizures: recording (as its files begin) -> its seizures.
    """

    root: Path
    seizures: dict[str, list[PlantedSeizure]]


@dataclass(frozen=True)
class BidsRecording:
    """One recording to write.

    Args:
        subject: without `sub-`.
        session: without `ses-`; empty: there is none.
        run: number.
        signal: microvolts.
        rate: Hz.
        names: of the channels.
        seizures: where they are.
        bad: indices of channels with the status bad.
    """

    subject: str
    session: str
    run: int
    signal: F32
    rate: float
    names: Sequence[str]
    seizures: Sequence[PlantedSeizure] = ()
    bad: Sequence[int] = ()

    @property
    def stem(self) -> str:
        """Beginning of its file names."""
        session = f"_ses-{self.session}" if self.session else ""
        return f"sub-{self.subject}{session}_task-monitoring_run-{self.run:02d}"


def write_planted_bids(
    directory: Path,
    subjects: int = 6,
    recordings: int = 2,
    minutes: float = 6.0,
    channels: int = 12,
    rate: float = 256.0,
    seizures: int = 1,
    seed: int = 0,
) -> Planted:
    """Write a data set of subjects with electrodes of unlike lengths, one bad channel and seizures in each recording.

    Args:
        directory: made if absent.
        subjects: how many.
        recordings: of each.
        minutes: of each recording.
        channels: contacts of the first subject; others have up to two more or fewer.
        rate: Hz.
        seizures: of each recording.
        seed: of everything random.
    """
    found: dict[str, list[PlantedSeizure]] = {}
    start_dataset(directory, [f"{number + 1:02d}" for number in range(subjects)])
    for number in range(subjects):
        rng = np.random.default_rng([seed, number])
        count = max(2, channels + (0, 1, -1, 2, -2)[number % 5])
        names, shafts = electrode_names(count)
        for run in range(recordings):
            samples = int(minutes * 60 * rate)
            signal = background(rng, count, samples, rate)
            planted = draw_seizures(rng, minutes * 60, shafts, seizures)
            for seizure in planted:
                add_seizure(rng, signal, rate, seizure)
            bad = int(rng.integers(count))
            signal[bad] = rng.normal(0, 900, samples)
            made = BidsRecording(f"{number + 1:02d}", "01", run + 1, signal, rate, names, planted, (bad,))
            write_recording(directory, made)
            found[made.stem] = planted
    return Planted(directory, found)


def electrode_names(channels: int, contacts: int = 4) -> tuple[list[str], list[list[int]]]:
    """Names of contacts on electrodes of four or more, and the indices of each electrode's."""
    count = min(max(1, channels // contacts), len(SHAFTS))
    sizes = [len(part) for part in np.array_split(np.arange(channels), count)]
    names, shafts, place = [], [], 0
    for shaft, size in zip(SHAFTS, sizes, strict=False):
        names += [f"{shaft}{number + 1}" for number in range(size)]
        shafts.append(list(range(place, place + size)))
        place += size
    return names, shafts


def start_dataset(directory: Path, subjects: Sequence[str]) -> None:
    """Write the files at the top of a data set."""
    directory.mkdir(parents=True, exist_ok=True)
    described = {"Name": "planted seizures", "BIDSVersion": "1.9.0", "DatasetType": "raw", "License": "CC0"}
    (directory / "dataset_description.json").write_text(json.dumps(described, indent=2) + "\n")
    rows = "".join(f"sub-{subject}\tn/a\n" for subject in subjects)
    (directory / "participants.tsv").write_text(f"participant_id\tage\n{rows}")


def write_recording(directory: Path, made: BidsRecording) -> Path:
    """Write the EDF file of a recording and its sidecars; return the file."""
    session = [f"ses-{made.session}"] if made.session else []
    folder = directory.joinpath(f"sub-{made.subject}", *session, "ieeg")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{made.stem}_ieeg.edf"
    write_edf(path, made.signal, made.rate, made.names)
    entities = f"sub-{made.subject}" + (f"_ses-{made.session}" if made.session else "")
    sidecar = {
        "TaskName": "monitoring",
        "SamplingFrequency": made.rate,
        "PowerLineFrequency": 50,
        "SoftwareFilters": "n/a",
        "iEEGReference": "a contact in white matter",
        "SEEGChannelCount": len(made.names),
    }
    (folder / f"{made.stem}_ieeg.json").write_text(json.dumps(sidecar, indent=2) + "\n")
    rows = ["name\ttype\tunits\tlow_cutoff\thigh_cutoff\tsampling_frequency\tgroup\tstatus\tstatus_description"]
    for index, name in enumerate(made.names):
        group = name.rstrip("0123456789")
        status = "bad\tloose contact" if index in made.bad else "good\tn/a"
        rows.append(f"{name}\tSEEG\tµV\tn/a\tn/a\t{made.rate:g}\t{group}\t{status}")
    (folder / f"{made.stem}_channels.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    events = ["onset\tduration\ttrial_type\tchannels"]
    for seizure in made.seizures:
        seen = ",".join(made.names[i] for i in seizure.channels)
        events.append(f"{seizure.onset:g}\t{seizure.offset - seizure.onset:g}\tseizure\t{seen}")
    (folder / f"{made.stem}_events.tsv").write_text("\n".join(events) + "\n", encoding="utf-8")
    places = ["name\tx\ty\tz\tsize"]
    for index, name in enumerate(made.names):
        places.append(f"{name}\t{index * 3.5:g}\t{10 + index:g}\t{-5 + index:g}\t5")
    (folder / f"{entities}_electrodes.tsv").write_text("\n".join(places) + "\n", encoding="utf-8")
    system = {"iEEGCoordinateSystem": "ACPC", "iEEGCoordinateUnits": "mm"}
    (folder / f"{entities}_coordsystem.json").write_text(json.dumps(system, indent=2) + "\n")
    return path


def write_edf(path: Path, signal: F32, rate: float, names: Sequence[str], **header: str) -> None:
    """Write an EDF file in microvolts.

    Args:
        path: the file.
        signal: microvolts.
        rate: Hz.
        names: of the channels.
        header: `name`, `recording_additional` of the patient and recording fields.

    Shape:
        signal (C, n).
    """
    top = float(np.ceil(np.abs(signal).max() / 100) * 100) or 100.0
    signals = [
        edfio.EdfSignal(
            np.asarray(channel, dtype=np.float64), rate, label=name, physical_dimension="uV", physical_range=(-top, top)
        )
        for channel, name in zip(signal, names, strict=True)
    ]
    patient = edfio.Patient(name=header["name"]) if "name" in header else None
    edfio.Edf(signals, patient=patient).write(path)
