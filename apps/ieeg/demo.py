"""The demo: a generated BIDS data set with planted seizures, from the raw files to the seizure report."""

from __future__ import annotations

from pathlib import Path

from apps.common.demo import Row, compare, interval, run_command, train_and_test
from data_prep.ieeg.planted_bids import write_planted_bids
from domains.common.intervals import Estimate

SYSTEMS = {"MVPFormer": ("seizure", "demo"), "band energies": ("band-energy", "demo_band_energy")}


def demo(directory: Path) -> None:
    """Generate, prepare, train, test, explain and compare, by the commands that a user types.

    Args:
        directory: everything is written below it.
    """
    raw, prepared = directory / "raw", directory / "prepared"
    print("1. intracranial recordings with planted seizures: BIDS, EDF")
    if not (prepared / "dataset.json").is_file():
        write_planted_bids(raw, subjects=8, recordings=2, minutes=5.0, channels=10, rate=256.0)
        options = ["--rate", "128", "--lowpass", "50", "--ratios", "0.5", "0.25", "0.25"]
        run_command("ieeg", "prep", "bids", "--raw", str(raw), "--out", str(prepared), *options)
    metrics = train_and_test("ieeg", SYSTEMS, prepared, directory)
    print("3. what MVPFormer attends to")
    run_command("ieeg", "explain", "--run", str(directory / "seizure"))
    print("4. detections of the test recordings, as annotations")
    run_command("ieeg", "predict", "--run", str(directory / "seizure"))
    compare(
        directory,
        "Heptad demo: recordings with planted seizures",
        [_row(title, found) for title, found in metrics.items()],
        "event F1",
        "Seizures of subjects that were never trained on; scored by events, after SzCORE.",
        "seizure",
    )


def _row(title: str, metrics: dict[str, Estimate]) -> Row:
    score = metrics["event_f1"]
    return {
        "model": title,
        "event F1": score.value,
        "95 % interval": interval(score),
        "sensitivity": metrics["event_sensitivity"].value,
        "alarms / 24 h": metrics["false_alarms_per_24h"].value,
        "AUROC": metrics["auroc"].value,
    }
