"""Which slide it is: checksums of files that are too large to be read for a checksum alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from data_prep.common.files import sha256_file, translate_os_errors

WHOLE = 64 << 20  # bytes up to which a file is read as a whole
SAMPLES, SAMPLE = 64, 64 << 10  # of a larger one: so many pieces, evenly spread, of so many bytes


def identify_file(path: Path) -> dict[str, Any]:
    """An entry of `sources` in `dataset.json`: name, bytes, and `sha256` or, of a large file, `sampled_sha256`.

    The latter is of 64 pieces of 64 KiB from the first to the last byte and of the size: a slide of gigabytes costs
    4 MiB of reading, and tiling it hardly costs more.
    """
    with translate_os_errors(path):
        size = path.stat().st_size
        if size <= WHOLE:
            return {"path": path.name, "bytes": size, "sha256": sha256_file(path)}
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        with path.open("rb") as stream:
            for index in range(SAMPLES):
                stream.seek((size - SAMPLE) * index // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE))
    return {"path": path.name, "bytes": size, "sampled_sha256": digest.hexdigest()}
