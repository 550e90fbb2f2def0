"""MovieLens 1M and 100k as click logs: rating > 3 -> 1, < 3 -> 0, 3 left out (Song et al., 2019, section 5.1.1).

Seven fields without user and movie ids: gender, age, occupation, zip code, release year, time of the request, genres.
The text is Latin-1.
"""

from __future__ import annotations

import gzip
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import open_binary
from data_prep.ctr.locate import logs_with_sides
from data_prep.ctr.schema import Dataset, Label, Purpose, RawField, Schema, Sources, TextFormat

RATING = ("user_id", "movie_id", "rating", "timestamp")
USER_FIELDS = ("gender", "age", "occupation", "zip_code")
GENRES_100K = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_AGES = (18, 25, 35, 45, 50, 56)  # lower bounds of the age classes of MovieLens 1M
_LICENCE = (
    "GroupLens research use, no redistribution without permission; F. M. Harper and J. A. Konstan, "
    "The MovieLens Datasets, ACM TiiS 5(4), 2015"
)


def _schema(name: str, separator: str) -> Schema:
    return Schema(
        name=name,
        fields=(
            *(RawField(item, "categorical") for item in USER_FIELDS),
            RawField("release_year", "categorical"),
            RawField("timestamp", "numerical", transform="min_max"),
            RawField("genres", "multi", separator="|"),
        ),
        label=Label("rating", threshold=3, drop_equal=True),
        columns=RATING,
        text=TextFormat(separator=separator, header=False, quote="", encoding="latin-1"),
        user="user_id",
        time="timestamp",
        licence=_LICENCE,
    )


def year_bucket(year: int | None) -> str | None:
    """Release years: 1919-1929 and the decades to 1969 together, then single years."""
    if year is None:
        return None
    if year < 1930:
        return "1919-1929"
    return f"{year // 10 * 10}-{year // 10 * 10 + 9}" if year < 1970 else str(year)


def age_class(age: int) -> str:
    """The age class of MovieLens 1M that holds an age in years."""
    return str(max((bound for bound in _AGES if bound <= age), default=1))


def _rows(path: Path, separator: str, columns: int) -> list[list[str]]:
    rows = []
    try:
        with open_binary(path) as stream:
            text = stream.read().decode("latin-1")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptRecordError(path, "a line", f"damaged gzip ({error}); fetch it again") from error
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n")):
        values = line.split(separator)
        if line.strip() and len(values) != columns:
            raise CorruptRecordError(
                path, f"record {number}", f"{columns} values expected, {len(values)} found; fetch it again"
            )
        if line.strip():
            rows.append(values)
    return rows


def _year(title: str) -> int | None:
    found = _YEAR.search(title)
    return int(found.group(1)) if found else None


def write_sides_1m(sides: tuple[Path, ...], folder: Path) -> dict[str, Any]:
    """users.dat, movies.dat -> `users.parquet`, `movies.parquet`."""
    users = _rows(sides[0], "::", 5)
    movies = [(row[0], _year(row[1]), row[2]) for row in _rows(sides[1], "::", 3)]
    return _write(users, movies, folder)


def write_sides_100k(sides: tuple[Path, ...], folder: Path) -> dict[str, Any]:
    """u.user, u.item -> `users.parquet`, `movies.parquet`."""
    users = []
    for number, (user, age, gender, occupation, code) in enumerate(_rows(sides[0], "|", 5)):
        if not age.isdigit():
            raise CorruptRecordError(sides[0], f"record {number}", f"age {age[:20]!r} is not a number; fetch it again")
        users.append([user, gender, age_class(int(age)), occupation, code])
    movies = []
    for row in _rows(sides[1], "|", 5 + len(GENRES_100K)):
        genres = "|".join(name for name, flag in zip(GENRES_100K, row[5:], strict=True) if flag == "1")
        # The release date is empty for one film; its title has no year either.
        movies.append((row[0], _year(row[1]) or (int(row[2][-4:]) if row[2][-4:].isdigit() else None), genres))
    return _write(users, movies, folder)


def _write(users: list[list[str]], movies: list[tuple[str, int | None, str]], folder: Path) -> dict[str, Any]:
    pl.DataFrame(users, schema=["user_id", *USER_FIELDS], orient="row").unique(
        "user_id", keep="first", maintain_order=True
    ).write_parquet(folder / "users.parquet")
    table = [(movie, year_bucket(year), genres) for movie, year, genres in movies]
    names = {"movie_id": pl.String, "release_year": pl.String, "genres": pl.String}
    pl.DataFrame(table, schema=names, orient="row").unique("movie_id", keep="first", maintain_order=True).write_parquet(
        folder / "movies.parquet"
    )
    return {"users": len(users), "movies": len(movies)}


@lru_cache(maxsize=2)
def _side(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path, memory_map=False)


def add_sides(records: pl.DataFrame, folder: Path | None) -> pl.DataFrame:
    """Join users and movies; fields of an unknown user or movie are missing."""
    if folder is None:
        return records
    joined = records.join(_side(folder / "users.parquet"), on="user_id", how="left", maintain_order="left")
    return joined.join(_side(folder / "movies.parquet"), on="movie_id", how="left", maintain_order="left")


def locate_1m(raw: tuple[Path, ...], _: Purpose = "train") -> Sources:
    """ratings.dat, users.dat, movies.dat."""
    return logs_with_sides(raw, ("ratings.dat",), {"users.dat": "users", "movies.dat": "movies"})


def locate_100k(raw: tuple[Path, ...], _: Purpose = "train") -> Sources:
    """u.data, u.user, u.item."""
    return logs_with_sides(raw, ("u.data",), {"u.user": "users", "u.item": "movies"})


_DERIVED = (*USER_FIELDS, "release_year", "genres")
# The join needs both though they are no features.
_KEYS = ("user_id", "movie_id")
DATASET_1M = Dataset(_schema("movielens-1m", "::"), locate_1m, add_sides, _DERIVED, write_sides_1m, needs=_KEYS)
DATASET_100K = Dataset(_schema("movielens-100k", "\t"), locate_100k, add_sides, _DERIVED, write_sides_100k, needs=_KEYS)
