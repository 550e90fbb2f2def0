"""Patches as scripts read them with OpenSlide alone: a region of the best level, converted and resized by Pillow."""

from __future__ import annotations

import numpy as np
import openslide
from PIL import Image

from benchmarks.peers.tiles import Setting, one_by_one
from benchmarks.peers.worker import Step


def build(setting: Setting) -> Step:
    """Return the step."""
    slide = openslide.OpenSlide(setting.slide)
    level = slide.get_best_level_for_downsample(setting.size_level0 / setting.size)
    side = round(setting.size_level0 / slide.level_downsamples[level])

    def read(x: int, y: int) -> np.ndarray:
        region = slide.read_region((x, y), level, (side, side)).convert("RGB")
        if side != setting.size:
            region = region.resize((setting.size, setting.size), Image.Resampling.BOX)
        return np.asarray(region)

    return one_by_one(setting, read)
