"""Small recordings on disk for the tests of the preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.ieeg.planted import background
from data_prep.ieeg.planted_bids import write_edf
from data_prep.ieeg.prepare import prepare

RATE = 128.0
NAMES = ("A1", "A2", "A3", "B1", "B2", "B3")
LOW: dict[str, Any] = {"rate": 64.0, "lowpass": 25.0, "mains": 50.0}


def signal(seed: int, seconds: float = 70, channels: int = len(NAMES)) -> npt.NDArray[np.float32]:
    """Background in microvolts, (channels, seconds * 128)."""
    return background(np.random.default_rng(seed), channels, int(seconds * RATE), RATE)


def write_subjects(folder: Path, subjects: int = 5, seconds: float = 70) -> Path:
    """One EDF file in a folder for each subject, and events.csv beside them: every second one has a seizure."""
    rows = []
    for number in range(subjects):
        path = folder / f"pat{number}" / "night.edf"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_edf(path, signal(number, seconds), RATE, NAMES)
        rows.append((f"pat{number}/night.edf", 20.0 if number % 2 == 0 else None, 35.0 if number % 2 == 0 else None))
    pl.DataFrame(rows, schema=["recording", "onset", "offset"], orient="row").write_csv(folder / "events.csv")
    return folder


def run(raw: Path, out: Path, dataset: str = "edf", **options: Any) -> dict[str, Any]:
    """Prepare in this process."""
    return prepare(dataset, raw, out, executor="serial", progress=False, **{**LOW, **options})  # type: ignore[arg-type]
