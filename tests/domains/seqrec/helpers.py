"""Prepared directories made by hand, and batches without any."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.common.loader import Batch
from domains.seqrec.packing import Layout, lay_out
from domains.seqrec.transitions import TransitionMatrix, count_transitions


def random_histories(users: int, items: int, longest: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(items, size=generator.integers(1, longest + 1)).tolist() for _ in range(users)]


def write_prepared(root: Path, histories: list[list[int]], n_items: int, parts: int = 2) -> Path:
    """Leave-one-out, as `heptad seqrec prep` writes it."""
    users = np.array_split(np.arange(len(histories)), parts)
    splits: dict[str, list[dict[str, object]]] = {"train": [], "valid": [], "test": []}
    sequences, rows = [], dict.fromkeys(splits, 0)
    for k, mine in enumerate(users):
        path = f"sequences/part-{k:05d}.parquet"
        chosen = [histories[user] for user in mine]
        _write(root / path, {"user": mine.astype(np.int32), "items": pl.Series(chosen, dtype=pl.List(pl.Int32))})
        sequences.append({"path": path, "rows": len(mine), "events": sum(map(len, chosen))})
        for split, entries in splits.items():
            wanted = 3 if split != "train" else 2
            places = [i for i, items in enumerate(chosen) if len(items) >= wanted]
            sizes = np.asarray([len(chosen[i]) for i in places], dtype=np.int64)
            train_end = np.where(sizes >= 3, sizes - 2, sizes)
            end = {"train": train_end, "valid": sizes - 2, "test": sizes - 1}[split]
            path = f"{split}/part-{k:05d}.parquet"
            columns = {
                "row": np.arange(len(places)) + rows[split],
                "user": mine[places].astype(np.int32),
                "sequence": np.asarray(places, dtype=np.int32),
                "train_end": train_end.astype(np.int32),
                "end": end.astype(np.int32),
            }
            kept = train_end >= 2 if split == "train" else np.ones(len(places), dtype=bool)
            columns = {name: column[kept] for name, column in columns.items()}
            _write(root / path, columns)
            entries.append({"path": path, "rows": int(kept.sum())})
            rows[split] += int(kept.sum())
    training = np.bincount(
        np.concatenate([h[: len(h) - 2 if len(h) >= 3 else len(h)] for h in histories]).astype(int), minlength=n_items
    )
    tokens = [f"item-{i}" for i in range(n_items)]
    _write(root / "items.parquet", {"item": np.arange(n_items, dtype=np.int32), "token": tokens, "count": training})
    _write(
        root / "users.parquet",
        {
            "user": np.arange(len(histories), dtype=np.int32),
            "token": [f"user-{i}" for i in range(len(histories))],
            "events": np.asarray([len(h) for h in histories], dtype=np.int32),
        },
    )
    card = {
        "format": "heptad/1",
        "domain": "seqrec",
        "name": "made by hand",
        "n_users": len(histories),
        "n_items": n_items,
        "sequences": {"parts": sequences},
        "splits": {split: {"rows": rows[split], "parts": entries} for split, entries in splits.items()},
    }
    (root / "dataset.json").write_text(json.dumps(card))
    return root


def _write(path: Path, columns: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(path)


def arranged(sequences: list[list[int]], n_items: int, max_len: int, *, packed: bool) -> tuple[Layout, np.ndarray]:
    lengths = np.asarray([len(sequence) for sequence in sequences])
    return lay_out(np.concatenate(sequences), lengths, max_len, n_items, packed=packed), lengths


def matrix(sequences: list[list[int]], n_items: int, span: int = 1) -> TransitionMatrix:
    items = np.concatenate(sequences).astype(np.int32)
    return count_transitions(items, np.asarray([len(s) for s in sequences]), n_items, span=span)


def dense_teacher(counts: Tensor, tau: float, teacher: str) -> Tensor:
    """The official dense rows."""
    norm = counts.max(1, keepdim=True).values if teacher == "row_max" else counts.sum(1, keepdim=True)
    return torch.softmax(counts / norm / tau, dim=1)


def training_batches(data: object) -> list[Batch]:
    return list(data.train_dataloader())  # type: ignore[attr-defined]
