"""Bags of patch features with planted lesions: it is known which patches make a slide positive."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.medical.wsi.features.native import write_features

SITES = ("north", "south")
CLASSES = ("normal", "tumor")
SIZE_LEVEL0, PATCH = 512, 256  # pixels: of a patch at level 0, and of its picture at 0.5 um/px
LESION, ARTEFACT, SITE = 3.0, 4.0, 1.0  # how far patches are moved, in standard deviations of the noise
F64 = npt.NDArray[np.float64]


class Planted(NamedTuple):
    """Generated bags, and what is known about them.

    Args:
        features: folder with a native feature file per slide.
        table: CSV with patient_id, slide_id, label, site.
        truth: Parquet with slide, x, y, lesion (bool): a row per patch.
    """

    features: Path
    table: Path
    truth: Path


def write_planted_bags(
    directory: Path, patients: int = 60, dim: int = 32, side: int = 14, share: float = 0.06, seed: int = 0
) -> Planted:
    """Write features of slides, one to three per patient, of two sites, half of the patients with a tumour.

    Patches are noise on a grid. In slides with a tumour a disc of patches, `share` of the tissue, is moved by `LESION`
    along one hidden direction. Slides of either label have an artefact, a disc moved farther along another direction,
    and each site moves all of its patches: what is largest in a slide, and the mean over it, tell little.

    Args:
        directory: made if absent.
        patients: at least 4.
        dim: features of a patch; at least 4.
        side: patches along the edge of the largest slide; at least 6.
        share: of the patches of a slide that are lesion.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    features = directory / "features"
    features.mkdir(parents=True, exist_ok=True)
    # Orthogonal: lesion, artefact and the two sites can be told apart.
    directions = np.linalg.qr(rng.standard_normal((dim, 4)))[0].T
    rows: list[dict[str, str]] = []
    truth: list[pl.DataFrame] = []
    for patient in range(patients):
        label, place = patient % 2, patient // 2 % 2
        for number in range(1 + int(rng.integers(3))):
            slide = f"{SITES[place]}-{patient:03d}.{number}"
            coords, disc, artefact = _tissue(rng, int(rng.integers(max(side - 4, 5), side + 1)), share)
            lesion = disc & (label == 1)
            x = rng.standard_normal((len(coords), dim)) + SITE * directions[2 + place]
            x += LESION * lesion[:, None] * directions[0] + ARTEFACT * artefact[:, None] * directions[1]
            edge = int(coords.max()) + SIZE_LEVEL0
            attributes = {
                "name": slide,
                "patch_size_level0": SIZE_LEVEL0,
                "patch_size": PATCH,
                "level0_width": edge,
                "level0_height": edge,
                "target_mpp": 0.5,
                "encoder": "planted",
            }
            write_features(features / f"{slide}.h5", x, coords, attributes, "float32")
            rows.append(
                {"patient_id": f"P{patient:03d}", "slide_id": slide, "label": CLASSES[label], "site": SITES[place]}
            )
            truth.append(pl.DataFrame({"slide": slide, "x": coords[:, 0], "y": coords[:, 1], "lesion": lesion}))
    planted = Planted(features, directory / "slides.csv", directory / "truth.parquet")
    pl.DataFrame(rows).write_csv(planted.table)
    pl.concat(truth).write_parquet(planted.truth)
    return planted


def _tissue(
    rng: np.random.Generator, side: int, share: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Places of a round section, and two discs of it that do not touch.

    Shape:
        -> coords (N, 2) int64 in level-0 pixels, (N,) bool, (N,) bool.
    """
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    middle = (side - 1) / 2
    inside = np.hypot(x - middle, y - middle) <= side / 2
    x, y = x[inside], y[inside]
    count = max(1, round(share * len(x)))
    first = int(rng.integers(len(x)))
    near = np.argsort(np.hypot(x - x[first], y - y[first]), kind="stable")
    disc, artefact = np.zeros((2, len(x)), dtype=bool)
    disc[near[:count]] = True
    artefact[near[-count:]] = True
    return np.stack([x, y], axis=1).astype(np.int64) * SIZE_LEVEL0, disc, artefact
