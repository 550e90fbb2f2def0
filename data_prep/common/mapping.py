"""A parallel map whose finished work survives kill -9.

A stage is a list of tasks with stable keys. Each task writes files into a folder of its own, which gets its final
name only when it is whole, together with a record of size and SHA-256 of each file. The next run verifies the record
and keeps the folder. Results come back in task order, so nothing depends on the number of workers.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import ConfigError, IncompleteError
from data_prep.common.executors import Call, Executor
from data_prep.common.files import canonical_json, sha256_file, translate_os_errors

if TYPE_CHECKING:
    from rich.progress import Progress

RECORD = "done.json"


@dataclass(frozen=True)
class Task:
    """One unit of work.

    Args:
        key: stable name, also the folder's.
        function: module-level function(*arguments, folder) which writes files (in folders of their own, too) into
            `folder` and returns JSON values.
        arguments: picklable.
    """

    key: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Done:
    """A finished task.

    Args:
        folder: where its files are.
        info: what its function returned.
        files: path inside the folder -> [bytes, SHA-256].
    """

    folder: Path
    info: dict[str, Any]
    files: dict[str, list[Any]]


@dataclass(frozen=True)
class Shard:
    """Share `index` of `count` of every stage: every `count`-th task.

    Args:
        index: 0-based.
        count: shares in all.
        patience: seconds to wait for the other shares at the end of each stage.
    """

    index: int
    count: int
    patience: float = 0.0

    @classmethod
    def parse(cls, text: str, patience: float = 0.0) -> Shard:
        """Read "0/4".

        Raises:
            ConfigError: not of this form.
        """
        first, _, second = text.partition("/")
        if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
            raise ConfigError(f"shard {text!r}: give INDEX/COUNT with 0 <= INDEX < COUNT, as in 0/4")
        return cls(int(first), int(second), patience)


def run_stage(
    name: str,
    tasks: Sequence[Task],
    scratch: Path,
    executor: Executor,
    *,
    shard: Shard | None = None,
    progress: bool = True,
) -> list[Done]:
    """Run the tasks which are not done, and return all of them, in task order.

    Args:
        name: folder of the stage in `scratch`, and the title of its progress bar.
        tasks: with distinct keys.
        scratch: of this preparation alone.
        executor: where to run.
        shard: do only this share.
        progress: show a bar with the time left.

    Raises:
        PrepError: the first error of a task; finished tasks are kept.
        IncompleteError: other shards still have tasks of this stage to do.
    """
    folder = scratch / name
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    results = {index: info for index, task in enumerate(tasks) if (info := load_record(folder / task.key)) is not None}
    todo = [index for index in range(len(tasks)) if index not in results]
    mine = [index for index in todo if shard is None or index % shard.count == shard.index]
    with _progress(name, shown=progress and bool(mine)) as bar:
        line = bar.add_task(name, total=len(mine))
        calls: list[Call] = [(run_task, (tasks[index], folder)) for index in mine]
        for position, info in executor.run(calls):
            results[mine[position]] = info
            bar.advance(line)
    if shard is not None:
        _wait_for_others(name, tasks, folder, results, shard)
    return [results[index] for index in range(len(tasks))]


def _progress(name: str, *, shown: bool) -> Progress:
    # Imported here: workers import this module to find `run_task`, and show no bars.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(f"{name:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown)


def run_task(task: Task, stage: Path) -> Done:
    """Run one task in a temporary folder, record its files, and give the folder its name.

    Raises:
        PrepError: from the task, or translated from the file system.
    """
    final = stage / task.key
    temporary = stage / f".{task.key}.{os.uname().nodename}.{os.getpid()}.tmp"
    with translate_os_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            info = task.function(*task.arguments, temporary)
            files = {
                path.relative_to(temporary).as_posix(): [path.stat().st_size, sha256_file(path)]
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            # No fsync: after a power cut the checksum shows what is missing, and the task runs again.
            (temporary / RECORD).write_bytes(canonical_json({"files": files, "info": info}))
            done = load_record(final)
            if done is not None:  # another shard was faster; its bytes are the same
                shutil.rmtree(temporary)
                return done
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return Done(final, info, files)


def load_record(folder: Path) -> Done | None:
    """A finished task, or None unless its files are all there, byte for byte."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        for name, (size, digest) in record["files"].items():
            path = folder / name
            if path.stat().st_size != size or sha256_file(path) != digest:
                return None
        return Done(folder, dict(record["info"]), dict(record["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _wait_for_others(name: str, tasks: Sequence[Task], folder: Path, results: dict[int, Done], shard: Shard) -> None:
    deadline = time.monotonic() + shard.patience
    while True:
        for index, task in enumerate(tasks):
            if index not in results and (info := load_record(folder / task.key)) is not None:
                results[index] = info
        missing = len(tasks) - len(results)
        if not missing:
            return
        if time.monotonic() >= deadline:
            raise IncompleteError(
                f"shard {shard.index}/{shard.count}: my share of stage {name!r} is done, {missing} of {len(tasks)} "
                "tasks of other shards are not; run the other shards, then this command again"
            )
        time.sleep(min(1.0, shard.patience))
