"""Tiling of a huge slide in bounded memory, and the speed of reading its patches, beside other programs.

    python -m benchmarks.medical_tiling [--peer-python PEERS] [--side 40000]

The slide is generated: a pyramidal TIFF of 40,000 x 40,000 pixels, JPEG tiles of 512, tissue within an ellipse, 0.25 um
per pixel. Patches of 256 pixels at 0.5 um: 512 pixels of level 0, averaged.

First `heptad medical patch` finds the tissue, tiles it, and decodes every patch in two processes, once to look for
white ones (`--max-white 0.9`) and once to write them as files (`--images png`); memory is the most that all its
processes together had resident, looked at every 50 ms (what they share counts in each).
Then the same patches are read as RGB arrays in turns by what `heptad medical features` reads with (threads ahead of the
encoder), by TIAToolbox (`WSIReader.read_rect`) and by a loop over OpenSlide and Pillow, a process each. Speeds are
medians over rounds. `benchmarks/peers/README.md` tells how to make the peer's interpreter.
"""

from __future__ import annotations

import argparse
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.competitors import Competitor, Entry, add_options, take_turns
from benchmarks.peers.tiles import THIN, Setting, choose
from benchmarks.peers.worker import Step, Work
from data_prep.medical.wsi.patches.coords import PatchGrid, read_coords
from data_prep.medical.wsi.slides.read_ahead import Handles, read_batches

ROOT = Path(__file__).resolve().parents[1]
BATCH = 64


def build_ours(setting: Setting) -> Step:
    """Return a step that reads patches in batches, as the extraction of features does."""
    coords, handles = np.load(setting.coords), Handles(Path(setting.slide))

    def step(i: int) -> Work:
        chosen = choose(coords, setting.count, i)
        grid = PatchGrid("", chosen, float(setting.size_level0), setting.size, setting.mpp, 0, 0)
        total, count = 0.0, 0
        for batch in read_batches(handles, grid, setting.size, BATCH, setting.threads):
            if batch.bad:
                raise ValueError(f"patches {sorted(batch.bad)} cannot be read")
            looked = batch.images[:, ::THIN, ::THIN]
            total, count = total + float(looked.mean()) * len(looked), count + len(looked)
        return Work({"patches": count}, {"mean": total / count})

    return step


def tile(slide: Path, out: Path, workers: int, *option: str) -> str:
    """Run `heptad medical patch`; return the row of its table."""
    words = ["--raw", str(slide), "--out", str(out), "--mpp", "0.5", "--patch-size", "256", *option]
    command = [sys.executable, "-m", "apps.cli", "medical", "patch", *words, "--workers", str(workers)]
    before, start, most = os.times(), time.perf_counter(), 0.0
    with subprocess.Popen([*command, "--progress", "false"], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max(most, resident_mib(process.pid))
            time.sleep(0.05)
    wall, after = time.perf_counter() - start, os.times()
    if process.returncode:
        raise RuntimeError(f"heptad medical patch ended with status {process.returncode}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    patches = len(read_coords(next((out / "patches").glob("*.h5"))).coords)
    times = f"{wall:.1f} | {cpu:.1f} | {cpu / wall:.2f} | {patches / cpu:,.0f}"
    return f"| `{' '.join(option)}` | {patches:,} | {times} | {most:,.0f} |"


def resident_mib(pid: int) -> float:
    """Resident memory of a process and all that descend from it."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                total = int(line.split()[1])
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = {child for task in tasks for child in (task / "children").read_text().split()}
    except OSError:  # it has just ended
        return total / 1024
    return total / 1024 + sum(resident_mib(int(child)) for child in children)


def compare(slide: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """Let the readers take turns; return the rows of their table."""
    grid = read_coords(next((out / "patches").glob("*.h5")))
    np.save(out.parent / "coords.npy", grid.coords)
    places = (str(slide), str(out.parent / "coords.npy"), int(grid.size_level0), grid.size, 0.5, options.count)
    entries = [
        Entry(f"heptad, {threads} thread(s)", sys.executable, "benchmarks.medical_tiling:build_ours", setting)
        for threads in (2, 1)
        for setting in (Setting(*places, threads),)
    ]
    alone = Setting(*places, 1)
    entries.append(Entry("OpenSlide and Pillow", sys.executable, "benchmarks.peers.tiling_openslide:build", alone))
    if options.peer_python:
        target = "benchmarks.peers.tiling_tiatoolbox:build"
        entries.append(Entry("TIAToolbox", options.peer_python, target, alone))
    found = take_turns(entries, options)
    return [_row(competitor, found[0]) for competitor in found]


def _row(competitor: Competitor, ours: Competitor) -> str:
    pairs = list(zip(competitor.answers, ours.answers, strict=True))
    ratios = {kind: statistics.median(theirs[kind] / mine[kind] for theirs, mine in pairs) for kind in ("wall", "cpu")}
    speeds = {kind: statistics.median(a["counts"]["patches"] / a[kind] for a in competitor.answers) for kind in ratios}
    return (
        f"| {competitor.entry.name} | {speeds['wall']:,.0f} | {speeds['cpu']:,.0f} | {ratios['wall']:.2f} "
        f"| {ratios['cpu']:.2f} | {competitor.peak_mib:,.0f} | {competitor.losses['mean']:.2f} |"
    )


def main() -> None:
    """Print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter which has TIAToolbox installed; without it that is left out")
    parser.add_argument("--side", type=int, default=40_000, help="pixels (default: %(default)s)")
    parser.add_argument("--count", type=int, default=512, help="patches read in a step (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that tile (default: %(default)s)")
    add_options(parser, repeats=5, steps=1)
    options = parser.parse_args()
    make = runpy.run_path(str(ROOT / "tests" / "data" / "medical" / "make_slides.py"))
    with tempfile.TemporaryDirectory() as folder:
        slide = make["write_huge"](Path(folder) / "huge.tif", options.side)
        print("| option | patches | wall s | CPU-s | cores | patches per CPU-s | peak MiB of all processes |")
        print("|---|---|---|---|---|---|---|")
        for name, *option in (("tiles", "--max-white", "0.9"), ("pictures", "--images", "png")):
            print(tile(slide, Path(folder) / name, options.workers, *option), flush=True)
        print("\n| reader | patches per s | per CPU-s | ours to theirs, wall | CPU | peak MiB | mean of the pixels |")
        print("|---|---|---|---|---|---|---|")
        print("\n".join(compare(slide, Path(folder) / "tiles", options)))


if __name__ == "__main__":
    main()
