"""Prepared sequences made by hand, so that the domain is tested without the preparation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from domains.pose.layouts import HUMANEVA_15
from tests.data.pose.make_sequences import HUMANEVA_15 as SKELETON
from tests.data.pose.make_sequences import walk

SIZE, FOCAL = (640, 480), 700.0
WHO = {"train": ("S1", "S2"), "valid": ("S3",), "test": ("S4", "S5")}
SCHEMA = {
    **{"row": pl.UInt32, "name": pl.String, "subject": pl.String, "action": pl.String, "sequence": pl.String},
    **{"recording": pl.String, "camera": pl.String, "frames": pl.UInt32, "scored_frames": pl.UInt32},
    **{"fps": pl.Float64, "width": pl.UInt32, "height": pl.UInt32, "quaternion": pl.List(pl.Float64)},
    **dict.fromkeys(("translation", "focal", "centre", "radial", "tangential"), pl.List(pl.Float64)),
    **{"reprojection_pixels": pl.Float64, "files": pl.List(pl.String)},
}


def seen(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A pose (N, J, 3) with z up as a camera 4 m away sees it: metres in its axes, and pixels."""
    there = np.stack([pose[..., 0], 0.9 - pose[..., 2], pose[..., 1] + 4.0], axis=-1)
    pixels = there[..., :2] / there[..., 2:] * FOCAL + np.array(SIZE) / 2
    return there.astype(np.float32), pixels.astype(np.float32)


def write_prepared(root: Path, frames: int = 40, actions=("Walking", "Jog"), short: int = 3, fps: float = 50.0) -> Path:
    """Five subjects that walk in circles; one clip in each split has `short` frames."""
    splits = {}
    (root / "clips").mkdir(parents=True)
    for split, subjects in WHO.items():
        rows = []
        for subject in subjects:
            for number, action in enumerate(actions):
                count = short if subject == subjects[-1] and number == 1 else frames + number
                seed = 10 * int(subject[1]) + number
                pose, pixels = seen(walk(SKELETON, count, seed))
                file, known = f"clips/{subject}-{action}.safetensors", np.ones(pose.shape[:2], bool)
                arrays = {"keypoints_2d": pixels, "pose_3d": pose, "valid_2d": known, "valid_3d": known}
                save_file(arrays, root / file)
                name = f"{subject}/{action} 1"
                row = [len(rows), f"{name}/C1", subject, action, f"{action} 1", name, "C1", count, count, fps, *SIZE]
                rows.append([*row, None, None, [FOCAL] * 2, [320.0, 240.0], [0.0] * 3, [0.0] * 2, 0.0, [file]])
        path = root / split / "part-00000.parquet"
        path.parent.mkdir()
        pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        part = {"path": f"{split}/part-00000.parquet", "rows": len(rows), "sha256": digest}
        splits[split] = {"rows": len(rows), "parts": [part]}
    layout = {"name": HUMANEVA_15.name, "joints": list(HUMANEVA_15.joints), "parents": list(HUMANEVA_15.parents)}
    card = {"format": "heptad/1", "domain": "pose", "kind": "sequences", "name": "by hand", "licence": "none"}
    card |= {"layout": layout, "fps": [fps], "keypoints": "gt", "splits": splits}
    card |= {"group": {"name": "subject", "kept_apart": True, "groups": 5}, "rejects": {"count": 0, "share": 0.0}}
    (root / "dataset.json").write_text(json.dumps(card))
    return root
