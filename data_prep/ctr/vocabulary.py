"""Second stage: the dictionaries of all chunks -> one vocabulary per field, in bounded memory.

Counts are merged slice by slice of the token hash, rare tokens are dropped at once, and only what is left is sorted.
Ids go by (count descending, token ascending), so that they do not depend on the order of the log or of the workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.ctr.schema import RawField
from data_prep.ctr.tokens import BUCKETS, encode_dictionary, read_tokens

MISSING, UNKNOWN, FIRST = 0, 1, 2  # ids; own ids begin at FIRST
ENTRIES = 500_000  # dictionary entries one merge task holds at a time


@dataclass(frozen=True)
class Slice:
    """Buckets low..high - 1 of one field.

    Args:
        field: index among the fields with tokens.
        min_count: tokens with fewer occurrences are dropped.
        low: first bucket.
        high: one past the last bucket.
    """

    field: int
    min_count: int
    low: int
    high: int


def plan_merge(entries: Sequence[Sequence[int]], fields: Sequence[RawField]) -> list[tuple[Slice, ...]]:
    """Divide the merge into tasks of about ENTRIES entries.

    Args:
        entries: per chunk, dictionary entries of each field with tokens.
        fields: those fields.
    """
    tasks: list[tuple[Slice, ...]] = []
    group: list[Slice] = []
    load = 0
    for index, (item, total) in enumerate(zip(fields, np.sum(np.asarray(entries), axis=0).tolist(), strict=True)):
        pieces = min(BUCKETS, -(-total // ENTRIES)) or 1
        bounds = [BUCKETS * piece // pieces for piece in range(pieces + 1)]
        for low, high in pairwise(bounds):
            size = total // pieces
            if group and load + size > ENTRIES:
                tasks.append(tuple(group))
                group, load = [], 0
            group.append(Slice(index, item.min_count, low, high))
            load += size
    return [*tasks, tuple(group)] if group else tasks


def merge_slices(slices: tuple[Slice, ...], digests: tuple[Path, ...], folder: Path) -> dict[str, Any]:
    """Add up the counts of some slices over all chunks and keep the frequent tokens.

    Per slice: `kept-NNN.parquet`, the kept tokens with their counts; `entries-NNN.uint32`, for each dictionary entry of
    each chunk its place among the kept, or their number for a rare token; `bounds-NNN.npy`, where each chunk's entries
    begin. The place saves a second search for the token when rows are written.
    """
    for number, piece in enumerate(slices):
        parts = [_read_slice(digest, piece) for digest in digests]
        bounds = np.cumsum([0, *[len(tokens) for tokens, _ in parts]])
        counts = np.concatenate([count for _, count in parts])
        codes, tokens = encode_dictionary(pa.chunked_array([tokens for tokens, _ in parts], pa.large_string()))
        totals = np.bincount(codes, weights=counts, minlength=len(tokens)).astype(np.uint64)
        kept = totals >= max(piece.min_count, 1)
        places = np.where(kept, np.cumsum(kept) - 1, np.count_nonzero(kept)).astype(np.uint32)
        frame = pl.DataFrame(
            {"token": pl.Series(tokens.filter(pa.array(kept)), dtype=pl.String), "count": totals[kept]}
        )
        frame.write_parquet(folder / f"kept-{number:03d}.parquet", compression="lz4", statistics=False)
        (folder / entry_file(number)).write_bytes(places[codes].tobytes())
        np.save(folder / f"bounds-{number:03d}.npy", bounds.astype(np.int64))
    return {"slices": len(slices)}


def _read_slice(digest: Path, piece: Slice) -> tuple[pa.Array, npt.NDArray[np.uint32]]:
    offsets = np.load(digest / "offsets.npy")
    return read_tokens(digest, int(offsets[piece.field, piece.low]), int(offsets[piece.field, piece.high]))


def write_vocabulary(
    fields: Sequence[RawField], pieces: Sequence[tuple[tuple[Path, int], ...]], folder: Path
) -> dict[str, Any]:
    """Sort what the merge kept and hand out ids.

    `vocabulary.parquet` has a row group or more per field; `ids-FF-NNN.npy` holds the id of each kept token of slice
    NNN of field FF, and UNKNOWN behind the last.

    Args:
        fields: the fields with tokens.
        pieces: per field, the folder of the merge task and the number in it of each of its slices.
        folder: where to write.

    Returns:
        Number of own ids of each field.
    """
    schema = pa.schema({"field": pa.string(), "id": pa.uint32(), "token": pa.large_string(), "count": pa.uint64()})
    sizes = {}
    with pq.ParquetWriter(
        folder / "vocabulary.parquet", schema, compression="zstd", use_dictionary=["field"]
    ) as writer:
        for index, (item, slices) in enumerate(zip(fields, pieces, strict=True)):
            parts = [pl.read_parquet(task / f"kept-{number:03d}.parquet", memory_map=False) for task, number in slices]
            sizes[item.name] = sum(part.height for part in parts)
            if not parts:
                continue
            table = pl.concat(parts).with_row_index("place").sort(["count", "token"], descending=[True, False])
            table = table.with_row_index("id", offset=FIRST)
            ids = np.empty(table.height, dtype=np.uint32)
            ids[table["place"].to_numpy()] = table["id"].to_numpy()
            start = 0
            for number, part in enumerate(parts):
                own = ids[start : start + part.height]
                np.save(folder / id_file(index, number), np.append(own, np.uint32(UNKNOWN)))
                start += part.height
            table = table.select(pl.lit(item.name).alias("field"), "id", "token", "count")
            if table.height:
                writer.write_table(
                    table.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema), row_group_size=1 << 20
                )
    return {"sizes": sizes}


def entry_file(number: int) -> str:
    """Name of the file with the places of the entries of one slice."""
    return f"entries-{number:03d}.uint32"


def id_file(field: int, number: int) -> str:
    """Name of the file with the ids of one slice of one field."""
    return f"ids-{field:02d}-{number:03d}.npy"


def entry_ids(slices: tuple[tuple[Path, int], ...], sorted_ids: Path, field: int, chunk: int) -> npt.NDArray[np.uint32]:
    """Ids of the dictionary entries of one chunk, in the dictionary's order.

    Args:
        slices: as in `write_vocabulary`, of one field.
        sorted_ids: folder of `write_vocabulary`.
        field: index among the fields with tokens.
        chunk: index of the chunk.

    Shape:
        -> (K,) uint32.
    """
    found = [np.zeros(0, dtype=np.uint32)]
    for number, (task, position) in enumerate(slices):
        low, high = np.load(task / f"bounds-{position:03d}.npy")[chunk : chunk + 2]
        places = np.fromfile(task / entry_file(position), dtype=np.uint32, count=int(high - low), offset=4 * int(low))
        found.append(np.load(sorted_ids / id_file(field, number), mmap_mode="r")[places])
    return np.concatenate(found)


@lru_cache(maxsize=1)
def load_vocabulary(path: Path) -> dict[str, pl.Enum]:
    """Token lookup of each field; kept by a worker for all its chunks.

    Args:
        path: `vocabulary.parquet`.

    Returns:
        field -> enumeration whose k-th category has id k + 2.
    """
    table = pl.read_parquet(path, columns=["field", "token"], memory_map=False)
    return {
        str(name[0]): pl.Enum(part["token"])
        for name, part in table.partition_by("field", as_dict=True, maintain_order=True).items()
    }


def lookup(tokens: pl.Series, vocabulary: pl.Enum | None) -> npt.NDArray[np.uint32]:
    """Ids of distinct tokens; UNKNOWN for those without an own id.

    Shape:
        tokens (K,) String -> (K,) uint32.
    """
    if vocabulary is None:
        return np.full(len(tokens), UNKNOWN, dtype=np.uint32)
    places = tokens.cast(vocabulary, strict=False).to_physical().cast(pl.Int64).fill_null(UNKNOWN - FIRST)
    return (places.to_numpy() + FIRST).astype(np.uint32)
