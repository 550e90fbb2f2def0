"""KDD Cup 2012 track 2: search advertising log of Tencent with a table of user profiles.

`training.txt`: click, impression, display URL, ad, advertiser, depth, position, query, keyword, title, description,
user; tabs, no header; `test.txt` lacks the first two. `userid_profile.txt`: user, gender, age. The profile has 24
million users: it is turned once into arrays that all workers map into memory and search.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import open_binary
from data_prep.ctr.locate import by_purpose, logs_with_sides
from data_prep.ctr.schema import Dataset, Label, Purpose, RawField, Schema, Sources, TextFormat

COLUMNS = (
    *("click", "impression", "display_url", "ad_id", "advertiser_id", "depth", "position", "query_id", "keyword_id"),
    *("title_id", "description_id", "user_id"),
)
NUMBERS = ("impression", "depth", "position")
MIN_COUNT = 10
PROFILE = "userid_profile.txt"
_BLOCK = 64 << 20  # bytes of the profile read at a time


def _field(name: str) -> RawField:
    if name in NUMBERS:
        return RawField(name, "numerical", transform="log_square")
    return RawField(name, "categorical", min_count=MIN_COUNT)


SCHEMA = Schema(
    name="kdd12",
    # Gender and age have a handful of values: no threshold.
    fields=(*(_field(name) for name in COLUMNS[1:]), RawField("gender", "categorical"), RawField("age", "categorical")),
    label=Label("click", threshold=0),
    columns=COLUMNS,
    text=TextFormat(separator="\t", header=False, quote=""),
    user="user_id",
    licence="KDD Cup 2012 rules; Tencent, soso.com",
)


def locate(raw: tuple[Path, ...], purpose: Purpose = "train") -> Sources:
    """training.txt, or test.txt to be scored, or the files named; and userid_profile.txt."""
    names = by_purpose(purpose, ("training.txt",), ("test.txt",))
    found = logs_with_sides(raw, names, {PROFILE: "user profiles"}, required=False)
    logs = tuple(path for path in found.logs if not path.name.endswith(("_tokensid.txt", "_tokensid.txt.gz")))
    return Sources(logs or found.logs, found.sides)


def write_profile(sides: tuple[Path, ...], folder: Path) -> dict[str, Any]:
    """Sort the profile by user: `user.npy` uint64, `gender.npy` and `age.npy` uint8 (255 = not there).

    Raises:
        CorruptRecordError: a line is not three whole numbers.
    """
    parts: list[pl.DataFrame] = []
    path = sides[0]
    try:
        for block in _line_blocks(path):
            table = pl.read_csv(
                block,
                separator="\t",
                has_header=False,
                schema={"user": pl.UInt64, "gender": pl.UInt8, "age": pl.UInt8},
                quote_char=None,
            )
            parts.append(table.drop_nulls("user"))
    except (pl.exceptions.PolarsError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = f"expected user, gender and age as whole numbers ({str(error).splitlines()[0]}); fetch it again"
        raise CorruptRecordError(path, "a line", reason) from error
    if not parts:
        raise CorruptRecordError(path, "byte 0", "the file is empty; fetch it again")
    # The script of the paper lets a later line of a user win.
    profile = pl.concat(parts).unique("user", keep="last", maintain_order=True).sort("user")
    np.save(folder / "user.npy", profile["user"].to_numpy())
    for name in ("gender", "age"):
        np.save(folder / f"{name}.npy", profile[name].fill_null(255).to_numpy())
    return {"users": profile.height}


def _line_blocks(path: Path) -> Iterator[bytes]:
    carry = b""
    with open_binary(path) as stream:
        while fresh := stream.read(_BLOCK):
            block = carry + fresh
            cut = block.rfind(b"\n") + 1
            carry = block[cut:]
            if cut:
                yield block[:cut]
    if carry.strip():
        yield carry


def add_profile(records: pl.DataFrame, folder: Path | None) -> pl.DataFrame:
    """Add gender and age of the user; missing for user 0 (unknown) and users without profile."""
    if folder is None:
        return records.with_columns(pl.lit(None, pl.String).alias("gender"), pl.lit(None, pl.String).alias("age"))
    user = records["user_id"]
    # User 0 stands for "not known" in this log: it has no id of its own.
    records = records.with_columns(pl.when(pl.col("user_id") != "0").then(pl.col("user_id")).alias("user_id"))
    wanted = user.cast(pl.UInt64, strict=False)
    known = np.load(folder / "user.npy", mmap_mode="r")
    keys = wanted.fill_null(0).to_numpy()
    place = np.minimum(np.searchsorted(known, keys), max(len(known) - 1, 0))
    hit = (
        (known[place] == keys) & wanted.is_not_null().to_numpy() & (keys != 0)
        if len(known)
        else np.zeros(len(keys), bool)
    )
    return records.with_columns(_codes(folder, name, place, hit) for name in ("gender", "age"))


def _codes(folder: Path, name: str, place: npt.NDArray[np.int64], hit: npt.NDArray[np.bool_]) -> pl.Series:
    values = np.load(folder / f"{name}.npy", mmap_mode="r")
    found = values[place] if len(values) else np.full(len(place), 255, dtype=np.uint8)
    there = pl.Series(hit & (found != 255))
    column = pl.Series(name, found).cast(pl.String)
    return column.to_frame().select(pl.when(there).then(pl.col(name)).alias(name)).to_series()


DATASET = Dataset(
    SCHEMA,
    locate,
    derive=add_profile,
    derived=("gender", "age"),
    side=write_profile,
    unlabelled_columns=COLUMNS[2:],
)
