"""Identities that were never trained on, found by their pixels and by linear projections: what a network has to beat.

    python -m benchmarks.finegrained_open_set --root orl [--components 30 60 100]

Pictures are those of `heptad finegrained prep`, scored by the evaluation of `heptad finegrained test`. Rows
are grey pixels, PCA of the training pictures, and PCA with LDA of the training identities behind it (P. N. Belhumeur,
J. P. Hespanha, D. J. Kriegman, *Eigenfaces vs. Fisherfaces*, PAMI 1997); distances are cosines.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.finegrained.data import IdentityData
from domains.finegrained.retrieval import score_queries

Floats = NDArray[np.float64]


def read(data: IdentityData, split: str) -> tuple[Floats, pl.DataFrame]:
    """Grey pixels (N, H W) of a split, and its label, role and camera."""
    store = data.store(split)
    batch = data.finish(data.collate_for(store)(store.load(0)))
    pixels = batch["image"].mean(1).flatten(1).double().numpy()
    return pixels, pl.DataFrame({name: batch[name].numpy() for name in ("label", "role", "camera")})


def score(features: Floats, table: pl.DataFrame, *, ignore_camera: bool) -> tuple[float, float, float]:
    """Return mAP, rank-1 and mINP."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = table.with_columns(embedding=pl.Series(unit.astype(np.float32), dtype=pl.Array(pl.Float32, unit.shape[1])))
    scored = score_queries(rows, ignore_camera=ignore_camera)[0].drop_nulls("ap_mean")
    first = float((scored["first_rank"] == 1).mean())  # type: ignore[arg-type]
    return float(scored["ap_mean"].mean()), first, float(scored["inp"].mean())  # type: ignore[arg-type]


def main() -> None:
    """Print a Markdown table."""
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="prepared identities")
    parser.add_argument("--size", type=int, nargs=2, default=(56, 46), help="height and width (default: 56 46)")
    parser.add_argument("--components", type=int, nargs="+", default=[30, 60, 100], help="of PCA")
    parser.add_argument("--split", default="test", choices=["valid", "test"])
    options = parser.parse_args()
    data = IdentityData(options.root, image_size=tuple(options.size), augment=False, instances=0)
    known, labels = read(data, "train")
    pixels, table = read(data, options.split)
    rows: list[tuple[str, Any]] = [("pixels", pixels)]
    for count in options.components:
        projection = PCA(min(count, len(known) - 1), random_state=0).fit(known)
        fisher = LinearDiscriminantAnalysis().fit(projection.transform(known), labels["label"].to_numpy())
        rows += [(f"PCA ({count})", projection.transform(pixels))]
        rows += [(f"PCA ({count}) + LDA", fisher.transform(projection.transform(pixels)))]
    print("| features | mAP | rank-1 | mINP |\n|---|---|---|---|")
    for name, features in rows:
        found = score(features, table, ignore_camera=data.ignore_camera)
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found) + " |")


if __name__ == "__main__":
    main()
