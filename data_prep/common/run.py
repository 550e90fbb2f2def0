"""One preparation in one output directory, whatever the domain: owned, resumable, published whole.

    def prepare(run):
        done = run.stage("digest", tasks)
        return run.publish({"train/part-00000.parquet": done[0].folder / "rows.parquet"}, manifest)

    return run_once(out, fingerprint, settings, PAYLOAD, prepare)

`fingerprint` is everything that determines the result: work left by another fingerprint is thrown away. `PAYLOAD` are
the names of the files and folders that the domain publishes beside `dataset.json`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.anonymise import file_name
from data_prep.common.errors import BusyError, ConfigError, PrepError
from data_prep.common.executors import Executor, open_executor
from data_prep.common.files import (
    canonical_json,
    make_folder,
    sha256_file,
    stale_temporaries,
    translate_os_errors,
    write_atomic,
)
from data_prep.common.lock import own
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.mapping import Done, Shard, Task, run_stage
from data_prep.common.publish import publish

WORK = ".work"  # scratch folder inside the output directory
SMALL = 8 << 20  # bytes of raw files below which worker processes start only when a stage has several tasks


@dataclass(frozen=True)
class Settings:
    """How a preparation runs; nothing here changes a byte of the result.

    Args:
        executor: name, see `open_executor`.
        workers: processes or jobs; all cores by default.
        shard: share of this process.
        progress: show bars.
        eager: start worker processes at once instead of with the first stage that has several tasks.
    """

    executor: str = "local"
    workers: int | None = None
    shard: Shard | None = None
    progress: bool = True
    eager: bool = False

    @classmethod
    def of(
        cls,
        executor: str,
        workers: int | None,
        shard: str | None,
        patience: float,
        progress: bool,
        files: Sequence[Path],
    ) -> Settings:
        """Settings of the options that every preparation has.

        Args:
            executor: name, see `open_executor`.
            workers: processes or jobs; all cores by default.
            shard: INDEX/COUNT, the share of this process, if any.
            patience: seconds a shard waits for the others at the end of a stage.
            progress: show bars.
            files: raw files; large ones start worker processes at once.
        """
        share = Shard.parse(shard, patience) if shard else None
        return cls(executor, workers, share, progress, eager=is_large(files))


@dataclass(frozen=True)
class Run:
    """An output directory that is owned, and where and how its stages run.

    Args:
        out: output directory.
        scratch: folder for intermediate files.
        executor: runs the tasks.
        shard: share of this process, if any.
        progress: show bars.
        payload: names of what is published.
    """

    out: Path
    scratch: Path
    executor: Executor
    shard: Shard | None
    progress: bool
    payload: frozenset[str]

    def stage(self, name: str, tasks: list[Task]) -> list[Done]:
        """Run one stage to its end."""
        return run_stage(name, tasks, self.scratch, self.executor, shard=self.shard, progress=self.progress)

    def publish(self, files: Mapping[str, Path], manifest: dict[str, Any]) -> dict[str, Any]:
        """Give finished files their final names, remove the scratch folder, and return `dataset.json`.

        Args:
            files: path inside the output directory -> finished file.
            manifest: content of `dataset.json`.
        """
        if self.shard is None:
            self._publish(files, manifest)
            return read_manifest(self.out)
        try:
            with own(self.out, self.scratch / "publish.lock"):
                if (self.out / NAME).exists():  # another shard has published; its files are not to be touched
                    shutil.rmtree(self.scratch, ignore_errors=True)
                    return read_manifest(self.out)
                self._publish(files, manifest)
        except BusyError:
            return manifest  # another shard is publishing the same
        return read_manifest(self.out)

    def _publish(self, files: Mapping[str, Path], manifest: dict[str, Any]) -> None:
        _remove_stale(self.out, self.payload)
        publish(self.out, files, manifest, self.payload, self.scratch)


@contextlib.contextmanager
def open_run(out: Path, fingerprint: dict[str, Any], settings: Settings, payload: Collection[str]) -> Iterator[Run]:
    """Own the output directory and its scratch folder; scratch of another fingerprint is thrown away.

    Args:
        out: output directory.
        fingerprint: everything that determines the result.
        settings: how to run.
        payload: names of the files and folders to be published; nothing else may be in the directory.

    Raises:
        BusyError: another preparation writes here.
        ConfigError: the folder holds something else.
    """
    scratch, names = out / WORK, frozenset(payload)
    make_folder(out)
    with translate_os_errors(out):
        # Temporaries may be another process's, at work here; their owner is found out below.
        temporary = {path.name for path in stale_temporaries(out, names | {NAME})}
        strangers = sorted(path.name for path in out.iterdir() if path.name not in names | {WORK, NAME} | temporary)
    if strangers:
        raise ConfigError(
            f"{out}: holds {strangers[0]!r}, which is no prepared data; choose an empty or new output directory"
        )
    with own(out, scratch / "lock", shared=settings.shard is not None):
        if settings.shard is None:  # other shards may be writing
            _remove_stale(out, names)
        _match_fingerprint(scratch, canonical_json(fingerprint), settings.shard)
        with open_executor(settings.executor, settings.workers, scratch / "executor", eager=settings.eager) as opened:
            yield Run(out, scratch, opened, settings.shard, settings.progress, names)


def run_once(
    out: Path,
    fingerprint: dict[str, Any],
    settings: Settings,
    payload: Collection[str],
    prepare: Callable[[Run], dict[str, Any]],
) -> dict[str, Any]:
    """`open_run` with what is done in it; a shard that comes too late takes what another has published.

    Args:
        out: output directory.
        fingerprint: everything that determines the result.
        settings: how to run.
        payload: names of the files and folders to be published.
        prepare: does the work and publishes it.

    Returns:
        The content of `dataset.json`.
    """
    try:
        with open_run(out, fingerprint, settings, payload) as run:
            return prepare(run)
    except (PrepError, OSError):
        # Another shard may have finished, and removed the scratch folder, while this one looked at it.
        if settings.shard is not None and (out / NAME).exists():
            return read_manifest(out)
        raise


def _remove_stale(out: Path, names: frozenset[str]) -> None:
    """Remove what a process left that was killed while it wrote; only for who owns the directory alone."""
    with translate_os_errors(out):
        for path in stale_temporaries(out, names | {NAME}):
            path.unlink(missing_ok=True)


def _match_fingerprint(scratch: Path, wanted: bytes, shard: Shard | None) -> None:
    path = scratch / "fingerprint.json"
    with translate_os_errors(path):
        if path.exists() and path.read_bytes() == wanted:
            return
        stale = [item for item in scratch.iterdir() if item.name != "lock" and not item.name.startswith(".")]
        if stale and shard is not None and path.exists():
            raise ConfigError(
                f"{scratch}: holds work of other options or files; remove this folder, then start all shards again"
            )
        if shard is None:
            for item in stale:
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        write_atomic(path, wanted)


def identify(sources: Iterable[Path], *tools: Any, key: bytes | None = None) -> dict[str, Any]:
    """What tells one set of raw files, and one version of the tools, from another.

    Args:
        sources: raw files.
        tools: versions and constants that the result depends on, besides heptad's own version.
        key: of pseudonyms; with it, files are not named.
    """
    stats = []
    for path in sources:
        with translate_os_errors(path):
            stats.append((path, path.stat()))
    return {
        "sources": [[file_name(key, path), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
        "tools": [tool_version(), *tools],
    }


def describe_source(path: Path) -> dict[str, Any]:
    """An entry of `sources` in `dataset.json`: name, bytes and SHA-256 of a raw file."""
    return {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def find_finished(out: Path, expected: Mapping[str, Any], sources: Iterable[Path]) -> dict[str, Any] | None:
    """The manifest of `out` when it holds what is asked for, made of exactly these raw files, byte for byte.

    Args:
        out: output directory.
        expected: entries of `dataset.json` (also nested) which tell this preparation from others.
        sources: raw files.

    Returns:
        None when nothing is finished there.

    Raises:
        ConfigError: it holds prepared data of something else.
    """
    if not (out / NAME).exists():
        return None
    manifest = read_manifest(out)
    recorded = sorted((item["path"], item["bytes"], item["sha256"]) for item in manifest.get("sources", []))
    files = list(sources)
    with translate_os_errors(out):
        sizes = sorted((path.name, path.stat().st_size) for path in files)
        if _holds(manifest, expected) and sizes == [item[:2] for item in recorded]:
            found = [describe_source(path) for path in files]
            if recorded == sorted((item["path"], item["bytes"], item["sha256"]) for item in found):
                return manifest
    raise ConfigError(
        f"{out}: holds prepared data of other options or other files; choose another output directory or remove it"
    )


def _holds(found: Any, expected: Any) -> bool:
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return all(key in found and _holds(found[key], value) for key, value in expected.items())
    return bool(found == expected)


def is_large(sources: Iterable[Path]) -> bool:
    """Whether it pays to start worker processes at once."""
    return sum(path.stat().st_size for path in sources) >= SMALL
