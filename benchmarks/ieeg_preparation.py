"""Preparation of a long intracranial recording: how many times faster than it was recorded, and in how much memory.

    python -m benchmarks.ieeg_preparation [--hours 1 2] [--channels 64] [--rate 2048] [--folder DIR]

The recording is generated: EDF, 16 bits, noise with the mains. `heptad ieeg prep edf` looks at it, takes out 50 Hz and
its harmonics, band-passes 0.5-150 Hz, re-references to the common average, resamples to 512 Hz, and writes HDF5, in two
processes. Memory is the most that all its processes together held (pages that several share count once), looked at
fifty times a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import edfio
import numpy as np

from benchmarks.ctr_preparation import measure

COPIES = 60  # records that are drawn; they repeat with another sign and order


def write_recording(path: Path, hours: float, channels: int, rate: int) -> None:
    """Write an EDF file record by record: 1/f-like noise and 50 Hz."""
    rng = np.random.default_rng(0)
    times = np.arange(rate * COPIES) / rate
    steps = rng.normal(size=(channels, rate * COPIES)).cumsum(axis=1)
    steps -= np.linspace(steps[:, 0], steps[:, -1], steps.shape[1], axis=1)
    signal = 60 * steps / steps.std(axis=1, keepdims=True) + 10 * np.sin(2 * np.pi * 50 * times)
    signals = [
        edfio.EdfSignal(row[:rate], rate, label=f"A{i + 1}", physical_dimension="uV", physical_range=(-3200, 3200))
        for i, row in enumerate(signal)
    ]
    head = bytearray(edfio.Edf(signals).to_bytes()[: 256 * (channels + 1)])
    records = int(hours * 3600)
    head[236:244] = f"{records:<8d}".encode()
    stored = np.round(signal / 3200 * 32767).astype("<i2").reshape(channels, COPIES, rate).transpose(1, 0, 2)
    with path.open("wb") as file:
        file.write(head)
        for number in range(records):
            turned, place = divmod(number, COPIES)
            file.write((stored[place] if turned % 2 == 0 else -stored[COPIES - 1 - place]).tobytes())


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--rate", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the recording is written (a temporary folder)")
    options = parser.parse_args()
    print("| hours | GB | wall s | times real time | CPU s | times real time, one core | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for hours in options.hours:
        for repeat in range(options.repeats):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                path = Path(folder) / "night.edf"
                write_recording(path, hours, options.channels, options.rate)
                out = Path(folder) / f"out{repeat}"
                words = ["ieeg", "prep", "edf", "--raw", str(path), "--out", str(out), "--mains", "50"]
                words += ["--workers", str(options.workers), "--progress", "false"]
                command = [sys.executable, "-m", "apps.cli", *words]
                found = measure("prep", int(hours * 3600), command, 3600)
                if found.note:
                    raise RuntimeError(found.note)
                seconds = hours * 3600
                print(
                    f"| {hours:g} | {path.stat().st_size / 1e9:.2f} | {found.wall:.1f} "
                    f"| **{seconds / found.wall:.0f}** | {found.cpu:.1f} | {seconds / found.cpu:.0f} "
                    f"| {found.memory / 1e6:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
