"""The index and value files of the official AutoInt scripts, exactly.

Song et al., CIKM 2019; DeepGraphLearning/RecommenderSystems @ e07370a, featureRec/data/Dataprocess. One global index
range; the vocabulary lies in memory, as theirs does. Kept apart from the native layout, because Avazu and KDD12 hand
out ids while they stream (the first occurrences of a token get another index than the later ones).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import log
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.common.files import open_binary, sha256_file, translate_os_errors, write_atomic
from data_prep.common.manifest import tool_version, write_manifest
from data_prep.ctr.datasets import DATASETS

Row = tuple[list[int], list[float], int]  # index, value, label
_BATCH = 1 << 16  # rows written at a time


def scale(value: float) -> float:
    """Scale a number: above 2 int(ln(x)^2), else unchanged (scale.py)."""
    return int(log(value) ** 2) if value > 2 else value


def criteo_rows(lines: Callable[[], Iterable[str]]) -> Iterator[Row]:
    """Two passes: a token gets its own index when its count exceeds 10, in that order; rare ones share one.

    Args:
        lines: gives the raw lines, twice.
    """
    counts: list[dict[str, int]] = [{} for _ in range(26)]
    own: list[dict[str, int]] = [{} for _ in range(26)]
    for number, line in enumerate(lines()):
        for column, token in enumerate(_split(line, "\t", 40, number)[14:]):
            count = counts[column][token] = counts[column].get(token, 0) + 1
            if count == 11:
                own[column][token] = 2 + len(own[column])
    starts = [13]
    for ids in own[:-1]:
        starts.append(starts[-1] + 1 + len(ids))
    for number, line in enumerate(lines()):
        values = _split(line, "\t", 40, number)
        index = list(range(1, 14))
        index += [starts[column] + own[column].get(token, 1) for column, token in enumerate(values[14:])]
        value = [_number(text, number) for text in values[1:14]] + [float(token != "") for token in values[14:]]
        yield index, value, int(_number(values[0], number))


def avazu_rows(lines: Callable[[], Iterable[str]]) -> Iterator[Row]:
    """One pass: a token has its own index from its 5th occurrence on; the first line is the header.

    Args:
        lines: gives the raw lines.
    """
    stream = iter(lines())
    next(stream, None)
    others = [column - (column > 1) for column in range(24)]
    dictionary = _Streaming(23, 5)
    for number, line in enumerate(stream):
        values = _split(line, ",", 24, number)
        index, value = [], []
        for column, token in enumerate(values):
            if column != 1:
                index.append(dictionary.index(column, token, others[column]) if token else 0)
                value.append(float(token != ""))
        yield index, value, int(values[1] != "0")


def kdd12_rows(lines: Callable[[], Iterable[str]], profile: Iterable[str]) -> Iterator[Row]:
    """One pass: own index from the 10th occurrence on; gender and age from the profile have no threshold.

    Args:
        lines: gives the raw lines.
        profile: lines of userid_profile.txt.
    """
    numbers, categories = (1, 5, 6), (2, 3, 4, 7, 8, 9, 10, 11)
    others = {column: place for place, column in enumerate((*numbers, *categories))}
    genders: dict[str, int] = {}
    ages: dict[str, int] = {}
    users: dict[str, tuple[str, str]] = {}
    following = len(others)
    for number, line in enumerate(profile):
        user, gender, age = _split(line, "\t", 3, number)
        users[user] = (gender, age)
        for known, token in ((genders, gender), (ages, age)):
            if token not in known:
                known[token] = following
                following += 1
    dictionary = _Streaming(following, 10)
    for number, line in enumerate(lines()):
        values = _split(line, "\t", 12, number)
        # Ids are handed out over all category columns of a row before any is written.
        ids = {
            column: dictionary.index(column, values[column], others[column]) for column in categories if values[column]
        }
        index, value = [], []
        for column in range(1, 12):
            numeric = column in numbers
            index.append(others[column] if numeric else ids.get(column, 0))
            value.append(_number(values[column], number) if numeric else float(values[column] != ""))
        if values[11] == "0":
            value[10] = 0.0
        found = users.get(values[11]) if values[11] else None
        index += [genders[found[0]], ages[found[1]]] if found else [0, 0]
        value += [1.0, 1.0] if found else [0.0, 0.0]
        yield index, value, int(values[0] != "0")


class _Streaming:
    """Counts tokens and hands out one global index each when a count reaches the bound."""

    def __init__(self, following: int, bound: int) -> None:
        self.following, self.bound = following, bound
        self.counts: dict[tuple[int, str], int] = {}
        self.own: dict[tuple[int, str], int] = {}

    def index(self, column: int, token: str, others: int) -> int:
        key = (column, token)
        count = self.counts[key] = self.counts.get(key, 0) + 1
        if count == self.bound:
            self.own[key] = self.following
            self.following += 1
        return self.own.get(key, others)


def _split(line: str, separator: str, expected: int, number: int) -> list[str]:
    values = line.strip("\n").split(separator)
    if len(values) != expected:
        raise CorruptRecordError(
            "log", f"record {number}", f"{expected} values expected, {len(values)} found; correct the line"
        )
    return values


def _number(text: str, number: int) -> float:
    try:
        return float(text) if text else 0.0
    except ValueError as error:
        raise CorruptRecordError(
            "log", f"record {number}", f"{text[:40]!r} is not a number; correct the line"
        ) from error


def rows_of(
    dataset: str, lines: Callable[[], Iterable[str]], profile: Sequence[str] | Iterable[str] = ()
) -> Iterator[Row]:
    """Rows of one of the three official programs.

    Args:
        dataset: criteo, avazu or kdd12.
        lines: gives the raw lines each time it is called.
        profile: lines of the profile file; kdd12 only.

    Raises:
        ConfigError: there is no official program for this data set.
    """
    if dataset == "criteo":
        return criteo_rows(lines)
    if dataset == "avazu":
        return avazu_rows(lines)
    if dataset == "kdd12":
        return kdd12_rows(lines, profile)
    raise ConfigError(f"layout reproduction: no official script for {dataset!r}; choose criteo, avazu or kdd12")


def prepare_reproduction(dataset: str, raw: tuple[Path, ...], out: Path) -> dict[str, Any]:
    """Write `reproduction.parquet` (index List(Int64), value and value_scaled List(Float64), label Int64).

    Args:
        dataset: criteo, avazu or kdd12.
        raw: as in `prepare`.
        out: output directory.

    Returns:
        The content of `dataset.json`.
    """
    if dataset not in ("criteo", "avazu", "kdd12"):
        rows_of(dataset, lambda: ())
    found = DATASETS[dataset].locate(raw, "train")
    with translate_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigError(f"{out}: is not empty; choose a new output directory")
        profile = _lines(found.sides[0]) if found.sides else ()
        try:
            table = _collect(rows_of(dataset, lambda: _all_lines(found.logs), profile))
        except CorruptRecordError as error:
            where = found.logs[0] if error.path == "log" else error.path
            raise CorruptRecordError(where, error.position, error.reason) from error
        write_atomic(out / "reproduction.parquet", _parquet_bytes(table))
        manifest = {
            "domain": "ctr",
            "name": dataset,
            "version": tool_version(),
            "command": {"dataset": dataset, "layout": "reproduction"},
            "licence": DATASETS[dataset].schema.licence,
            "sources": [
                {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
                for path in (*found.logs, *found.sides)
            ],
            "rows": table.height,
        }
        write_manifest(out, manifest)
    return manifest


def _collect(rows: Iterator[Row]) -> pl.DataFrame:
    """Rows as a table, batch by batch, because Python lists take ten times the memory."""
    floats = pl.List(pl.Float64)
    floats = pl.List(pl.Float64)
    types = pl.Schema(
        [("index", pl.List(pl.Int64)), ("value", floats), ("value_scaled", floats), ("label", pl.Int64())]
    )
    frames = [pl.DataFrame(schema=types)]
    while batch := [
        (index, value, [float(scale(x)) for x in value], label) for index, value, label in islice(rows, _BATCH)
    ]:
        frames.append(pl.DataFrame(batch, schema=types, orient="row"))
    return pl.concat(frames)


def _parquet_bytes(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def _all_lines(paths: tuple[Path, ...]) -> Iterator[str]:
    for path in paths:
        yield from _lines(path)


def _lines(path: Path) -> Iterator[str]:
    try:
        with open_binary(path) as stream, io.TextIOWrapper(stream, encoding="utf-8") as text:
            yield from text
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptRecordError(path, "a line", f"cannot be read ({error}); fetch the file again") from error
