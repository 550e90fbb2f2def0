"""Third stage: codes of a chunk -> ids, scaled numbers, and the parts of train, valid and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.splits import SPLITS
from data_prep.ctr.digest import token_hashes
from data_prep.ctr.schema import Field
from data_prep.ctr.vocabulary import FIRST, UNKNOWN, load_vocabulary, lookup, read_tokens


@dataclass(frozen=True)
class Encoding:
    """How codes become ids and numbers.

    Args:
        fields: all fields, in order.
        vocabulary: path of `vocabulary.parquet`.
        buckets: number of hash buckets; 0: ids by the vocabulary.
        scales: field -> (shift, factor) of min_max and standardise: (x - shift) * factor.
        labelled: parts have a label column.
    """

    fields: tuple[Field, ...]
    vocabulary: Path
    buckets: int
    scales: dict[str, tuple[float, float]]
    labelled: bool


def encode_chunk(encoding: Encoding, digest: Path, folder: Path) -> dict[str, Any]:
    """Write `train.parquet`, `valid.parquet`, `test.parquet` of one chunk, those which have rows.

    Returns:
        Rows per split, and how often each field is unknown.
    """
    rows = pl.read_ipc(digest / "rows.arrow")
    tokens = read_tokens(digest)
    offsets = np.load(digest / "offsets.npy")
    vocabulary = {} if encoding.buckets else load_vocabulary(encoding.vocabulary)
    columns: list[pl.Series] = [rows["row"]]
    columns += [rows["label"]] if encoding.labelled else []
    columns += [rows["group"]] if "group" in rows.columns else []
    unknown: dict[str, int] = {}
    position = 0
    for item in encoding.fields:
        if item.kind == "numerical":
            columns.append(_scale(rows[item.name], encoding.scales.get(item.name)))
            continue
        own = tokens.slice(int(offsets[position, 0]), int(offsets[position, -1] - offsets[position, 0]))["token"]
        position += 1
        ids = np.zeros(len(own) + 1, dtype=np.uint32)
        if encoding.buckets:
            merged = own.combine_chunks()
            ids[1:] = token_hashes(merged) % np.uint64(encoding.buckets) + np.uint64(FIRST)
        else:
            ids[1:] = lookup(pl.Series(own), vocabulary.get(item.name)) if len(own) else 0
        column, unknown[item.name] = _gather(rows[item.name], ids, multi=item.kind == "multi")
        columns.append(column)
    split = rows["__split__"]
    table = pl.DataFrame(columns)
    counts = []
    for index, name in enumerate(SPLITS):
        part = table.filter(split == index)
        counts.append(part.height)
        if part.height:
            part.rechunk().write_parquet(
                folder / f"{name}.parquet", compression="lz4", statistics=False, row_group_size=1 << 17
            )
    return {"rows": counts, "unknown": unknown}


def _scale(column: pl.Series, scale: tuple[float, float] | None) -> pl.Series:
    if scale is None:
        return column.cast(pl.Float32)
    shift, factor = scale
    return ((column - shift) * factor).cast(pl.Float32)


def _gather(column: pl.Series, ids: npt.NDArray[np.uint32], *, multi: bool) -> tuple[pl.Series, int]:
    if not multi:
        found = ids[column.to_numpy()]
        return pl.Series(column.name, found), int(np.count_nonzero(found == UNKNOWN))
    lists = column.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    found = ids[lists.flatten().to_numpy(zero_copy_only=False)]
    rebuilt = type(lists).from_arrays(lists.offsets, found)
    return pl.Series(column.name, rebuilt, dtype=pl.List(pl.UInt32)), int(np.count_nonzero(found == UNKNOWN))
