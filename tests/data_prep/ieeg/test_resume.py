"""The same bytes under any number of workers, whatever the parts, and after kill -9."""

from __future__ import annotations

import pytest

from data_prep.ieeg import tasks
from data_prep.ieeg.prepare import prepare
from tests.data_prep.helpers import kill_and_continue, tree
from tests.data_prep.ieeg.helpers import LOW, run, write_subjects

SCRIPT = """
import sys
from pathlib import Path
from data_prep.ieeg import tasks
from tests.data_prep.ieeg.helpers import run
if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), events=Path(sys.argv[1]) / "events.csv")
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_subjects(tmp_path_factory.mktemp("raw"), 4)


def test_two_processes_give_the_same_bytes(raw, tmp_path):
    run(raw, tmp_path / "serial", events=raw / "events.csv")
    prepare("edf", raw, tmp_path / "two", workers=2, progress=False, events=raw / "events.csv", **LOW)
    assert tree(tmp_path / "two") == tree(tmp_path / "serial")


def test_killed_again_and_again_gives_the_same_bytes(raw, tmp_path):
    run(raw, tmp_path / "whole", events=raw / "events.csv")
    out = tmp_path / "killed"
    found = kill_and_continue(tmp_path, SCRIPT, (raw, out), out, finished=(0, 2, 5, 7))
    assert found == tree(tmp_path / "whole")


def test_parts_join_without_a_seam(raw, tmp_path, monkeypatch):
    import h5py
    import numpy as np

    from data_prep.ieeg.signal import filters

    def values(out):
        paths = sorted((out / "recordings" / "pat0_night").iterdir())
        return len(paths), np.concatenate([h5py.File(path)["signal"][:] for path in paths], axis=1)

    run(raw, tmp_path / "one")
    monkeypatch.setattr(filters, "HOP_SECONDS", 16.0)
    monkeypatch.setattr(tasks, "PART_SECONDS", 16.0)
    run(raw, tmp_path / "many")
    (one, whole), (many, joined) = values(tmp_path / "one"), values(tmp_path / "many")
    assert one == 1 < many
    assert whole.shape == joined.shape
    assert np.abs(whole - joined).max() < 1e-3 * np.abs(whole).max()
