"""Patches as TIAToolbox reads them: `WSIReader.read_rect` at a resolution, the call behind its patch extractors."""

from __future__ import annotations

from typing import Any

from tiatoolbox.wsicore.wsireader import WSIReader

from benchmarks.peers.tiles import Setting, one_by_one
from benchmarks.peers.worker import Step


def build(setting: Setting) -> Step:
    """Return the step."""
    reader = WSIReader.open(setting.slide)
    size = (setting.size, setting.size)

    def read(x: int, y: int) -> Any:
        return reader.read_rect((x, y), size, resolution=setting.mpp, units="mpp")

    return one_by_one(setting, read)
