"""Long recordings made of real segments: seizures of the Bonn set planted into its own interictal background.

    python -m benchmarks.ieeg_semireal --bonn bonn.zip --folder WORK [--folds 0 1 2 3 4] [--config mvpformer_semireal]

Andrzejak et al. (2001): five sets of 100 segments of 23.6 s at 173.61 Hz; no patients are published. File numbers are
cut into five blocks of twenty, which stand for subjects: a segment is in one block only. Of each block, recordings of
sixteen channels are made: every channel is a sequence of the block's interictal segments (sets N and F) in an order of
its own, and each of the block's twenty seizures (set S) replaces a stretch of four to ten neighbouring channels, with a
delay that grows with the distance from the first, cross-faded. They are written as BIDS (EDF, 256 Hz) and go through
`heptad ieeg prep bids`, `fit` and `test`; three blocks train, one chooses the threshold, one is tested, in turn.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import scipy.signal

from data_prep.ieeg.planted import F32, PlantedSeizure, insert_segments
from data_prep.ieeg.planted_bids import BidsRecording, electrode_names, start_dataset, write_recording

RAW_RATE, RATE = 173.61, 256.0
BLOCKS, NUMBERS = 5, 20
CHANNELS, RECORDINGS = 16, 10  # of each block
SILENT = ("--progress", "false")
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")
SETS = {"N": "interictal", "F": "interictal", "S": "seizure"}


def read_segments(path: Path) -> dict[tuple[str, int], F32]:
    """Set and number -> the segment at 256 Hz, microvolts."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            parts = re.fullmatch(r"(?:.*/)?([NFS])(\d{3})\.txt", name, re.IGNORECASE)
            if parts:
                values = np.loadtxt(io.BytesIO(archive.read(name)), dtype=np.float64)
                count = round(len(values) * RATE / RAW_RATE)
                made = scipy.signal.resample(values - values.mean(), count).astype(np.float32)
                found[parts[1].upper(), int(parts[2])] = made
    if len(found) != 300:
        raise ValueError(f"{path}: holds {len(found)} of 300 segments of the sets N, F and S")
    return found


def write_blocks(segments: dict[tuple[str, int], F32], root: Path) -> None:
    """Write the BIDS data set: one subject for each block."""
    start_dataset(root, [f"block{block}" for block in range(BLOCKS)])
    names, _ = electrode_names(CHANNELS)
    for block in range(BLOCKS):
        rng = np.random.default_rng(block)
        numbers = range(block * NUMBERS + 1, (block + 1) * NUMBERS + 1)
        quiet = [segments[kind, number] for kind in "NF" for number in numbers]
        seizures = rng.permutation([number for number in numbers])
        for run in range(RECORDINGS):
            orders = [rng.permutation(len(quiet)) for _ in range(CHANNELS)]
            signal = np.stack([np.concatenate([quiet[i] for i in order]) for order in orders])
            mine = seizures[run * NUMBERS // RECORDINGS : (run + 1) * NUMBERS // RECORDINGS]
            signal, planted = plant(rng, signal, [segments["S", int(number)] for number in mine])
            seconds = signal.shape[1] // int(RATE)
            signal = signal[:, : seconds * int(RATE)]
            write_recording(root, BidsRecording(f"block{block}", "", run + 1, signal, RATE, names, planted))


def plant(rng: np.random.Generator, signal: F32, chosen: list[F32]) -> tuple[F32, list[PlantedSeizure]]:
    """Put seizures into a recording, each into a part of its own."""
    room = signal.shape[1] // len(chosen)
    places, channels, delays, planted = [], [], [], []
    for number, segment in enumerate(chosen):
        place = number * room + int(rng.integers(int(60 * RATE), room - len(segment) - int(60 * RATE)))
        first, count = int(rng.integers(0, CHANNELS - 4)), int(rng.integers(4, 11))
        reached = list(range(first, min(first + count, CHANNELS)))
        late = [int(0.3 * RATE * distance) for distance in range(len(reached))]
        places.append(place)
        channels.append(reached)
        delays.append(late)
        onset, offset = place / RATE, (place + len(segment)) / RATE
        planted.append(PlantedSeizure(round(onset, 3), round(offset, 3), tuple(reached), tuple(d / RATE for d in late)))
    made = insert_segments(signal, chosen, places, channels, delays, fade=int(0.5 * RATE))
    return made, planted


def heptad(*words: object) -> None:
    """Run a command as a user types it."""
    subprocess.run([sys.executable, "-m", "apps.cli", "ieeg", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def write_split(path: Path, subjects: list[str], fold: int) -> None:
    """Write the table of a fold: that subject is tested, the next one is for validation, the others train."""
    sides = ["train"] * len(subjects)
    sides[fold], sides[(fold + 1) % len(subjects)] = "test", "valid"
    rows = [f"{subject},{side}\n" for subject, side in zip(subjects, sides, strict=True)]
    path.write_text("subject,split\n" + "".join(rows), encoding="utf-8")


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bonn", type=Path, required=True, help="zip file of the Bonn segments")
    parser.add_argument("--folder", type=Path, required=True, help="where everything is written")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(BLOCKS)))
    parser.add_argument("--config", nargs="+", default=["mvpformer_semireal", "band_energy_semireal"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    raw = options.folder / "raw"
    if not (raw / "participants.tsv").exists():
        write_blocks(read_segments(options.bonn), raw)
    print("| configuration | fold | hours | seizures | sensitivity | false alarms per h | event F1 | kappa | AUROC |")
    print("|---|---|---|---|---|---|---|---|---|")
    for config in options.config:
        totals = np.zeros(4)
        for fold in options.folds:
            totals += run_fold(options.folder, raw, config, fold, options.seed)
        seizures, found, alarms, hours = totals
        print(
            f"| {config} | all | {hours:.1f} | {seizures:.0f} | **{found / seizures:.3f}** | **{alarms / hours:.3f}** "
            f"| {2 * found / (found + alarms + seizures):.3f} | | |",
            flush=True,
        )


def run_fold(folder: Path, raw: Path, config: str, fold: int, seed: int) -> np.ndarray:
    """Prepare (once), train and test a fold; print its row, return seizures, found ones, false alarms, hours."""
    prepared = folder / f"fold{fold}"
    if not (prepared / "dataset.json").exists():
        table = folder / f"fold{fold}.csv"
        write_split(table, [f"sub-block{block}" for block in range(BLOCKS)], fold)
        words = ("--raw", raw, "--out", prepared, "--split", table, "--rate", 128, "--lowpass", 45, "--notch", "none")
        heptad("prep", "bids", *words, "--reference", "none", "--duplicates", "report", *SILENT)
    run = folder / f"{config}-{fold}-{seed}"
    if not (run / "metrics.json").exists():
        heptad("fit", "--config", config, "--data.root", prepared, "--run", run, "--seed_everything", seed, *QUIET)
        heptad("test", "--run", run, *QUIET, "--replicates", "200")
    metrics = {n: e["value"] for n, e in json.loads((run / "metrics.json").read_text(encoding="utf-8")).items()}
    card = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))["counts"]["splits"]["test"]
    alarms = metrics["false_alarms_per_24h"] / 24 * card["hours"]
    found = metrics["event_sensitivity"] * card["seizures"]
    print(
        f"| {config} | {fold} | {card['hours']:.1f} | {card['seizures']} | {metrics['event_sensitivity']:.3f} "
        f"| {metrics['false_alarms_per_24h'] / 24:.3f} | {metrics['event_f1']:.3f} | {metrics['cohen_kappa']:.3f} "
        f"| {metrics['auroc']:.4f} |",
        flush=True,
    )
    return np.array([card["seizures"], found, alarms, card["hours"]])


if __name__ == "__main__":
    main()
