"""What an AutoInt attends to and what its predictions depend on (Song et al., 2019, section 5.4)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.attention import record
from domains.common.figures import Picture, bars, heat_map
from domains.common.intervals import group_bootstrap
from domains.common.loader import Batch
from domains.common.writing import write_whole
from domains.ctr.autoint import AutoInt
from domains.ctr.data import ClickData
from domains.ctr.evaluation import weighted_auc
from domains.ctr.module import ClickModule

SHOWN_PAIRS = 20


@dataclass(frozen=True)
class AttentionMaps:
    """Attention over a data set: the mean, and the maps of single rows.

    Shape:
        mean (L, H, M, M); rows: row number of a click -> (probability, (L, M, M) averaged over heads).
    """

    fields: list[str]
    mean: NDArray[np.float64]
    rows: dict[int, tuple[float, NDArray[np.float64]]]


def explain(
    module: ClickModule, data: ClickData, directory: Path, rows: int = 20_000, samples: int = 2
) -> list[Picture]:
    """Write attention.json, interactions.csv and importance.csv, and draw them.

    Args:
        module: trained.
        data: prepared log; its test split is explained.
        directory: where the files go.
        rows: how many rows of the split to use, from its beginning.
        samples: how many of the clicks with the highest and with the lowest probability to draw.
    """
    batches = list(_first(data.test_dataloader(), rows))
    pictures = []
    importance = permutation_importance(module, batches, data.layout.names, seed=data.seed)
    importance.write_csv(directory / "importance.csv")
    errors = np.stack([importance["drop"] - importance["low"], importance["high"] - importance["drop"]]).clip(0)
    figure = bars(importance["drop"].to_list(), importance["field"].to_list(), label="loss of AUC", errors=errors)
    caption = "AUC lost when one field is shuffled between rows, all else as it was; bars are 95 % intervals."
    pictures.append(Picture("Importance of each field", caption, figure))
    if not isinstance(module.net, AutoInt) or not module.net.blocks:
        return pictures

    maps = attention_maps(module, batches, samples)
    write_whole(directory / "attention.json", _as_json(maps))
    pairs = top_interactions(maps)
    pairs.write_csv(directory / "interactions.csv")
    caption = "Row attends to column; mean over rows of the data, layers and heads. Uniform attention would be 1/M."
    mean = heat_map(maps.mean.mean(axis=(0, 1)), maps.fields, label="attention")
    shown = pairs.head(SHOWN_PAIRS)
    names = [f"{a} & {b}" for a, b in shown.select("field", "other").iter_rows()]
    strongest = bars(shown["attention"].to_list(), names, label="mean attention, both directions")
    pictures += [
        Picture("Attention between fields", caption, mean),
        Picture("Strongest interactions", "Pairs of different fields, averaged over layers and heads.", strongest),
    ]
    half = len(maps.rows) // 2
    for place, (row, (probability, matrix)) in enumerate(maps.rows.items()):
        title = f"A click {'missed' if place < half else 'found'}: row {row}, predicted {probability:.3f}"
        figure = heat_map(matrix.mean(axis=0), maps.fields, label="attention")
        pictures.append(Picture(title, "Attention inside this one row, mean over layers and heads.", figure))
    return pictures


@torch.no_grad()
def attention_maps(module: ClickModule, batches: Iterable[Batch], samples: int) -> AttentionMaps:
    """Average the attention of every layer and head over the data; keep the maps of a few best and worst clicks."""
    net = module.net
    if not isinstance(net, AutoInt):
        raise TypeError(f"{type(net).__name__} has no attention")
    module.eval()
    total: Tensor | None = None
    seen = 0
    kept: list[tuple[float, int, NDArray[np.float64]]] = []
    for batch in batches:
        with record(net) as recorded:
            probabilities = module(batch).sigmoid()
        weights = torch.stack(
            [torch.cat(recorded[f"blocks.{i}"]) for i in range(len(net.blocks))], dim=1
        )  # (B, L, H, M, M)
        summed = weights.double().sum(dim=0)
        total = summed if total is None else total + summed
        seen += len(weights)
        clicks = batch["label"].nonzero().squeeze(1)
        order = clicks[probabilities[clicks].argsort()]
        kept += [
            (float(probabilities[i]), int(batch["row"][i]), weights[i].mean(dim=1).double().numpy())
            for i in {*order[:samples].tolist(), *order[-samples:].tolist()}
        ]
        kept.sort(key=lambda item: item[:2])
        if len(kept) > 2 * samples:
            kept = kept[:samples] + kept[-samples:]
    if total is None:
        raise ValueError("no rows to explain")
    fields = [net.layout.names[i] for i in net.attended]
    rows = {row: (probability, matrix) for probability, row, matrix in kept}
    return AttentionMaps(fields, (total / seen).numpy(), rows)


def top_interactions(maps: AttentionMaps) -> pl.DataFrame:
    """Pairs of different fields by mean attention in both directions: columns `field`, `other`, `attention`."""
    mean = maps.mean.mean(axis=(0, 1))
    both = (mean + mean.T) / 2
    a, b = np.triu_indices(len(maps.fields), k=1)
    table = pl.DataFrame(
        {"field": [maps.fields[i] for i in a], "other": [maps.fields[i] for i in b], "attention": both[a, b]}
    )
    return table.sort("attention", descending=True, maintain_order=True)


@torch.no_grad()
def permutation_importance(module: ClickModule, batches: list[Batch], names: list[str], *, seed: int) -> pl.DataFrame:
    """AUC lost when a field's column is shuffled between rows (Breiman, 2001), with paired bootstrap intervals.

    Returns:
        Columns `field`, `drop`, `low`, `high`; most important first.
    """
    module.eval()
    labels = torch.cat([batch["label"] for batch in batches]).double().numpy()
    groups = torch.cat([batch["group"] for batch in batches]).numpy() if "group" in batches[0] else None
    ids = torch.cat([batch["ids"] for batch in batches])
    values = torch.cat([batch["values"] for batch in batches])
    owner = batches[0].get("slot_field", torch.arange(ids.shape[1]))
    size = len(batches[0]["ids"])

    def scores(ids: Tensor, values: Tensor) -> NDArray[np.float64]:
        parts = zip(torch.split(ids, size), torch.split(values, size), strict=True)
        return np.concatenate(
            [module({"ids": i, "values": v, **_slots(batches[0])}).double().numpy() for i, v in parts]
        )

    base = weighted_auc(labels, scores(ids, values))
    generator = torch.Generator().manual_seed(seed)
    drops = {}
    for position, name in enumerate(names):
        columns = (owner == position).nonzero().squeeze(1)
        order = torch.randperm(len(ids), generator=generator)
        mixed_ids, mixed_values = ids.clone(), values.clone()
        mixed_ids[:, columns], mixed_values[:, columns] = ids[order][:, columns], values[order][:, columns]
        shuffled = weighted_auc(labels, scores(mixed_ids, mixed_values))
        drops[name] = lambda weights, shuffled=shuffled: base(weights) - shuffled(weights)
    estimates = group_bootstrap(drops, len(labels), groups, replicates=100, seed=seed)
    table = pl.DataFrame(
        [{"field": name, "drop": e.value, "low": e.low, "high": e.high} for name, e in estimates.items()]
    )
    return table.sort("drop", descending=True, maintain_order=True)


def _slots(batch: Batch) -> dict[str, Tensor]:
    return {"slot_field": batch["slot_field"]} if "slot_field" in batch else {}


def _first(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch["ids"])
        if seen >= rows:
            return


def _as_json(maps: AttentionMaps) -> bytes:
    content: dict[str, Any] = {
        "fields": maps.fields,
        "axes": ["layer", "head", "query field", "key field"],
        "mean": maps.mean.round(6).tolist(),
        "rows": [
            {"row": row, "probability": probability, "attention": matrix.round(6).tolist()}
            for row, (probability, matrix) in maps.rows.items()
        ],
    }
    return json.dumps(content).encode()
