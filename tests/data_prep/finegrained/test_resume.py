"""The same bytes under every number of workers, executor and size of blocks, and after kill -9."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.common.errors import ConfigError, IncompleteError
from data_prep.finegrained import images
from data_prep.finegrained.prepare import prepare
from tests.data.finegrained import make
from tests.data_prep.finegrained.helpers import run
from tests.data_prep.helpers import kill_and_continue, tree

SCRIPT = """
import sys
from pathlib import Path
from data_prep.finegrained import images
from data_prep.finegrained.prepare import prepare
if __name__ == "__main__":
    images.BLOCK = 8
    raw, out = map(Path, sys.argv[1:])
    prepare("market1501", raw, out, executor="serial", progress=False, copy_images=True, max_rejects=0.5)
"""
OPTIONS = {"copy_images": True, "max_rejects": 0.5}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = make.write_market(tmp_path / "raw")
    (folder / "Market-1501-v15.09.15/bounding_box_train/0002_c1s1_000000_00.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BLOCK", 8)


@pytest.mark.usefixtures("small")
def test_killed_then_continued(tmp_path: Path, raw: Path) -> None:
    run("market1501", raw, tmp_path / "whole", **OPTIONS)
    found = kill_and_continue(tmp_path, SCRIPT, [raw, tmp_path / "out"], tmp_path / "out", [1, 4])
    assert found == tree(tmp_path / "whole")


@pytest.mark.usefixtures("small")
def test_two_processes_give_the_same_bytes(tmp_path: Path, raw: Path) -> None:
    run("market1501", raw, tmp_path / "serial", **OPTIONS)
    prepare("market1501", raw, tmp_path / "two", workers=2, progress=False, copy_images=True, max_rejects=0.5)
    assert tree(tmp_path / "two") == tree(tmp_path / "serial")


def test_the_size_of_blocks_changes_no_byte(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("market1501", raw, tmp_path / "large", **OPTIONS)
    monkeypatch.setattr(images, "BLOCK", 5)
    run("market1501", raw, tmp_path / "small", **OPTIONS)
    assert tree(tmp_path / "small") == tree(tmp_path / "large")


@pytest.mark.usefixtures("small")
def test_shards_give_the_same_bytes(tmp_path: Path, raw: Path) -> None:
    run("market1501", raw, tmp_path / "serial", **OPTIONS)
    waited = 0
    for _ in range(4):
        for index in range(2):
            try:
                run("market1501", raw, tmp_path / "shards", shard=f"{index}/2", **OPTIONS)
            except IncompleteError:
                waited += 1
    assert waited and tree(tmp_path / "shards") == tree(tmp_path / "serial")


def test_strangers_in_the_output_directory_are_left_alone(tmp_path: Path, raw: Path) -> None:
    make.picture(tmp_path / "out/mine.png", 1)
    with pytest.raises(ConfigError, match=r"holds 'mine\.png'"):
        run("market1501", raw, tmp_path / "out", **OPTIONS)
    assert (tmp_path / "out/mine.png").is_file()
