"""What the tests of training on fine-grained classes and identities share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl

from data_prep.finegrained.planted import write_planted_classes, write_planted_identities
from tests.apps.helpers import QUIET, refused, run_here

here = partial(run_here, "finegrained")
refusal = partial(refused, "finegrained")

SERIAL = ("--executor", "serial", "--progress", "false")
NET = [
    "--model.backbone", "vit_tiny_patch16_224",
    "--model.backbone_options", "{patch_size: 8, embed_dim: 24, depth: 2, num_heads: 3}", "--data.workers", "1",
]  # fmt: skip
SMALL = {
    "classes": [*NET, "--data.image_size", "[32, 32]", "--data.batch_size", "8", "--model.lr_batch", "null"],
    "reid": [
        *NET, "--data.image_size", "[32, 16]", "--data.batch_size", "8", "--data.instances", "2",
        "--model.optimizer", "adamw", "--model.lr", "0.001", "--model.warmup", "0", "--model.bias_lr", "1",
        "--data.augmentation.pad", "2",
    ],
}  # fmt: skip


def prepare_classes(folder: Path) -> Path:
    """Four classes of 12 pictures of 40 x 40."""
    made = write_planted_classes(folder / "raw", classes=4, per_class=12, size=40)
    words = ("--raw", made.images, "--ratios", "0.6,0.2,0.2", "--out", folder / "classes", *SERIAL)
    assert here("prep", "folder", *words) == 0
    return folder / "classes"


def prepare_identities(folder: Path) -> Path:
    """Sixteen identities, each seen by three cameras twice; 5 are trained on, 3 validate, 8 are the test."""
    made = write_planted_identities(folder / "raw", identities=16, cameras=3, per_camera=2, size=(40, 20))
    words = ("--raw", folder / "raw", "--table", made.table, "--valid_identities", 3)
    assert here("prep", "csv", *words, "--out", folder / "identities", *SERIAL) == 0
    return folder / "identities"


def fit_words(system: str, root: Path, run: Path, *more: object) -> list[str]:
    """Words of a small training; what comes later wins."""
    words = ["--system", system, *QUIET, *SMALL[system], "--data.root", root, "--run", run, *more]
    return [str(word) for word in words]


def fit(system: str, root: Path, run: Path, *more: object) -> None:
    assert here("fit", *fit_words(system, root, run, *more)) == 0


def predictions(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "predictions.parquet")
