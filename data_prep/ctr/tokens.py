"""The distinct tokens of a column: codes, stable hashes, and files that are read slice by slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data_prep.common.hashing import U64, hash_tokens

TOKEN_BYTES, TOKEN_BOUNDS, TOKEN_COUNTS = "tokens.bytes", "tokens.int64", "tokens.uint32"
BUCKETS = 64  # slices of a dictionary by token hash; the merge reads a few slices at a time
Codes = npt.NDArray[np.uint32] | npt.NDArray[np.uint16]


def dictionary(column: pl.Series) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Codes in order of first appearance, 0 = null, and the distinct tokens (code k is token k - 1).

    Shape:
        column (N,) String -> codes (N,) int32, tokens (K,).
    """
    codes, tokens = encode_dictionary(column.to_frame().to_arrow(compat_level=pl.CompatLevel.oldest()).column(0))
    return codes + np.int32(1), tokens


def encode_dictionary(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Codes in order of first appearance, -1 = null, and the distinct values.

    Shape:
        column (N,) -> codes (N,) int32, values (K,).
    """
    # Of a chunked array each chunk would get its own copy of the dictionary so far: join the chunks first.
    joined = column.combine_chunks()
    eight = _eight_byte_words(joined)
    if eight is None:
        encoded = joined.dictionary_encode()
        return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), encoded.dictionary
    words, present = eight
    encoded = pa.array(words).dictionary_encode()
    codes = np.full(len(joined), -1, dtype=np.int32)
    codes[present] = encoded.indices.to_numpy(zero_copy_only=False)
    bounds = pa.py_buffer(8 * np.arange(len(encoded.dictionary) + 1, dtype=np.int64))
    buffers = [None, bounds, encoded.dictionary.buffers()[1]]
    return codes, pa.Array.from_buffers(pa.large_string(), len(encoded.dictionary), buffers)


def _eight_byte_words(column: pa.Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]] | None:
    """The tokens as numbers when each has exactly eight bytes, as the hashes of public click logs have; else None.

    Numbers are compared twice as fast as strings.

    Shape:
        column (N,) large_string -> words (number of tokens,) uint64, present (N,) bool.
    """
    if not len(column) or column.offset:
        return None
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[: len(column) + 1]
    present = np.diff(bounds) == 8
    tokens = int(np.count_nonzero(present))
    if not tokens or tokens != len(column) - column.null_count or int(bounds[-1] - bounds[0]) != 8 * tokens:
        return None
    return np.frombuffer(data, dtype=np.uint8)[bounds[0] : bounds[-1]].view(np.uint64), present


def token_hashes(tokens: pa.Array, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Stable hash of each token.

    Shape:
        tokens (K,) large_string without nulls -> (K,) uint64.
    """
    if not len(tokens):
        return np.zeros(0, dtype=np.uint64)
    _, offsets, data = tokens.buffers()
    first, last = tokens.offset, tokens.offset + len(tokens) + 1
    bounds = np.frombuffer(offsets, dtype=np.int64)[first:last]
    content = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    return hash_tokens(content, bounds, seed)


def group_hashes(users: pl.Series) -> npt.NDArray[np.uint64]:
    """Stable hash of the user token of each row; a missing user counts as the empty token.

    Shape:
        users (N,) String -> (N,) uint64.
    """
    codes, tokens = dictionary(users)
    return hash_or_empty(tokens)[codes]


def hash_or_empty(tokens: pa.Array) -> U64:
    """Hashes by code: of the empty token for code 0, then of each token.

    Shape:
        tokens (K,) -> (K + 1,) uint64.
    """
    return np.concatenate([token_hashes(pa.array([""], pa.large_string())), token_hashes(tokens)])


def write_tokens(parts: list[pa.Array], counts: list[Any], offsets: list[Any], folder: Path) -> None:
    """All dictionaries of the chunk, field after field; `offsets[f, b]` is where bucket b of field f begins."""
    tokens = pa.chunked_array(parts, pa.large_string()).combine_chunks() if parts else pa.array([], pa.large_string())
    _, bounds, data = tokens.buffers()
    (folder / TOKEN_BYTES).write_bytes(data if data is not None else b"")
    (folder / TOKEN_BOUNDS).write_bytes(bounds if len(tokens) else np.zeros(1, dtype=np.int64).tobytes())
    (folder / TOKEN_COUNTS).write_bytes(
        np.concatenate([*counts, np.zeros(0, dtype=np.int64)]).astype(np.uint32).tobytes()
    )
    first = np.cumsum([0, *[len(part) for part in parts]])
    shifted = [bounds + begin for bounds, begin in zip(offsets, first, strict=False)]
    np.save(folder / "offsets.npy", np.array(shifted, dtype=np.int64).reshape(len(parts), BUCKETS + 1))


def read_tokens(digest: Path, low: int, high: int) -> tuple[pa.Array, npt.NDArray[np.uint32]]:
    """Entries low..high - 1 of a chunk's dictionaries: tokens (large_string) and counts (uint32).

    They are read, not mapped: the system maps whole neighbourhoods of a page, and over many chunks that adds up.
    """
    count = high - low
    bounds = np.fromfile(digest / TOKEN_BOUNDS, dtype=np.int64, count=count + 1, offset=8 * low)
    size = int(bounds[-1] - bounds[0])
    data = np.fromfile(digest / TOKEN_BYTES, dtype=np.uint8, count=size, offset=int(bounds[0]))
    counts = np.fromfile(digest / TOKEN_COUNTS, dtype=np.uint32, count=count, offset=4 * low)
    buffers = [None, pa.py_buffer(bounds - bounds[0]), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), count, buffers), counts


def sorted_dictionary(column: pl.Series) -> tuple[Codes, pa.Array, npt.NDArray[np.int64]]:
    """Dictionary with tokens in the order of their bucket, so that a bucket is a slice."""
    codes, tokens = dictionary(column)
    buckets = (token_hashes(tokens) >> np.uint64(64 - 6)).astype(np.uint8)
    order = np.argsort(buckets, kind="stable")
    small = len(tokens) < 1 << 16
    places: Codes = np.zeros(len(tokens) + 1, np.uint16) if small else np.zeros(len(tokens) + 1, np.uint32)
    places[order + 1] = np.arange(1, len(tokens) + 1)
    bounds = np.searchsorted(buckets[order], np.arange(BUCKETS + 1)).astype(np.int64)
    return places[codes], tokens.take(pa.array(order)), bounds
