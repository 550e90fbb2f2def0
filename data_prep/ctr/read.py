"""One chunk of raw records -> a table of numbers and strings, and the records that could not be used.

Clean chunks take a fast path: one pass of the CSV parser. When it complains, or when the count of separators shows
ragged records, the chunk is scanned record by record, bad ones are put aside with their reason, and the rest is parsed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.common.rejects import Reject, excerpt
from data_prep.ctr.chunks import Chunk, count_byte, single
from data_prep.ctr.scan import Records, scan
from data_prep.ctr.schema import Schema, TextFormat

RECORD = "__record__"  # column with the record number inside the chunk; schemas may not use such names
LARGEST = float(np.finfo(np.float32).max)


def read_chunk(
    chunk: Chunk, schema: Schema, numbers: list[str], strings: list[str]
) -> tuple[pl.DataFrame, list[Reject]]:
    """Read the wanted columns of a chunk.

    Args:
        chunk: what to read.
        schema: the text format.
        numbers: columns which hold numbers.
        strings: columns which hold tokens.

    Returns:
        A table with `RECORD` (UInt32), numbers (Float64, finite or null) and strings (String or null; never empty;
        List(String) where a Parquet file holds lists), and the rejects.
    """
    if chunk.path.name.endswith(".parquet") or _is_parquet(chunk):
        return _check_numbers(*_read_parquet(chunk, schema, numbers, strings), chunk, numbers, None)
    data = read_bytes(chunk, schema.text)
    table = _read_fast(data, chunk, schema.text, numbers, strings)
    if table is not None:
        return _check_numbers(table, [], chunk, numbers, (data, schema.text))
    table, rejects = _read_carefully(data, chunk, schema.text, numbers, strings)
    return _check_numbers(table, rejects, chunk, numbers, (data, schema.text))


def read_bytes(chunk: Chunk, text: TextFormat) -> bytes:
    """The bytes of a chunk as UTF-8 with one-byte separators and plain line ends.

    Raises:
        CorruptRecordError: the file is shorter than it was.
    """
    with chunk.path.open("rb") as stream:
        stream.seek(chunk.start)
        data = stream.read(chunk.stop - chunk.start)
    if len(data) != chunk.stop - chunk.start:
        raise CorruptRecordError(chunk.source, f"byte {chunk.start}", "the file changed while it was read; run again")
    if text.encoding == "latin-1":
        data = data.decode("latin-1").encode()
    if len(text.separator) > 1:
        data = data.replace(text.separator.encode(), single(text).encode())
    return data.replace(b"\r\n", b"\n") if b"\r" in data else data


def _is_parquet(chunk: Chunk) -> bool:
    with chunk.path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def _read_fast(
    data: bytes, chunk: Chunk, text: TextFormat, numbers: list[str], strings: list[str]
) -> pl.DataFrame | None:
    """The whole chunk in one pass, or None when anything is unusual."""
    separators = chunk.records * (len(chunk.columns) - 1)
    if text.quote and text.quote.encode() in data:
        records = scan(data, single(text), text.quote)
        if len(records.stray) or bool((records.separators != len(chunk.columns) - 1).any()):
            return None
    # The parser refuses long records but fills short ones with nulls: only the number of separators tells.
    elif count_byte(data, ord(single(text))) != separators:
        return None
    try:
        table = _parse(data, chunk.columns, text, numbers, strings)
    except (pl.exceptions.PolarsError, UnicodeDecodeError, ValueError):
        return None
    if table.height != chunk.records:
        return None
    return table.with_columns(pl.Series(RECORD, np.arange(table.height, dtype=np.uint32)))


def _parse(
    data: bytes, columns: tuple[str, ...], text: TextFormat, numbers: list[str], strings: list[str]
) -> pl.DataFrame:
    wanted = set(numbers) | set(strings)
    table = pl.read_csv(
        data,
        separator=single(text),
        has_header=False,
        schema={name: pl.Float64() if name in numbers else pl.String() for name in columns},
        columns=[index for index, name in enumerate(columns) if name in wanted],
        quote_char=text.quote or None,
        null_values=["", *text.missing] if text.missing else None,
    )
    if text.quote and text.quote.encode() in data and strings:  # "" in quotes is empty, not null, to the parser
        table = table.with_columns(pl.when(pl.col(strings) != "").then(pl.col(strings)))
    return table


def _read_carefully(
    data: bytes, chunk: Chunk, text: TextFormat, numbers: list[str], strings: list[str]
) -> tuple[pl.DataFrame, list[Reject]]:
    records = scan(data, single(text), text.quote)
    reasons: dict[int, str] = dict.fromkeys(records.stray.tolist(), "a quote is misplaced or never closed")
    wanted = len(chunk.columns)
    for index in np.flatnonzero(records.separators != wanted - 1).tolist():
        blank = records.stops[index] <= records.starts[index]
        found = int(records.separators[index]) + 1
        hint = f" (wrong delimiter? expected {text.separator!r})" if found == 1 and wanted > 1 else ""
        reasons.setdefault(index, "blank line" if blank else f"{wanted} values expected, {found} found{hint}")
    for index in _not_utf8(data, records):
        reasons.setdefault(index, "not UTF-8 text")
    good = np.ones(len(records.starts), dtype=bool)
    good[list(reasons)] = False
    kept = np.flatnonzero(good)
    joined = b"\n".join(data[records.starts[index] : records.stops[index]] for index in kept)
    if not len(kept):
        table = pl.DataFrame(schema={**dict.fromkeys(numbers, pl.String), **dict.fromkeys(strings, pl.String)})
    else:
        table = _parse(joined, chunk.columns, text, [], numbers + strings)
    if table.height != len(kept):
        where = f"records {chunk.first}..{chunk.first + chunk.records - 1}"
        raise CorruptRecordError(
            chunk.source, where, f"{len(kept)} records seen but {table.height} parsed; check the quotes"
        )
    names = [name for name in numbers if name in table.columns]
    table = table.with_columns(pl.Series(RECORD, kept.astype(np.uint32)))
    rejects = [
        Reject(chunk.source, chunk.first + index, "", reasons[index], excerpt(_line(data, records, index)))
        for index in sorted(reasons)
    ]
    table, bad = _to_numbers(table, names)
    return table, rejects + [_reject(chunk, data, records, *item) for item in bad]


def _not_utf8(data: bytes, records: Records) -> list[int]:
    """Records with bytes that are not UTF-8."""
    found: list[int] = []
    position = 0
    while True:
        try:
            data[position:].decode()
        except UnicodeDecodeError as error:
            index = int(np.searchsorted(records.starts, position + error.start, side="right")) - 1
            found.append(index)
            if index + 1 >= len(records.starts):
                return found
            position = int(records.starts[index + 1])
            continue
        return found


def _to_numbers(table: pl.DataFrame, names: list[str]) -> tuple[pl.DataFrame, list[tuple[int, str, str]]]:
    """Strings -> numbers; rows with a value that is none are taken out and returned as (record, field, reason)."""
    bad: dict[int, tuple[str, str]] = {}
    casts = {}
    for name in names:
        text = table[name].cast(pl.String).str.strip_chars()
        casts[name] = text.cast(pl.Float64, strict=False)
        failed = casts[name].is_null() & text.is_not_null() & (text != "")
        for record, value in table.filter(failed).select(RECORD, name).iter_rows():
            bad.setdefault(int(record), (name, f"{str(value)[:40]!r} is not a number"))
    table = table.with_columns(**casts)
    if bad:
        table = table.filter(~pl.col(RECORD).is_in(list(bad)))
    return table, [(record, *bad[record]) for record in sorted(bad)]


def _check_numbers(
    table: pl.DataFrame, rejects: list[Reject], chunk: Chunk, numbers: list[str], raw: tuple[bytes, TextFormat] | None
) -> tuple[pl.DataFrame, list[Reject]]:
    """Take out records with infinite or too large numbers."""
    bad: dict[int, str] = {}
    for name in numbers:
        values = table[name].to_numpy()
        with np.errstate(invalid="ignore"):
            outside = np.abs(values) > LARGEST
        if table[name].is_nan().any():
            outside |= table[name].is_nan().fill_null(False).to_numpy()
        for index in np.flatnonzero(outside).tolist():
            bad.setdefault(index, name)
    if not bad:
        return table, rejects
    found = table[RECORD].to_numpy()
    reason = "number is not finite, or too large for float32"
    rows = [(int(found[index]), name, reason) for index, name in bad.items()]
    keep: npt.NDArray[np.bool_] = np.ones(table.height, dtype=bool)
    keep[list(bad)] = False
    return table.filter(pl.Series(keep)), rejects + reject_records(chunk, raw, rows)


def reject_records(
    chunk: Chunk, raw: tuple[bytes, TextFormat] | None, rows: list[tuple[int, str, str]]
) -> list[Reject]:
    """Rejects with an excerpt of the raw text.

    Args:
        chunk: where the records are.
        raw: bytes and format of the chunk; None for Parquet.
        rows: (record number inside the chunk, field, reason).
    """
    if raw is None:
        return [Reject(chunk.source, chunk.first + record, name, reason, "") for record, name, reason in rows]
    data, text = raw
    records = scan(data, single(text), text.quote)
    return [_reject(chunk, data, records, *row) for row in rows]


def _reject(chunk: Chunk, data: bytes, records: Records, record: int, name: str, reason: str) -> Reject:
    return Reject(chunk.source, chunk.first + record, name, reason, excerpt(_line(data, records, record)))


def _line(data: bytes, records: Records, index: int) -> bytes:
    return data[records.starts[index] : records.stops[index]]


def _read_parquet(
    chunk: Chunk, schema: Schema, numbers: list[str], strings: list[str]
) -> tuple[pl.DataFrame, list[Reject]]:
    try:
        with pq.ParquetFile(chunk.path) as file:
            table = _parquet_rows(file, chunk, numbers + strings)
    except pa.ArrowException as error:
        where = f"rows {chunk.start}..{chunk.stop - 1}"
        raise CorruptRecordError(chunk.source, where, f"damaged Parquet ({error}); write the file again") from error
    if table.height != chunk.records:
        raise CorruptRecordError(chunk.source, f"row {chunk.start}", "the file changed while it was read; run again")
    bags = {item.source for item in schema.fields if item.kind == "multi"}
    for name in numbers + strings:
        if table[name].dtype.is_nested() and (name not in bags or table[name].dtype == pl.Struct):
            raise ConfigError(
                f"{chunk.source}: column {name!r} holds {table[name].dtype}; only fields of type multi may hold lists"
            )
    table = table.with_columns(pl.Series(RECORD, np.arange(table.height, dtype=np.uint32)))
    table = table.with_columns([_tokens(table[name], schema.text.missing) for name in strings])
    text = [name for name in numbers if table[name].dtype == pl.String or table[name].dtype.is_temporal()]
    table = table.with_columns([_tokens(table[name], schema.text.missing) for name in text])
    table, bad = _to_numbers(table, text)
    table = table.with_columns(pl.col(name).cast(pl.Float64) for name in numbers if name not in text)
    return table, reject_records(chunk, None, bad)


def _tokens(column: pl.Series, missing: tuple[str, ...]) -> pl.Series:
    """A column of any type as text, null where it is empty or one of `missing`; lists as lists of text."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if column.dtype == pl.List:
        return column.list.eval(pl.element().cast(pl.String))
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone is not None:
        # The same moment is the same text, whatever the zone it is shown in.
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    column = column.cast(pl.String)
    return column.set(column.is_in(["", *missing]), None)


def _parquet_rows(file: pq.ParquetFile, chunk: Chunk, columns: list[str]) -> pl.DataFrame:
    """Rows start..stop, reading only the row groups that hold them."""
    groups, first = [], 0
    begin = None
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first + rows > chunk.start and first < chunk.stop:
            groups.append(group)
            begin = first if begin is None else begin
        first += rows
    table = file.read_row_groups(groups, columns=columns, use_threads=False)
    frame = pl.DataFrame(table.slice(chunk.start - (begin or 0), chunk.stop - chunk.start))
    return frame
