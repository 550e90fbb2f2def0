"""Heat map of one slide from stored attention: PNG and GeoJSON, beside drawing every patch by itself.

    python -m benchmarks.medical_heatmap [--patches 100000] [--max-side 2048]

The slide is generated: tissue of some irregular outline on a grid of 256 px, attention with a few hot spots, a
thumbnail of 2,048 px. `heptad` is the function behind `heptad medical heatmap`, called in a process that has imported
it: reading the attention, the picture with its colour bar, and the objects of the strongest 5 % for QuPath, written to
disk. `patch by patch` paints the same patches one after another into an array of the same size with OpenCV, as heat-map
scripts do, without colour bar, file, or objects. Times are the least of several runs, processor and wall clock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import polars as pl

from apps.medical.heatmap import heatmap, write_picture
from domains.medical.heatmap import canvas_shape, overlay
from domains.medical.slide_attention import read_attention, scale_attention

SIDE = 256
RUNS = 3


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--max-side", type=int, default=2048)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = write_slide(root, options.patches, options.max_side)

        def ours() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                heatmap(path, root / "out", thumbnails=root / "thumbnails", max_side=options.max_side, progress=False)

        print("| patches | contestant | processor s | wall s | PNG MiB | GeoJSON MiB |")
        print("|---|---|---|---|---|---|")
        print(f"| {options.patches:,} | heptad | {_times(ours)} | {_mib(root, 'png')} | {_mib(root, 'geojson')} |")
        print(f"| {options.patches:,} | patch by patch | {_times(lambda: one_by_one(path, options.max_side))} | | |")


def write_slide(root: Path, patches: int, max_side: int) -> Path:
    """Write attention and thumbnail of a generated slide; return the file of the attention."""
    rng = np.random.default_rng(0)
    side = int(np.sqrt(patches * 2.2))
    y, x = np.mgrid[:side, :side] / side - 0.5
    outline = np.hypot(x, 1.2 * y) + 0.05 * np.sin(9 * np.arctan2(y, x))
    inside = np.argsort(outline.ravel(), kind="stable")[:patches]
    rows, columns = np.sort(inside) // side, np.sort(inside) % side
    spots = rng.random((6, 2)) * side
    heat = sum(np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / (0.03 * side) ** 2) for r, c in spots)
    logits = 6 * np.asarray(heat) + rng.normal(size=patches)
    attention = np.exp(logits) / np.exp(logits).sum()
    table = {"x": columns * SIDE, "y": rows * SIDE, "size": np.full(patches, SIDE, dtype=np.float32)}
    frame = pl.DataFrame(table | {"attention": attention.astype(np.float32)})
    frame = frame.with_columns(width=pl.lit(side * SIDE, pl.Int64), height=pl.lit(side * SIDE, pl.Int64))
    path = root / "attention" / "slide.parquet"
    path.parent.mkdir()
    frame.write_parquet(path)
    ground = np.full((side, side, 3), 245, dtype=np.uint8)
    ground[rows, columns] = np.array([206, 150, 190]) + rng.integers(-20, 20, (patches, 3))
    (root / "thumbnails").mkdir()
    write_picture(root / "thumbnails" / "slide.png", np.asarray(cv2.resize(ground, (max_side, max_side)), np.uint8))
    return path


def one_by_one(path: Path, max_side: int) -> None:
    """Sum and count of each patch, painted one after another."""
    found = read_attention(path)
    shape = canvas_shape(found.width, found.height, max_side)
    values, shrink = scale_attention(found.attention, "rank"), shape[1] / found.width
    total, count = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for (x, y), size, value in zip(found.coords, found.sizes, values, strict=True):
        rows = slice(round(y * shrink), round((y + size) * shrink))
        columns = slice(round(x * shrink), round((x + size) * shrink))
        total[rows, columns] += value
        count[rows, columns] += 1
    under = np.full((*shape, 3), 255, dtype=np.uint8)
    overlay((total / np.maximum(count, 1)).astype(np.float32), count > 0, under, 0.5, "turbo")


def _times(run: Callable[[], None]) -> str:
    processor, wall = [], []
    for _ in range(RUNS):
        start = time.process_time(), time.perf_counter()
        run()
        processor.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return f"{min(processor):.2f} | {min(wall):.2f}"


def _mib(root: Path, ending: str) -> str:
    return f"{sum(path.stat().st_size for path in (root / 'out').glob(f'*.{ending}')) / 2**20:.1f}"


if __name__ == "__main__":
    main()
