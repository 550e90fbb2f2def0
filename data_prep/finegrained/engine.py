"""The stage of a preparation: pictures are looked at in blocks, then joined to one table of what is left."""

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

from data_prep.common.errors import ConfigError
from data_prep.common.files import sha256_file, translate_os_errors
from data_prep.common.fingerprints import CORRELATION, DISTANCE, I64, SIDE, U8
from data_prep.common.manifest import NAME, read_manifest
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import EXCERPT, Reject, excerpt
from data_prep.common.run import Run, describe_source
from data_prep.finegrained import images
from data_prep.finegrained.images import ImageRules, Shot, look_at_block
from data_prep.finegrained.records import Item, Listing

PAYLOAD = frozenset({"images", "train", "valid", "test", "predict", "duplicates.parquet", "rejects.parquet"})
# What the bytes depend on besides input and options.
TOOLS = (pl.__version__, PIL.__version__, cv2.__version__, np.__version__, DISTANCE, CORRELATION)
IMAGE_FILES = "(image files)"  # their entry in `sources`


@dataclass(frozen=True)
class Looked:
    """Pictures that were looked at.

    Args:
        frame: one row for each that is kept, in the order of the listing: what `Item` has, and `FACTS`.
        rejects: of the listing and of the pictures.
        counts: facts for `counts` of `dataset.json`.
        source: entry of `sources` for all picture files.
        blocks: finished tasks.
        size: pictures per task.
    """

    frame: pl.DataFrame
    rejects: list[Reject]
    counts: dict[str, Any]
    source: dict[str, Any]
    blocks: tuple[Done, ...]
    size: int

    def thumbnails(self, rows: I64) -> U8:
        """Thumbnails of some rows of the frame.

        Shape:
            rows (N,) -> (N, 32, 32).
        """
        indices = self.frame["index"].to_numpy()[rows].astype(np.int64)
        found = np.zeros((len(rows), SIDE, SIDE), np.uint8)
        for block in np.unique(indices // self.size):
            here = indices // self.size == block
            stored = np.load(self.blocks[block].folder / "thumbnails.npy", mmap_mode="r", allow_pickle=False)
            found[here] = stored[indices[here] - block * self.size]
        return found

    def files(self, frame: pl.DataFrame) -> dict[str, Path]:
        """Path inside the prepared directory -> file, of the pictures that do not stay where they are."""
        written = frame.filter(pl.col("stored") != "").select("index", "stored")
        return {name: self.blocks[index // self.size].folder / name for index, name in written.iter_rows()}


def look_at_pictures(run: Run, listing: Listing, root: Path, rules: ImageRules, *, crop: bool) -> Looked:
    """Look at all pictures of a listing, block by block.

    Args:
        run: the output directory.
        listing: what to look at.
        root: folder that paths start from.
        rules: how.
        crop: use the boxes of the listing.
    """
    shots = [
        Shot(index, str(root / item.path), item.box if crop else None, item.box is not None)
        for index, item in enumerate(listing.items)
    ]
    size = images.BLOCK
    tasks = [
        Task(f"{at // size:05d}", look_at_block, (tuple(shots[at : at + size]), rules))
        for at in range(0, len(shots), size)
    ]
    blocks = tuple(run.stage("images", tasks))
    facts = [pl.read_parquet(done.folder / "facts.parquet", memory_map=False) for done in blocks]
    return _join(listing, pl.concat(facts) if facts else pl.DataFrame(schema=images.FACTS), blocks, size)


def _join(listing: Listing, facts: pl.DataFrame, blocks: tuple[Done, ...], size: int) -> Looked:
    names = ("path", "label", "split", "camera", "group", "extra")
    values = {name: [getattr(item, name) for item in listing.items] for name in names}
    frame = pl.DataFrame(values, schema=dict.fromkeys(names, pl.String)).rename({"path": "name"}).hstack(facts)
    faults = frame.filter(pl.col("reason") != "").select("name", "field", "reason")
    rejects = list(listing.rejects)
    rejects += [
        Reject(excerpt(name), 0, field[:EXCERPT], reason, excerpt(name)) for name, field, reason in faults.iter_rows()
    ]
    remarks = Counter(facts["remarks"].explode(empty_as_null=True).drop_nulls().to_list())
    counts = {
        **listing.notes,
        "listed": len(listing.items) + len(listing.rejects),
        "rejected": len(rejects),
        "reasons": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "remarks": dict(sorted(remarks.items())),
        "grey": int(facts["grey"].sum()),
    }
    entries = list(zip(frame["name"].to_list(), facts["bytes"].to_list(), facts["sha256"].to_list(), strict=True))
    kept = frame.filter(pl.col("reason") == "").drop("reason", "field", "remarks", "bytes", "sha256")
    return Looked(kept, rejects, counts, summarise_files(entries), blocks, size)


def summarise_files(entries: Sequence[tuple[str, int, str]]) -> dict[str, Any]:
    """One entry of `sources` for many picture files.

    Args:
        entries: name, bytes, and SHA-256 of each.
    """
    digest = hashlib.sha256()
    for name, _, content in sorted(entries):
        digest.update(f"{name}\0{content}\n".encode())
    total = sum(entry[1] for entry in entries)
    return {"path": IMAGE_FILES, "files": len(entries), "bytes": total, "sha256": digest.hexdigest()}


def find_finished(
    out: Path, command: dict[str, Any], lists: Sequence[Path], items: Sequence[Item], root: Path
) -> dict[str, Any] | None:
    """The manifest of `out` when it holds this preparation of exactly these files, byte for byte.

    Raises:
        ConfigError: it holds prepared data of something else.
    """
    if not (out / NAME).exists():
        return None
    manifest = read_manifest(out)
    recorded = {entry["path"]: entry for entry in manifest.get("sources", [])}
    paths = [root / item.path for item in items]
    with translate_os_errors(out):
        sizes = [path.stat().st_size for path in paths]
        same = manifest.get("command") == command and manifest.get("image_root") == str(root)
        if same and recorded.get(IMAGE_FILES, {}).get("bytes") == sum(sizes):
            # Those that cannot be read have no checksum, and no bytes, there.
            entries = [(item.path, *_content(path)) for item, path in zip(items, paths, strict=True)]
            found = [*(describe_source(path) for path in lists), summarise_files(entries)]
            if manifest.get("sources") == found:
                return manifest
    raise ConfigError(
        f"{out}: holds prepared data of other options or other files; choose another output directory or remove it"
    )


def _content(path: Path) -> tuple[int, str]:
    size = path.stat().st_size
    return size, sha256_file(path) if size else ""
