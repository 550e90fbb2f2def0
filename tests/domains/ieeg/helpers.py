"""A prepared directory of recordings made by hand, so that the domain is tested without the preparation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import polars as pl

RATE = 64.0
SPLITS = {"train": 3, "valid": 2, "test": 2}


def write_prepared(root: Path, seconds: int = 60, channels=(3, 3), seed: int = 0, parts: int = 2) -> Path:
    """Seven subjects with one recording each; a seizure of strong 6 Hz waves in the second half of each."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    events, table, splits = [], [], {}
    number = 0
    for split, count in SPLITS.items():
        rows = []
        for row in range(count):
            number += 1
            name, size = f"sub-{number:02d}", channels[number % len(channels)]
            samples = int(seconds * RATE)
            signal = rng.normal(0, 30, (size, samples)).astype(np.float32)
            onset, offset = seconds * 0.6, seconds * 0.6 + 15
            inside = slice(int(onset * RATE), int(offset * RATE))
            waves = 150 * np.sin(2 * np.pi * 6 * np.arange(samples) / RATE)
            signal[:, inside] += waves[inside].astype(np.float32)
            events.append((name, name, onset, offset, "seizure"))
            files, sizes = [], []
            for part, piece in enumerate(np.array_split(signal, parts, axis=1)):
                path = root / "recordings" / name / f"part-{part:05d}.h5"
                path.parent.mkdir(parents=True, exist_ok=True)
                with h5py.File(path, "w") as file:
                    file["signal"] = piece
                files.append(path.relative_to(root).as_posix())
                sizes.append(piece.shape[1])
            table += [(name, place, f"A{place + 1}", float(signal[place].var()), 3.0) for place in range(size)]
            rows.append((row, name, name, samples / RATE, samples, size, True, files, sizes))
        schema = {
            "row": pl.UInt32,
            "name": pl.String,
            "subject": pl.String,
            "duration": pl.Float64,
            "samples": pl.UInt64,
            "channels": pl.UInt32,
            "annotated": pl.Boolean,
            "files": pl.List(pl.String),
            "file_samples": pl.List(pl.UInt64),
        }
        path = root / split / "part-00000.parquet"
        path.parent.mkdir()
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        part = {"path": f"{split}/part-00000.parquet", "rows": count, "sha256": digest}
        splits[split] = {"rows": count, "parts": [part]}
    columns = ["recording", "subject", "onset", "offset", "label"]
    pl.DataFrame(events, schema=columns, orient="row").write_parquet(root / "events.parquet")
    columns = {"recording": pl.String, "position": pl.UInt32, "name": pl.String, "variance": pl.Float64}
    schema = columns | {"kurtosis": pl.Float64}
    pl.DataFrame(table, schema=schema, orient="row").write_parquet(root / "channels.parquet")
    card = {"format": "heptad/1", "domain": "ieeg", "kind": "recordings", "name": "by hand", "licence": "none"}
    card |= {"sampling_rate": RATE, "units": "uV", "group": {"name": "subject", "kept_apart": True, "groups": 7}}
    (root / "dataset.json").write_text(json.dumps(card | {"splits": splits, "rejects": {"count": 0, "share": 0.0}}))
    return root
