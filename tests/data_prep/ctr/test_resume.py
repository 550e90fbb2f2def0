"""The same bytes under every executor and number of workers, and after kill -9."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import IncompleteError, MissingExtraError
from data_prep.ctr import chunks
from data_prep.ctr.prepare import prepare
from tests.data.ctr import make
from tests.data_prep.ctr.helpers import run
from tests.data_prep.helpers import kill_and_continue, tree

SMALL = 20_000  # bytes per chunk, so that a small log has many


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return make.write_criteo(tmp_path, 1500)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is made by whoever runs `plan_source`: spawned workers need the size, too."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", SMALL)
    monkeypatch.setattr("data_prep.ctr.engine.plan_source", plan_in_small_chunks)


def plan_in_small_chunks(path: Path, schema: Any, folder: Path) -> dict[str, Any]:
    chunks.CHUNK_BYTES = SMALL
    return chunks.plan_source(path, schema, folder)


@pytest.mark.usefixtures("small_chunks")
def test_serial_and_shards_give_the_same_bytes(tmp_path: Path, log: Path) -> None:
    run("criteo", log, tmp_path / "serial", min_count=2)
    wanted = tree(tmp_path / "serial")
    assert sum("train/" in name for name in wanted) > 5
    waited = 0
    for _ in range(8):
        for index in range(3):
            try:
                run("criteo", log, tmp_path / "shards", min_count=2, shard=f"{index}/3")
            except IncompleteError as error:
                assert "other shards" in str(error) or "run the other shards" in str(error)
                waited += 1
    assert waited >= 2
    assert tree(tmp_path / "shards") == wanted


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("executor", "workers"), [("local", 1), ("local", 2), ("local", 4), ("dask", 2), ("slurm:local", 2)]
)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of the cluster libraries
def test_every_executor_gives_the_same_bytes(tmp_path: Path, log: Path, executor: str, workers: int) -> None:
    run("criteo", log, tmp_path / "serial", min_count=2)
    prepare("criteo", log, tmp_path / "out", min_count=2, executor=executor, workers=workers, progress=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "serial")


def test_two_processes_give_the_same_bytes(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.ctr.engine.plan_source", plan_in_small_chunks)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", SMALL)
    run("criteo", log, tmp_path / "serial", min_count=2, split="random", seed=3)
    prepare("criteo", log, tmp_path / "out", min_count=2, seed=3, workers=2, progress=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "serial")


@pytest.mark.parametrize(("executor", "extra"), [("dask", "dask"), ("slurm", "slurm")])
def test_missing_extra_says_what_to_install(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, executor: str, extra: str
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=rf"heptad\[{extra}\]"):
        run("criteo", log, tmp_path / "out", executor=executor)


WORKER = """
import sys
from pathlib import Path
from tests.data_prep.ctr.test_resume import plan_in_small_chunks
from data_prep.ctr import chunks, engine
from data_prep.ctr.prepare import prepare
if __name__ == "__main__":
    chunks.CHUNK_BYTES, engine.plan_source = 20_000, plan_in_small_chunks
    log, out, executor = sys.argv[1:]
    prepare("criteo", Path(log), Path(out), min_count=2, workers=2, executor=executor, progress=False)
"""


def test_killed_in_the_middle_of_tasks_then_continued(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.ctr.engine.plan_source", plan_in_small_chunks)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", SMALL)
    run("criteo", log, tmp_path / "serial", min_count=2)
    out = tmp_path / "out"
    assert kill_and_continue(tmp_path, WORKER, [log, out, "serial"], out, [1, 20]) == tree(tmp_path / "serial")


@pytest.mark.slow
def test_killed_pool_at_many_moments(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.ctr.engine.plan_source", plan_in_small_chunks)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", SMALL)
    run("criteo", log, tmp_path / "serial", min_count=2)
    out, finished = tmp_path / "out", [0, 1, 9, 20, 21, 35]
    assert kill_and_continue(tmp_path, WORKER, [log, out, "local"], out, finished) == tree(tmp_path / "serial")


@pytest.mark.usefixtures("small_chunks")
def test_finished_work_is_verified_and_kept(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.common.errors import PrepError
    from data_prep.ctr import encode

    out = tmp_path / "out"
    done: list[Path] = []
    original = encode.encode_chunk

    def fail_at_the_fifth(encoding: Any, digest: Path, chunk: int, folder: Path) -> dict[str, Any]:
        if chunk == 5:
            raise PrepError("stop here")
        return original(encoding, digest, chunk, folder)

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.ctr.engine.encode_chunk", fail_at_the_fifth)
        with pytest.raises(PrepError, match="stop here"):
            run("criteo", log, out, min_count=2)
    assert not (out / "dataset.json").exists()
    # Damage one finished part: it has to be made again; the others have to be kept.
    damaged = out / ".work" / "encode" / "00002" / "train.parquet"
    damaged.write_bytes(b"damaged")

    def count(encoding: Any, digest: Path, chunk: int, folder: Path) -> dict[str, Any]:
        done.append(chunk)
        return original(encoding, digest, chunk, folder)

    monkeypatch.setattr("data_prep.ctr.engine.encode_chunk", count)
    run("criteo", log, out, min_count=2)
    assert 2 in done and 5 in done and 0 not in done and 4 not in done
    run("criteo", log, tmp_path / "fresh", min_count=2)
    assert tree(out) == tree(tmp_path / "fresh")
    assert not (out / ".work").exists()


@pytest.mark.usefixtures("small_chunks")
def test_work_of_other_options_is_thrown_away(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.common.errors import PrepError

    def fail(*_: Any) -> dict[str, Any]:
        raise PrepError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.ctr.engine.encode_chunk", fail)
        with pytest.raises(PrepError, match="stop here"):
            run("criteo", log, tmp_path / "out", seed=1)
    run("criteo", log, tmp_path / "out", seed=2)
    run("criteo", log, tmp_path / "fresh", seed=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    from data_prep.common.errors import WorkerLostError
    from data_prep.common.executors import open_executor

    with open_executor("local", 1, tmp_path, eager=True) as executor, pytest.raises(WorkerLostError, match="memory"):
        list(executor.run([(os._exit, (9,))]))


def test_small_data_needs_no_other_process_and_no_main_guard(tmp_path: Path) -> None:
    make.write_movielens_1m(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom data_prep.ctr.prepare import prepare\n"
        "prepare('movielens-1m', Path(__file__).parent, Path(__file__).parent / 'out', workers=2, progress=False)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert (tmp_path / "out" / "dataset.json").exists()
