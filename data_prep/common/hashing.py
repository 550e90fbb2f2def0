"""Stable 64-bit hashes: the same on every machine, in every version of every library."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
_OFFSET = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0xFF51AFD7ED558CCD)
_ALL_BITS = np.uint64(0xFFFFFFFFFFFFFFFF)
_LONGEST = 64  # bytes; longer tokens take the slow road


def mix(values: U64) -> U64:
    """The splitmix64 finaliser (Steele, Lea and Flood, 2014): spreads every input bit over all output bits.

    Shape:
        values (N,) uint64 -> (N,) uint64.
    """
    z = values.astype(np.uint64, copy=True)
    z += np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def hash_numbers(values: U64, seed: int = 0) -> U64:
    """Hash whole numbers under a seed.

    Shape:
        values (N,) uint64 -> (N,) uint64.
    """
    return mix(values ^ mix(np.array([seed], dtype=np.uint64)))


def hash_tokens(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], seed: int = 0) -> U64:
    """Hash each token, eight bytes of every token at a time instead of token by token.

    Per little-endian word w, the last one padded with zeros: h = (h ^ w) * prime; h ^= h >> 32. Then h ^ length is
    mixed under the seed. Tokens of more than 64 bytes start from their BLAKE2b digest instead.

    Args:
        data: the bytes of all tokens, one behind the other.
        offsets: token i is data[offsets[i]:offsets[i + 1]].
        seed: another seed gives another hash.

    Shape:
        offsets (N + 1,) int64 -> (N,) uint64.
    """
    start, length = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
    padded = np.concatenate([data, np.zeros(8, dtype=np.uint8)])
    # words[i] = the eight bytes from byte i on: overlapping, without a copy.
    words = np.ndarray(shape=(len(padded) - 7,), dtype="<u8", buffer=padded.data, strides=(1,))
    state = np.full(len(length), _OFFSET, dtype=np.uint64)
    short = length <= _LONGEST
    for position in range(0, int(length[short].max(initial=0)), 8):
        live = np.flatnonzero((length > position) & short)
        left = np.minimum(length[live] - position, 8).astype(np.uint64)
        word = words[start[live] + position] & (_ALL_BITS >> (np.uint64(64) - np.uint64(8) * left))
        mixed = (state[live] ^ word) * _PRIME
        state[live] = mixed ^ (mixed >> np.uint64(32))
    for index in np.flatnonzero(~short):
        token = data[start[index] : start[index] + length[index]].tobytes()
        state[index] = int.from_bytes(hashlib.blake2b(token, digest_size=8).digest(), "little")
    return hash_numbers(state ^ length.astype(np.uint64), seed)


def hash_strings(tokens: list[str], seed: int = 0) -> U64:
    """`hash_tokens` of a list of Python strings.

    Shape:
        N strings -> (N,) uint64.
    """
    encoded = [token.encode() for token in tokens]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(token) for token in encoded], out=offsets[1:])
    return hash_tokens(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets, seed)
