"""All tokens of users or items -> codes in the byte order of the tokens, and a table to look them up by hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.hashing import hash_tokens

I32 = npt.NDArray[np.int32]
_PENDING = 1 << 22  # tokens gathered before they are merged with those known


def merge_tokens(chunks: tuple[Path, ...], sides: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Distinct tokens over all chunks, in a folder per side.

    `tokens.arrow` holds them in byte order, `hashes.npy` their hashes ascending, `codes.npy` the places of those.

    Args:
        chunks: folders of the chunks.
        sides: users, items or both.
        folder: where to write.

    Returns:
        Per side how many tokens, and the seed under which their hashes are distinct.
    """
    return {side: _merge(chunks, side, folder / side) for side in sides}


def _merge(chunks: tuple[Path, ...], side: str, folder: Path) -> dict[str, int]:
    folder.mkdir()
    known = pl.Series("token", [], dtype=pl.String)
    waiting: list[pl.Series] = []
    size = 0
    for number, chunk in enumerate(chunks):
        waiting.append(pl.read_ipc(chunk / f"{side}.arrow")["token"])
        size += waiting[-1].len()
        # As many new ones as are known: every token is then merged a bounded number of times.
        if size > max(_PENDING, known.len()) or number == len(chunks) - 1:
            known = pl.concat([known, *waiting]).unique()
            waiting, size = [], 0
    known = known.sort()
    known.to_frame().write_ipc(folder / "tokens.arrow", compression="uncompressed")
    seed = 0
    while True:
        hashes = hash_series(known, seed)
        order = np.argsort(hashes)
        hashes = hashes[order]
        if not (hashes[1:] == hashes[:-1]).any():
            break
        seed += 1
    np.save(folder / "hashes.npy", hashes)
    np.save(folder / "codes.npy", order.astype(np.int32))
    return {"count": known.len(), "seed": seed}


def encode(tokens: pl.Series) -> tuple[I32, npt.NDArray[np.int64]]:
    """Codes of tokens, and where the token of each code stands.

    Tokens are sorted by hash, which is several times as fast as a hash table of texts, and compared afterwards: in the
    unlikely case that two share a hash, another seed is taken.

    Shape:
        tokens (N,) String -> (N,) int32, (distinct,) int64.
    """
    seed = 0
    while True:
        hashes = hash_series(tokens, seed)
        order = np.argsort(hashes)
        ascending = hashes[order]
        new = np.concatenate([np.ones(min(len(order), 1), bool), ascending[1:] != ascending[:-1]])
        codes = np.empty(len(order), np.int32)
        codes[order] = np.cumsum(new) - 1
        first = order[new]
        if (tokens.gather(first).gather(codes) == tokens).all():
            return codes, first
        seed += 1


def hash_series(tokens: pl.Series, seed: int) -> npt.NDArray[np.uint64]:
    """Hashes of a column of texts without nulls.

    Shape:
        tokens (N,) String -> (N,) uint64.
    """
    column = tokens.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = column.buffers()
    if data is None:
        data = b""
    places = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    return hash_tokens(np.frombuffer(data, dtype=np.uint8), places, seed)


def codes_of(tokens: pl.Series, vocabulary: Path, seed: int) -> I32:
    """Codes of tokens which are all in the vocabulary.

    Shape:
        tokens (N,) String -> (N,) int32.
    """
    hashes = hash_series(tokens, seed)
    order = np.argsort(hashes)
    table = np.load(vocabulary / "hashes.npy", mmap_mode="r")
    codes = np.load(vocabulary / "codes.npy", mmap_mode="r")
    found = np.empty(len(hashes), dtype=np.int32)
    found[order] = codes[np.searchsorted(table, hashes[order])]  # ascending needles stay in the cache
    return found


def read_tokens(vocabulary: Path, start: int = 0, stop: int | None = None) -> pl.Series:
    """Tokens of the codes start..stop."""
    tokens = pl.read_ipc(vocabulary / "tokens.arrow")["token"]
    return tokens[start : tokens.len() if stop is None else stop]
