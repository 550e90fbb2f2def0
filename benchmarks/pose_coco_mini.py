"""Group Pose learns a few images of COCO by heart: from JSON and JPEG to AP, by the shipped commands.

    python -m benchmarks.pose_coco_mini --raw COCO --folder WORK [--images 4] [--seeds 0]

COCO is laid out as downloaded (`annotations/person_keypoints_train2017.json`, `train2017/*.jpg`) with few images. The
training images are the test images, too: the number says whether preparation, network, losses, decoding and metric fit
together, and nothing about other images. So a data set is laid out with links, whose val2017 is its train2017; with
`--images` of the first of those images alone that show a labelled person.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import polars as pl

from benchmarks.pose_humaneva import heptad

NAMES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR")
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--folder", type=Path, required=True, help="where everything is written")
    parser.add_argument("--images", type=int, help="how many (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--config", default="grouppose_coco_mini")
    options = parser.parse_args()
    prepared = options.folder / "prepared"
    if not (prepared / "dataset.json").exists():
        raw = lay_out(options.raw, options.folder / "raw", options.images)
        heptad("prep", "coco", "--raw", raw, "--out", prepared, "--progress", "false")
    print(f"| configuration | seed | images | persons | CPU min | {' | '.join(NAMES)} |")
    print("|---" * (5 + len(NAMES)) + "|")
    for seed in options.seeds:
        print(run_seed(options.config, prepared, options.folder, seed), flush=True)


def lay_out(raw: Path, folder: Path, images: int | None = None) -> Path:
    """Lay out a data set whose validation images are its training images; return where.

    Args:
        raw: the data set.
        folder: where; images are links.
        images: of the first images that show a labelled person, so many; default all images.
    """
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    content = json.loads((raw / "annotations" / "person_keypoints_train2017.json").read_text(encoding="utf-8"))
    if images is not None:
        shown = sorted({entry["image_id"] for entry in content["annotations"] if entry["num_keypoints"]})[:images]
        content["images"] = [entry for entry in content["images"] if entry["id"] in shown]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in shown]
    for split in ("train2017", "val2017"):
        written = folder / "annotations" / f"person_keypoints_{split}.json"
        written.write_text(json.dumps(content), encoding="utf-8")
        (folder / split).mkdir(exist_ok=True)
        for entry in content["images"]:
            link = folder / split / entry["file_name"]
            if not link.is_symlink():
                link.symlink_to((raw / "train2017" / entry["file_name"]).resolve())
    return folder


def run_seed(config: str, prepared: Path, folder: Path, seed: int) -> str:
    """Train and test (once); return a row of the table."""
    run = folder / f"{config}-{seed}"
    kept = run / "cpu_seconds.json"
    if not kept.exists():
        words = ("--config", config, "--data.root", prepared, "--run", run, "--seed_everything", seed)
        seconds = heptad("fit", *words, *QUIET)
        heptad("test", "--run", run, *QUIET, "--replicates", 200)
        kept.write_text(json.dumps(seconds), encoding="utf-8")
    minutes = json.loads(kept.read_text(encoding="utf-8")) / 60
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    persons = pl.concat([pl.read_parquet(path) for path in sorted((prepared / "train").glob("persons-*.parquet"))])
    images, labelled = persons["row"].n_unique(), len(persons.filter(~pl.col("crowd") & (pl.col("labelled") > 0)))
    numbers = " | ".join(f"{metrics[name]['value']:.3f}" for name in NAMES)
    return f"| `{config}` | {seed} | {images} | {labelled} | {minutes:.1f} | {numbers} |"


if __name__ == "__main__":
    main()
