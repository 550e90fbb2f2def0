"""What the tests of training through the command share, whatever the domain."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest
import torch
from lightning import Trainer

from apps import cli
from domains.common.callbacks import LastCheckpoint
from domains.common.files import read_checkpoint

QUIET = [
    "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1", "--replicates", "20",
]  # fmt: skip
TWO_PROCESSES = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def run_here(domain: str, command: str, *words: object) -> int:
    """Run a command inside this process."""
    return cli.main([domain, command, *map(str, words)])


def run_several(folder: Path, *commands: Sequence[object], still: bool = False) -> str:
    """Run commands one after the other in an interpreter of their own, and in those that it launches.

    Args:
        folder: where they run.
        commands: words of each.
        still: see `tests.apps.several`.

    Returns:
        What they said on standard error.
    """
    words = [*(["still"] if still else [])]
    for command in commands:
        words += [*map(str, command), "then"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.apps.several", *words],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def refused(domain: str, command: str, *words: object) -> str:
    """The one line that a command says before it ends with exit code 2."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert run_here(domain, command, *words) == 2
    line = said.getvalue().strip().splitlines()[-1]
    assert line.startswith("heptad: ")
    return line


def losses(run: Path) -> dict[int, float]:
    """Step -> training loss, over all launches of the run; the digits are those of the float."""
    found = {}
    for path in sorted((run / "log").glob("version_*/metrics.csv")):
        table = pl.read_csv(path, infer_schema_length=None).drop_nulls("train/loss")
        found |= dict(zip(table["step"].to_list(), table["train/loss"].to_list(), strict=True))
    return found


def assert_same_weights(one: Path, two: Path) -> None:
    a, b = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, two))
    assert a["global_step"] == b["global_step"]
    assert all(torch.equal(tensor, b["state_dict"][name]) for name, tensor in a["state_dict"].items())


class KilledError(BaseException):
    """Ends a run where it is, like a kill."""


def assert_killed_equals_uninterrupted(
    train: Callable[..., None], folder: Path, patches: pytest.MonkeyPatch, step: int
) -> None:
    """Kill a training when its first checkpoint is written, continue it, and compare it with one left alone.

    Args:
        train: trains into a folder, with further words of the command.
        folder: where runs are written.
        patches: what kills is put in with.
        step: steps between checkpoints, less than half of all.
    """
    whole, parts = folder / "whole", folder / "parts"
    train(whole)
    write = LastCheckpoint._write

    def write_and_die(self: LastCheckpoint, trainer: Trainer) -> None:
        write(self, trainer)
        raise KilledError

    with patches.context() as patch, pytest.raises(KilledError):
        patch.setattr(LastCheckpoint, "_write", write_and_die)
        train(parts, "--save_every", step)
    last = parts / "checkpoints" / "last.ckpt"
    stopped, steps = read_checkpoint(last)["global_step"], losses(whole)
    assert stopped == step < len(steps) // 2
    shutil.rmtree(parts / "log")
    train(parts, "--ckpt_path", last)
    assert losses(parts) == {step: loss for step, loss in steps.items() if step >= stopped}
    assert_same_weights(whole, parts)
