"""Raw bytes of one file, unpacked, hashed and cut at line ends while the block before is looked at."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

from isal import igzip, igzip_lib

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError, WorkerLostError

BLOCK = 1 << 18  # bytes of text per block: small enough to stay in the cache of a core
SLOTS = 16  # blocks that another process unpacks in advance
SIZE = struct.Struct("<q")  # how the size of such a block is told
LARGE = 16 << 20  # bytes of packed text from which on another process unpacks it
LONGEST = 64 << 20  # bytes; a longer line is no line
HEAD = 1 << 20  # bytes looked at to tell formats apart
_AHEAD = 4  # blocks unpacked in advance
_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF8_BOM = b"\xef\xbb\xbf"
_DAMAGED = (gzip.BadGzipFile, zlib.error, cast("type[Exception]", igzip_lib.IsalError))


class HashingReader(io.RawIOBase):
    """Passes bytes on and hashes them on the way, in a thread of its own, so that a file is read once."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest, self.size = stream, hashlib.sha256(), 0
        self.pool = ThreadPoolExecutor(1)
        self.waiting: deque[Future[None]] = deque()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; the number of bytes, 0 at the end."""
        count = cast("io.FileIO", self.stream).readinto(buffer) or 0
        if count:
            self.waiting.append(self.pool.submit(self.digest.update, bytes(memoryview(buffer)[:count])))
        if len(self.waiting) > _AHEAD:
            self.waiting.popleft().result()
        self.size += count
        return count

    def finish(self) -> dict[str, Any]:
        """Read what is left; `bytes` and `sha256` of the whole file."""
        scrap = bytearray(1 << 20)
        while self.readinto(scrap):
            continue
        self.pool.shutdown()
        return {"bytes": self.size, "sha256": self.digest.hexdigest()}


class ChildReader(io.RawIOBase):
    """Text of a packed file, unpacked by a process of its own: unpacking and parsing then share no interpreter lock.

    Text comes in slots of shared memory, since a pipe would copy every byte into the kernel and out again. The process
    says on its standard output how many bytes each slot holds, and is told on its standard input of each that is free.
    """

    def __init__(self, path: Path) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.path = path
        self.found: dict[str, Any] = {}
        self.rest = b""
        self.turn = 0
        with tempfile.TemporaryFile() as shared:
            shared.truncate(SLOTS * BLOCK)
            self.slots = mmap.mmap(shared.fileno(), SLOTS * BLOCK)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "data_prep.seqrec.unpack", str(path), str(shared.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths},
                pass_fds=[shared.fileno()],
            )
        if self.process.stdin is None or self.process.stdout is None or self.process.stderr is None:
            raise OSError(f"{path}: no pipe")
        self.free, self.sizes, self.report = self.process.stdin, self.process.stdout, self.process.stderr

    def readable(self) -> bool:
        """Always."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Some bytes, at most `size`; none at the end of a file that is whole.

        Raises:
            CorruptRecordError: the file is cut short or damaged.
            WorkerLostError: the process was killed.
        """
        if size < 0:
            return self.readall()
        if not self.rest:
            block = bytearray(BLOCK)
            self.rest = bytes(memoryview(block)[: self.fill(memoryview(block))])
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def fill(self, view: memoryview) -> int:
        """Copy the next slot into a buffer of `BLOCK` bytes; only the last slots of a file are not full.

        Returns:
            The number of bytes, 0 at the end of a file that is whole.

        Raises:
            CorruptRecordError: the file is cut short or damaged.
            WorkerLostError: the process was killed.
        """
        told = self.sizes.read(SIZE.size)
        if len(told) < SIZE.size:
            self._look_at_report()
            return 0
        (count,) = SIZE.unpack(told)
        begin = self.turn * BLOCK
        view[:count] = memoryview(self.slots)[begin : begin + count]
        self.turn = (self.turn + 1) % SLOTS
        with contextlib.suppress(BrokenPipeError):  # it has ended: what it said is still to be read
            os.write(self.free.fileno(), b".")
        return int(count)

    def _look_at_report(self) -> None:
        if not self.found:
            report = self.report.read().decode("utf-8", "replace").strip().splitlines()
            code = self.process.wait()
            try:
                self.found = dict(json.loads(report[-1]))
            except (IndexError, ValueError, TypeError) as error:
                raise WorkerLostError(
                    f"{self.path}: the process that unpacks it ended with code {code} ({report[-1:]}); run the same "
                    "command again"
                ) from error
        if "reason" in self.found:
            raise CorruptRecordError(self.path, self.found["position"], self.found["reason"])

    def finish(self) -> dict[str, Any]:
        """Read what is left; `bytes` and `sha256` of the whole file."""
        while self.read(BLOCK):
            continue
        return self.found

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.free, self.sizes, self.report):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.slots.close()


@contextlib.contextmanager
def open_apart(path: Path) -> Iterator[tuple[BinaryIO, HashingReader | ChildReader]]:
    """`open_raw`, but large packed files are unpacked by another process."""
    packed = False
    if path.is_file() and path.stat().st_size >= LARGE:
        with path.open("rb") as plain:
            packed = plain.read(2) == _GZIP
    if not packed:
        with open_raw(path) as opened:
            yield opened
        return
    child = ChildReader(path)
    try:
        yield cast("BinaryIO", child), child
    finally:
        child.stop()


@contextlib.contextmanager
def open_raw(path: Path) -> Iterator[tuple[BinaryIO, HashingReader]]:
    """Open a raw file: a stream of its text, and the reader that hashes its bytes.

    Raises:
        DatasetNotFoundError: it is not there.
        CorruptRecordError: the gzip is cut short or damaged; also raised for reads inside the block.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such file; check --raw")
    with path.open("rb", buffering=0) as plain:
        packed = plain.read(2) == _GZIP
        plain.seek(0)
        reader = HashingReader(cast("BinaryIO", plain))
        try:
            if packed:
                opened: Any = igzip  # this module is not typed
                with opened.IGzipFile(fileobj=io.BufferedReader(reader, 1 << 20)) as unpacked:
                    yield cast("BinaryIO", unpacked), reader
            else:
                yield cast("BinaryIO", io.BufferedReader(reader, 1 << 20)), reader
        except EOFError as error:
            raise CorruptRecordError(
                path, f"byte {reader.size}", "the gzip stream is cut short; fetch the file again"
            ) from error
        except _DAMAGED as error:
            raise CorruptRecordError(
                path, f"near byte {reader.size}", f"damaged gzip ({error}); fetch the file again"
            ) from error
        finally:
            reader.pool.shutdown()


def read_head(path: Path) -> bytes:
    """The first lines of a file, unpacked: about `HEAD` bytes, cut at a line end.

    Raises:
        CorruptRecordError: the file is empty, not text, or a damaged gzip.
    """
    with open_raw(path) as (stream, _):
        head = _fill(stream, HEAD)
        more = stream.read(1) if len(head) == HEAD else b""
    if not head:
        raise CorruptRecordError(path, "byte 0", "the file is empty; remove it from --raw or fetch it again")
    if head[:2] in _UTF16:
        raise CorruptRecordError(path, "byte 0", "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8")
    head = head.removeprefix(_UTF8_BOM)
    return head[: head.rfind(b"\n") + 1] or head if more else head


def line_blocks(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """Blocks of whole lines; the next ones are unpacked in the meantime.

    Args:
        path: for messages.
        stream: of text.

    Raises:
        CorruptRecordError: a line does not end.
    """
    carry = b""
    first = True
    for fresh in _blocks(stream):
        if first:
            fresh, first = fresh.removeprefix(_UTF8_BOM), False
        cut = fresh.rfind(b"\n") + 1
        if not cut:
            carry += fresh
            if len(carry) > LONGEST:
                raise CorruptRecordError(path, "a line", f"no line end in {len(carry) >> 20} MiB; is this a text log?")
            continue
        yield carry + fresh[:cut] if carry else fresh[:cut]
        carry = fresh[cut:]
    if carry.strip():
        yield carry


def line_views(path: Path, stream: BinaryIO) -> Iterator[bytes | memoryview]:
    """`line_blocks`, each of which is valid until the next one: text of another process is not copied.

    Args:
        path: for messages.
        stream: of text.

    Raises:
        CorruptRecordError: a line does not end.
    """
    if not isinstance(stream, ChildReader):
        yield from line_blocks(path, stream)
        return
    buffer, kept, first = bytearray(2 * BLOCK), 0, True
    while count := stream.fill(memoryview(buffer)[kept : kept + BLOCK]):
        end = kept + count
        begin = len(_UTF8_BOM) if first and buffer.startswith(_UTF8_BOM) else 0
        first = False
        cut = buffer.rfind(b"\n", kept, end) + 1
        if cut > begin:
            yield memoryview(buffer)[begin:cut]
        else:
            cut = begin
        kept = end - cut
        if kept > LONGEST:
            raise CorruptRecordError(path, "a line", f"no line end in {kept >> 20} MiB; is this a text log?")
        if kept + BLOCK > len(buffer):  # views of the old buffer may live on
            buffer = buffer[cut:end] + bytearray(max(BLOCK, 2 * kept))
        else:
            buffer[:kept] = buffer[cut:end]
    if buffer[:kept].strip():
        yield memoryview(buffer)[:kept]


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Blocks of `BLOCK` bytes; a thread reads ahead where no other process does."""
    if isinstance(stream, ChildReader):
        while fresh := _fill(stream, BLOCK):
            yield fresh
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(_fill, stream, BLOCK) for _ in range(_AHEAD))
        while fresh := waiting.popleft().result():
            waiting.append(pool.submit(_fill, stream, BLOCK))
            yield fresh


def _fill(stream: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes, fewer only at the end: where blocks are cut must not depend on the speed of a disk."""
    parts: list[bytes] = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
