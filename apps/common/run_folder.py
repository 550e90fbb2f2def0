"""What a run's folder says of how it was made, and what becomes of an earlier training there."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import re
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from apps.common.options import BEST
from domains.common.writing import write_whole

CHECKPOINTS, LAST = "checkpoints", "last.ckpt"
# what test, explain and predict leave in a run
RESULTS = ("metrics.json", "report.html", "predictions.parquet", "explain.html", "predict")
VERBS, WRITTEN = ("fit", "validate", "test", "predict"), (".yaml", ".versions.json")  # how they were made


class SaveRunConfig(SaveConfigCallback):
    """Write the full configuration of a verb to RUN/<verb>.yaml, once nothing is left that could be refused.

    What an earlier training left in the folder is set aside.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the folder as it is: the weights are not loaded yet, and may not fit."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write that of a training."""
        self.save_config(trainer, pl_module, "fit")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write that of a validation by itself."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.save_config(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write that of a test."""
        self.save_config(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write that of a prediction."""
        self.save_config(trainer, pl_module, "predict")

    @rank_zero_only
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it whole, over that of an earlier run of the same verb."""
        folder = Path(os.fspath(self.config.run))
        if stage == "fit":
            self._set_aside(folder)
        write_whole(folder / f"{stage}.yaml", self.parser.dump(self.config, skip_none=False).encode())
        data = getattr(trainer, "datamodule", None)
        write_whole(folder / f"{stage}.versions.json", json.dumps(versions(data), indent=2).encode() + b"\n")

    def _set_aside(self, folder: Path) -> None:
        """Move what an earlier training left into a folder of its own, unless it is this one that is continued."""
        checkpoints, path = folder / CHECKPOINTS, self.config.ckpt_path
        if path is not None and Path(path).resolve().is_relative_to(checkpoints.resolve()):
            stale = [name for name in RESULTS if (folder / name).exists()]
            if stale:
                print(f"{folder}: {', '.join(stale)} are of earlier weights until they are made again")
            return
        if not any((checkpoints / name).is_file() for name in (LAST, Path(BEST).name)):
            return
        aside = next(found for n in itertools.count(1) if not (found := folder / f"earlier_{n}").exists())
        aside.mkdir()
        for name in (CHECKPOINTS, "model", *RESULTS, *(f"{verb}{end}" for verb in VERBS for end in WRITTEN)):
            if (folder / name).exists():
                (folder / name).rename(aside / name)
        print(f"{folder} holds an earlier training; it was moved to {aside}")


def versions(data: Any) -> dict[str, Any]:
    """What a run was made with, besides its configuration: the libraries, and the data by their `dataset.json`."""
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requires("heptad") or () if "extra ==" not in line]
    card = Path(getattr(data, "root", "")) / "dataset.json"
    return {
        "python": platform.python_version(),
        "heptad": version("heptad"),
        **{name: version(name) for name in sorted(names)},
        "dataset.json": hashlib.sha256(card.read_bytes()).hexdigest() if card.is_file() else None,
    }
