"""The same bytes under every number of workers and size of blocks, and after kill -9."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.common.errors import IncompleteError
from data_prep.pose.people import images
from data_prep.pose.people.prepare import prepare_people
from tests.data.pose.make_people import write_coco
from tests.data_prep.helpers import kill_and_continue, tree
from tests.data_prep.pose.people_helpers import run

SCRIPT = """
import sys
from pathlib import Path
from data_prep.pose.people import images
from data_prep.pose.people.prepare import prepare_people
if __name__ == "__main__":
    images.BLOCK = 4
    raw, out = map(Path, sys.argv[1:])
    prepare_people("coco", raw, out, executor="serial", progress=False, copy_images=True, max_rejects=0.5)
"""
OPTIONS = {"copy_images": True, "max_rejects": 0.5}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = write_coco(tmp_path / "raw", train=12, valid=4)
    (folder / "train2017/000002.png").write_bytes(b"broken")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BLOCK", 4)


@pytest.mark.usefixtures("small")
def test_killed_then_continued(tmp_path: Path, raw: Path) -> None:
    run("coco", raw, tmp_path / "whole", **OPTIONS)
    found = kill_and_continue(tmp_path, SCRIPT, [raw, tmp_path / "out"], tmp_path / "out", [1, 3, 5])
    assert found == tree(tmp_path / "whole")


@pytest.mark.usefixtures("small")
def test_two_processes_give_the_same_bytes(tmp_path: Path, raw: Path) -> None:
    run("coco", raw, tmp_path / "serial", **OPTIONS)
    prepare_people("coco", raw, tmp_path / "two", workers=2, progress=False, copy_images=True, max_rejects=0.5)
    assert tree(tmp_path / "two") == tree(tmp_path / "serial")


def test_the_size_of_blocks_changes_no_byte(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("coco", raw, tmp_path / "large", **OPTIONS)
    monkeypatch.setattr(images, "BLOCK", 3)
    run("coco", raw, tmp_path / "small", **OPTIONS)
    assert tree(tmp_path / "small") == tree(tmp_path / "large")


@pytest.mark.usefixtures("small")
def test_shards_give_the_same_bytes(tmp_path: Path, raw: Path) -> None:
    run("coco", raw, tmp_path / "serial", **OPTIONS)
    waited = 0
    for _ in range(4):
        for index in range(2):
            try:
                run("coco", raw, tmp_path / "shards", shard=f"{index}/2", **OPTIONS)
            except IncompleteError:
                waited += 1
    assert waited >= 2 and tree(tmp_path / "shards") == tree(tmp_path / "serial")
