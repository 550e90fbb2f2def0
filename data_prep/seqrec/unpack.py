"""`python -m data_prep.seqrec.unpack FILE FD`: the text of a gzip file into slots of shared memory.

FD is an inherited file that both processes map. The size of each slot goes to standard output once the slot is
filled; a byte on standard input says that one is free again. The last line on standard error is JSON: `bytes` and
`sha256` of the packed file, or `position` and `reason` of a damage. Whoever reads the text must look at it: only then
is the text known to be whole.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

from data_prep.common.errors import CorruptRecordError
from data_prep.seqrec.stream import BLOCK, SIZE, SLOTS, open_raw


def unpack(path: Path, shared: int) -> dict[str, Any]:
    """Write the text of a file into slots.

    Args:
        path: a gzip file.
        shared: file descriptor of the slots.

    Returns:
        What the last line is to say.
    """
    slots = memoryview(mmap.mmap(shared, SLOTS * BLOCK))
    try:
        with open_raw(path) as (stream, reader):
            turn = 0
            while True:
                if turn >= SLOTS and not os.read(0, 1):
                    raise BrokenPipeError("the reader has gone")
                slot = slots[turn % SLOTS * BLOCK :][:BLOCK]
                done = 0
                # full slots only: where blocks are cut must not depend on how the file was packed
                while done < BLOCK and (count := stream.readinto(slot[done:])):  # type: ignore[attr-defined]
                    done += count
                if done:
                    os.write(1, SIZE.pack(done))
                if done < BLOCK:
                    return reader.finish()
                turn += 1
    except CorruptRecordError as error:
        return {"position": error.position, "reason": error.reason}


if __name__ == "__main__":
    try:
        sys.stderr.write(json.dumps(unpack(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
    except BrokenPipeError:  # the reader has gone: so does this process
        os._exit(1)
