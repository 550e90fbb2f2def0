"""The published index of pictures, and the numbers about it in `dataset.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.parts import write_parts
from data_prep.common.splits import SPLITS
from data_prep.finegrained.records import DISTRACTOR, GALLERY, JUNK, QUERY
from data_prep.finegrained.roles import Seen

COLUMNS = {
    "row": pl.UInt64,
    "name": pl.String,  # path below the raw folder
    "image": pl.String,  # the same, or path below the prepared directory
    "stored": pl.Boolean,  # which of both
    "label": pl.Int64,  # code of the class or identity; -1: junk
    "width": pl.UInt32,  # of the whole picture, pixels
    "height": pl.UInt32,
    "left": pl.UInt32,  # of the part that is used; right and bottom excluded
    "top": pl.UInt32,
    "right": pl.UInt32,
    "bottom": pl.UInt32,
}
IDENTITY_COLUMNS = {
    "identity": pl.String,  # as the data set writes it; empty: junk or distractor
    "role": pl.String,  # query, gallery; empty: trained on
    "camera": pl.Int64,  # index into `cameras` of dataset.json; -1: unknown
    "extra": pl.String,  # junk, distractor, or empty
}
FEW = 4  # pictures of an identity that a batch of PK sampling takes


def write_index(frame: pl.DataFrame, splits: Iterable[str], folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write the index of each split.

    Args:
        frame: pictures with the columns split, name, stored (path, or empty), code unless nothing is labelled, and
            those of identities where it has them.
        splits: names, in order; those without pictures get an empty part.
        folder: where to write.

    Returns:
        Path inside the prepared directory -> file, and the `splits` entry of `dataset.json`.
    """
    kinds = {**COLUMNS, **IDENTITY_COLUMNS}
    frame = frame.drop("label", strict=False).rename({"code": "label"}, strict=False)
    frame = frame.with_columns(
        image=pl.when(pl.col("stored") != "").then("stored").otherwise("name"), stored=pl.col("stored") != ""
    )
    names = [name for name in kinds if name in frame.columns or name == "row"]
    files: dict[str, Path] = {}
    entries = {}
    for split in splits:
        rows = frame.filter(pl.col("split") == split).with_row_index("row")
        entries[split] = write_parts(
            rows.select(pl.col(name).cast(kinds[name]) for name in names), split, folder, files
        )
    return files, entries


def code_identities(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str], list[str]]:
    """Codes of identities and cameras.

    Args:
        frame: with the columns label, split, camera, extra.

    Returns:
        The frame with code, identity, and camera as a number; training identities in the order of their codes, from 0,
        by name; names of cameras. Identities that are not trained on have the codes behind; all distractors have one
        code of their own, and junk has -1.
    """
    train = sorted(frame.filter(pl.col("split") == "train")["label"].unique().to_list())
    others = sorted(set(frame.filter(pl.col("extra") == "")["label"].to_list()) - set(train))
    codes = {name: code for code, name in enumerate([*train, *others])}
    cameras = sorted(set(frame["camera"].to_list()) - {""}, key=lambda name: (not name.isdecimal(), len(name), name))
    numbers = {name: number for number, name in enumerate(cameras)}
    special = {JUNK: -1, DISTRACTOR: len(codes)}
    values = [special[extra] if extra else codes[label] for label, extra in frame.select("label", "extra").iter_rows()]
    frame = frame.with_columns(
        code=pl.Series(values, dtype=pl.Int64),
        identity=pl.col("label"),
        camera=pl.Series([numbers.get(name, -1) for name in frame["camera"]], dtype=pl.Int64),
    )
    return frame, train, cameras


def count_classes(frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Pictures of each class in each split."""
    found = {name: dict.fromkeys(SPLITS, 0) for name in classes}
    for label, split, count in frame.group_by("label", "split").len().iter_rows():
        found[label][split] = count
    return found


def count_identities(frame: pl.DataFrame, cameras: Sequence[str], *, ignore_camera: bool) -> dict[str, Any]:
    """Numbers of identities, pictures and cameras, and of those that cannot be tested with.

    Args:
        frame: as `code_identities` gives it, with split and role.
        cameras: names.
        ignore_camera: pictures of one camera match, too.
    """
    own = frame.filter(pl.col("extra") == "")
    each = own.group_by("identity", "split").agg(pl.len(), pl.col("camera").n_unique().alias("cameras"))
    parts = Counter(f"{split}_{role}" if role else split for split, role in own.select("split", "role").iter_rows())
    extras = Counter(frame["extra"].to_list())
    by_camera: dict[str, dict[str, int]] = {name: {} for name in cameras}
    for camera, split, role, count in (
        own.filter(pl.col("camera") >= 0).group_by("camera", "split", "role").len().sort("split", "role").iter_rows()
    ):
        by_camera[cameras[camera]][f"{split}_{role}" if role else split] = count
    unmatched = {}
    for split in ("valid", "test"):
        part = own.filter(pl.col("split") == split)
        seen = Seen(part["identity"].to_list(), [str(number) for number in part["camera"]], ignore_camera)
        matched = seen.with_match(part["role"].to_list())
        unmatched[split] = int((part["role"] == QUERY).sum()) - len(matched)
    per_split = {split: int((each["split"] == split).sum()) for split in SPLITS}
    return {
        "identities": per_split,
        "images": dict(sorted(parts.items())),
        JUNK: extras[JUNK],
        DISTRACTOR: extras[DISTRACTOR],
        "cameras": by_camera,
        "identities_with_one_image": int((each["len"] == 1).sum()),
        "identities_with_one_camera": int((each["cameras"] == 1).sum()) if cameras else 0,
        f"training_identities_with_fewer_than_{FEW}_images": int(
            each.filter((pl.col("split") == "train") & (pl.col("len") < FEW)).height
        ),
        "queries_without_match": unmatched,
    }


def queries_in_gallery(pairs: pl.DataFrame, frame: pl.DataFrame) -> int:
    """Queries that are in the gallery of their split as well, exactly or nearly."""
    roles = frame.select("name", "role")
    found = pairs.filter(pl.col("first_split") == pl.col("second_split")).select("first", "second")
    for side in ("first", "second"):
        found = found.join(roles.rename({"name": side, "role": f"{side}_role"}), on=side, how="inner")
    mixed = [
        found.filter((pl.col(f"{one}_role") == QUERY) & (pl.col(f"{other}_role") == GALLERY))[one]
        for one, other in (("first", "second"), ("second", "first"))
    ]
    return pl.concat(mixed).n_unique()
