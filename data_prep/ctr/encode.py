"""Third stage: codes of a chunk -> ids, scaled numbers, and the parts of train, valid and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.splits import SPLITS
from data_prep.ctr.schema import RawField
from data_prep.ctr.tokens import read_tokens, token_hashes
from data_prep.ctr.vocabulary import FIRST, MISSING, UNKNOWN, entry_ids, load_vocabulary, lookup


@dataclass(frozen=True)
class Encoding:
    """How codes become ids and numbers.

    Args:
        fields: all fields, in order.
        vocabulary: path of `vocabulary.parquet`; beside it are the ids that `write_vocabulary` made.
        buckets: number of hash buckets; 0: ids by the vocabulary.
        slices: per field with tokens, where the merge left its slices; None: look tokens up in the vocabulary.
        scales: field -> (shift, factor) of min_max and standardise: (x - shift) * factor.
        labelled: parts have a label column.
    """

    fields: tuple[RawField, ...]
    vocabulary: Path
    buckets: int
    slices: tuple[tuple[tuple[Path, int], ...], ...] | None
    scales: dict[str, tuple[float, float]]
    labelled: bool


def encode_chunk(encoding: Encoding, digest: Path, chunk: int, folder: Path) -> dict[str, Any]:
    """Write `train.parquet`, `valid.parquet`, `test.parquet` of one chunk, those which have rows.

    Returns:
        Rows per split, and how often each field is unknown.
    """
    rows = pl.read_ipc(digest / "rows.arrow")
    columns: list[pl.Series] = [rows["row"]]
    columns += [rows["label"]] if encoding.labelled else []
    columns += [rows["group"]] if "group" in rows.columns else []
    unknown: dict[str, int] = {}
    position = 0
    for item in encoding.fields:
        if item.kind == "numerical":
            columns.append(_scale(rows[item.name], encoding.scales.get(item.name)))
            continue
        ids = np.concatenate([[np.uint32(MISSING)], _dictionary_ids(encoding, item, position, digest, chunk)])
        position += 1
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


def _dictionary_ids(
    encoding: Encoding, item: RawField, position: int, digest: Path, chunk: int
) -> npt.NDArray[np.uint32]:
    """Ids of the entries of the chunk's own dictionary."""
    if encoding.slices is not None and not encoding.buckets:
        return entry_ids(encoding.slices[position], encoding.vocabulary.parent, position, chunk)
    low, *_, high = np.load(digest / "offsets.npy")[position].tolist()
    tokens, _ = read_tokens(digest, low, high)
    if encoding.buckets:
        hashes = token_hashes(tokens)
        return (hashes % np.uint64(encoding.buckets) + np.uint64(FIRST)).astype(np.uint32)
    return lookup(pl.Series(tokens, dtype=pl.String), load_vocabulary(encoding.vocabulary).get(item.name))


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
