"""Commands without the libraries that they need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from data_prep.common.errors import MissingExtraError
from data_prep.common.extras import need
from tests.data_prep.helpers import ROOT

SCRIPT = """
import importlib, sys
from data_prep.common.errors import MissingExtraError
sys.modules[{missing!r}] = None  # as if it were not installed
for name in {modules!r}:
    try:
        importlib.import_module("data_prep.medical." + name)
    except MissingExtraError as error:
        print(name, error)
"""
READERS = ["wsi.patches.patch", "wsi.features.features", "wsi.features.repack", "wsi.prepare"]
BAGS = ["wsi.bags.bags", "wsi.bags.mil_csv", "wsi.bags.splitting", "apply"]


@pytest.mark.parametrize(
    ("missing", "failing"), [("h5py", READERS + BAGS), ("cv2", READERS), ("openslide", READERS), ("tifffile", READERS)]
)
def test_what_is_missing_is_named_with_its_extra(missing: str, failing: list[str]) -> None:
    script = SCRIPT.format(missing=missing, modules=READERS + BAGS)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == failing
    assert all(f"({missing})" in line and "pip install 'heptad[medical]'" in line for line in lines)


def test_the_first_missing_module_is_named() -> None:
    need("medical", "all of this", "json", "csv")
    with pytest.raises(MissingExtraError, match=r"^all of this \(no_such_module\) needs .*'heptad\[medical\]'"):
        need("medical", "all of this", "json", "no_such_module", "neither_this")
