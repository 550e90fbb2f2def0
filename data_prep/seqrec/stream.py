"""Raw bytes of one file, unpacked, hashed and cut at line ends while the block before is looked at."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

from isal import igzip, igzip_lib

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError

BLOCK = 2 << 20  # bytes of text per block: small enough to stay in the cache of a core
LONGEST = 64 << 20  # bytes; a longer line is no line
HEAD = 1 << 20  # bytes looked at to tell formats apart
_AHEAD = 4  # blocks unpacked in advance
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
        packed = plain.read(2) == b"\x1f\x8b"
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
    """Blocks of whole lines; the next ones are unpacked by a thread in the meantime.

    Args:
        path: for messages.
        stream: of text.

    Raises:
        CorruptRecordError: a line does not end.
    """
    carry = b""
    first = True
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(_fill, stream, BLOCK) for _ in range(_AHEAD))
        while fresh := waiting.popleft().result():
            waiting.append(pool.submit(_fill, stream, BLOCK))
            if first:
                fresh, first = fresh.removeprefix(_UTF8_BOM), False
            cut = fresh.rfind(b"\n") + 1
            if not cut:
                carry += fresh
                if len(carry) > LONGEST:
                    raise CorruptRecordError(
                        path, "a line", f"no line end in {len(carry) >> 20} MiB; is this a text log?"
                    )
                continue
            yield carry + fresh[:cut] if carry else fresh[:cut]
            carry = fresh[cut:]
    if carry.strip():
        yield carry


def _fill(stream: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes, fewer only at the end: where blocks are cut must not depend on the speed of a disk."""
    parts: list[bytes] = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
