"""Generated slides with planted lesions: tissue on glass in the colours of haematoxylin and eosin, of no patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
import tifffile

Image = npt.NDArray[np.uint8]
GLASS, EOSIN, HAEMATOXYLIN = (244, 243, 245), (214, 120, 168), (112, 62, 140)
CLASSES, SITES = ("normal", "tumor"), ("north", "south")
CENTIMETER = 3  # unit of a TIFF's resolution
HOLE = 0.45  # of the radius of a piece
NUCLEI, DENSE = (0.6, 0.8), 0.38  # of 1, above which a random field is nucleus: in tissue, and in a lesion
STAIN = {"north": (1.0, 1.0, 1.0), "south": (0.92, 1.08, 0.96)}


class PlantedSlides(NamedTuple):
    """Generated slides, and what is known about them.

    Args:
        slides: folder of pyramidal TIFFs.
        table: CSV with patient_id, slide_id, label, site.
        lesions: CSV with slide_id, x, y, radius of each lesion in level-0 pixels.
    """

    slides: Path
    table: Path
    lesions: Path


def write_planted_slides(
    directory: Path, patients: int = 48, side: int = 1024, mpp: float = 0.5, seed: int = 0
) -> PlantedSlides:
    """Write one or two slides of each patient; the slides of every second patient have a lesion of dense nuclei.

    Args:
        directory: made if absent.
        patients: at least 4.
        side: height and width of a slide in pixels.
        mpp: micrometres per pixel, written as resolution tags.
        seed: of everything random.
    """
    made = PlantedSlides(directory / "slides", directory / "slides.csv", directory / "lesions.csv")
    made.slides.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows, lesions = [], []
    for patient in range(patients):
        label, site = CLASSES[patient % 2], SITES[patient // 2 % 2]
        for number in range(int(rng.integers(1, 3))):
            name = f"patient{patient:03d}.{number}"
            spots = _spots(rng, side) if label == "tumor" else []
            drawn = int(rng.integers(2**31))
            picture = draw_tissue(side, side, seed=drawn, pieces=1, spots=spots, stain=STAIN[site])
            write_slide(made.slides / f"{name}.tif", picture, mpp=mpp)
            rows.append((f"P{patient:03d}", name, label, site))
            lesions += [(name, *spot) for spot in spots]
    pl.DataFrame(rows, schema=["patient_id", "slide_id", "label", "site"], orient="row").write_csv(made.table)
    schema = {"slide_id": pl.String, "x": pl.Float64, "y": pl.Float64, "radius": pl.Float64}
    pl.DataFrame(lesions, schema=schema, orient="row").write_csv(made.lesions, float_precision=1)
    return made


def _spots(rng: np.random.Generator, side: int) -> list[tuple[float, float, float]]:
    """One or two small discs in the ring of tissue: x, y, radius."""
    found = []
    for _ in range(int(rng.integers(1, 3))):
        angle, far = rng.uniform(0, 2 * np.pi), side * rng.uniform(0.25, 0.29)
        found.append((side / 2 + far * np.cos(angle), side / 2 + far * np.sin(angle), side * rng.uniform(0.04, 0.065)))
    return found


def draw_tissue(
    width: int = 2048,
    height: int = 1536,
    seed: int = 0,
    pieces: int = 2,
    spots: list[tuple[float, float, float]] | None = None,
    stain: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Image:
    """Glass with ragged pieces of tissue in a row, each with a hole in it.

    Args:
        width: pixels.
        height: pixels.
        seed: of everything random.
        pieces: of tissue.
        spots: x, y, radius of lesions, in which nuclei are dense.
        stain: factor on red, green and blue of tissue, which differ between laboratories.

    Shape:
        (height, width, 3) uint8, RGB.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    span = width / max(pieces, 1)
    for piece in range(pieces):
        centre = np.array([span * (piece + 0.5), height / 2])
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        rough = 1 + 0.12 * np.sin(angles * rng.integers(3, 7) + rng.uniform(0, 6)) + 0.03 * rng.standard_normal(48)
        circle = np.stack([np.cos(angles) * span * 0.38, np.sin(angles) * height * 0.38], 1)
        cv2.fillPoly(mask, [np.rint(centre + circle * rough[:, None]).astype(np.int32)], 1)
        hole = np.rint(centre + circle * HOLE).astype(np.int32)
        cv2.fillPoly(mask, [hole], 0)
    coarse = rng.normal(0, 2.5, (height // 4 + 1, width // 4 + 1)).astype(np.float32)
    grain = np.asarray(cv2.resize(coarse, (width, height)))[..., None]
    # how dense nuclei are differs between slides: their mean tells little of a lesion
    bound = np.full((height, width), rng.uniform(*NUCLEI), np.float32)
    for x, y, radius in spots or []:
        cv2.circle(bound, (round(x), round(y)), round(radius), DENSE, thickness=-1)
    nuclei = cv2.resize(rng.random((height // 8 + 1, width // 8 + 1)).astype(np.float32), (width, height)) > bound
    ground = np.array(GLASS) * (1 - mask[..., None])
    picture = np.where(nuclei[..., None], HAEMATOXYLIN, EOSIN) * np.array(stain) * mask[..., None] + ground
    tissue: Image = np.clip(picture + grain, 0, 255).astype(np.uint8)
    return tissue


def write_slide(
    path: Path,
    picture: Image | None = None,
    *,
    downsamples: tuple[int, ...] = (1, 4, 16),
    mpp: float | None = 0.5,
    compression: str | None = "jpeg",
    tile: int = 256,
    description: str = "",
) -> Path:
    """Write a pyramidal tiled TIFF, which OpenSlide takes as `generic-tiff` or, by its description, as Aperio's.

    Args:
        path: file to write.
        picture: level 0; two pieces of tissue by default.
        downsamples: of the levels.
        mpp: written as resolution tags; None writes none.
        compression: "jpeg", "deflate" or None.
        tile: side of the tiles.
        description: of the first page.
    """
    picture = draw_tissue() if picture is None else picture
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tif:
        for number, downsample in enumerate(downsamples):
            size = (picture.shape[1] // downsample, picture.shape[0] // downsample)
            level = picture if downsample == 1 else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            tags: dict[str, Any] = {"subfiletype": int(number > 0), "metadata": None, "software": False}
            if mpp is not None:
                tags |= {"resolution": (1e4 / mpp / downsample,) * 2, "resolutionunit": CENTIMETER}
            if number == 0:
                tags["description"] = description
            tif.write(level, photometric="rgb", tile=(tile, tile), compression=compression, **tags)
    return path
