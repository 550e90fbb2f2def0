"""A domain in twenty lines: trees of files, killed, continued, published by what the domains share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import BusyError, ConfigError, IncompleteError, PrepError, RejectsExceededError
from data_prep.common.lock import own
from data_prep.common.mapping import Shard, Task
from data_prep.common.rejects import Reject, collect_rejects, to_frame
from data_prep.common.run import Settings, describe_source, find_finished, identify, open_run
from tests.data_prep.helpers import tree

PAYLOAD = ("tiles", "index.txt")
QUIET = Settings("serial", progress=False)


def cut(slide: Path, size: int, folder: Path) -> dict[str, Any]:
    """Tiles of a "slide" (a text), in folders of their own."""
    text = slide.read_text()
    if text == "kill" and os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    for place in range(0, len(text), size):
        tile = folder / "level-0" / f"{place // size}" / "tile.txt"
        tile.parent.mkdir(parents=True)
        tile.write_text(text[place : place + size])
    return {"tiles": -(-len(text) // size)}


def prepare_slides(raw: Path, out: Path, size: int = 2, settings: Settings = QUIET) -> dict[str, Any]:
    slides = sorted(raw.glob("*.txt"))
    command = {"size": size}
    if (finished := find_finished(out, {"command": command}, slides)) is not None:
        return finished
    with open_run(out, {"command": command, **identify(slides, "tools 1")}, settings, PAYLOAD) as run:
        done = run.stage("cut", [Task(path.stem, cut, (path, size)) for path in slides])
        index = run.scratch / "index.txt"
        index.write_text(f"{sum(item.info['tiles'] for item in done)} tiles")
        files = {"index.txt": index}
        for path, item in zip(slides, done, strict=True):
            files |= {f"tiles/{path.stem}/{name}": item.folder / name for name in item.files}
        manifest = {"command": command, "sources": [describe_source(path) for path in slides]}
        return run.publish(files, manifest)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, text in (("a", "abcde"), ("b", "kill"), ("c", "xyz")):
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_trees_are_published_and_found_again(tmp_path: Path, raw: Path) -> None:
    manifest = prepare_slides(raw, tmp_path / "out")
    assert (tmp_path / "out" / "tiles" / "a" / "level-0" / "2" / "tile.txt").read_text() == "e"
    assert len(tree(tmp_path / "out")) == 3 + 2 + 2 + 2 and not (tmp_path / "out" / ".work").exists()
    assert prepare_slides(raw, tmp_path / "out") == manifest
    with pytest.raises(ConfigError, match="other options"):
        prepare_slides(raw, tmp_path / "out", size=3)
    (raw / "a.txt").write_text("abcdX")
    with pytest.raises(ConfigError, match="other files"):
        prepare_slides(raw, tmp_path / "out")


WORKER = """
from pathlib import Path
from tests.data_prep.common.test_run import prepare_slides
prepare_slides(Path({raw!r}), Path({out!r}))
"""


def test_killed_in_a_task_that_writes_a_tree_then_continued(tmp_path: Path, raw: Path) -> None:
    prepare_slides(raw, tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-c", WORKER.format(raw=str(raw), out=str(out))]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, env={**os.environ, "KILL": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL and not (out / "dataset.json").exists()
    tile = out / ".work" / "cut" / "a" / "level-0" / "0" / "tile.txt"
    before = tile.stat().st_ino
    (out / "tiles").mkdir()  # half a publication, too
    (out / "tiles" / "stray.txt").write_text("left over")
    prepare_slides(raw, out)
    assert tree(out) == tree(tmp_path / "whole")
    assert (out / "tiles" / "a" / "level-0" / "0" / "tile.txt").stat().st_ino == before  # kept, not made again


def test_a_damaged_file_deep_in_a_tree_is_remade(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def fail(*_: Any, **__: Any) -> None:
        raise PrepError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.common.run.publish", fail)
        with pytest.raises(PrepError, match="stop here"):
            prepare_slides(raw, out)
    (out / ".work" / "cut" / "a" / "level-0" / "1" / "tile.txt").write_text("??")
    (out / ".work" / "cut" / "c" / "level-0" / "1" / "tile.txt").unlink()
    prepare_slides(raw, out)
    prepare_slides(raw, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_shards_publish_once(tmp_path: Path, raw: Path) -> None:
    for index in (0, 1):
        with pytest.raises(IncompleteError):
            prepare_slides(raw, tmp_path / "out", settings=Settings("serial", shard=Shard(index, 3), progress=False))
    prepare_slides(raw, tmp_path / "out", settings=Settings("serial", shard=Shard(2, 3), progress=False))
    prepare_slides(raw, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_late_shard_leaves_what_another_published(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = Settings("serial", shard=Shard(0, 2), progress=False)
    with open_run(out, {}, settings, PAYLOAD) as late:
        with open_run(out, {}, settings, PAYLOAD) as early:
            (early.scratch / "index.txt").write_text("1")
            manifest = early.publish({"index.txt": early.scratch / "index.txt"}, {"command": {}})
        assert late.publish({"index.txt": late.scratch / "index.txt"}, {"command": {}}) == manifest
    assert (out / "index.txt").read_text() == "1" and not (out / ".work").exists()


def test_strangers_and_owners_are_respected(tmp_path: Path, raw: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train").mkdir()  # a name of another domain is a stranger here
    with pytest.raises(ConfigError, match="holds 'train'"):
        prepare_slides(raw, out)
    (out / "train").rmdir()
    with own(out, out / ".work" / "lock"), pytest.raises(BusyError):
        prepare_slides(raw, out)


def test_what_a_killed_process_was_writing_is_cleaned_away(tmp_path: Path, raw: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (".dataset.json.77.tmp", ".index.txt.78.tmp"):
        (out / name).write_text("half")
    with own(out, out / ".work" / "lock"), pytest.raises(BusyError):  # or of one that lives
        prepare_slides(raw, out)
    assert (out / ".dataset.json.77.tmp").exists()
    prepare_slides(raw, out)
    prepare_slides(raw, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_a_stranger_is_no_temporary(tmp_path: Path, raw: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".thesis.tex.77.tmp").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds '\.thesis\.tex\.77\.tmp'"):
        prepare_slides(raw, out)
    assert [path.name for path in out.iterdir()] == [".thesis.tex.77.tmp"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that nobody can write to")
def test_a_folder_that_cannot_be_made_is_told_as_such(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/x"), tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(PrepError, match=f"^{out}: this folder cannot be made"):
            prepare_slides(raw, out)


def test_rejects_of_all_tasks(tmp_path: Path) -> None:
    for index in range(2):
        to_frame([Reject(f"{index}.txt", 7, "", "blurred", "")]).write_parquet(tmp_path / f"{index}.parquet")
    tables = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    assert collect_rejects(tables, 10, 0.5, tmp_path / "all.parquet") == 2
    with pytest.raises(RejectsExceededError, match=r"0\.txt: record 7: blurred; 2 of 10") as caught:
        collect_rejects(tables, 10, 0.1, tmp_path / "all.parquet")
    assert f"listed in {tmp_path / 'all.csv'};" in str(caught.value)
    assert (tmp_path / "all.csv").read_text().splitlines()[1] == '0.txt,7,"",blurred,""'
