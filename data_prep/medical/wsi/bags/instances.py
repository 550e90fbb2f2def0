"""Rows of a multiple-instance set, gathered into bags."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.common.mapping import Done
from data_prep.common.rejects import Reject
from data_prep.medical.wsi.bags.labels import is_missing, plain_label
from data_prep.medical.wsi.bags.packing import PLACES, Bags
from data_prep.medical.wsi.bags.spelling import file_name_of, same_key
from data_prep.medical.wsi.bags.table_files import RECORD, decode_text, read_whole

FEATURES, FACTS = "bags.h5", "bags.parquet"  # what a task leaves
NAMES = {
    "label": ("bag_label", "label", "class", "target", "y"),
    "bag": ("bag", "bag_id", "bagid", "bag_name", "bag_ids"),
}
# What the columns of facts are called for `slides_of`.
CELLS = {"label": "label", "bag": "slide_id", "patient": "case_id", "site": "site", "split": "split_info"}


@dataclass(frozen=True)
class Layout:
    """Columns of a file of instances, by name or number from 0; empty: see `mil_csv.prepare`.

    Args:
        label: of the bag.
        bag: its name.
        patient: of the bag.
        site: of the bag.
        split: of the bag.
        leave_out: columns that are no features.
        header: auto, yes or no.
        encoding: of the file; found out when empty.
    """

    label: str = ""
    bag: str = ""
    patient: str = ""
    site: str = ""
    split: str = ""
    leave_out: tuple[str, ...] = ()
    header: str = "auto"
    encoding: str = ""


def read_instances(path: Path, layout: Layout, max_bad: float, columns: int, folder: Path) -> dict[str, Any]:
    """Task: write the features of all bags into `bags.h5`, and what is known of them into `bags.parquet`.

    Args:
        path: the file.
        layout: its columns.
        max_bad: share of a bag's rows that may lack a number.
        columns: of the file that was trained on: a file with one less has no labels. 0: this is that file.
        folder: to write into.

    Returns:
        Rows, bags, columns and features of the file, and lines for the user.

    Raises:
        CorruptRecordError: the file cannot be read.
        ConfigError: a column is not there, or is no feature.
    """
    table, told = _read(path, layout)
    unlabelled = columns - 1 == table.width
    if unlabelled and table.columns == list(map(str, range(table.width))):
        # Numbers of columns go on meaning the same columns.
        label = int(layout.label or 0)
        table = table.rename({name: str(int(name) + 1) for name in reversed(table.columns) if int(name) >= label})
    roles = _find_roles(path, table, layout, unlabelled=unlabelled)
    left_out = {*roles.values(), *(_column(path, table, name, "leave_out") for name in layout.leave_out)}
    names = [name for name in table.columns if name not in left_out]
    if not names:
        raise ConfigError(f"{path}: no column is left for features")
    told.append(
        f"{path.name}: {', '.join(f'{role} in column {column}' for role, column in roles.items())}; {len(names):,} "
        f"features from column {names[0]} to {names[-1]}"
    )
    numbers = table.select(pl.col(names).cast(pl.Float64, strict=False))
    words = [name for name in names if numbers[name].null_count() == table.height]
    if words:
        raise ConfigError(f"{path}: column {words[0]!r} holds no number; leave it out with --leave-out {words[0]}")
    with np.errstate(over="ignore"):
        values = numbers.fill_null(float("nan")).to_numpy().astype(np.float32)
    good = np.isfinite(values).all(axis=1)
    cells = table.select(pl.col(column).str.strip_chars().alias(role) for role, column in roles.items())
    told += _check_names(path, cells["bag"])
    found = _gather(cells, good, max_bad)
    with h5py.File(folder / FEATURES, "w") as file:
        for bag, rows in enumerate(found.pop("rows")):
            if not found["reason"][bag]:
                file.create_dataset(f"{bag:06d}/features", data=values[rows[good[rows]]])
    frame = pl.DataFrame(found, schema_overrides={"count": pl.UInt32, "bad": pl.UInt32})
    frame.write_parquet(folder / FACTS, compression="zstd", statistics=False)
    facts = {"records": table.height, "bags": frame.height, "columns": table.width, "features": len(names)}
    return {**facts, "told": told}


def gather_bags(path: Path, done: Done) -> tuple[Bags, pl.DataFrame]:
    """What `read_instances` left, as bags, and as the cells of a table of slides.

    Args:
        path: the file.
        done: the finished task.
    """
    facts = pl.read_parquet(done.folder / FACTS, memory_map=False).with_row_index("index")
    good = facts.filter(pl.col("reason") == "")
    places = good.select(
        pl.col("bag").alias("name"),
        pl.col("count").alias("patches"),
        pl.lit(f"bags/{FEATURES}").alias("file"),
        pl.format("{}/features", pl.col("index").cast(pl.String).str.zfill(6)).alias("dataset"),
        pl.lit("").alias("coords"),
        *(pl.lit(None, dtype=PLACES[name]).alias(name) for name in ("size_level0", "width", "height")),
    )
    rejects = [
        Reject(path.name, row["first"], row["field"], row["reason"], f"bag {row['bag']}")
        for row in facts.filter(pl.col("reason") != "").iter_rows(named=True)
    ]
    bad = {name: count for name, count in good.select("bag", "bad").iter_rows() if count}
    told = list(done.info["told"])
    if bad:
        told.append(
            f"{path.name}: rows that lack a number were left out of {len(bad):,} bags, {sum(bad.values()):,} in all"
        )
    dim = {"feature_dim": done.info["features"], "encoder": None, "mpp": None, "patch_size": None}
    frame = places.select(pl.col(name).cast(kind) for name, kind in PLACES.items())
    cells = good.select(
        *(pl.col(role).alias(name) for role, name in CELLS.items() if role in good.columns),
        pl.col("first").cast(pl.UInt32).alias(RECORD),
    )
    files = {f"bags/{FEATURES}": done.folder / FEATURES}
    return Bags(frame.sort("name"), files, [], rejects, dim, bad, told), cells


def _check_names(path: Path, bags: pl.Series) -> list[str]:
    """Lines about bags that have to be called otherwise, because predictions are files of their names.

    Raises:
        ConfigError: two bags would have one name.
    """
    first: dict[str, str] = {}
    for bag in bags.unique(maintain_order=True):
        other = first.setdefault(file_name_of(bag), bag)
        if other != bag:
            raise ConfigError(
                f"{path}: bags {other!r} and {bag!r} would both be files called {file_name_of(bag)!r}; rename one of "
                "them"
            )
    changed = [(bag, name) for name, bag in first.items() if name != bag]
    if not changed:
        return []
    bag, name = changed[0]
    return [f"{path.name}: names of {len(changed):,} bags cannot be those of files: {bag!r} is called {name!r} here"]


def _gather(cells: pl.DataFrame, good: Any, max_bad: float) -> dict[str, list[Any]]:
    """Bags in the order in which they begin: their rows, and what is known of them or wrong with them."""
    rows: dict[str, list[int]] = {}
    for index, bag in enumerate(cells["bag"]):
        rows.setdefault(file_name_of(bag), []).append(index)
    roles = [role for role in cells.columns if role != "bag"]
    found: dict[str, list[Any]] = {
        name: [] for name in ("bag", *roles, "first", "rows", "count", "bad", "field", "reason")
    }
    columns = {role: [plain_label(cell) if role == "label" else cell for cell in cells[role]] for role in roles}
    for bag, members in rows.items():
        place = np.array(members)
        bad = int((~good[place]).sum())
        field, reason = "", ""
        for role in roles:
            values = list(dict.fromkeys(columns[role][index] for index in members))
            found[role].append("" if is_missing(values[0]) else values[0])
            if len(values if role != "patient" else {same_key(value) for value in values}) > 1:
                field, reason = role, f"rows of one bag have different {role}s ({', '.join(map(repr, values[:2]))})"
        if not bag:
            field, reason = "bag", "name of the bag missing"
        elif bad == len(members) or bad > max_bad * len(members):
            field, reason = "features", f"{bad:,} of {len(members):,} rows lack a number"
        facts = {"bag": bag, "first": members[0], "rows": place, "count": len(members) - bad, "bad": bad}
        for name, value in {**facts, "field": field, "reason": reason}.items():
            found[name].append(value)
    return found


def _read(path: Path, layout: Layout) -> tuple[pl.DataFrame, list[str]]:
    text, told = decode_text(path, read_whole(path), layout.encoding)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise CorruptRecordError(path, "file", "is empty")
    separator = max(",;\t", key=lines[-1].count)
    if separator not in lines[-1]:  # numbers between blanks
        separator, lines = ",", [re.sub(r"\s+", ",", line.strip()) for line in lines]
    first = [cell.strip().strip('"') for cell in lines[0].split(separator)]
    named = layout.header == "yes" or (layout.header == "auto" and _is_header(first, lines[1:2], separator))
    body = io.BytesIO("\n".join(lines[1:] if named else lines).encode())
    try:
        table = pl.read_csv(body, has_header=False, separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise CorruptRecordError(path, "file", f"rows of different length, or no table ({reason})") from error
    table = table.select(pl.all().fill_null(""))
    if named and len(first) != table.width:
        raise CorruptRecordError(path, "line 1", f"names {len(first)} columns, the rows have {table.width}")
    if table.width < 3:
        raise CorruptRecordError(path, "line 1", f"{table.width} columns; needed are label, bag and features")
    names = first if named and len(set(first)) == len(first) else list(map(str, range(table.width)))
    return table.rename(dict(zip(table.columns, names, strict=True))), told


def _is_header(first: Sequence[str], second: Sequence[str], separator: str) -> bool:
    """Whether words stand above numbers."""
    below = second[0].split(separator) if second else []
    return any(_is_number(low) and not _is_number(high) for high, low in zip(first, below, strict=False) if high)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _find_roles(path: Path, table: pl.DataFrame, layout: Layout, *, unlabelled: bool) -> dict[str, str]:
    known = {name.lower(): name for name in table.columns}
    roles: dict[str, str] = {}
    for position, role in enumerate(("label", "bag")):
        asked = getattr(layout, role)
        usual = next((known[name] for name in NAMES[role] if name in known), "")
        if role == "label" and unlabelled:
            continue
        roles[role] = _column(path, table, asked, f"{role}_column") if asked else usual
        roles[role] = roles[role] or table.columns[position - unlabelled]
    for role in ("patient", "site", "split"):
        if asked := getattr(layout, role):
            roles[role] = _column(path, table, asked, f"{role}_column")
    if len(set(roles.values())) < len(roles):
        raise ConfigError(
            f"{path}: one column cannot be {' and '.join(roles)}; name them with --label-column and so on"
        )
    return roles


def _column(path: Path, table: pl.DataFrame, name: str, option: str) -> str:
    if name in table.columns:
        return name
    if name.isdigit() and int(name) < table.width:
        return table.columns[int(name)]
    shown = ", ".join(table.columns[:8])
    raise ConfigError(f"{path}: no column {name!r} ({option}); there are {table.width}: {shown}, ...")
