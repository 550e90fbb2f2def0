"""Seizures against interictal segments of the Bonn set, five folds of whole blocks of files.

    python -m benchmarks.ieeg_bonn --bonn bonn.zip --folder WORK [--folds 0 1 2 3 4] [--seed 0]

Andrzejak et al. (2001): sets N and F (between seizures) and S (seizures), 300 segments of 23.6 s at 173.61 Hz. File
numbers are cut into five blocks of twenty, which stand for subjects: a segment, and all windows of it, are in one block
only. Three blocks train, one chooses the epoch, one is tested, in turn, by `heptad ieeg prep bonn`, `fit` and `test`. A
segment is called a seizure where the mean probability of its windows is above 1/2: no threshold is chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from benchmarks.ieeg_semireal import BLOCKS, QUIET, SILENT, heptad, write_split

SUBJECTS = [f"block-{block + 1:02d}" for block in range(BLOCKS)]
OPTIONS = "--version NFS --rate 173.61 --highpass 0 --lowpass 0 --notch none --reference none --duplicates report"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bonn", type=Path, required=True, help="zip file of the segments, or a folder of them")
    parser.add_argument("--folder", type=Path, required=True, help="where everything is written")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(BLOCKS)))
    parser.add_argument("--config", default="mvpformer_bonn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| fold | segments | accuracy | sensitivity | specificity | AUROC |")
    print("|---|---|---|---|---|---|")
    scores = np.array([run_fold(options.bonn, options.folder, options.config, f, options.seed) for f in options.folds])
    means = " | ".join(f"{value:.3f}" for value in scores.mean(axis=0)[1:])
    print(f"| mean | | **{scores.mean(axis=0)[0]:.3f}** | {means} |")


def run_fold(bonn: Path, folder: Path, config: str, fold: int, seed: int) -> tuple[float, float, float, float]:
    """Prepare (once), train and test a fold; print its row, return accuracy, sensitivity, specificity, AUROC."""
    prepared = folder / f"fold{fold}"
    if not (prepared / "dataset.json").exists():
        table = folder / f"fold{fold}.csv"
        write_split(table, SUBJECTS, fold)
        heptad("prep", "bonn", "--raw", bonn, "--out", prepared, "--split", table, *OPTIONS.split(), *SILENT)
    run = folder / f"{config}-{fold}-{seed}"
    if not (run / "metrics.json").exists():
        heptad("fit", "--config", config, "--data.root", prepared, "--run", run, "--seed_everything", seed, *QUIET)
        heptad("test", "--run", run, *QUIET, "--replicates", "200")
    windows = pl.read_parquet(run / "predictions.parquet")
    segments = windows.group_by("recording").agg(pl.col("probability_1").mean(), pl.col("label").max())
    called, true = segments["probability_1"].to_numpy() > 0.5, segments["label"].to_numpy() == 1
    accuracy, sensitivity, specificity = (called == true).mean(), called[true].mean(), (~called[~true]).mean()
    area = roc_auc_score(true, segments["probability_1"])
    measured = f"{accuracy:.3f} | {sensitivity:.3f} | {specificity:.3f} | {area:.3f}"
    print(f"| {fold} | {len(segments)} | {measured} |", flush=True)
    return float(accuracy), float(sensitivity), float(specificity), float(area)


if __name__ == "__main__":
    main()
