"""A slide of 40,000 x 40,000 pixels: memory is bounded, and one slide is work for several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.medical.wsi.patches.coords import read_coords
from tests.data.medical import make_slides as make

WORKER = """
import json, resource, sys
from pathlib import Path
from data_prep.medical.wsi.patches.patch import patch
if __name__ == "__main__":
    raw, out, options = sys.argv[1:]
    patch(Path(raw), Path(out), workers=2, progress=False, **json.loads(options))
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"megabytes": [peak / 1024 for peak in peaks]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("downsamples", "options", "busy"),
    [((1, 4, 16, 64), {}, 1), ((1, 4, 16, 64), {"max_white": 0.8}, 2), ((1, 4), {}, 1), ((1,), {}, 2)],
)
def test_memory_of_a_huge_slide(
    tmp_path: Path, downsamples: tuple[int, ...], options: dict[str, float], busy: int
) -> None:
    """`busy`: how many workers have work at the same time."""
    raw = make.write_huge(tmp_path / "huge.tif", downsamples=downsamples)
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, tmp_path / "worker.py", raw, tmp_path / "out", json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=True)
    own, child = json.loads(done.stdout.splitlines()[-1])["megabytes"]
    assert own + busy * child < 1000, (own, child)
    grid = read_coords(tmp_path / "out" / "patches" / "huge.h5")
    assert grid.size_level0 == 512 and 2700 < len(grid.coords) < 3200
