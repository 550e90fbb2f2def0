"""`python -m data_prep.seqrec.unpack FILE`: the text of a gzip file to standard output, then a line of JSON.

The line goes to standard error and says `bytes` and `sha256` of the packed file, or `position` and `reason` of a
damage. Whoever reads the text must look at it: only then is the text known to be whole.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from data_prep.common.errors import CorruptRecordError
from data_prep.seqrec.stream import BLOCK, open_raw


def unpack(path: Path, target: int) -> dict[str, Any]:
    """Write the text of a file to a file descriptor.

    Args:
        path: a gzip file.
        target: where to write.

    Returns:
        What the last line is to say.
    """
    buffer = memoryview(bytearray(BLOCK))
    try:
        with open_raw(path) as (stream, reader):
            while count := stream.readinto(buffer):  # type: ignore[attr-defined]
                rest = buffer[:count]
                while rest:
                    rest = rest[os.write(target, rest) :]
            return reader.finish()
    except CorruptRecordError as error:
        return {"position": error.position, "reason": error.reason}


if __name__ == "__main__":
    try:
        sys.stderr.write(json.dumps(unpack(Path(sys.argv[1]), sys.stdout.fileno())) + "\n")
    except BrokenPipeError:  # the reader has gone: so does this process
        os._exit(1)
