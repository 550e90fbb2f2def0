"""A small prepared directory of X-ray-like images, written by hand in the layout that `heptad medical prep` has."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import polars as pl


def write_images(
    root: Path,
    rows: dict[str, int],
    *,
    side: int = 40,
    channels: int = 1,
    masks: bool = False,
    seed: int = 0,
    share: float = 0.5,
) -> Path:
    """Discs (class 1) or nothing (class 0) in noise; every fifth image has no mask; two images of each patient."""
    generator = np.random.default_rng(seed)
    splits = {}
    for split, count in rows.items():
        table = []
        for row in range(count):
            label = int(generator.random() < share)
            shape = (side, side + row % 3)
            pixels = generator.normal(90, 20, shape)
            y, x = generator.uniform(0.3, 0.7, 2) * side
            inside = np.hypot(*(np.indices(shape) - np.array([y, x])[:, None, None])) < side / 6
            pixels[inside] += 90 * label
            name = f"{split}-{row}"
            image = np.clip(pixels, 0, 255).astype(np.uint8)
            write_png(root / "images" / f"{name}.png", np.dstack([image] * 3) if channels == 3 else image)
            mask = f"masks/{name}.png" if masks and row % 5 != 4 else None
            if mask:
                write_png(root / mask, inside.astype(np.uint8) * 255)
            table.append(
                {
                    "row": row,
                    "name": f"{name}.png",
                    "patient": f"{split}-{row // 2}",
                    "label": label,
                    "source": "here" if row % 2 else None,
                    "view": "PA",
                    "image": f"images/{name}.png",
                    "mask": mask,
                    "width": shape[1],
                    "height": side,
                }
            )
        schema = {"row": pl.UInt64, "label": pl.UInt32, "mask": pl.String, "source": pl.String}
        frame = pl.DataFrame(table, schema_overrides=schema)
        path = root / split / "part-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path)
        part = {"path": f"{split}/part-00000.parquet", "rows": count, "sha256": ""}
        splits[split] = {"rows": count, "parts": [part]}
    card = {
        "format": "heptad/1",
        "domain": "medical",
        "kind": "images",
        "name": "discs",
        "classes": ["nothing", "disc"],
        "channels": channels,
        "group": {"name": "patient", "kept_apart": True},
        "splits": splits,
    }
    (root / "dataset.json").write_text(json.dumps(card))
    return root


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
