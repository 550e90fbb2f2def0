"""Pictures of one's own in a table: image, label or identity, and camera, split, group, box where known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from data_prep.common.errors import ConfigError
from data_prep.common.tables import read_table
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.records import (
    CLASSES,
    GALLERY,
    IDENTITIES,
    QUERY,
    Asked,
    Box,
    Collector,
    Item,
    Listing,
    normalise,
    split_of,
)

COLUMNS = ("image", "label", "identity", "camera", "split", "group")
CORNERS, SIZES = ("left", "top", "right", "bottom"), ("x", "y", "width", "height")


def read(files: RawFiles, asked: Asked) -> Listing:
    """List the pictures.

    Args:
        files: of the pictures.
        asked: `table` and `kind`.
    """
    path = asked.table or _only_table(files)
    table = read_table(path)
    kind = asked.kind
    if kind == "auto":
        kind = IDENTITIES if "identity" in table.columns else CLASSES
    name = "identity" if kind == IDENTITIES and "identity" in table.columns else "label"
    missing = [column for column in ("image", name) if column not in table.columns]
    if missing:
        raise ConfigError(f"{path}: has no column {missing[0]!r}, only {', '.join(table.columns)}; see --help")
    corners = box_columns(table.columns)
    given = {column: column in table.columns and bool((table[column] != "").any()) for column in COLUMNS}
    found = Collector()
    folder = path.parent.resolve()
    strip = files.find_strip(table["image"].to_list(), folder)
    for number, line, row in table_rows(table):
        image, reason = files.locate(row["image"], folder, strip)
        reason = reason or _fault(row, name, kind, given)
        boxed = any(row[column] for column in corners)
        box = parse_box(row, corners) if boxed else None
        if not reason and boxed and box is None:
            reason = f"{', '.join(corners)} are no four numbers"
        if reason:
            found.reject(path.name, number, reason, ",".join(row.values()), line)
            continue
        split = split_of(row["split"]) if given["split"] else ""
        camera = normalise(row["camera"]) if given["camera"] and kind == IDENTITIES else ""
        group = normalise(row["group"]) if given["group"] else ""
        found.add(Item(image, normalise(row[name]), split, camera, box, group), path.name, number, line)
    return Listing(kind, tuple(found.items), lists=(path,), rejects=tuple(found.rejects))


def table_rows(table: pl.DataFrame) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Number (from 0), place in the file, and cells of each row; blank rows are passed over.

    The place is a line as editors count them: from 1, the header too, and a cell may hold several.
    """
    line = 2
    for number, row in enumerate(table.iter_rows(named=True)):
        if any(row.values()):
            yield number, f"line {line}", row
        line += 1 + sum(cell.count("\n") for cell in row.values())


def _only_table(files: RawFiles) -> Path:
    found = [path for path in files.files if path.suffix.lower() in (".csv", ".tsv")]
    if len(found) != 1:
        raise ConfigError(f"{files.root}: holds {len(found)} tables (.csv, .tsv); name the one with --table")
    return found[0]


def box_columns(columns: list[str]) -> tuple[str, ...]:
    """Columns of the box, if there are any: corners first."""
    return next((names for names in (CORNERS, SIZES) if set(names) <= set(columns)), ())


def parse_box(row: Mapping[str, str], columns: tuple[str, ...]) -> Box | None:
    """Left, top, right, bottom in pixels; None: they are no numbers."""
    try:
        first, second, third, fourth = (float(row[name]) for name in columns)
    except ValueError:
        return None
    if not all(map(math.isfinite, (first, second, third, fourth))):
        return None
    return (first, second, third, fourth) if columns == CORNERS else (first, second, first + third, second + fourth)


def _fault(row: Mapping[str, str], name: str, kind: str, given: Mapping[str, bool]) -> str:
    if not row[name]:
        return f"no {name}"
    if given["split"]:
        split = split_of(row["split"])
        if not split or (kind == CLASSES and split in (QUERY, GALLERY)):
            possible = "train, valid, test" + (", query, gallery" if kind == IDENTITIES else "")
            return f"the split is none of {possible}"
    if kind == IDENTITIES and given["camera"] and not row["camera"]:
        return "no camera, which other rows have"
    return ""
