"""Split files of cross-validation, applied to prepared data without copying it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl

from domains.common.errors import PreparedDataError

COLUMNS = {"train": "train", "valid": "val", "test": "test"}
ALL = "all"


def apply_split_file(
    root: Path,
    path: Path,
    split: str,
    *,
    unit: str = "patient",
    item: str = "slide",
    remedy: str = "`heptad medical split`",
) -> pl.DataFrame:
    """Return the index rows of one split of a split file `splits_<k>.csv`, as CLAM writes them.

    Args:
        root: prepared directory, with an index of all its rows.
        path: table with the columns train, val and test, which list names of slides.
        split: train, valid or test.
        unit: column of what is on one side only.
        item: what a row is, for messages.
        remedy: what makes such files, for messages.

    Raises:
        PreparedDataError: the file cannot be read, names an unprepared row or one row twice, puts one unit on two
            sides, leaves the split empty, or trains on a single class.
    """
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise PreparedDataError(f"{path}: cannot be read as a table ({error}); give a CLAM split file") from None
    lacking = [name for name in COLUMNS.values() if name not in table.columns]
    if lacking:
        raise PreparedDataError(f"{path}: lacks column {lacking[0]!r}; a split file has train, val and test")
    tables = []
    for part in sorted((root / ALL).glob("part-*.parquet")) or [root / ALL / "part-00000.parquet"]:
        try:
            tables.append(pl.read_parquet(part))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise PreparedDataError(f"{part}: cannot be read ({error}); prepare the data again") from None
    index = pl.concat(tables)
    sides = {side: table[column].drop_nulls().to_list() for side, column in COLUMNS.items()}
    listed = [(name, side) for side, names in sides.items() for name in names]
    unknown = sorted({name for name, _ in listed} - set(index["name"]))
    if unknown:
        raise PreparedDataError(
            f"{path}: {len(unknown)} {item}s are not in {root}, such as {unknown[0]!r}; "
            "prepare them or correct the file"
        )
    twice = [name for name, times in Counter(name for name, _ in listed).items() if times > 1]
    if twice:
        raise PreparedDataError(f"{path}: lists {item} {twice[0]!r} twice ({len(twice)} such); list each once")
    chosen = pl.DataFrame(listed, schema={"name": pl.String, "side": pl.String}, orient="row")
    joined = index.drop("split", "row", strict=False).join(chosen, on="name", how="inner", maintain_order="left")
    leaks = joined.group_by(unit).agg(pl.col("side").n_unique()).filter(pl.col("side") > 1)[unit].sort()
    if len(leaks):
        raise PreparedDataError(
            f"{path}: {unit} {leaks[0]!r} is on several sides ({len(leaks)} such {unit}s); "
            f"make splits by {unit} with {remedy}"
        )
    mine = joined.filter(pl.col("side") == split)
    if not len(mine):
        hint = "; to train without, give --select last --trainer.limit_val_batches 0" if split == "valid" else ""
        raise PreparedDataError(f"{path}: column {COLUMNS[split]!r} names no {item}{hint}")
    if split == "train" and "label" in mine.columns and mine["label"].n_unique() < 2:
        raise PreparedDataError(f"{path}: all {item}s of the column train are of one class; make other splits")
    return mine.drop("side").with_row_index("row")
