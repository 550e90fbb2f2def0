"""Cutting raw files into chunks of records, always at the same places.

The size of a chunk is a constant of the format: were it to depend on the number of workers, so would the output.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import BLOCK
from data_prep.ctr.scan import LONGEST, scan
from data_prep.ctr.schema import Schema, TextFormat

CHUNK_BYTES = 32 << 20  # of text, uncompressed
CHUNK_ROWS = 1 << 17  # of Parquet
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Chunk:
    """A run of records of one file.

    Args:
        path: the file that holds them: the source, or a piece unpacked from it.
        source: name of the source file, for messages.
        start: first byte; for Parquet first row.
        stop: one past the last byte or row.
        first: record number of the first record in its source.
        records: how many there are, good or bad.
        columns: names of the columns in the file.
        position: index of the source.
    """

    path: Path
    source: str
    start: int
    stop: int
    first: int
    records: int
    columns: tuple[str, ...]
    position: int


class _HashingReader(io.RawIOBase):
    """Passes bytes on and hashes them on the way, so that a file is read once."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest, self.size = stream, hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = cast("io.FileIO", self.stream).readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        self.size += count
        return count


def plan_source(path: Path, schema: Schema, folder: Path) -> dict[str, Any]:
    """Cut one source into chunks and hash it; packed text is unpacked into `folder`.

    Args:
        path: raw file.
        schema: its format.
        folder: where pieces of packed files go.

    Returns:
        bytes, sha256, columns and chunks ([piece or "", start, stop, records]).

    Raises:
        DatasetNotFoundError: the file is not there.
        CorruptRecordError: it is empty, cut short, damaged or not text.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such file; check --raw")
    with path.open("rb", buffering=0) as stream:
        reader = _HashingReader(cast("BinaryIO", stream))
        buffered = io.BufferedReader(reader, 1 << 20)
        magic = buffered.peek(4)[:4]
        try:
            if magic == b"PAR1":
                columns, chunks = _plan_parquet(path)
            elif magic[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=buffered) as unpacked:
                    columns, chunks = _plan_text(path, cast("BinaryIO", unpacked), schema, folder)
            else:
                columns, chunks = _plan_text(path, cast("BinaryIO", buffered), schema, None)
        except EOFError as error:
            raise CorruptRecordError(
                path, f"byte {reader.size}", "the gzip stream is cut short; fetch the file again"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise CorruptRecordError(
                path, f"near byte {reader.size}", f"damaged gzip ({error}); fetch the file again"
            ) from error
        while buffered.read(1 << 20):
            continue
    return {"bytes": reader.size, "sha256": reader.digest.hexdigest(), "columns": list(columns), "chunks": chunks}


def _plan_parquet(path: Path) -> tuple[list[str], list[list[Any]]]:
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowException as error:
        raise CorruptRecordError(path, "footer", f"damaged Parquet ({error}); write the file again") from error
    names = list(metadata.schema.to_arrow_schema().names)
    _refuse_duplicates(path, names)
    if metadata.num_rows == 0:
        raise CorruptRecordError(path, "footer", "the file holds no record; remove it from --raw")
    steps = range(0, metadata.num_rows, CHUNK_ROWS)
    return names, [
        ["", at, min(at + CHUNK_ROWS, metadata.num_rows), min(CHUNK_ROWS, metadata.num_rows - at)] for at in steps
    ]


def _plan_text(path: Path, stream: BinaryIO, schema: Schema, folder: Path | None) -> tuple[list[str], list[list[Any]]]:
    text = schema.text
    head = stream.read(1 << 16)
    if not head:
        raise CorruptRecordError(path, "byte 0", "the file is empty; remove it from --raw or fetch it again")
    if (bom := _BOMS.get(head[:2])) is not None:
        raise CorruptRecordError(path, "byte 0", f"{bom} text; convert it: iconv -f {bom} -t UTF-8")
    skip = len(_UTF8_BOM) if head.startswith(_UTF8_BOM) else 0
    columns, length = read_header(path, head[skip:], schema) if text.header else (list(schema.columns), 0)
    begin = skip + length
    if text.quote:
        chunks = _cut_quoted(path, stream, head[begin:], begin, text, folder)
    else:
        chunks = _cut_lines(path, stream, head[begin:], begin, folder)
    if not chunks:
        reason = "the file holds a header but no record; fetch it again or remove it from --raw"
        raise CorruptRecordError(path, "end of file", reason)
    return columns, chunks


def _cut_lines(path: Path, stream: BinaryIO, block: bytes, start: int, folder: Path | None) -> list[list[Any]]:
    """Cut after the first line end beyond CHUNK_BYTES, looking at one small block at a time."""
    chunks: list[list[Any]] = []
    begin, position, records, content, blank = start, start, 0, start, 0
    piece = _Piece(folder, 0)
    while block:
        ahead = begin + CHUNK_BYTES - position
        cut = block.find(b"\n", max(ahead, 0)) + 1 if ahead < len(block) else 0
        part = block[:cut] if cut else block
        records += count_byte(part, 10)
        piece.write(part)
        if filled := len(part.rstrip(b"\r\n")):
            content = position + filled
            blank = count_byte(part[filled:], 10)
        else:
            blank = blank + count_byte(part, 10) if content > begin else 0
        position += len(part)
        if cut:
            chunks.append(piece.close(begin, position, records))
            begin, records, piece = position, 0, _Piece(folder, len(chunks))
        elif position - begin > 2 * CHUNK_BYTES:
            raise CorruptRecordError(
                path, f"byte {begin}", f"no line end in {CHUNK_BYTES >> 20} MiB; is this a text log?"
            )
        block = block[cut:] if cut else stream.read(BLOCK)
        block = block or stream.read(BLOCK)
    if content > begin:  # blank lines at the end of the file are no records
        chunks.append(piece.close(begin, content, records - blank + 1))
    else:
        piece.discard()
    return chunks


class _Piece:
    """The unpacked text of one chunk; nothing for files that are read where they are."""

    def __init__(self, folder: Path | None, number: int) -> None:
        self.name = f"piece-{number:05d}.txt" if folder is not None else ""
        self.path = folder / self.name if folder is not None else None
        self.stream = self.path.open("wb") if self.path is not None else None

    def write(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.write(data)

    def close(self, start: int, stop: int, records: int) -> list[Any]:
        if self.stream is None:
            return ["", start, stop, records]
        self.stream.truncate(stop - start)
        self.stream.close()
        return [self.name, 0, stop - start, records]

    def discard(self) -> None:
        if self.stream is not None and self.path is not None:
            self.stream.close()
            self.path.unlink()


def _cut_quoted(
    path: Path, stream: BinaryIO, head: bytes, begin: int, text: TextFormat, folder: Path | None
) -> list[list[Any]]:
    """Cut at records, where quoted values may hold line ends."""
    chunks: list[list[Any]] = []
    for start, block in _blocks(path, stream, head, begin, text):
        piece = _Piece(folder, len(chunks))
        piece.write(block)
        chunks.append(piece.close(start, start + len(block), count_records(block, text)))
    return chunks


def count_byte(data: bytes, value: int) -> int:
    """How often a byte occurs, block by block, so that the comparison stays in the cache."""
    array = np.frombuffer(data, dtype=np.uint8)
    return sum(int(np.count_nonzero(array[at : at + BLOCK] == value)) for at in range(0, len(array), BLOCK))


def _blocks(path: Path, stream: BinaryIO, head: bytes, start: int, text: TextFormat) -> Iterator[tuple[int, bytes]]:
    """Blocks of about CHUNK_BYTES which begin and end at a record; blank lines at the end are dropped."""
    carry = head
    while True:
        fresh = stream.read(CHUNK_BYTES - len(carry)) if len(carry) < CHUNK_BYTES else stream.read(CHUNK_BYTES)
        block = carry + fresh
        if not fresh:
            block = block.rstrip(b"\r\n")
            if block:
                yield start, block
            return
        cut = _last_record(block, text)
        if cut == 0 and len(block) > 2 * CHUNK_BYTES:
            raise CorruptRecordError(
                path, f"byte {start}", f"no line end in {len(block) >> 20} MiB; this is not a text log"
            )
        carry = block[cut:]
        # A block of nothing but the carry would come back for ever: read on until a record ends.
        if cut and block[:cut].strip(b"\r\n"):
            yield start, block[:cut]
            start += cut
        else:
            carry = block


def _last_record(block: bytes, text: TextFormat) -> int:
    """Where the last record that is surely whole ends."""
    if not text.quote or text.quote.encode() not in block:
        return block.rfind(b"\n") + 1
    starts = scan(block, single(text), text.quote).starts
    # A quoted value may end beyond the block: trust what begins well before its end.
    sure = starts[starts <= max(len(block) - 2 * LONGEST, 0)]
    return int(sure[-1]) if len(sure) else 0


def single(text: TextFormat) -> str:
    """The one-byte separator used after `normalise`."""
    return text.separator if len(text.separator) == 1 else "\x1f"


def count_records(block: bytes, text: TextFormat) -> int:
    """Records in a block, blank lines in the middle included."""
    if text.quote and text.quote.encode() in block:
        return len(scan(block, single(text), text.quote).starts)
    return count_byte(block, 10) + (not block.endswith(b"\n"))


def read_header(path: Path, head: bytes, schema: Schema) -> tuple[list[str], int]:
    """Column names in the first record, and its length in bytes.

    Raises:
        CorruptRecordError: not text, or duplicate names.
    """
    text = schema.text
    end = head.find(b"\n") + 1 or len(head)
    try:
        line = head[:end].decode(text.encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise CorruptRecordError(
            path, "header", f"not {text.encoding} text ({error.reason}); is this the right file?"
        ) from error
    line = line.replace(text.separator, single(text))
    options: dict[str, Any] = {"quotechar": text.quote} if text.quote else {"quoting": csv.QUOTE_NONE}
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=single(text), **options))]
    except (csv.Error, StopIteration) as error:
        raise CorruptRecordError(
            path, "header", f"cannot be read ({error}); the first line must name the columns"
        ) from error
    _refuse_duplicates(path, names)
    return names, end


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise CorruptRecordError(path, "header", f"duplicate column name {name!r}; rename one of them")


def check_columns(path: str, columns: tuple[str, ...], needed: list[str], schema: Schema) -> None:
    """Refuse a log which lacks a column.

    Raises:
        CorruptRecordError: naming the column, and the likely reason.
    """
    missing = [name for name in needed if name not in columns]
    if not missing:
        return
    hint = f"the log has {', '.join(columns[:12])}{' ...' if len(columns) > 12 else ''}"
    others = [mark for mark in (",", "\t", ";", "|") if mark != schema.text.separator and mark in "".join(columns)]
    if len(columns) == 1 and others:
        hint = f"the header seems to be separated by {others[0]!r}, the schema says {schema.text.separator!r}"
    raise CorruptRecordError(
        path, "header", f"column {missing[0]!r} of the schema is missing; {hint}; correct the schema or the log"
    )
