"""What the tests of training on faces share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from data_prep.expression.planted import write_planted_faces
from data_prep.expression.prepare import prepare
from domains.expression.calibration import scaled_distribution
from domains.expression.module import ARBExModule

CLASSES = ["neutral", "happiness", "surprise"]
# a small network whose samples do not depend on each other
TINY = {"backbone": "small", "image_size": 24, "dim": 16, "heads": 2, "hidden": [8], "dropout": 0.0}


def prepare_planted(folder: Path, **options: Any) -> Path:
    """Drawn faces of 24 pixels and three classes, prepared with folds: 60 % train."""
    made = write_planted_faces(folder / "raw", 24, 5, size=24, classes=tuple(CLASSES), seed=1)
    given = {"table": made.table, "ratios": (0.6, 0.2, 0.2), "folds": 3, "executor": "serial", "progress": False}
    prepare("folder", made.images, folder / "faces", **(given | options))
    return folder / "faces"


def module(**options: Any) -> ARBExModule:
    torch.manual_seed(0)
    return ARBExModule(CLASSES, **(TINY | options))


def predictions(rows: int = 60, count: int = 3, seed: int = 0) -> pl.DataFrame:
    """A table as a test makes it, with two rows of each subject."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, count, rows)
    found: dict[str, Any] = {
        "row": np.arange(rows),
        "label": labels,
        "subject": [f"s{row // 2}" for row in range(rows)],
    }
    for name, strength in (("primary", 1.0), ("corrected", 2.0)):
        scores = rng.random((rows, count)) + strength * np.eye(count)[labels] * (rng.random((rows, 1)) < 0.8)
        shares = np.exp(2 * scores) / np.exp(2 * scores).sum(1, keepdims=True)
        found |= {f"{name}_{k}": shares[:, k].astype(np.float32) for k in range(count)}
    for name, scaled in (("primary", "primary_calibrated"), ("corrected", "calibrated")):
        shares = scaled_distribution(np.stack([found[f"{name}_{k}"] for k in range(count)], 1), 0.7)
        found |= {f"{scaled}_{k}": shares[:, k].astype(np.float32) for k in range(count)}
    found |= {f"probability_{k}": found[f"calibrated_{k}"] for k in range(count)}
    found["predicted"] = np.stack([found[f"probability_{k}"] for k in range(count)], 1).argmax(1)
    found["confidence"] = rng.random(rows).astype(np.float32)
    return pl.DataFrame(found)
