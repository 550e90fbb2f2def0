"""What the tests of training on recordings share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from domains.common.hub import publish
from domains.ieeg.mvpformer import GenerativeMVPFormer
from tests.apps.helpers import QUIET, refused, run_here

here = partial(run_here, "ieeg")
refusal = partial(refused, "ieeg")

NETWORK = ["--model.dim", "16", "--model.depth", "2", "--model.heads", "4", "--model.kv_heads", "2", "--model.hidden"]
NETWORK += ["24", "--model.max_segments", "8", "--model.max_channels", "16", "--model.relative_index", "distance"]
WINDOWS = ["--data.segment", "1", "--data.segments", "4", "--data.batch_size", "8", "--data.workers", "1"]
SIZES = {"samples": 64, "dim": 16, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "max_segments": 8}
SMALL = {
    "seizure": [*NETWORK, *WINDOWS, "--model.min_duration", "2", "--data.seizure_share", "0.5", "--model.lr", "0.003"],
    "pretrain": [*NETWORK, *WINDOWS, "--model.negatives", "5", "--model.lr", "0.003"],
    "band-energy": [*WINDOWS, "--model.min_duration", "2", "--model.lr", "0.01"],
    "forecast": ["--data.look_back", "48", "--data.horizon", "12", "--model.patch", "12", "--model.dim", "8"],
}


def write_pretrained(folder: Path) -> Path:
    """A network of the sizes of these tests, as if it were pretrained."""
    publish(folder, GenerativeMVPFormer(**SIZES, max_channels=16, relative_index="distance"), "")
    return folder


def fit_words(system: str, root: Path, run: Path, *more: object) -> list[str]:
    """Words of a small training; what comes later wins."""
    words = ["--system", system, *QUIET, *SMALL[system], "--data.root", root, "--run", run, *more]
    return [str(word) for word in words]


def fit(system: str, root: Path, run: Path, *more: object) -> None:
    assert here("fit", *fit_words(system, root, run, *more)) == 0
