"""The same bytes under every executor and number of workers, and after kill -9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_prep.common.errors import ConfigError, IncompleteError
from data_prep.expression import encode, engine
from data_prep.expression.planted import write_planted_faces
from data_prep.expression.prepare import prepare
from tests.data.expression.make import make_fer2013, make_jaffe, save, scene
from tests.data_prep.expression.helpers import index, run
from tests.data_prep.helpers import kill_and_continue, tree

SMALL = 16  # images per block, so that few images have several


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BLOCK_FILES", SMALL)
    monkeypatch.setattr(engine, "BLOCK_ROWS", SMALL)
    monkeypatch.setattr(encode, "CHUNK", 7)


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    made = write_planted_faces(tmp_path / "raw", subjects=10, each=6, size=32, seed=2)
    next(made.images.rglob("S003*.png")).write_bytes(b"broken")
    return made.images.parent, {"table": made.table, "max_rejects": 0.1, "folds": 3}


@pytest.mark.usefixtures("small")
def test_two_processes_give_the_same_bytes(tmp_path: Path, planted: tuple[Path, dict[str, Any]]) -> None:
    raw, options = planted
    run("folder", raw, tmp_path / "serial", **options)
    prepare("folder", raw, tmp_path / "two", workers=2, progress=False, **options)
    assert tree(tmp_path / "two") == tree(tmp_path / "serial")


@pytest.mark.parametrize("storage", ["packed", "files"])
def test_the_size_of_blocks_changes_no_byte(
    tmp_path: Path, planted: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    raw, options = planted
    run("folder", raw, tmp_path / "large", **options, storage=storage)
    monkeypatch.setattr(engine, "BLOCK_FILES", SMALL)
    monkeypatch.setattr(encode, "CHUNK", 5)
    run("folder", raw, tmp_path / "small", **options, storage=storage)
    assert tree(tmp_path / "small") == tree(tmp_path / "large")


@pytest.mark.usefixtures("small")
def test_shards_give_the_same_bytes(tmp_path: Path) -> None:
    path = make_fer2013(tmp_path / "raw")
    run("fer2013", path, tmp_path / "serial")
    waited = 0
    for _ in range(4):
        for number in range(2):
            try:
                run("fer2013", path, tmp_path / "shards", shard=f"{number}/2")
            except IncompleteError:
                waited += 1
    assert waited >= 1 and tree(tmp_path / "shards") == tree(tmp_path / "serial")


SCRIPT = """
import sys
from pathlib import Path
from data_prep.expression import encode, engine
from data_prep.expression.prepare import prepare
if __name__ == "__main__":
    engine.BLOCK_FILES = engine.BLOCK_ROWS = 16
    encode.CHUNK = 7
    raw, out, table = (Path(word) for word in sys.argv[1:])
    options = {"table": table, "max_rejects": 0.1, "folds": 3} if table.is_file() else {}
    prepare("folder" if options else "fer2013", raw, out, executor="serial", progress=False, **options)
"""


@pytest.mark.usefixtures("small")
def test_killed_while_reading_files_then_continued(tmp_path: Path, planted: tuple[Path, dict[str, Any]]) -> None:
    raw, options = planted
    run("folder", raw, tmp_path / "whole", **options)
    words = [raw, tmp_path / "out", options["table"]]
    assert kill_and_continue(tmp_path, SCRIPT, words, tmp_path / "out", [0, 2]) == tree(tmp_path / "whole")


@pytest.mark.usefixtures("small")
def test_killed_while_reading_rows_then_continued(tmp_path: Path) -> None:
    path = make_fer2013(tmp_path / "raw")
    run("fer2013", path, tmp_path / "whole")
    words = [path, tmp_path / "out", "-"]
    assert kill_and_continue(tmp_path, SCRIPT, words, tmp_path / "out", [1, 3]) == tree(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("executor", "workers"), [("local", 1), ("local", 4), ("dask", 2), ("slurm:local", 2)])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of the cluster libraries
def test_every_executor_gives_the_same_bytes(
    tmp_path: Path, planted: tuple[Path, dict[str, Any]], executor: str, workers: int
) -> None:
    raw, options = planted
    run("folder", raw, tmp_path / "serial", **options)
    prepare("folder", raw, tmp_path / "out", workers=workers, executor=executor, progress=False, **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "serial")


def test_a_finished_preparation_is_found(tmp_path: Path) -> None:
    raw = make_jaffe(tmp_path / "raw")
    first = run("jaffe", raw, tmp_path / "out", ratios=(0.6, 0.2, 0.2))
    before = tree(tmp_path / "out")
    assert run("jaffe", raw, tmp_path / "out", ratios=(0.6, 0.2, 0.2)) == first and tree(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="holds prepared data of other options or other files"):
        run("jaffe", raw, tmp_path / "out", ratios=(0.6, 0.2, 0.2), seed=1)
    save(raw / "KA.AN1.1.tiff", scene()[:64, :64])
    with pytest.raises(ConfigError, match="holds prepared data of other options or other files"):
        run("jaffe", raw, tmp_path / "out", ratios=(0.6, 0.2, 0.2))


def test_pseudonyms_hide_names_and_subjects(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("9f86d081884c7d659a2feaa0c55ad015\n")
    for number in range(20):
        save(tmp_path / "raw" / "ab"[number % 2] / f"Zwetschgenbaum{number // 4}_{number}.png", scene((8 * number, 80)))
    (tmp_path / "raw" / "a" / "Zwetschgenbaum9_1.png").write_bytes(b"")
    options: dict[str, Any] = {"subject_pattern": r"(.+)_\d+", "max_rejects": 0.1}
    plain = run("folder", tmp_path / "raw", tmp_path / "plain", **options)
    card = run("folder", tmp_path / "raw", tmp_path / "out", anonymise=tmp_path / "key", **options)
    assert card["group"] == plain["group"] and set(index(tmp_path / "out")["split"]) == {"train", "valid", "test"}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"Zwetschgenbaum" not in path.read_bytes(), path
    names = set(index(tmp_path / "out")["subject"]) | set(index(tmp_path / "out")["name"])
    assert not any("Zwetschgenbaum" in name for name in names)


def test_planted_faces_have_the_same_bytes_and_known_noise(tmp_path: Path) -> None:
    first = write_planted_faces(tmp_path / "a", subjects=30, each=10, size=24, noise=0.2, seed=5)
    second = write_planted_faces(tmp_path / "b", subjects=30, each=10, size=24, noise=0.2, seed=5)
    assert tree(first.images) == tree(second.images) and first.table.read_bytes() == second.table.read_bytes()
    table = pl.read_csv(first.table)
    assert 0.12 < (table["label"] != table["truth"]).mean() < 0.28 and table["truth"].n_unique() == 7
    assert all((tmp_path / "a" / name).is_file() for name in table["image"])
