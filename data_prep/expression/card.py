"""The published index of faces, their packed pixels, and what `dataset.json` says about classes."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from data_prep.common.files import translate_os_errors, write_atomic
from data_prep.common.mapping import Done
from data_prep.expression.encode import image_name

PART_ROWS = 1 << 16
COLUMNS: dict[str, Any] = {
    "row": pl.UInt64,
    "name": pl.String,
    "subject": pl.String,
    "label": pl.UInt32,
    "target": pl.List(pl.Float32),  # share of each class; where labels are votes
    "source": pl.String,  # null: unknown
    "image": pl.String,  # path below the prepared directory: a picture, or an array of many
    "at": pl.UInt32,  # row of the array; null: the file is the picture
    "width": pl.UInt32,
    "height": pl.UInt32,
    "box": pl.List(pl.Float32),  # x, y, width, height of the face in the raw picture; null: not looked for
    "score": pl.Float32,  # of the detector; null: none
    "faces": pl.UInt32,  # that were found; null: nobody looked
    "frame": pl.UInt32,  # of the video, from 0; null: a picture
    "time_s": pl.Float64,
}
OPTIONAL = ("label", "target", "split")


class Payload(NamedTuple):
    """What is published.

    Args:
        files: path inside the prepared directory -> file.
        splits: the `splits` entry of `dataset.json`.
        channels: of the faces.
    """

    files: dict[str, Path]
    splits: dict[str, Any]
    channels: int


def to_parquet(table: pl.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def write_payload(
    frame: pl.DataFrame,
    blocks: Sequence[Done],
    splits: Iterable[str],
    folder: Path,
    *,
    channels: int = 0,
    whole: bool = False,
) -> Payload:
    """Write index and faces of each split.

    Faces that are rows of arrays are written anew, in the order of the index: row i of `train/faces-00000.npy` is that
    of row i of `train/part-00000.parquet`. Others are files, and keep their bytes.

    Args:
        frame: faces, with `split`, `block`, `stored`, `at`, `grey` and the columns of the index; `code` is the class.
        blocks: finished tasks.
        splits: names, in order; those without images get an empty part.
        folder: where to write.
        channels: 1, 3, or 0: as many as the faces need.
        whole: write an index of all splits, too (`all`), for folds.
    """
    channels = channels or (1 if frame["grey"].all() else 3)
    frame = frame.drop("label", strict=False).rename({"code": "label"}, strict=False).with_row_index("number")
    files: dict[str, Path] = {}
    entries: dict[str, Any] = {}
    tables = []
    for split in splits:
        rows, faces = _place(frame.filter(pl.col("split") == split), split, blocks, folder, channels)
        files |= faces
        parts, entries[split] = _write_index(rows, split, folder)
        files |= parts
        tables.append(rows)
    if whole:
        joined = pl.concat(tables).sort("number")
        files |= _write_index(joined, "all", folder, split=True)[0]
    return Payload(files, entries, channels)


def _place(
    rows: pl.DataFrame, split: str, blocks: Sequence[Done], folder: Path, channels: int
) -> tuple[pl.DataFrame, dict[str, Path]]:
    """Rows of a split with their final places, and the files at these."""
    files: dict[str, Path] = {}
    packed = rows["at"].is_not_null().to_numpy()
    image: list[str] = []
    at: list[int | None] = []
    if len(rows) and packed.all():
        for number, start in enumerate(range(0, len(rows), PART_ROWS)):
            part = rows.slice(start, PART_ROWS)
            path = f"{split}/faces-{number:05d}.npy"
            files[path] = folder / path.replace("/", "-")
            _pack(part, blocks, channels, files[path])
            image += [path] * len(part)
            at += range(len(part))
    else:
        for number, block, stored in rows.select("number", "block", "stored").iter_rows():
            source = blocks[block].folder / stored
            path = f"images/{image_name(number, source.suffix)}"
            files[path] = source
            image.append(path)
            at.append(None)
    places = (pl.Series("image", image, pl.String), pl.Series("at", at, pl.UInt32))
    return rows.drop("at").with_columns(*places), files


def _pack(part: pl.DataFrame, blocks: Sequence[Done], channels: int, path: Path) -> None:
    """Write the faces of some rows as one array (rows, side, side, channels) of uint8."""
    side = (int(part["height"][0]), int(part["width"][0]))
    with translate_os_errors(path):
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(part), *side, channels))
        places = part.with_row_index("place").select("block", "stored", "place", "at")
        for (block, stored), rows in places.group_by("block", "stored", maintain_order=True):
            faces = np.load(blocks[int(block)].folder / str(stored), mmap_mode="r", allow_pickle=False)
            # a block whose faces are all grey holds one channel
            array[rows["place"].to_numpy()] = faces[rows["at"].to_numpy()][..., :channels]
        array.flush()


def _write_index(
    rows: pl.DataFrame, name: str, folder: Path, *, split: bool = False
) -> tuple[dict[str, Path], dict[str, Any]]:
    present = [column for column in COLUMNS if column != "row" and (column not in OPTIONAL or column in rows.columns)]
    if "target" in present and not rows["target"].is_not_null().any():
        present.remove("target")
    table = rows.select(
        pl.int_range(pl.len()).cast(COLUMNS["row"]).alias("row"), *(pl.col(n).cast(COLUMNS[n]) for n in present)
    )
    empty = pl.lit(None, dtype=pl.String)
    table = table.with_columns(source=pl.when(pl.col("source") == "").then(empty).otherwise("source"))
    if split:
        table = table.with_columns(split=rows["split"])
    files: dict[str, Path] = {}
    parts = []
    for number, at in enumerate(range(0, max(len(table), 1), PART_ROWS)):
        part = table.slice(at, PART_ROWS)
        data = to_parquet(part)
        path = f"{name}/part-{number:05d}.parquet"
        files[path] = folder / path.replace("/", "-")
        write_atomic(files[path], data)
        parts.append({"path": path, "rows": len(part), "sha256": hashlib.sha256(data).hexdigest()})
    return files, {"rows": len(table), "parts": parts}


def common_side(frame: pl.DataFrame) -> int | None:
    """Height and width of all faces in pixels; None: they have several sizes, or are no squares."""
    sides = {int(side) for name in ("width", "height") for side in frame[name].unique()}
    return sides.pop() if len(sides) == 1 else None


def count_classes(frame: pl.DataFrame, classes: Sequence[str], splits: Sequence[str]) -> dict[str, dict[str, int]]:
    """Images of each class in each split: split -> class -> images."""
    found = frame.group_by("split", "label").len()
    counts = {(split, label): images for split, label, images in found.iter_rows()}
    return {split: {name: counts.get((split, name), 0) for name in classes} for split in splits}


def balance(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, Any]]:
    """How even the classes of each split are.

    Returns:
        Split -> `largest_to_smallest` (of the classes that are there; null without any), `evenness` (entropy of the
        shares over that of equal ones, 1 = equal; null without images) and `absent` classes.
    """
    result: dict[str, dict[str, Any]] = {}
    for split, images in counts.items():
        there = [count for count in images.values() if count]
        total = sum(there)
        entropy = -sum(count / total * math.log(count / total) for count in there)
        result[split] = {
            "largest_to_smallest": round(max(there) / min(there), 3) if there else None,
            "evenness": round(abs(entropy) / math.log(max(len(images), 2)), 4) if there else None,
            "absent": [name for name, count in images.items() if not count],
        }
    return result
