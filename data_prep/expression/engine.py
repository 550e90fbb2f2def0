"""The stage of a preparation: images are read in blocks, then joined to one table of the faces that are left."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import polars as pl

from data_prep.common.anonymise import pseudonym
from data_prep.common.files import sha256_file, translate_os_errors
from data_prep.common.fingerprints import CORRELATION, DISTANCE, I64
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import EXCERPT, Reject
from data_prep.common.run import Run
from data_prep.common.telling import say
from data_prep.expression.encode import BLOCK_FILES, BLOCK_ROWS, CHUNK, Rules, encode_block
from data_prep.expression.faces import BORDER, LOOKED_AT, SMALLEST, U8
from data_prep.expression.records import IMAGE, Listing

PAYLOAD = frozenset(
    {
        *("images", "train", "valid", "test", "predict", "all", "folds"),
        *("duplicates.parquet", "rejects.parquet", "remarks.parquet", "detector.onnx", "detector.xml"),
    }
)
# what the bytes depend on besides input and options
_VERSIONS = (pl.__version__, cv2.__version__, np.__version__, PIL.__version__)
TOOLS = (*_VERSIONS, DISTANCE, CORRELATION, LOOKED_AT, SMALLEST, BORDER, BLOCK_FILES, BLOCK_ROWS, CHUNK)
IMAGE_FILES = "(image files)"  # their entry in `sources`
_TOLD = 5  # rejects that are printed


@dataclass(frozen=True)
class ReadFaces:
    """Faces that were read.

    Args:
        frame: one row per face that is kept, in the order of the listing: its columns, and index,
            width, height, grey, box, score, faces, digest, hash, block, stored, at, small (its thumbnail).
        rejects: of the listing and of the images.
        remarks: likewise.
        counts: facts for `counts` of `dataset.json`.
        image_source: entry of `sources` for all image files.
        blocks: finished tasks.
    """

    frame: pl.DataFrame
    rejects: list[Reject]
    remarks: list[Reject]
    counts: dict[str, Any]
    image_source: dict[str, Any] | None
    blocks: tuple[Done, ...]

    def thumbnails(self, rows: I64) -> U8:
        """Thumbnails of some rows of the frame.

        Shape:
            rows (N,) -> (N, 32, 32).
        """
        chosen = self.frame.select("block", "small")[rows]
        block, small = chosen["block"].to_numpy(), chosen["small"].to_numpy()
        found = np.zeros((len(rows), 32, 32), np.uint8)
        for number in np.unique(block):
            here = block == number
            stored = np.load(self.blocks[number].folder / "thumbnails.npy", mmap_mode="r", allow_pickle=False)
            found[here] = stored[small[here]]
        return found


def read_faces(run: Run, listing: Listing, rules: Rules, key: bytes | None) -> ReadFaces:
    """Read all images of a listing, block by block.

    Args:
        run: the output directory.
        listing: what to read.
        rules: how.
        key: of the pseudonyms of names and subjects; None keeps both.
    """
    rows = listing.rows
    size = BLOCK_ROWS if len(rows) and (rows["column"] != IMAGE).all() else BLOCK_FILES
    tasks = [
        Task(f"{at // size:05d}", encode_block, (rows.slice(at, size), at, rules)) for at in range(0, len(rows), size)
    ]
    blocks = tuple(run.stage("read", tasks))
    facts = gather(blocks)
    return _join(listing, facts, key, blocks)


def gather(blocks: Sequence[Done]) -> pl.DataFrame:
    """Facts of all blocks, with `block` and `small` (row of the block's thumbnails)."""
    tables = []
    for number, done in enumerate(blocks):
        table = pl.read_parquet(done.folder / "facts.parquet", memory_map=False)
        written = pl.col("reason") == ""
        small = written.cum_sum().cast(pl.Int64) - 1
        tables.append(table.with_columns(block=pl.lit(number, pl.Int64), small=pl.when(written).then(small)))
    return pl.concat(tables)


def _join(listing: Listing, facts: pl.DataFrame, key: bytes | None, blocks: tuple[Done, ...]) -> ReadFaces:
    rows = listing.rows.rename({"box": "given_box"}).drop("frame", "time_s", "points", "start", "size")
    kept_frames = listing.rows.select("frame", "time_s")
    frame = pl.concat([rows, kept_frames, facts.drop("frame", "time_s")], how="horizontal")
    source = _image_source(frame)
    if key is not None:
        frame = _pseudonyms(frame, key)
    # an image whose subject nobody knows is its own
    known = pl.col("subject") != ""
    frame = frame.with_columns(known=known, subject=pl.when(known).then("subject").otherwise("name"))
    rejects = [_hide(reject, key) for reject in listing.rejects]
    remarks = [_hide(remark, key) for remark in listing.remarks]
    bad = frame.filter(pl.col("reason") != "").select("name", "record", "field", "reason")
    rejects += [Reject(name, max(at, 0), where[:EXCERPT], why, "") for name, at, where, why in bad.iter_rows()]
    odd = frame.filter(pl.col("remarks").list.len() > 0).select("name", "record", "remarks")
    remarks += [Reject(name, max(at, 0), "", text, "") for name, at, texts in odd.iter_rows() for text in texts]
    for reject in rejects[:_TOLD]:
        say(f"{reject.source}: record {reject.record}: {reject.reason} {reject.excerpt}".rstrip())
    if len(rejects) > _TOLD:
        say(f"... and {len(rejects) - _TOLD:,} more, listed in rejects.parquet")
    counts = {
        **listing.notes,
        "images": len(frame),
        "rejects": dict(Counter(reject.reason for reject in rejects).most_common()),
        "remarks": dict(sorted(Counter(remark.reason for remark in remarks).items())[:50]),
    }
    left = frame.filter(pl.col("reason") == "").drop("reason", "field", "remarks", "path", "column", "given_box")
    # in the order of names, pseudonyms do not tell the order of what they stand for
    return ReadFaces(left.sort("name") if key else left, rejects, remarks, counts, source, blocks)


def _pseudonyms(frame: pl.DataFrame, key: bytes) -> pl.DataFrame:
    def hide(kind: str) -> pl.Series:
        return pl.Series([pseudonym(key, kind, text) if text else "" for text in frame[kind]], dtype=pl.String)

    return frame.with_columns(**{kind: hide(kind) for kind in ("name", "subject", "source")})


def _hide(reject: Reject, key: bytes | None) -> Reject:
    return reject._replace(source=pseudonym(key, "source", reject.source), excerpt="") if key else reject


def _image_source(frame: pl.DataFrame) -> dict[str, Any] | None:
    files = frame.filter(pl.col("column") == IMAGE).select("name", "bytes", "sha256")
    return summarise_files(list(files.iter_rows())) if len(files) else None


def summarise_files(entries: Sequence[tuple[str, int, str]]) -> dict[str, Any]:
    """One entry of `sources` for many image files.

    Args:
        entries: of each image name, bytes and SHA-256.
    """
    digest = hashlib.sha256()
    for name, _, content in sorted(entries):
        digest.update(f"{name}\0{content}\n".encode())
    size = sum(entry[1] for entry in entries)
    return {"path": IMAGE_FILES, "files": len(entries), "bytes": size, "sha256": digest.hexdigest()}


def describe_files(listing: Listing) -> dict[str, Any] | None:
    """The same entry, made of the files themselves."""
    files = listing.rows.filter(pl.col("column") == IMAGE).select("name", "path")
    entries = []
    for name, path in files.iter_rows():
        with translate_os_errors(Path(path)):
            entries.append((name, Path(path).stat().st_size, sha256_file(Path(path))))
    return summarise_files(entries) if entries else None
