"""Frappe app-usage log (Baltrunas et al., 2015): each use is a positive; two negatives are sampled for each.

The usual protocol (Xiao et al., Attentional Factorization Machines, IJCAI 2017): a negative copies user and context
and takes an item drawn uniformly from those this user never used; random split 7:2:1 of all rows. The log is small
(96,203 uses), so the sampling holds it in memory. Rows are numbered after sampling: 3 k is use k, 3 k + 1 and 3 k + 2
are its negatives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.errors import ConfigError
from data_prep.common.rejects import to_frame
from data_prep.ctr.chunks import Chunk, check_columns, plan_source
from data_prep.ctr.locate import text_logs
from data_prep.ctr.read import RECORD, read_chunk
from data_prep.ctr.schema import Dataset, Label, Purpose, RawField, Schema, Sources, TextFormat

FIELDS = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
NEGATIVES = 2

SCHEMA = Schema(
    name="frappe",
    fields=tuple(RawField(name, "categorical") for name in FIELDS),
    label=Label("label"),
    text=TextFormat(separator="\t", header=True, quote=""),
    user="user",
    licence="research use only, no redistribution; L. Baltrunas et al., Frappe, arXiv:1505.03014, 2015",
)


def sample_negatives(
    users: npt.NDArray[np.int64], items: npt.NDArray[np.int64], n_items: int, seed: int
) -> npt.NDArray[np.int64]:
    """Items each user never used, drawn uniformly, by rejection.

    Args:
        users: user of each use.
        items: item of each use.
        n_items: number of items in the log.
        seed: of the draw.

    Shape:
        users, items (N,) int64 -> (N, 2) int64.

    Raises:
        ConfigError: a user used every item.
    """
    used = np.unique(users * n_items + items)
    full = np.bincount(used // n_items) >= n_items
    if full.any():
        raise ConfigError(
            f"a user of the log used all {n_items} items: no negative can be sampled; leave this user out"
        )
    generator = np.random.default_rng(seed)
    drawn = np.empty((len(users), NEGATIVES), dtype=np.int64)
    todo = np.ones(drawn.shape, dtype=bool)
    while todo.any():
        drawn[todo] = generator.integers(n_items, size=int(todo.sum()))
        keys = users[:, None] * n_items + drawn
        todo &= np.isin(keys, used)
    return drawn


def expand(logs: tuple[Path, ...], seed: int, schema: Schema, folder: Path) -> dict[str, Any]:
    """Write `log.tsv` (label and fields) with the negatives, and `rejects.parquet` of the raw log."""
    tables, rejects, sources, records = [], [], [], 0
    for position, path in enumerate(logs):
        plan = plan_source(path, schema, folder)
        sources.append({"path": path.name, "bytes": plan["bytes"], "sha256": plan["sha256"]})
        first = 0
        for piece, start, stop, count in plan["chunks"]:
            place = folder / piece if piece else path
            chunk = Chunk(place, path.name, start, stop, first, count, tuple(plan["columns"]), position)
            check_columns(str(path), chunk.columns, list(FIELDS), schema)
            table, bad = read_chunk(chunk, schema, [], list(FIELDS))
            tables.append(table.drop(RECORD))
            rejects += bad
            first += count
            if piece:
                place.unlink()
        records += first
    log = pl.concat(tables)
    missing = log["user"].is_null() | log["item"].is_null()
    log = log.filter(~missing)
    names = log["item"].unique(maintain_order=True)
    users = log["user"].rank("dense").cast(pl.Int64).to_numpy() - 1
    items = log["item"].replace_strict(names, pl.int_range(names.len(), eager=True), return_dtype=pl.Int64).to_numpy()
    negatives = sample_negatives(users, items, names.len(), seed)
    chosen = names.gather(np.concatenate([items[:, None], negatives], axis=1).reshape(-1))
    repeated = log.select(pl.all().repeat_by(1 + NEGATIVES).explode(empty_as_null=False)).with_columns(
        chosen.alias("item")
    )
    label = pl.Series("label", np.tile(np.array([1] + [0] * NEGATIVES, dtype=np.uint8), log.height))
    repeated.select(label, *FIELDS).write_csv(folder / "log.tsv", separator="\t", quote_style="never")
    to_frame(rejects).write_parquet(folder / "rejects.parquet")
    return {"sources": sources, "records": records, "rejects": len(rejects), "dropped": int(missing.sum())}


def locate(raw: tuple[Path, ...], _: Purpose = "train") -> Sources:
    """frappe.csv of a folder, also packed, or the files named."""
    return Sources(text_logs(raw, prefer=("frappe.csv",)))


DATASET = Dataset(SCHEMA, locate, expand=expand, ratios=(0.7, 0.2, 0.1))
