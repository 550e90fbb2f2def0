"""Small slides, coordinates and options that the tests of features share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import data_prep.medical.wsi.features.extract
import data_prep.medical.wsi.features.features
from data_prep.medical.wsi.features.features import features
from data_prep.medical.wsi.patches.coords import PatchGrid, write_coords
from data_prep.medical.wsi.slides.reader import open_slide
from tests.data.medical.make_slides import draw_tissue, write_slide

SIZE = 64  # pixels of a patch
# A tiny model of timm; seconds go into reading, not into arithmetic.
OPTIONS: dict[str, Any] = {"encoder": "test_resnet", "weights": "random", "image_size": SIZE, "batch_size": 10}
QUIET: dict[str, Any] = {"threads": 2, "progress": False}


def make_slide(folder: Path, name: str, side: int = 512, levels: tuple[int, ...] = (1, 2), seed: int = 0) -> Path:
    """A slide of 64 x 64 px tiles, so that each patch is one tile."""
    picture = draw_tissue(side, side, seed=seed, pieces=1)
    return write_slide(folder / f"{name}.tif", picture, downsamples=levels, tile=SIZE)


def tile_slide(slide: Path, folder: Path, rows: int | None = None) -> Path:
    """Coordinates of all tiles of a slide, column by column, or of the first ones."""
    name = slide.name.removesuffix(slide.suffix)
    with open_slide(slide) as opened:
        width, height = opened.width, opened.height
    coords = np.array([(x, y) for x in range(0, width, SIZE) for y in range(0, height, SIZE)], dtype=np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    write_coords(path, PatchGrid(name, coords[:rows].reshape(-1, 2), float(SIZE), SIZE, 0.5, width, height))
    return path


def make_cohort(folder: Path, names: tuple[str, ...] = ("a.1", "b.2", "c.3")) -> tuple[Path, Path]:
    """Folders of slides (64 tiles each) and of their coordinates (40, 31 and 22 patches)."""
    for number, name in enumerate(names):
        tile_slide(make_slide(folder / "slides", name, seed=number), folder / "patches", rows=40 - 9 * number)
    return folder / "slides", folder / "patches"


def run(patches: Path, slides: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Encode in this process."""
    return features(patches, slides, out, **{**OPTIONS, **QUIET, **options})


class MeanColours:
    """An encoder without torch, which takes seconds to import: for tests that start processes."""

    dim, image_size, mean, std = 3, SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __call__(self, images: Any) -> Any:
        return images.mean(axis=(1, 2)).astype(np.float32)


def load_mean_colours(*_: object) -> MeanColours:
    return MeanColours()


def forget_mean_colours() -> None:
    """As that of the loader that it replaces."""


def use_mean_colours() -> None:
    """From now on this process encodes by colours."""
    load_mean_colours.cache_clear = forget_mean_colours  # type: ignore[attr-defined]
    for module in (data_prep.medical.wsi.features.extract, data_prep.medical.wsi.features.features):
        module.load_encoder = load_mean_colours  # type: ignore[attr-defined]
    data_prep.medical.wsi.features.features.resolve_name = lambda name, _: name  # type: ignore[attr-defined]
