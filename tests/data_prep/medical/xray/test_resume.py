"""The same bytes under every executor and number of workers, and after kill -9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import IncompleteError
from data_prep.medical.xray import engine
from data_prep.medical.xray.planted import Planted, write_planted_xrays
from data_prep.medical.xray.prepare import prepare
from tests.data.medical.make_xrays import chest, medmnist, png
from tests.data.medical.make_xrays import ricord as make_ricord
from tests.data_prep.helpers import kill_and_continue, tree
from tests.data_prep.medical.xray.helpers import run

SMALL = 16  # images per block, so that few images have several


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    made = write_planted_xrays(tmp_path / "raw", patients=30, size=40, seed=2)
    (made.images / "patient0001-0.png").write_bytes(b"broken")
    return made


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BLOCK_FILES", SMALL)
    monkeypatch.setattr(engine, "BLOCK_ROWS", SMALL)


def options(planted: Planted) -> dict[str, Any]:
    return {"table": planted.table, "masks": planted.masks, "max_rejects": 0.1}


@pytest.mark.usefixtures("small")
def test_two_processes_give_the_same_bytes(tmp_path: Path, planted: Planted) -> None:
    run("images", planted.images, tmp_path / "serial", **options(planted))
    prepare("images", planted.images, tmp_path / "two", workers=2, progress=False, **options(planted))
    assert tree(tmp_path / "two") == tree(tmp_path / "serial")


def test_the_size_of_blocks_changes_no_byte(tmp_path: Path, planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    run("images", planted.images, tmp_path / "large", **options(planted))
    monkeypatch.setattr(engine, "BLOCK_FILES", SMALL)
    run("images", planted.images, tmp_path / "small", **options(planted))
    assert tree(tmp_path / "small") == tree(tmp_path / "large")


@pytest.mark.usefixtures("small")
def test_shards_give_the_same_bytes(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "pneumoniamnist.npz")
    run("medmnist", path, tmp_path / "serial")
    waited = 0
    for _ in range(4):
        for index in range(2):
            try:
                run("medmnist", path, tmp_path / "shards", shard=f"{index}/2")
            except IncompleteError:
                waited += 1
    assert waited >= 2 and tree(tmp_path / "shards") == tree(tmp_path / "serial")


SCRIPT = """
import sys
from pathlib import Path
from data_prep.medical.xray import engine
from data_prep.medical.xray.prepare import prepare
if __name__ == "__main__":
    engine.BLOCK_FILES = engine.BLOCK_ROWS = 16
    raw, out, table, masks = (Path(word) for word in sys.argv[1:])
    options = {"table": table, "masks": masks, "max_rejects": 0.1} if masks.is_dir() else {}
    dataset = "images" if masks.is_dir() else "medmnist"
    prepare(dataset, raw, out, executor="serial", progress=False, **options)
"""


@pytest.mark.usefixtures("small")
def test_killed_while_reading_then_continued(tmp_path: Path, planted: Planted) -> None:
    run("images", planted.images, tmp_path / "whole", **options(planted))
    words = [planted.images, tmp_path / "out", planted.table, planted.masks]
    assert kill_and_continue(tmp_path, SCRIPT, words, tmp_path / "out", [0, 2]) == tree(tmp_path / "whole")


@pytest.mark.usefixtures("small")
def test_killed_while_unpacking_then_continued(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "pneumoniamnist.npz")
    run("medmnist", path, tmp_path / "whole")
    words = [path, tmp_path / "out", "-", "-"]
    assert kill_and_continue(tmp_path, SCRIPT, words, tmp_path / "out", [1, 4]) == tree(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("executor", "workers"), [("local", 1), ("local", 4), ("dask", 2), ("slurm:local", 2)])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of the cluster libraries
def test_every_executor_gives_the_same_bytes(tmp_path: Path, planted: Planted, executor: str, workers: int) -> None:
    run("images", planted.images, tmp_path / "serial", **options(planted))
    out = tmp_path / "out"
    prepare("images", planted.images, out, workers=workers, executor=executor, progress=False, **options(planted))
    assert tree(out) == tree(tmp_path / "serial")


def test_an_unfinished_preparation_leaves_nothing_behind_when_it_ends(tmp_path: Path) -> None:
    raw = make_ricord(tmp_path / "raw")
    run("ricord", raw, tmp_path / "out", max_rejects=0.5)
    assert not (tmp_path / "out" / ".work").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("dataset.json", "duplicates.parquet", "rejects.parquet", "images", "train", "valid", "test")
    }


def test_strangers_in_the_output_directory_are_left_alone(tmp_path: Path) -> None:
    from data_prep.common.errors import ConfigError

    png(tmp_path / "out" / "mine.png", chest(bits=8))
    with pytest.raises(ConfigError, match=r"holds 'mine\.png'"):
        run("medmnist", medmnist(tmp_path / "x.npz"), tmp_path / "out")
