"""Data and helpers that several tests use."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from data_prep.ctr.planted import write_planted_log
from data_prep.ctr.prepare import prepare
from data_prep.seqrec.planted import write_planted_log as write_planted_interactions
from data_prep.seqrec.prepare import prepare as prepare_interactions

if TYPE_CHECKING:
    from data_prep.medical.wsi.bags.planted import Planted
    from data_prep.medical.xray.planted import Planted as PlantedImages

# a process for each core has no use for more threads, and sums have the same order in every run
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

Heptad = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SHARED.is_dir():
        absent = pytest.mark.skip(reason=f"{SHARED} is not there: real data samples are not part of the project")
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(absent)


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED / "data"


@pytest.fixture(scope="session")
def raw_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with clicks.csv (categories, numbers, a bag, users) and schema.yaml."""
    folder = tmp_path_factory.mktemp("raw")
    write_planted_log(folder, rows=1500, seed=1)
    return folder


@pytest.fixture(scope="session")
def prepared(raw_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same log, prepared: 70 % train."""
    out = tmp_path_factory.mktemp("prepared") / "log"
    schema = raw_log / "schema.yaml"
    options = {"schema": schema, "ratios": (0.7, 0.15, 0.15), "executor": "serial", "progress": False}
    prepare("generic", raw_log / "clicks.csv", out, **options)
    return out


@pytest.fixture(scope="session")
def interactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log `interactions.csv` of 240 users and 100 items, with the columns user, item, time."""
    return write_planted_interactions(tmp_path_factory.mktemp("interactions"), users=240, items=100, seed=1).path


@pytest.fixture(scope="session")
def sequences(interactions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same log, prepared: leave one out."""
    out = tmp_path_factory.mktemp("sequences") / "log"
    columns = {"user": "user", "item": "item", "time": "time"}
    prepare_interactions("generic", interactions, out, **columns, executor="serial", progress=False)
    return out


@pytest.fixture(scope="session")
def planted_bags(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Features (dim 16, 32 to 80 patches) of some 80 slides of 40 patients, every second one with a lesion."""
    from data_prep.medical.wsi.bags.planted import write_planted_bags  # needs what the extra `medical` installs

    return write_planted_bags(tmp_path_factory.mktemp("planted_bags"), patients=40, dim=16, side=10, share=0.15, seed=1)


@pytest.fixture(scope="session")
def bags(planted_bags: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same slides, prepared: 60 % train."""
    from data_prep.medical.wsi.bags.bags import prepare as prepare_bags

    out = tmp_path_factory.mktemp("bags") / "slides"
    options = {"table": planted_bags.table, "ratios": (0.6, 0.2, 0.2), "executor": "serial", "progress": False}
    prepare_bags("bags", planted_bags.features, out, **options)
    return out


@pytest.fixture(scope="session")
def planted_xrays(tmp_path_factory: pytest.TempPathFactory) -> PlantedImages:
    """Chest X-rays (40 x 40, DICOM and PNG) of 40 patients of two sources, some with opacities, and lung masks."""
    from data_prep.medical.xray.planted import write_planted_xrays

    return write_planted_xrays(tmp_path_factory.mktemp("planted_xrays"), patients=40, size=40, seed=1)


@pytest.fixture(scope="session")
def xrays(planted_xrays: PlantedImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images, prepared: 60 % train."""
    from data_prep.medical.xray.prepare import prepare as prepare_images

    out = tmp_path_factory.mktemp("xrays") / "images"
    options = {"table": planted_xrays.table, "masks": planted_xrays.masks, "ratios": (0.6, 0.2, 0.2)}
    prepare_images("images", planted_xrays.images, out, **options, executor="serial", progress=False)
    return out


@pytest.fixture
def heptad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Heptad:
    """Run the command in an empty folder; `check=False` to look at a failure.

    It runs inside this process, which has the libraries loaded; what starts further processes, or is `alone`, runs in
    one of its own, as it does for users.
    """

    def run(
        *words: object, check: bool = True, cwd: Path | None = None, alone: bool = False
    ) -> subprocess.CompletedProcess[str]:
        typed = [str(word) for word in words]
        if alone or "ddp" in typed:
            command = [sys.executable, "-m", "apps.cli", *typed]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=cwd or tmp_path, env=environment, timeout=300, check=False
            )
        else:
            with monkeypatch.context() as here:
                here.chdir(cwd or tmp_path)
                done = _run_here(typed)
        if check and done.returncode:
            raise AssertionError(f"heptad {' '.join(typed)} failed:\n{done.stdout}\n{done.stderr}")
        return done

    return run


def _run_here(words: list[str]) -> subprocess.CompletedProcess[str]:
    from apps import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, which only say them once in a process
        try:
            code = cli.main(words)
        except SystemExit as end:  # --help
            code = int(end.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
