"""The same bytes under every executor and number of workers, and after kill -9."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_prep.common.errors import BusyError, IncompleteError, PrepError
from data_prep.common.lock import own
from data_prep.seqrec import events, group
from data_prep.seqrec.prepare import prepare
from tests.data.seqrec import make
from tests.data_prep.helpers import kill_and_continue, tree
from tests.data_prep.seqrec.helpers import parts, run

SMALL = 60  # events per chunk and per bucket, so that a small log has many
OPTIONS: dict[str, Any] = {"core": 2, "split": "time"}


def read_in_small_chunks(*arguments: Any) -> dict[str, Any]:
    """The size of chunks is decided where files are read: spawned workers need it, too."""
    events.CHUNK_EVENTS = SMALL
    return events.read_events(*arguments)


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    """Three files of one log, one of them packed."""
    first, second = make.write_amazon_2014(tmp_path), make.write_amazon_2018(tmp_path)
    third = tmp_path / "more.json"
    log = make.events(users=40, items=25, seed=2)
    third.write_bytes(make.lines(make.amazon_2014(log)))
    return [first, second, third]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CHUNK_EVENTS", SMALL)
    monkeypatch.setattr(group, "BUCKET_EVENTS", SMALL)
    monkeypatch.setattr("data_prep.seqrec.engine.read_events", read_in_small_chunks)


def test_the_size_of_chunks_and_buckets_changes_parts_but_no_event(
    tmp_path: Path, logs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("amazon", logs, tmp_path / "large", **OPTIONS)
    monkeypatch.setattr(events, "CHUNK_EVENTS", SMALL)
    monkeypatch.setattr(group, "BUCKET_EVENTS", SMALL)
    card = run("amazon", logs, tmp_path / "small", **OPTIONS)
    assert len(card["sequences"]["parts"]) > 3
    for name in ("sequences", "train", "valid", "test"):
        one, other = (parts(tmp_path / size, name).drop("part") for size in ("large", "small"))
        assert one.drop("sequence", strict=False).equals(other.drop("sequence", strict=False))
    for name in ("items.parquet", "users.parquet"):
        assert pl.read_parquet(tmp_path / "large" / name).equals(pl.read_parquet(tmp_path / "small" / name))


@pytest.mark.usefixtures("small")
def test_shards_give_the_same_bytes(tmp_path: Path, logs: list[Path]) -> None:
    run("amazon", logs, tmp_path / "serial", **OPTIONS)
    wanted = tree(tmp_path / "serial")
    assert sum("train/" in name for name in wanted) > 3
    waited = 0
    for _ in range(12):
        for index in range(2):
            try:
                run("amazon", logs, tmp_path / "shards", shard=f"{index}/2", **OPTIONS)
            except IncompleteError as error:
                assert "run the other shards" in str(error)
                waited += 1
    assert waited >= 2
    assert tree(tmp_path / "shards") == wanted


@pytest.mark.usefixtures("small")
def test_two_processes_give_the_same_bytes(tmp_path: Path, logs: list[Path]) -> None:
    run("amazon", logs, tmp_path / "serial", **OPTIONS)
    prepare("amazon", logs, tmp_path / "out", workers=2, progress=False, **OPTIONS)
    assert tree(tmp_path / "out") == tree(tmp_path / "serial")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("executor", "workers"), [("local", 1), ("local", 4), ("dask", 2), ("slurm:local", 2)])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of the cluster libraries
def test_every_executor_gives_the_same_bytes(tmp_path: Path, logs: list[Path], executor: str, workers: int) -> None:
    run("amazon", logs, tmp_path / "serial", **OPTIONS)
    prepare("amazon", logs, tmp_path / "out", workers=workers, executor=executor, progress=False, **OPTIONS)
    assert tree(tmp_path / "out") == tree(tmp_path / "serial")


WORKER = """
import sys
from pathlib import Path
from tests.data_prep.seqrec.test_resume import OPTIONS, SMALL, read_in_small_chunks
from data_prep.seqrec import engine, events, group
from data_prep.seqrec.prepare import prepare
if __name__ == "__main__":
    events.CHUNK_EVENTS, group.BUCKET_EVENTS, engine.read_events = SMALL, SMALL, read_in_small_chunks
    out, executor, *logs = sys.argv[1:]
    prepare("amazon", [Path(log) for log in logs], Path(out), workers=2, executor=executor, progress=False, **OPTIONS)
"""


@pytest.mark.usefixtures("small")
def test_killed_in_the_middle_of_tasks_then_continued(tmp_path: Path, logs: list[Path]) -> None:
    run("amazon", logs, tmp_path / "serial", **OPTIONS)
    out = tmp_path / "out"
    assert kill_and_continue(tmp_path, WORKER, [out, "serial", *logs], out, [1, 12]) == tree(tmp_path / "serial")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_killed_pool_at_many_moments(tmp_path: Path, logs: list[Path]) -> None:
    run("amazon", logs, tmp_path / "serial", **OPTIONS)
    out, finished = tmp_path / "out", [0, 2, 6, 17, 30, 45]
    assert kill_and_continue(tmp_path, WORKER, [out, "local", *logs], out, finished) == tree(tmp_path / "serial")


@pytest.mark.usefixtures("small")
def test_finished_work_is_verified_and_kept(tmp_path: Path, logs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def fail(*_: Any) -> dict[str, Any]:
        raise PrepError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.seqrec.prepare.find_core", fail)
        with pytest.raises(PrepError, match="stop here"):
            run("amazon", logs, out, **OPTIONS)
    assert not (out / "dataset.json").exists()
    # Damage one finished part: it has to be made again; the others have to be kept.
    (out / ".work" / "read" / "00001" / "chunk-00000" / "users.npy").write_bytes(b"damaged")
    read: list[str] = []

    def count(source: Any, *rest: Any) -> dict[str, Any]:
        read.append(source.path.name)
        return read_in_small_chunks(source, *rest)

    monkeypatch.setattr("data_prep.seqrec.engine.read_events", count)
    run("amazon", logs, out, **OPTIONS)
    assert read == [logs[1].name]
    run("amazon", logs, tmp_path / "fresh", **OPTIONS)
    assert tree(out) == tree(tmp_path / "fresh") and not (out / ".work").exists()


def test_two_preparations_into_one_directory(tmp_path: Path, logs: list[Path]) -> None:
    out = tmp_path / "out"
    with own(out, out / ".work" / "lock"), pytest.raises(BusyError, match="another preparation"):
        run("amazon", logs, out)
    run("amazon", logs, out, core=2)


def test_small_data_needs_no_other_process_and_no_torch(tmp_path: Path, logs: list[Path]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom data_prep.seqrec.prepare import prepare\n"
        f"prepare('amazon', Path({str(logs[0])!r}), Path(__file__).parent / 'out', core=0, progress=False)\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert (tmp_path / "out" / "dataset.json").exists()
