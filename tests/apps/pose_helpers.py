"""What the tests of training on images of persons and on sequences share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.apps.helpers import QUIET, refused, run_here
from tests.data.pose.make_people import write_coco
from tests.data.pose.make_sequences import h36m_positions, write_h36m

here = partial(run_here, "pose")
refusal = partial(refused, "pose")

SERIAL = ("--executor", "serial", "--progress", "false")
SMALL = {
    "people": [
        "--model.backbone", "small", "--model.dim", "32", "--model.heads", "4", "--model.hidden", "48",
        "--model.encoder_depth", "1", "--model.decoder_depth", "2", "--model.levels", "3", "--model.queries", "8",
        "--model.lr", "0.001", "--data.batch_size", "4", "--data.shorter", "48", "--data.longest", "100",
        "--data.augmentation.before_crop", "[48]", "--data.augmentation.smallest_crop", "32",
        "--data.augmentation.largest_crop", "48", "--data.augmentation.sizes", "[40, 48]", "--data.workers", "1",
    ],
    "lift": [
        "--model.dim", "16", "--model.heads", "4", "--model.spatial_blocks", "1", "--model.temporal_blocks", "1",
        "--data.frames", "9", "--data.batch_size", "64",
    ],
}  # fmt: skip


def prepare_coco(folder: Path, train: int = 9, valid: int = 4) -> Path:
    """Images of 64 x 48 pixels, of which every third one shows nobody, and a crowd; val is the test, too."""
    raw = write_coco(folder / "raw", train=train, valid=valid)
    assert here("prep", "coco", "--raw", raw, "--out", folder / "people", *SERIAL) == 0
    return folder / "people"


def prepare_human36m(folder: Path, frames: int = 30) -> Path:
    """Walking figures in four cameras: S1 is trained on, S8 validates, S9 and S11 are the test."""
    raw = write_h36m(folder / "raw", *h36m_positions(("S1", "S8", "S9", "S11"), ("Walking 1", "Eating"), frames))
    words = ("--raw", raw, "--out", folder / "sequences", "--valid_subjects", "S8", *SERIAL)
    assert here("prep", "human36m", *words) == 0
    return folder / "sequences"


def fit_words(system: str, root: Path, run: Path, *more: object) -> list[str]:
    """Words of a small training; what comes later wins."""
    words = ["--system", system, *QUIET, *SMALL[system], "--data.root", root, "--run", run, *more]
    return [str(word) for word in words]


def fit(system: str, root: Path, run: Path, *more: object) -> None:
    assert here("fit", *fit_words(system, root, run, *more)) == 0
