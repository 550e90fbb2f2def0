"""The demo: generated slides and X-rays with planted lesions, from the raw files to the reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from apps.common.demo import Row, compare, interval, run_command, train_and_test
from data_prep.medical.wsi.planted_slides import PlantedSlides, write_planted_slides
from data_prep.medical.xray.planted import write_planted_xrays
from domains.common.curves import Ranking, auroc
from domains.common.intervals import Estimate

SLIDE_SYSTEMS = {"ACMIL": ("acmil", "demo"), "mean pooling": ("pooling", "demo_pooling")}
XRAY_SYSTEMS = {"MEDUSA": ("medusa", "demo_medusa")}


def demo(directory: Path) -> None:
    """Generate, prepare, train, test, explain and compare, by the commands that a user types.

    Args:
        directory: everything is written below it.
    """
    slides(directory / "slides")
    xrays(directory / "xrays")


def slides(directory: Path) -> None:
    """Slides with planted lesions: patches, features, ACMIL beside mean pooling, heat maps."""
    raw, prepared = directory / "raw", directory / "prepared"
    print("1. slides with small planted lesions: patches, features, bags")
    if not (prepared / "dataset.json").is_file():
        made = write_planted_slides(raw)
        encoder = ["--encoder", "resnet18", "--weights", "random", "--image-size", "64"]
        # generated sections are small, and many patients are tested
        options = ["--mpp", "0.5", "--patch-size", "64", "--a-t", "1", "--min-tissue", "0.3"]
        options += ["--ratios", "0.5", "0.1", "0.4"]
        table = ["--table", str(made.table), "--out", str(prepared)]
        run_command("medical", "prep", "slides", "--raw", str(made.slides), *table, *encoder, *options)
    metrics = train_and_test("medical", SLIDE_SYSTEMS, prepared, directory)
    print("3. what ACMIL looks at")
    run = directory / "acmil"
    run_command("medical", "explain", "--run", str(run))
    chosen = _surest(run)
    maps = [
        "--attention",
        str(run),
        "--slides",
        str(raw / "slides"),
        "--out",
        str(run / "heatmaps"),
        "--slide",
        *chosen,
    ]
    run_command("medical", "heatmap", *maps)
    planted = PlantedSlides(raw / "slides", raw / "slides.csv", raw / "lesions.csv")
    rows = [_row(title, found) for title, found in metrics.items()]
    for row, (system, _) in zip(rows, SLIDE_SYSTEMS.values(), strict=True):
        row["lesions found"] = lesion_auroc(directory / system, planted)
    compare(
        directory,
        "Heptad demo: slides with planted lesions",
        rows,
        "AUROC",
        "Lesions found: AUROC of the attention of patches inside planted lesions against the others of the same slide;"
        " 0.5 is chance. Lesions cover a few patches of a slide, which the mean over all of them hides.",
        "acmil",
    )


def xrays(directory: Path) -> None:
    """Chest X-rays with planted opacities: lung segmentation, then MEDUSA."""
    raw, prepared = directory / "raw", directory / "prepared"
    print("\n1. chest X-rays with planted opacities: DICOM and PNG, lung masks")
    if not (prepared / "dataset.json").is_file():
        made = write_planted_xrays(raw, patients=200)
        tables = ["--table", str(made.table), "--masks", str(made.masks), "--out", str(prepared)]
        options = ["--positive", "opacity", "--ratios", "0.6,0.15,0.25"]
        run_command("medical", "prep", "images", "--raw", str(made.images), *tables, *options)
    train_and_test("medical", {"body on lungs": ("medusa-body", "demo_medusa_body")}, prepared, directory)
    body = ["--model.body_weights", str(directory / "medusa-body" / "model")]
    metrics = train_and_test("medical", XRAY_SYSTEMS, prepared, directory, *body)
    print("3. where MEDUSA opens its gates")
    run_command("medical", "explain", "--run", str(directory / "medusa"))
    compare(
        directory,
        "Heptad demo: chest X-rays with planted opacities",
        [_row(title, found) for title, found in metrics.items()],
        "AUROC",
        "The body learned the lungs first; then the whole network learned the opacities.",
        "medusa",
    )


def lesion_auroc(run: Path, planted: PlantedSlides) -> float:
    """Mean over slides with lesions of the AUROC of their patches' attention: inside a lesion against outside."""
    lesions = pl.read_csv(planted.lesions)
    found = []
    for (slide,), spots in lesions.group_by("slide_id", maintain_order=True):
        path = run / "attention" / f"{slide}.parquet"
        if not path.is_file():
            continue
        patches = pl.read_parquet(path)
        middle = patches.select(pl.col("x", "y") + pl.col("size") / 2).to_numpy()
        distance = np.linalg.norm(middle[:, None] - spots.select("x", "y").to_numpy()[None], axis=2)
        inside = (distance < spots["radius"].to_numpy() + patches["size"][0] / 4).any(axis=1)
        if inside.any() and not inside.all():
            found.append(auroc(*Ranking(inside, patches["attention"].to_numpy()).counts(np.ones(len(inside)))))
    return float(np.mean(found))


def _surest(run: Path) -> list[str]:
    """Two test slides with and one without a lesion, those the model is surest of."""
    table = pl.read_parquet(run / "predictions.parquet").sort("probability_1", maintain_order=True)
    return [*table["name"].tail(2), table["name"][0]]


def _row(title: str, metrics: dict[str, Estimate]) -> Row:
    area, accuracy = metrics["auroc"], metrics["balanced_accuracy"]
    return {"model": title, "AUROC": area.value, "95 % interval": interval(area), "balanced acc.": accuracy.value}
