"""What Heptad does in the benchmark of bags and images: generated data sets, loaders, epochs of the trainer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import h5py
import numpy as np
import polars as pl

from benchmarks.peers.worker import Step, Work
from benchmarks.seqrec_steps import quiet_trainer
from domains.common.data import HeptadData
from domains.medical.data import BagData
from domains.medical.image_data import ImageData
from domains.medical.medusa_module import MEDUSAModule
from domains.medical.module import ACMILModule

CLASSES = ["negative", "positive"]


@dataclass(frozen=True)
class Setting:
    """What is trained on.

    Args:
        root: prepared directory.
        attention: gated or multi_head, of ACMIL; else images.
        dim: width behind the reduction.
    """

    root: str
    attention: str
    dim: int


def write_card(root: Path, kind: str, table: pl.DataFrame, **facts: Any) -> None:
    """Write index and `dataset.json` of a prepared directory."""
    (root / "train").mkdir(parents=True)
    table.write_parquet(root / "train" / "part-00000.parquet")
    parts = {"train": {"rows": len(table), "parts": [{"path": "train/part-00000.parquet", "rows": len(table)}]}}
    card = {"format": "heptad/1", "domain": "medical", "kind": kind, "classes": CLASSES, "splits": parts, **facts}
    (root / "dataset.json").write_text(json.dumps(card))


def write_bags(root: Path, bags: int, instances: int, feature_dim: int) -> Path:
    """Write a prepared directory of random bags."""
    (root / "bags").mkdir(parents=True)
    draw, names = np.random.default_rng(0), [f"slide-{i}" for i in range(bags)]
    for name in names:
        with h5py.File(root / "bags" / f"{name}.h5", "w") as file:
            stored = file.create_dataset("features", shape=(instances, feature_dim), dtype="float16")
            for start in range(0, instances, 8192):
                rows = min(8192, instances - start)
                stored[start : start + rows] = draw.standard_normal((rows, feature_dim), np.float32)
    columns: dict[str, Any] = {"row": np.arange(bags, dtype=np.uint64), "name": names, "patient": names}
    columns |= {"label": np.arange(bags, dtype=np.uint32) % 2, "patches": np.full(bags, instances, np.uint32)}
    columns |= {"file": [f"bags/{name}.h5" for name in names], "dataset": ["features"] * bags, "coords": [""] * bags}
    unknown = {name: pl.Series([None] * bags, dtype=pl.Float64) for name in ("size_level0", "width", "height")}
    write_card(root, "bags", pl.DataFrame(columns | unknown), feature_dim=feature_dim)
    return root


def write_images(root: Path, count: int, side: int) -> Path:
    """Write a prepared directory of generated grey images, smooth with some noise, as X-rays are."""
    (root / "images").mkdir(parents=True)
    draw, names = np.random.default_rng(0), [f"image-{i}" for i in range(count)]
    for name in names:
        coarse = draw.random((8, 8)).astype(np.float32) * 200
        picture = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC) + draw.normal(20, 3, (side, side))
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.clip(picture, 0, 255).astype(np.uint8))
    columns: dict[str, Any] = {"row": np.arange(count, dtype=np.uint64), "name": names, "patient": names}
    columns |= {"label": np.arange(count, dtype=np.uint32) % 2, "image": [f"images/{name}.png" for name in names]}
    write_card(root, "images", pl.DataFrame(columns), channels=1, group={"name": "patient", "kept_apart": True})
    return root


def build(setting: Setting) -> Step:
    """Return a step that is an epoch of the trainer over all bags."""
    data = BagData(setting.root)
    attention = cast(Literal["gated", "multi_head"], setting.attention)
    module = ACMILModule(CLASSES, data.feature_dim, dim=setting.dim, branch_attention=attention)
    return lambda _: _epoch(module, data)


def build_loader(setting: Setting) -> Step:
    """Return a step that reads all batches of an epoch and does nothing with them; nothing is kept in memory."""
    data = _data(setting)

    def step(_: int) -> Work:
        rows = sum(len(batch["row"]) for batch in data.train_dataloader())
        return Work({"rows": rows}, {})

    return step


def build_training(setting: Setting) -> Step:
    """Return a step that is an epoch of the trainer, after one that filled the memory of the loader."""
    if setting.attention != "images":
        return build(setting)
    data = ImageData(setting.root, side=setting.dim, gray_side=setting.dim)
    module = MEDUSAModule(CLASSES, side=setting.dim, gray_side=setting.dim, configuration="medusa_tiny")
    return lambda _: _epoch(module, data)


def _data(setting: Setting) -> HeptadData:
    if setting.attention == "images":
        return ImageData(setting.root, side=setting.dim, gray_side=setting.dim, cache_mb=0)
    return BagData(setting.root, cache_mb=0)


def _epoch(module: Any, data: HeptadData) -> Work:
    trainer = quiet_trainer(str(data.root))
    trainer.fit(module, data)
    rows = sum(data.store("train").sizes)
    return Work({"rows": rows}, {"total": float(trainer.callback_metrics["train/loss"])})
