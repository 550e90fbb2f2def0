"""What the tests of every domain's preparation share."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.common import run
from data_prep.common.mapping import RECORD, Done, Task

ROOT = Path(__file__).resolve().parents[2]
DOOM = "from tests.data_prep.helpers import kill_in_task\nkill_in_task({finished})\n"


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its checksum."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_and_continue(
    folder: Path, script: str, arguments: Sequence[object], out: Path, finished: Sequence[int]
) -> dict[str, str]:
    """Start a preparation, kill -9 it in the middle of a task, again and again; let the last run end.

    Args:
        folder: where the script is written.
        script: Python source that prepares into `out`, under `if __name__ == "__main__"`; `tests` is importable.
        arguments: its `sys.argv[1:]`.
        out: the output directory; it holds nothing published until the last run.
        finished: for each kill, how many tasks are finished by then, those of earlier runs included: a task which finds
            so many writes its files, but the process dies before they are recorded.

    Returns:
        The files of `out` with their checksums, to be compared with those of a run nobody killed.
    """
    path = folder / "killed.py"
    command = [sys.executable, str(path), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for count in finished:
        path.write_text(DOOM.format(finished=count) + script)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL, f"no task was left after {count}, or the run failed:\n{done.stderr}"
        assert not (out / "dataset.json").exists()
    path.write_text(script)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not (out / run.WORK).exists()
    return tree(out)


def kill_in_task(finished: int) -> None:
    """From now on preparations of this process are killed once so many tasks are finished."""
    original = run.run_stage

    def run_stage(name: str, tasks: list[Task], *arguments: Any, **options: Any) -> list[Done]:
        doomed = [
            replace(task, function=partial(_work_and_kill, task.function, finished, os.getpid())) for task in tasks
        ]
        return original(name, doomed, *arguments, **options)

    run.run_stage = run_stage


def _work_and_kill(
    function: Callable[..., dict[str, Any]], finished: int, process: int, *arguments: Any
) -> dict[str, Any]:
    info = function(*arguments)
    scratch: Path = arguments[-1].parents[1]
    recorded = [path for path in scratch.glob(f"*/*/{RECORD}") if not path.parent.name.startswith(".")]
    if len(recorded) >= finished:
        os.kill(process, signal.SIGKILL)  # the process which runs the stages; workers end with it
    return info
