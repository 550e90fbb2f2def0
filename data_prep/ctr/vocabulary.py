"""Second stage: the dictionaries of all chunks -> one vocabulary per field, in bounded memory.

Counts are merged slice by slice of the token hash, rare tokens are dropped at once, and only what is left is sorted.
Ids go by (count descending, token ascending), so that they do not depend on the order of the log or of the workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

from data_prep.ctr.digest import BUCKETS
from data_prep.ctr.schema import Field

MISSING, UNKNOWN, FIRST = 0, 1, 2  # ids; own ids begin at FIRST
ENTRIES = 1_000_000  # dictionary entries one merge task holds at a time


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


def plan_merge(entries: Sequence[Sequence[int]], fields: Sequence[Field]) -> list[tuple[Slice, ...]]:
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
    """Add up the counts of some slices over all chunks and keep the frequent tokens: `kept-NNN.parquet` per slice."""
    distinct = []
    for number, piece in enumerate(slices):
        parts = [part for digest in digests if (part := _read_slice(digest, piece)).num_rows]
        table = (
            pl.DataFrame(pa.concat_tables(parts))
            if parts
            else pl.DataFrame(schema={"token": pl.String, "count": pl.UInt32})
        )
        counts = table.filter(pl.col("count") > 0).group_by("token").agg(pl.col("count").cast(pl.UInt64).sum())
        kept = counts.filter(pl.col("count") >= piece.min_count).sort("token")
        kept.write_parquet(folder / f"kept-{number:03d}.parquet", compression="lz4", statistics=False)
        distinct.append(counts.height)
    return {"distinct": distinct}


def _read_slice(digest: Path, piece: Slice) -> pa.Table:
    offsets = np.load(digest / "offsets.npy", mmap_mode="r")
    low, high = int(offsets[piece.field, piece.low]), int(offsets[piece.field, piece.high])
    return read_tokens(digest).slice(low, high - low)


def read_tokens(digest: Path) -> pa.Table:
    """`tokens.arrow` of a chunk, mapped, not loaded."""
    with pa.memory_map(str(digest / "tokens.arrow")) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def write_vocabulary(
    fields: Sequence[Field], kept: Sequence[tuple[Path, ...]], hashed: bool, folder: Path
) -> dict[str, Any]:
    """Sort what the merge kept and hand out ids: `vocabulary.parquet`, one row group or more per field.

    Args:
        fields: the fields with tokens.
        kept: the files of each field.
        hashed: ids come from a hash; the vocabulary stays empty.
        folder: where to write.

    Returns:
        Number of own ids of each field.
    """
    schema = pa.schema({"field": pa.string(), "id": pa.uint32(), "token": pa.large_string(), "count": pa.uint64()})
    sizes = {}
    with pq.ParquetWriter(
        folder / "vocabulary.parquet", schema, compression="zstd", use_dictionary=["field"]
    ) as writer:
        for item, files in zip(fields, kept, strict=True):
            table = pl.concat([pl.read_parquet(path) for path in files]) if files and not hashed else None
            sizes[item.name] = 0 if table is None else table.height
            if table is None or not table.height:
                continue
            table = table.sort(["count", "token"], descending=[True, False]).with_row_index("id", offset=FIRST)
            table = table.select(pl.lit(item.name).alias("field"), "id", "token", "count")
            writer.write_table(
                table.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema), row_group_size=1 << 20
            )
    return {"sizes": sizes}


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


def iterate_fields(path: Path) -> Iterator[tuple[str, pl.DataFrame]]:
    """Vocabulary of one field after the other, for reading by people and tests."""
    yield from ((str(name[0]), part) for name, part in pl.read_parquet(path).group_by("field", maintain_order=True))
