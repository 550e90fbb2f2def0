"""Where tasks run: in this process, in local processes, on a Slurm cluster (submitit) or on Dask.

Every executor gives the same results; they differ in the place and the order of completion. This module imports
nothing heavy, because each worker process imports it first.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from data_prep.common.errors import ConfigError, MissingExtraError, PrepError, WorkerLostError

# One thread per worker: the work scales by processes, and results do not depend on how threads divide a table.
# The malloc limits (bytes, glibc) let a worker reuse the memory of one chunk for the next instead of giving it back.
_WORKER_ENVIRONMENT = {
    "POLARS_MAX_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Executor(Protocol):
    """Runs independent calls and yields each result with the index of its call, as they finish."""

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result); the first error stops everything and is raised."""
        ...


class SerialExecutor:
    """Runs calls one after another in this process: for debugging and for tiny data."""

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) in order."""
        for index, (function, arguments) in enumerate(calls):
            yield index, function(*arguments)


class LocalExecutor:
    """Runs calls in processes of this machine, which start when several calls come; a single call runs in this process.

    So small data needs no other process, and a script without `if __name__ == "__main__"` works.

    Args:
        workers: how many processes.
        eager: start them at once; single calls run there, too.
    """

    def __init__(self, workers: int, *, eager: bool = False) -> None:
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None
        if eager:
            self._start()

    def _start(self) -> ProcessPoolExecutor:
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_end_with_parent)
            # Processes start on demand, one by one: start all now, while the first stage still has a single task.
            for _ in range(self.workers):
                self.pool.submit(_warm_up)
        return self.pool

    def close(self) -> None:
        """End the processes."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as they finish; few calls are in flight, so that an error stops soon."""
        if self.pool is None and len(calls) < 2:
            yield from SerialExecutor().run(calls)
            return
        waiting: dict[Future[Any], int] = {}
        upcoming = iter(enumerate(calls))
        try:
            pool = self._start()
            while True:
                while len(waiting) < 2 * self.workers and (item := next(upcoming, None)) is not None:
                    index, (function, arguments) = item
                    waiting[pool.submit(function, *arguments)] = index
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise WorkerLostError(
                "a worker process was killed, most often because memory ran out; "
                "run the same command again with fewer workers: finished work is kept"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


class SlurmExecutor:
    """Runs calls as one job array per stage through submitit.

    Args:
        module: the imported submitit.
        folder: where submitit keeps its files; all nodes must see it.
        workers: jobs in the array.
        cluster: "slurm", or "local" for submitit's own processes.
    """

    def __init__(self, module: ModuleType, folder: Path, workers: int, cluster: str) -> None:
        self.workers = workers
        self.submitter = module.AutoExecutor(folder=folder, cluster=cluster)
        self.submitter.update_parameters(name="heptad-prep", timeout_min=24 * 60)

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result), bundle by bundle: one job does every n-th call."""
        shares = [range(first, len(calls), self.workers) for first in range(min(self.workers, len(calls)))]
        jobs = self.submitter.map_array(run_bundle, [[calls[index] for index in share] for share in shares])
        for share, job in zip(shares, jobs, strict=True):
            results, error = job.result()
            yield from zip(share, results, strict=False)
            if error is not None:
                raise error


class DaskExecutor:
    """Runs calls on a Dask cluster.

    Args:
        module: the imported distributed.
        client: connected to a scheduler.
    """

    def __init__(self, module: ModuleType, client: Any) -> None:
        self.module, self.client = module, client

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as they finish."""
        # pure=False: a task writes files, so an equal call is not to be answered from memory.
        futures = {
            self.client.submit(function, *arguments, pure=False): index
            for index, (function, arguments) in enumerate(calls)
        }
        try:
            for future in self.module.as_completed(list(futures)):
                yield futures[future], future.result()
        finally:
            self.client.cancel(list(futures))


def run_bundle(calls: Sequence[Call]) -> tuple[list[Any], PrepError | None]:
    """Run calls in order; hand an error a user can act on back as a value, so that no traceback wraps it."""
    results: list[Any] = []
    for function, arguments in calls:
        try:
            results.append(function(*arguments))
        except PrepError as error:
            return results, error
    return results, None


def default_workers() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def open_executor(name: str, workers: int | None, folder: Path, *, eager: bool = False) -> Iterator[Executor]:
    """Start an executor and stop it, whatever happens.

    Args:
        name: "local", "serial", "slurm", "slurm:local", "dask" (processes of this machine) or "dask:ADDRESS".
        workers: processes or jobs; all cores by default.
        folder: scratch folder for those executors which keep files.
        eager: let local processes start at once instead of with the first stage that has several tasks.

    Raises:
        ConfigError: unknown name or workers < 1.
        MissingExtraError: the extra `slurm` or `dask` is not installed.
    """
    count = default_workers() if workers is None else workers
    if count < 1:
        raise ConfigError(f"workers {count}: give at least 1")
    kind, _, detail = name.partition(":")
    if kind == "serial":
        yield SerialExecutor()
    elif kind == "local":
        with _environment(), contextlib.closing(LocalExecutor(count, eager=eager)) as local:
            yield local
    elif kind == "slurm":
        with _environment():
            yield SlurmExecutor(_optional("submitit", "slurm"), folder, count, detail or "slurm")
    elif kind == "dask":
        module = _optional("distributed", "dask")
        with _environment(), _dask_client(module, detail, count) as client:
            yield DaskExecutor(module, client)
    else:
        raise ConfigError(f"executor {name!r}: choose local, serial, slurm, slurm:local, dask or dask:ADDRESS")


@contextlib.contextmanager
def _dask_client(module: ModuleType, address: str, count: int) -> Iterator[Any]:
    if address:
        with module.Client(address) as client:
            yield client
        return
    with (
        module.LocalCluster(n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        module.Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Children read these variables when they import polars; this process has done so already."""
    before = {name: os.environ.get(name) for name in _WORKER_ENVIRONMENT}
    os.environ.update(_WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _warm_up() -> None:
    """Load the slow libraries; a short rest keeps one process from taking the calls meant for the others."""
    for name in ("polars", "pyarrow.parquet"):
        importlib.import_module(name)
    time.sleep(0.01)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: end it instead."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch(sentinel: int) -> None:
            connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _optional(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(extra, f"the {extra} executor") from error
