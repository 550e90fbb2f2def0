"""Tables of annotations and facts of image files -> images and persons that can be used, and the published index."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from data_prep.common.files import write_atomic
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import Reject, excerpt
from data_prep.common.run import Run
from data_prep.common.splits import SPLITS
from data_prep.pose.people import images as looking
from data_prep.pose.people.find import ImageFinder, Source

PART_ROWS = 1 << 16
SLACK = 1.0  # pixels that annotations may lie outside an image whose size the file gets wrong
INDEX = {
    "row": pl.UInt64,
    "image_id": pl.Int64,
    "file": pl.String,  # as the annotations call it
    "image": pl.String,  # path below the raw folder, or below the prepared directory
    "stored": pl.Boolean,  # which of both
    "width": pl.UInt32,
    "height": pl.UInt32,
    "persons": pl.UInt32,  # that have a labelled keypoint, crowds not counted
    "annotations": pl.UInt32,
    "crowds": pl.UInt32,
    "crowd_index": pl.Float64,  # of CrowdPose; null: not known
    "group": pl.String,
}
PERSONS = ("row", "annotation_id", "box", "area", "crowd", "labelled", "keypoints")


Faults = dict[tuple[int, int], tuple[Any, ...]]  # number of a file and id of an image -> record, file name, reason


class Asked(Protocol):
    """The options that matter here; see `prepare_people`."""

    @property
    def exif(self) -> str: ...  # noqa: D102

    @property
    def verify(self) -> str: ...  # noqa: D102

    @property
    def copy_images(self) -> bool: ...  # noqa: D102

    @property
    def group_pattern(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Joined:
    """What is left of all files.

    Args:
        images: one row per image that can be used, in the order of the files: `number` (among all listed), source,
            record, image_id, file, path, group, split, width, height, crowd_index, stored, digest, persons,
            annotations, crowds.
        persons: their annotations: number, and the columns of `records`.
        rejects: of all stages.
        remarks: of all stages.
        read: records that were looked at.
        counts: facts for `counts` of `dataset.json`.
        blocks: finished tasks of the images.
    """

    images: pl.DataFrame
    persons: pl.DataFrame
    rejects: list[Reject]
    remarks: list[Reject]
    read: int
    counts: dict[str, Any]
    blocks: tuple[Done, ...]

    def stored(self, images: pl.DataFrame) -> dict[str, Path]:
        """Images that were written: path inside the prepared directory -> finished file."""
        rows = images.filter(pl.col("stored") != "").select("stored", "block").iter_rows()
        return {name: self.blocks[block].folder / name for name, block in rows}


def join(run: Run, records: Sequence[Done], sources: Sequence[Source], finder: ImageFinder, asked: Asked) -> Joined:
    """Find and look at the images of all files, and keep what can be used.

    Args:
        run: the output directory.
        records: finished tasks of `read_records`, one for each source.
        sources: the files.
        finder: of the image files.
        asked: options.
    """
    tables = {name: _gather(records, name) for name in ("images", "persons", "rejects", "remarks")}
    rejects = [Reject(*row) for row in tables["rejects"].drop("at").iter_rows()]
    remarks = [Reject(*row) for row in tables["remarks"].drop("at").iter_rows()]
    images, faults = _locate(tables["images"], sources, finder, asked.group_pattern)
    images, blocks = _look_at(run, images, finder.root, asked)
    persons = tables["persons"].join(images.select("at", "image_id", "number"), on=["at", "image_id"], how="left")
    persons = persons.sort("at", "record")
    misfit = pl.col("number").is_in(_sizes_that_do_not_fit(images, persons)) & (pl.col("reason") == "")
    images = images.with_columns(reason=pl.when(misfit).then(pl.lit(_MISFIT)).otherwise("reason"))
    kept, bad = images.filter(pl.col("reason") == ""), images.filter(pl.col("reason") != "")
    for at, image_id, *fault in bad.select("at", "image_id", "record", "path", "reason").iter_rows():
        faults[at, image_id] = tuple(fault)
    names = [source.path.name for source in sources]
    rejects += _reject_images(faults, persons, names)
    remarks += _image_remarks(kept, names)
    persons = persons.join(kept.select("number"), on="number", how="semi", maintain_order="left")
    remarks += _outside(persons, kept, names)
    counts: Counter[str] = Counter()
    for done in records:
        counts.update(done.info["counts"])
    counts["grey_images"] = int(kept["grey"].sum())
    counts["images_written_anew"] = int((kept["stored"] != "").sum()) if not asked.copy_images else 0
    total = sum(sum(done.info["read"].values()) for done in records)
    return Joined(_count(kept, persons), persons, rejects, remarks, total, dict(sorted(counts.items())), blocks)


_MISFIT = "has another size than the annotations say, and some lie outside of it"
_OTHER_SIZE = "has another size than the annotations say, and all lie inside: taken from the file"
_NO_SIZE = "the annotations say no size: taken from the file"


def _gather(records: Sequence[Done], name: str) -> pl.DataFrame:
    """Tables of all files, with the column `at`: the number of the file."""
    return pl.concat(
        pl.read_parquet(done.folder / f"{name}.parquet", memory_map=False).with_columns(at=pl.lit(at, pl.UInt32))
        for at, done in enumerate(records)
    )


def _locate(
    images: pl.DataFrame, sources: Sequence[Source], finder: ImageFinder, pattern: str
) -> tuple[pl.DataFrame, Faults]:
    """Images whose file is there, with path, split and group; and what is wrong with the others."""
    faults, paths, groups = Faults(), [], []
    compiled = re.compile(pattern) if pattern else None
    for at, record, image_id, file, group in images.select("at", "record", "image_id", "file", "group").iter_rows():
        path, fault = finder.find(file, sources[at])
        found = compiled.search(Path(file).name) if compiled is not None else None
        if compiled is not None and not fault and not (found and found[1]):
            fault = "group_pattern finds no group in its file name"
        paths.append("" if fault else path)
        groups.append(found[1] if found else group or path)
        if fault:
            faults[at, image_id] = (record, file, fault)
    splits = [sources[at].split for at in images["at"]]
    columns = {"path": paths, "group": groups, "split": splits}
    images = images.with_columns(pl.Series(name, values, dtype=pl.String) for name, values in columns.items())
    return images.filter(pl.col("path") != "").with_row_index("number"), faults


def _reject_images(faults: Faults, persons: pl.DataFrame, names: Sequence[str]) -> list[Reject]:
    """Rejects of images, and of the annotations that are lost with them."""
    rejects = [
        Reject(names[at], record, "images", reason, excerpt(f"image {image_id}, {file}"))
        for (at, image_id), (record, file, reason) in sorted(faults.items())
    ]
    lost = pl.DataFrame(list(faults), schema={"at": pl.UInt32, "image_id": pl.Int64}, orient="row")
    lost = persons.join(lost, on=["at", "image_id"], how="semi", maintain_order="left")
    for at, record, image_id, annotation in lost.select("at", "record", "image_id", "annotation_id").iter_rows():
        reason = f"its image cannot be used: {faults[at, image_id][2]}"
        rejects.append(Reject(names[at], record, "image_id", reason, f"annotation {annotation}, image {image_id}"))
    return rejects


def _look_at(run: Run, images: pl.DataFrame, root: Path, asked: Asked) -> tuple[pl.DataFrame, tuple[Done, ...]]:
    rules = looking.ImageRules(asked.exif, asked.verify == "pixels", asked.copy_images)
    shots = [
        looking.Shot(number, str(root / path), width, height)
        for number, path, width, height in images.select("number", "path", "width", "height").iter_rows()
    ]
    size = looking.BLOCK
    tasks = [
        Task(f"{at // size:05d}", looking.look_at_block, (tuple(shots[at : at + size]), rules))
        for at in range(0, len(shots), size)
    ]
    blocks = tuple(run.stage("images", tasks))
    facts = [pl.read_parquet(done.folder / "facts.parquet", memory_map=False) for done in blocks]
    table = pl.concat(facts) if facts else pl.DataFrame(schema=looking.FACTS)
    images = images.rename({"width": "said_width", "height": "said_height"})
    images = images.hstack(table.drop("index")).with_columns(block=pl.col("number") // size)
    return images, blocks


def _sizes_that_do_not_fit(images: pl.DataFrame, persons: pl.DataFrame) -> list[int]:
    """Numbers of images of another size than said, some of whose annotations lie outside of them."""
    other = images.filter((pl.col("reason") == "") & _is_said_otherwise()).select("number", "width", "height")
    found = persons.join(other, on="number", how="inner")
    if not len(found):
        return []
    points, box = _points(found), found["box"].to_numpy()
    size = found.select("width", "height").to_numpy()
    labelled = points[:, :, 2] > 0
    inside = ((points[:, :, :2] >= -SLACK) & (points[:, :, :2] <= size[:, None] + SLACK)).all(2)
    fits = (inside | ~labelled).all(1) & (box[:, :2] + box[:, 2:] <= size + SLACK).all(1)
    return sorted(set(found["number"].filter(~pl.Series(fits)).to_list()))


def _is_said_otherwise() -> pl.Expr:
    said = (pl.col("said_width") > 0) & (pl.col("said_height") > 0)
    return said & ((pl.col("said_width") != pl.col("width")) | (pl.col("said_height") != pl.col("height")))


def _image_remarks(images: pl.DataFrame, names: Sequence[str]) -> list[Reject]:
    remarks = []
    both = pl.format(": {} x {}, not {} x {}", "width", "height", "said_width", "said_height")
    unsaid = (pl.col("said_width") == 0) | (pl.col("said_height") == 0)
    images = images.with_columns(
        size=pl.when(_is_said_otherwise()).then(pl.lit(_OTHER_SIZE)).when(unsaid).then(pl.lit(_NO_SIZE)),
        sizes=pl.when(_is_said_otherwise()).then(both).otherwise(pl.lit("")),
    )
    columns = ("at", "record", "image_id", "path", "size", "sizes", "remarks")
    for at, record, image_id, path, other_size, sizes, more in images.select(columns).iter_rows():
        shown = f"image {image_id}, {path}"
        if other_size:
            remarks.append(Reject(names[at], record, "images", other_size, excerpt(f"{shown}{sizes}")))
        remarks += [Reject(names[at], record, "images", reason, excerpt(shown)) for reason in more]
    return remarks


def _outside(persons: pl.DataFrame, images: pl.DataFrame, names: Sequence[str]) -> list[Reject]:
    """Remarks on labelled keypoints and on boxes outside the image; they stay as they are."""
    sized = persons.join(images.select("number", "width", "height"), on="number", how="left", maintain_order="left")
    if not len(sized):
        return []
    points, box, size = _points(sized), sized["box"].to_numpy(), sized.select("width", "height").to_numpy()
    beyond = ((points[:, :, :2] < 0) | (points[:, :, :2] > size[:, None])).any(2) & (points[:, :, 2] > 0)
    apart = ((box[:, :2] >= size) | (box[:, :2] + box[:, 2:] <= 0)).any(1)
    remarks = []
    for row in np.flatnonzero(beyond.any(1) | apart):
        at, record, annotation, image_id = persons.select("at", "record", "annotation_id", "image_id").row(int(row))
        shown = f"annotation {annotation}, image {image_id}"
        if beyond[row].any():
            reason = "labelled keypoints outside the image: kept"
            remarks.append(Reject(names[at], record, "keypoints", reason, f"{shown}: {beyond[row].sum()}"))
        if apart[row]:
            remarks.append(Reject(names[at], record, "bbox", "the box is outside the image: not trained on", shown))
    return remarks


def _points(persons: pl.DataFrame) -> Any:
    flat = persons["keypoints"].to_numpy()
    return flat.reshape(len(flat), -1, 3)


def _count(images: pl.DataFrame, persons: pl.DataFrame) -> pl.DataFrame:
    counts = persons.group_by("number").agg(
        persons=(~pl.col("crowd") & (pl.col("labelled") > 0)).sum(), annotations=pl.len(), crowds=pl.col("crowd").sum()
    )
    joined = images.join(counts, on="number", how="left", maintain_order="left")
    return joined.with_columns(pl.col("persons", "annotations", "crowds").fill_null(0))


def write_index(
    images: pl.DataFrame, persons: pl.DataFrame, folder: Path, *, test_is_valid: bool
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write index and persons of each split.

    Args:
        images: that are kept, with the column `split`.
        persons: as in `Joined`; `row` of what is written is that of their image.
        folder: where to write.
        test_is_valid: the test split is that for validation, whose files it names.

    Returns:
        Path inside the prepared directory -> file, and the `splits` entry of `dataset.json`.
    """
    files: dict[str, Path] = {}
    entries: dict[str, Any] = {}
    for split in SPLITS:
        if split == "test" and test_is_valid:
            entries[split] = {**entries["valid"], "same_as": "valid"}
            continue
        rows = images.filter(pl.col("split") == split).with_row_index("row")
        numbers = rows.select("number", "row")
        mine = persons.join(numbers, on="number", how="inner").sort("row", "record")
        rows = rows.with_columns(
            image=pl.when(pl.col("stored") != "").then("stored").otherwise("path"), stored=pl.col("stored") != ""
        )
        tables = {
            "part": rows.select(pl.col(name).cast(kind) for name, kind in INDEX.items()),
            "persons": mine.with_columns(pl.col("row").cast(pl.UInt64)).select(PERSONS),
        }
        entry: dict[str, Any] = {"rows": len(rows), "persons_rows": len(mine)}
        for name, table in tables.items():
            entry["parts" if name == "part" else name] = _write_parts(table, split, name, folder, files)
        entries[split] = entry
    return files, entries


def _write_parts(table: pl.DataFrame, split: str, name: str, folder: Path, files: dict[str, Path]) -> list[Any]:
    parts = []
    for number, at in enumerate(range(0, max(len(table), 1), PART_ROWS)):
        part = table.slice(at, PART_ROWS)
        data = to_parquet(part)
        path = f"{split}/{name}-{number:05d}.parquet"
        files[path] = folder / path.replace("/", "-")
        write_atomic(files[path], data)
        parts.append({"path": path, "rows": len(part), "sha256": hashlib.sha256(data).hexdigest()})
    return parts


def to_parquet(table: pl.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()
