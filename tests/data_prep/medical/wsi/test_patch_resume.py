"""The same bytes under every number of workers, after kill -9, and when slides come one by one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import BusyError, IncompleteError, PrepError
from data_prep.common.lock import own
from data_prep.medical.wsi.patches import run as patch_run
from data_prep.medical.wsi.patches import tasks as patch_tasks
from data_prep.medical.wsi.patches.patch import patch
from tests.data.medical import make_slides as make
from tests.data_prep.medical.wsi.slide_helpers import SMALL, fail, run, status, tree

OPTIONS: dict[str, Any] = {"max_white": 0.9, "images": "png"}
CHUNK = 20  # patches decoded by one task, so that a small slide has several


def decode_in_small_chunks(*arguments: Any) -> dict[str, Any]:
    """The size of chunks is decided where patches are decoded: spawned workers need it, too."""
    patch_tasks.CHUNK = CHUNK
    return patch_tasks.decode(*arguments)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sound slides, one of them of a single level, and a truncated one."""
    folder = tmp_path_factory.mktemp("raw")
    for seed, name in enumerate(("a.1", "b.2")):
        make.write_slide(folder / f"{name}.tif", make.draw_tissue(700, 500, seed=seed))
    make.write_slide(folder / "c.3.tif", make.draw_tissue(500, 400, seed=7), downsamples=(1,))
    make.truncate(make.write_slide(folder / "d.4.tif", make.draw_tissue(400, 300)), 0.5)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_tasks, "CHUNK", CHUNK)
    monkeypatch.setattr(patch_run, "decode", decode_in_small_chunks)


@pytest.fixture
def wanted(raw: Path, tmp_path: Path, small: None) -> dict[str, str]:
    run(raw, tmp_path / "serial", max_rejects=0.5, **OPTIONS)
    return tree(tmp_path / "serial")


def test_chunks_change_no_byte(raw: Path, tmp_path: Path, wanted: dict[str, str], monkeypatch: Any) -> None:
    monkeypatch.undo()
    run(raw, tmp_path / "out", max_rejects=0.5, **OPTIONS)
    assert tree(tmp_path / "out") == wanted and sum("images/" in name for name in wanted) > 3 * CHUNK


def test_two_processes_give_the_same_bytes(raw: Path, tmp_path: Path, wanted: dict[str, str]) -> None:
    patch(raw, tmp_path / "out", workers=2, progress=False, max_rejects=0.5, **SMALL, **OPTIONS)
    assert tree(tmp_path / "out") == wanted


def test_shards_give_the_same_bytes(raw: Path, tmp_path: Path, wanted: dict[str, str]) -> None:
    waited = 0
    for _ in range(8):
        for index in range(2):
            try:
                run(raw, tmp_path / "out", shard=f"{index}/2", max_rejects=0.5, **OPTIONS)
            except IncompleteError as error:
                assert "run the other shards" in str(error)
                waited += 1
    assert waited >= 2 and tree(tmp_path / "out") == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "workers"), [("local", 1), ("local", 4), ("dask", 2), ("slurm:local", 2)])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of the cluster libraries
def test_every_executor_gives_the_same_bytes(
    raw: Path, tmp_path: Path, wanted: dict[str, str], executor: str, workers: int
) -> None:
    options = {**SMALL, **OPTIONS, "workers": workers, "executor": executor}
    patch(raw, tmp_path / "out", progress=False, max_rejects=0.5, **options)
    assert tree(tmp_path / "out") == wanted


WORKER = """
import sys
from pathlib import Path
from tests.data_prep.medical.wsi.test_patch_resume import CHUNK, OPTIONS, decode_in_small_chunks
from tests.data_prep.medical.wsi.slide_helpers import SMALL
from data_prep.medical.wsi.patches import run as patch_run
from data_prep.medical.wsi.patches import tasks as patch_tasks
from data_prep.medical.wsi.patches.patch import patch
if __name__ == "__main__":
    patch_tasks.CHUNK, patch_run.decode = CHUNK, decode_in_small_chunks
    raw, out, executor = sys.argv[1:]
    options = {**SMALL, **OPTIONS, "executor": executor, "workers": 2}
    patch(Path(raw), Path(out), progress=False, max_rejects=0.5, **options)
"""


def kill_and_continue(folder: Path, raw: Path, out: Path, executor: str, delays: list[float]) -> int:
    """Start, kill after each delay, and let the last run end; returns how many runs were killed."""
    script = folder / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, str(script), str(raw), str(out), executor]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    killed = 0
    for delay in delays:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin = time.monotonic()
        # Count from the moment the work begins, not from the start of the interpreter.
        while (
            process.poll() is None
            and not (out / ".work" / "fingerprint.json").exists()
            and time.monotonic() < begin + 20
        ):
            time.sleep(0.002)
        time.sleep(delay)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True)
    return killed


def test_killed_at_a_random_moment_then_continued(raw: Path, tmp_path: Path, wanted: dict[str, str]) -> None:
    assert kill_and_continue(tmp_path, raw, tmp_path / "out", "serial", [0.03, 0.15]) >= 1
    assert tree(tmp_path / "out") == wanted


@pytest.mark.slow
def test_killed_pool_at_many_moments(raw: Path, tmp_path: Path, wanted: dict[str, str]) -> None:
    assert kill_and_continue(tmp_path, raw, tmp_path / "out", "local", [0.05, 0.5, 1.0, 1.5, 2.0]) >= 2
    assert tree(tmp_path / "out") == wanted


class Looked:
    """Which slides were looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slides: list[str] = []
        look = patch_run.look

        def counted(job: Any, *rest: Any) -> Any:
            self.slides.append(job.slide)
            return look(job, *rest)

        monkeypatch.setattr(patch_run, "look", counted)


class TestSlidesComeOneByOne:
    def test_repaired_and_added_slides_are_done_and_the_others_kept(
        self, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, out = shutil.copytree(raw, tmp_path / "copy"), tmp_path / "out"
        fail(folder, out, **OPTIONS)
        make.write_slide(folder / "d.4.tif", make.draw_tissue(400, 300))
        make.write_slide(folder / "e.5.tif", make.draw_tissue(400, 300, seed=3))
        looked = Looked(monkeypatch)
        card = run(folder, out, **OPTIONS)
        assert looked.slides == ["d.4", "e.5"] and card["counts"]["processed"] == 5
        run(folder, tmp_path / "fresh", **OPTIONS)
        assert tree(out) == tree(tmp_path / "fresh") and not (out / ".work").exists()

    def test_removed_slides_go(self, raw: Path, tmp_path: Path) -> None:
        folder, out = shutil.copytree(raw, tmp_path / "copy"), tmp_path / "out"
        fail(folder, out, **OPTIONS)
        (folder / "d.4.tif").unlink()
        (folder / "a.1.tif").unlink()
        run(folder, out, **OPTIONS)
        assert sorted(status(out)) == ["b.2", "c.3"] and not list(out.rglob("*a.1*"))

    def test_a_changed_slide_or_its_options_are_done_again(
        self, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, out = shutil.copytree(raw, tmp_path / "copy"), tmp_path / "out"
        (folder / "d.4.tif").unlink()
        run(folder, out)
        make.write_slide(folder / "a.1.tif", make.draw_tissue(700, 500, seed=9))
        (tmp_path / "options.csv").write_text("slide_id,a_t\nb.2,0.1\n")
        looked = Looked(monkeypatch)
        run(folder, out, options_table=tmp_path / "options.csv")
        assert looked.slides == ["a.1", "b.2"]

    def test_killed_while_it_is_updated(self, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, out = shutil.copytree(raw, tmp_path / "copy"), tmp_path / "out"
        fail(folder, out, **OPTIONS)
        make.write_slide(folder / "d.4.tif", make.draw_tissue(400, 300))

        def stop(*_: Any) -> None:
            raise PrepError("stop here")

        with monkeypatch.context() as patched:
            patched.setattr(patch_run, "write_tables", stop)
            assert fail(folder, out, **OPTIONS) == "stop here"
        assert not (out / "dataset.json").exists()
        looked = Looked(monkeypatch)
        run(folder, out, **OPTIONS)
        assert looked.slides == [] and (out / "dataset.json").exists()
        run(folder, tmp_path / "fresh", **OPTIONS)
        assert tree(out) == tree(tmp_path / "fresh")

    def test_shards_update_as_well(self, raw: Path, tmp_path: Path) -> None:
        folder, out = shutil.copytree(raw, tmp_path / "copy"), tmp_path / "out"
        fail(folder, out, **OPTIONS)
        make.write_slide(folder / "d.4.tif", make.draw_tissue(400, 300))
        for _ in range(8):
            for index in range(2):
                try:
                    run(folder, out, shard=f"{index}/2", **OPTIONS)
                except IncompleteError:
                    continue
        run(folder, tmp_path / "fresh", **OPTIONS)
        assert tree(out) == tree(tmp_path / "fresh")


def test_finished_work_is_verified_and_kept(
    raw: Path, tmp_path: Path, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stop(*_: Any) -> None:
        raise PrepError("stop here")

    with monkeypatch.context() as patched:
        patched.setattr(patch_run, "write_tables", stop)
        assert fail(raw, out, **OPTIONS) == "stop here"
    # Damage one finished part: it has to be made again; the others have to be kept.
    damaged = next((out / ".work" / "tissue").glob("*/coords.npy"))
    damaged.write_bytes(b"damaged")
    looked = Looked(monkeypatch)
    run(raw, out, max_rejects=0.5, **OPTIONS)
    assert looked.slides == [] and tree(out) == wanted


def test_two_preparations_into_one_directory(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with own(out, out / ".work" / "lock"), pytest.raises(BusyError, match="another preparation"):
        run(raw, out)


def test_torch_is_not_needed(raw: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom data_prep.medical.wsi.patches.patch import patch\n"
        "from tests.data_prep.medical.wsi.slide_helpers import SMALL\n"
        f"patch(Path({str(raw / 'a.1.tif')!r}), Path(__file__).parent / 'out', progress=False, **SMALL)\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("patches: ")
