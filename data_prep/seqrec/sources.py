"""Which raw files there are, and the layout of each, found by looking at its beginning."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.seqrec.datasets import DATASETS, GENERIC, Asked, Dataset
from data_prep.seqrec.delimited import header_names, read_delimited, split_line
from data_prep.seqrec.jsonlines import parse_line, read_json_lines
from data_prep.seqrec.layout import UNITS, Block, Layout
from data_prep.seqrec.mqsa_ted import read_npy
from data_prep.seqrec.stream import read_head
from data_prep.seqrec.tables import parquet_columns, read_lines, read_parquet
from data_prep.seqrec.times import guess_unit

SUFFIXES = (".csv", ".tsv", ".txt", ".gz", ".parquet", ".dat", ".data", ".log", ".json", ".jsonl", ".inter", ".npy")
_SEPARATORS = (",", "\t", ";", "|", "::")


@dataclass(frozen=True)
class Source:
    """One raw file and how to read it."""

    path: Path
    layout: Layout


def find_files(raw: tuple[Path, ...], names: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Files named one by one as they are; of a folder its data files by name, or the first with one of `names`.

    Raises:
        DatasetNotFoundError: a path does not exist, or a folder holds no data file.
    """
    found: list[Path] = []
    for path in raw:
        if not path.exists():
            raise DatasetNotFoundError(f"{path}: no such file or folder; check --raw")
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith("."))
        chosen = [item for name in names for item in inside if item.name in (name, f"{name}.gz")][:1]
        usual = [item for item in inside if item.suffix.lower() in SUFFIXES]
        if not chosen and (names or not usual):
            what = " or ".join(names) or f"data file ({', '.join(SUFFIXES)})"
            raise DatasetNotFoundError(f"{path}: no {what} in this folder; check --raw")
        found += chosen or usual
    if not found:
        raise DatasetNotFoundError("no raw file given; name files or a folder with --raw")
    return tuple(found)


def find_sources(dataset: str, raw: tuple[Path, ...], asked: Asked, unit: str, *, rated: bool) -> tuple[Source, ...]:
    """The raw files of a data set with their layouts.

    Args:
        dataset: name.
        raw: what the user named.
        asked: columns that the user named.
        unit: of numbers in the column of times, or auto.
        rated: ratings are needed.

    Raises:
        ConfigError: the name is unknown, or the columns are not named.
        CorruptRecordError: a file is not of the data set's formats.
    """
    known = DATASETS.get(dataset)
    if known is None and dataset != GENERIC:
        raise ConfigError(f"data set {dataset!r} is unknown; choose {', '.join(DATASETS)} or {GENERIC}")
    if known is None and not (asked.user and asked.item):
        raise ConfigError("data set generic: name the columns with --user and --item, and --time if there is one")
    named = [name for name in (asked.user, asked.item, asked.time) if name]
    if len(set(named)) < len(named):
        raise ConfigError(f"columns {', '.join(named)}: one cannot be two of --user, --item and --time; correct them")
    if known is not None and dataset != "recbole" and asked != Asked():
        raise ConfigError(f"--user, --item, --time and --rating go with generic and recbole; {dataset} has its own")
    if unit not in ("auto", *UNITS):
        raise ConfigError(f"time_unit {unit!r} is unknown; choose auto, {', '.join(UNITS)}")
    files = find_files(raw, known.names if known else ())
    sources = tuple(Source(path, _layout(known, path, asked, unit, rated=rated)) for path in files)
    first = sources[0].layout
    for source in sources:
        if (source.layout.timed, bool(source.layout.time)) != (first.timed, bool(first.time)):
            raise ConfigError(
                f"{source.path}: times, positions or file order? {sources[0].path.name} has another of them; "
                "give --time-unit, or prepare the files apart"
            )
    return sources


def _layout(known: Dataset | None, path: Path, asked: Asked, unit: str, *, rated: bool) -> Layout:
    head = _head(path)
    layout = known.detect(path, head, asked) if known else _detect_generic(path, head, asked)
    if rated and not layout.rating:
        raise ConfigError(f"{path}: min_rating needs ratings; name their column with --rating")
    layout = replace(layout, rating=layout.rating if rated else "")
    if not layout.time:
        return layout
    table = next(read_source(path, io.BytesIO(head), layout), None)
    times = table.table["time"] if table else pl.Series([], dtype=pl.Int64)
    guessed, textual = guess_unit(times, positions=known is None)
    if unit == "auto":
        return replace(layout, unit=guessed, textual=textual)
    return replace(layout, unit=unit, textual=textual, exact=True)


def _head(path: Path) -> bytes:
    if path.is_file():
        with path.open("rb") as stream:
            magic = stream.read(6)
        if magic[:4] == b"PAR1" or magic == b"\x93NUMPY":
            return magic
    return read_head(path)


def read_source(path: Path, stream: BinaryIO, layout: Layout) -> Iterator[Block]:
    """Blocks of records of one file.

    Args:
        path: the file.
        stream: its text; Parquet files are read from the path.
        layout: how it is written.
    """
    if layout.kind == "json":
        return read_json_lines(path, stream, layout)
    if layout.kind == "delimited":
        return read_delimited(path, stream, layout)
    if layout.kind == "lines":
        return read_lines(path, stream)
    if layout.kind == "npy":
        return read_npy(path, stream.read())
    return read_parquet(path, layout)


def _detect_generic(path: Path, head: bytes, asked: Asked) -> Layout:
    wanted = [name for name in (asked.user, asked.item, asked.time, asked.rating) if name]
    columns = (asked.user, asked.item, asked.time, asked.rating)
    if head[:4] == b"PAR1":
        _need(path, wanted, parquet_columns(path))
        return Layout("parquet", *columns)
    line = head.split(b"\n", 1)[0]
    if line.lstrip().startswith(b"{"):
        _need(path, wanted, list(parse_line(line) or {}))
        return Layout("json", *columns)
    headers = {separator: header_names(path, head, separator) for separator in _SEPARATORS}
    for separator, names in headers.items():
        if set(wanted) <= set(names):
            return Layout("delimited", *columns, separator, tuple(names), True, '"')
    if all(name.isdigit() for name in wanted):
        widths = {separator: len(split_line(line, separator)) for separator in _SEPARATORS}
        # "::" would also be found by looking for ":" alone; of several separators the one with most values counts.
        separator = max(widths, key=lambda mark: (widths[mark], len(mark)))
        names = [str(index) for index in range(widths[separator])]
        _need(path, wanted, names)
        return Layout("delimited", *columns, separator, tuple(names), False, '"')
    _need(path, wanted, max(headers.values(), key=len))
    raise CorruptRecordError(path, "header", "cannot be read")


def _need(path: Path, wanted: list[str], names: list[str]) -> None:
    for name in wanted:
        if name not in names:
            shown = ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
            raise CorruptRecordError(
                path, "header", f"no column {name!r}; the columns are {shown}; correct --user, --item, --time, --rating"
            )
