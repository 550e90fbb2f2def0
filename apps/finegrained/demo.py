"""The demo: drawn birds that differ in a mark, and drawn figures seen by several cameras, from pictures to reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from apps.common.demo import Row, compare, interval, run_command, train_and_test
from data_prep.finegrained.planted import write_planted_classes, write_planted_identities
from domains.common.intervals import Estimate

PLAIN = ("--model.branches", "sa", "--model.pairwise", "false")


def demo(directory: Path) -> None:
    """Generate, prepare, train, test, explain and compare, by the commands that a user types.

    Args:
        directory: everything is written below it.
    """
    classes(directory / "classes")
    identities(directory / "identities")


def classes(directory: Path) -> None:
    """Birds whose classes differ in shape and colour of a mark: DCAL beside its plain backbone."""
    raw, prepared = directory / "raw", directory / "prepared"
    print("1. birds that differ in a mark: a folder for each class")
    if not (prepared / "dataset.json").is_file():
        made = write_planted_classes(raw, classes=6, per_class=80, size=48, mark=0.12)
        options = ["--ratios", "0.6,0.1,0.3", "--out", str(prepared)]
        run_command("finegrained", "prep", "folder", "--raw", str(made.images), *options)
    metrics = _both("classes", "demo", prepared, directory)
    print("3. where DCAL looks")
    run = directory / "classes"
    run_command("finegrained", "explain", "--run", str(run))
    hits, chance = marks_found(run, raw)
    rows: list[Row] = [
        {"model": title, "accuracy": found["accuracy"].value, "95 % interval": interval(found["accuracy"])}
        for title, found in metrics.items()
    ]
    compare(
        directory,
        "Heptad demo: birds that differ in a mark",
        rows,
        "accuracy",
        f"Six classes, a sixth is chance. In {hits:.0%} of the pictures the mark lies on a patch that global-local"
        f" cross-attention asks from; of patches taken at random {chance:.0%} would hit it.",
        "classes",
    )


def identities(directory: Path) -> None:
    """Figures seen by three cameras; those of the test were never trained on."""
    raw, prepared = directory / "raw", directory / "prepared"
    print("\n1. figures seen by three cameras: a table of pictures, identities and cameras")
    if not (prepared / "dataset.json").is_file():
        made = write_planted_identities(raw, identities=120, cameras=3, per_camera=2, size=(64, 32))
        options = ["--valid-identities", "10", "--out", str(prepared)]
        run_command("finegrained", "prep", "csv", "--raw", str(raw), "--table", str(made.table), *options)
    metrics = _both("reid", "demo_reid", prepared, directory)
    print("3. where DCAL looks")
    run_command("finegrained", "explain", "--run", str(directory / "reid"))
    rows: list[Row] = [
        {
            "model": title,
            "mAP": found["mAP"].value,
            "rank-1": found["rank1"].value,
            "95 % interval": interval(found["mAP"]),
        }
        for title, found in metrics.items()
    ]
    compare(
        directory,
        "Heptad demo: figures seen by three cameras",
        rows,
        "mAP",
        "Figures that were never trained on are searched in the pictures of the other cameras.",
        "reid",
    )


def _both(system: str, config: str, prepared: Path, directory: Path) -> Mapping[str, dict[str, Estimate]]:
    """Metrics of DCAL and of its backbone alone."""
    found = train_and_test("finegrained", {"DCAL": (system, config)}, prepared, directory)
    alone = {"plain backbone": (system, config)}
    return found | train_and_test("finegrained", alone, prepared, directory / "plain", *PLAIN)


def marks_found(run: Path, raw: Path) -> tuple[float, float]:
    """Share of pictures whose mark lies on a selected patch, and the share of patches that are selected.

    Args:
        run: folder that `explain` wrote rollout.npz into.
        raw: folder of the planted pictures, with marks.csv.
    """
    names = pl.read_parquet(run / "attention.parquet").select("row", "name")
    marks = pl.read_csv(raw / "marks.csv").with_columns(name=pl.col("image").str.strip_prefix("images/"))
    with np.load(run / "rollout.npz", allow_pickle=False) as stored:
        rows, selected = stored["row"], stored["selected"]
    placed = names.join(marks, on="name", how="left", maintain_order="left")
    if not np.array_equal(placed["row"].to_numpy(), rows):
        raise ValueError(f"{run}: attention.parquet and rollout.npz are of different pictures")
    side = 48 / selected.shape[1]  # the test cuts out the middle of a picture that is enlarged a little
    scale = 51 / 48
    x, y = ((placed[axis].to_numpy() * scale - 1.5) / side for axis in ("x", "y"))
    limit = selected.shape[1] - 1
    across, down = (np.clip(values.astype(np.int64), 0, limit) for values in (x, y))
    return float(selected[np.arange(len(rows)), down, across].mean()), float(selected.mean())
