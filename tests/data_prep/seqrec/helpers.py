"""What the tests of interaction logs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from data_prep.seqrec.prepare import prepare

COLUMNS = {"user": "user", "item": "item", "time": "time"}


def run(dataset: str, raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Prepare in this process."""
    return prepare(dataset, raw, out, **{"executor": "serial", "progress": False, **options})


def generic(raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Prepare a log with the columns user, item, time; nothing is filtered."""
    return run("generic", raw, out, **{**COLUMNS, "core": 0, **options})


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: str = "user,item,time", *, pad: bool = True) -> Path:
    """A log, and a user "~" behind it with enough events to train on."""
    rows = rows + [("~", f"~{index}", *rows[0][2:]) for index in range(4)] if pad else rows
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def parts(out: Path, name: str) -> pl.DataFrame:
    """All parts of `sequences` or a split; `part` says which."""
    files = sorted((out / name).glob("part-*.parquet"))
    return pl.concat([pl.read_parquet(path).with_columns(part=pl.lit(i)) for i, path in enumerate(files)])


def histories(out: Path, column: str = "items") -> dict[str, list[Any]]:
    """User token -> item tokens (or times) in order; without the user "~"."""
    users = pl.read_parquet(out / "users.parquet")["token"].to_list()
    items = pl.read_parquet(out / "items.parquet")["token"].to_list()
    table = parts(out, "sequences")
    values = [[items[i] for i in row] if column == "items" else row for row in table[column].to_list()]
    found = {users[user]: row for user, row in zip(table["user"].to_list(), values, strict=True)}
    found.pop("~", None)
    return found


def rows(out: Path, split: str) -> list[tuple[str, int, int]]:
    """(user token, train_end, end) of each row of a split, in order of `row`; checks that they fit the sequences."""
    users = pl.read_parquet(out / "users.parquet")["token"].to_list()
    sequences = {(part, i): user for part, i, user in _numbered(parts(out, "sequences"))}
    table = parts(out, split)
    assert table["row"].to_list() == list(range(table.height))
    found = []
    for part, sequence, user, train_end, end in table.select(
        "part", "sequence", "user", "train_end", "end"
    ).iter_rows():
        assert sequences[part, sequence] == user
        found.append((users[user], train_end, end))
    return found


def _numbered(table: pl.DataFrame) -> list[tuple[int, int, int]]:
    inside = table.select("part", pl.int_range(pl.len()).over("part").alias("i"), "user")
    return list(inside.iter_rows())


def rejects(out: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(out / "rejects.parquet").to_dicts()
