"""Memory and time of training on huge bags, and how fast bags and images come, as `heptad medical fit` has them.

    python -m benchmarks.medical_bag                  # an epoch over bags of 200,000 x 1,024
    python -m benchmarks.medical_bag --input          # loaders beside the training step they feed

Bags are float16 in HDF5, images PNG files, generated and read by the data modules with their own defaults. An epoch is
one of the Trainer, on the processor. Memory is the peak (VmHWM) of the whole process, what the imports had taken in
brackets. Loaders and steps are timed one after the other, on one thread: per CPU-second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.competitors import Entry, measure
from benchmarks.medical_steps import Setting, write_bags, write_images

STEPS = "benchmarks.medical_steps"


def print_memory(folder: Path, options: argparse.Namespace) -> None:
    """Print a row for each attention."""
    root = write_bags(folder / "bags", options.bags, options.instances, options.features)
    print(
        "| attention | bags | instances | features | peak MiB | CPU-s of a bag | loss |\n|---|---|---|---|---|---|---|"
    )
    for attention in options.attention:
        setting = Setting(str(root), attention, options.dim)
        found = measure(Entry(attention, sys.executable, f"{STEPS}:build", setting), options)
        print(
            f"| {attention} | {options.bags} | {options.instances:,} | {options.features:,}/{options.dim} "
            f"| **{found['peak_mib']:,.0f}** ({found['imported_mib']:,.0f}) | {found['cpu'] / options.bags:.1f} "
            f"| {found['losses'][0]['total']:.3f} |",
            flush=True,
        )


def print_input(folder: Path, options: argparse.Namespace) -> None:
    """Print a row for each kind of data."""
    kinds: dict[str, tuple[Callable[[], Path], str, int]] = {
        "bags, 20,000 x 1,024, float16": (lambda: write_bags(folder / "b", 8, 20_000, 1024), "gated", 512),
        "images, 28 px": (lambda: write_images(folder / "small", 2000, 28), "images", 28),
        "images, 1,024 px to 224": (lambda: write_images(folder / "large", 100, 1024), "images", 224),
    }
    print(
        "| data | read, per CPU-s | per s | trained, per CPU-s | model | read to trained |\n|---|---|---|---|---|---|"
    )
    for name, (write, attention, dim) in kinds.items():
        setting = Setting(str(write()), attention, dim)
        model = "medusa_tiny" if attention == "images" else "ACMIL_GA"
        read, train = (
            measure(Entry(name, sys.executable, f"{STEPS}:{build}", setting), options, warmup=1)
            for build in ("build_loader", "build_training")
        )
        speeds = [found["counts"]["rows"] / found["cpu"] for found in (read, train)]
        print(
            f"| {name} | {speeds[0]:,.1f} | {read['counts']['rows'] / read['wall']:,.1f} | {speeds[1]:,.1f} "
            f"| {model} | {speeds[0] / speeds[1]:.1f} |",
            flush=True,
        )


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", action="store_true", help="loaders beside training steps")
    parser.add_argument("--attention", nargs="+", default=["gated", "multi_head"], choices=["gated", "multi_head"])
    parser.add_argument("--bags", type=int, default=3)
    parser.add_argument("--instances", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (print_input if options.input else print_memory)(Path(folder), options)


if __name__ == "__main__":
    main()
