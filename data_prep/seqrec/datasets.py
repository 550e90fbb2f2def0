"""The data sets this package knows by name: how their files are told apart, and what the literature does with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.seqrec.delimited import header_names, split_line
from data_prep.seqrec.jsonlines import parse_line
from data_prep.seqrec.layout import Layout

_LOOK = 50  # lines looked at


@dataclass(frozen=True)
class Asked:
    """Columns named by the user; empty where the data set's own are meant."""

    user: str = ""
    item: str = ""
    time: str = ""
    rating: str = ""


Detect = Callable[[Path, bytes, Asked], Layout]


@dataclass(frozen=True)
class Dataset:
    """What is particular to one data set.

    Args:
        name: of the data set.
        detect: (path, first lines, columns asked for) -> layout, with all columns the format has.
        core: default of the k-core filter.
        licence: of the data.
        names: files that are the log when a folder is given; all data files when empty.
    """

    name: str
    detect: Detect
    core: int
    licence: str
    names: tuple[str, ...] = ()


def unreadable(path: Path, expected: str) -> CorruptRecordError:
    """The file is none of what the data set comes as."""
    return CorruptRecordError(path, "first lines", f"not {expected}; check --raw and the name of the data set")


def _first_objects(path: Path, head: bytes, keys: tuple[tuple[str, str, str, str], ...], expected: str) -> Layout:
    for line in head.split(b"\n")[:_LOOK]:
        found = parse_line(line) if line.strip() else None
        for user, item, time, rating in keys:
            if found and user in found and item in found:
                return Layout("json", user, item, time, rating)
    raise unreadable(path, expected)


def _lines(head: bytes) -> list[bytes]:
    return [line for line in head.split(b"\n")[: _LOOK + 1] if line.strip()]


_ASIN = re.compile(r"(B[0-9A-Z]{9}|[0-9]{9}[0-9X])")
_AMAZON_KEYS = (
    ("reviewerID", "asin", "unixReviewTime", "overall"),  # 2014, 2018
    ("user_id", "parent_asin", "timestamp", "rating"),  # 2023
    ("user_id", "asin", "timestamp", "rating"),
)


def detect_amazon(path: Path, head: bytes, _: Asked) -> Layout:
    """Reviews of 2014, 2018 and 2023 as JSON lines; ratings as CSV, whose columns change places between editions.

    2014: user, item, rating, time. 2018: item, user, rating, time. 2023: a header names them.
    """
    expected = "Amazon reviews (JSON lines) or ratings (CSV)"
    lines = _lines(head)
    if lines and lines[0].lstrip().startswith(b"{"):
        return _first_objects(path, head, _AMAZON_KEYS, expected)
    names = header_names(path, head, ",")
    if "user_id" in names:
        item = "parent_asin" if "parent_asin" in names else "asin"
        if {item, "timestamp", "rating"} <= set(names):
            return Layout("delimited", "user_id", item, "timestamp", "rating", ",", tuple(names), True, '"')
    rows = [split_line(line, ",") for line in lines]
    rows = [row for row in rows if len(row) == 4]
    if not rows:
        raise unreadable(path, expected)
    # Vote: an ASIN has ten characters and begins with B, or is an ISBN; the id of a reviewer is neither.
    votes = sum(_order(row) for row in rows)
    if votes == 0:
        raise ConfigError(
            f"{path}: cannot tell users from items in the first lines; use data set generic with --user 0 --item 1 "
            "--time 3 (numbers of columns)"
        )
    columns = ("user", "item", "rating", "time") if votes > 0 else ("item", "user", "rating", "time")
    return Layout("delimited", "user", "item", "time", "rating", ",", columns)


def _order(row: list[str]) -> int:
    """1: user first; -1: item first; 0: no idea."""
    first, second = (bool(_ASIN.fullmatch(value)) for value in row[:2])
    if first != second:
        return 1 if second else -1
    return 0


def detect_yelp(path: Path, head: bytes, _: Asked) -> Layout:
    """Reviews of the academic data set, JSON lines."""
    keys = (("user_id", "business_id", "date", "stars"),)
    return _first_objects(path, head, keys, "Yelp reviews (JSON lines)")


_MOVIELENS = ("user", "item", "rating", "timestamp")


def detect_movielens(path: Path, head: bytes, _: Asked) -> Layout:
    """`ratings.dat` (::), `u.data` (tabs) and `ratings.csv` (with a header)."""
    line = (_lines(head) or [b""])[0]
    if line.startswith(b"userId,"):
        names = tuple(header_names(path, head, ","))
        if {"userId", "movieId", "rating", "timestamp"} <= set(names):
            return Layout("delimited", "userId", "movieId", "timestamp", "rating", ",", names, True, '"')
    for separator in ("::", "\t"):
        if len(split_line(line, separator, "")) == 4:
            return Layout("delimited", "user", "item", "timestamp", "rating", separator, _MOVIELENS)
    raise unreadable(path, "MovieLens ratings (ratings.dat, u.data or ratings.csv)")


def detect_recbole(path: Path, head: bytes, asked: Asked) -> Layout:
    """Atomic files `.inter`: tabs, and a header of `name:type`."""
    names = header_names(path, head, "\t")
    if not all(":" in name for name in names):
        raise unreadable(path, "an .inter file (header `user_id:token`, `item_id:token`, ...)")
    bare = {name.rpartition(":")[0]: name for name in names}
    user, item = (bare.get(name, "") for name in (asked.user or "user_id", asked.item or "item_id"))
    time, rating = bare.get(asked.time or "timestamp", ""), bare.get(asked.rating or "rating", "")
    if not user or not item or (asked.time and not time) or (asked.rating and not rating):
        raise CorruptRecordError(
            path, "header", f"the columns are {', '.join(bare)}; name those of user, item and time with --user, ..."
        )
    return Layout("delimited", user, item, time, rating, "\t", tuple(names), True, "")


def detect_lines(path: Path, head: bytes, _: Asked) -> Layout:
    """`user item item ...`, as S3-Rec publishes its data."""
    lines = _lines(head)
    if not lines or b"," in lines[0] or len(lines[0].split()) < 2:
        raise unreadable(path, "lines of `user item item ...`, separated by blanks")
    return Layout("lines", "user", "item")


def detect_npy(path: Path, head: bytes, _: Asked) -> Layout:
    """The pickled array of the official MQSA-TED code."""
    if not head.startswith(b"\x93NUMPY"):
        raise unreadable(path, "an npy file of MQSA-TED")
    return Layout("npy", "user", "item")


_AMAZON = "Amazon reviews: research use, no explicit open licence (McAuley et al.; Ni et al., 2019; Hou et al., 2024)"
_GROUPLENS = (
    "GroupLens research use, no redistribution without permission; F. M. Harper and J. A. Konstan, "
    "The MovieLens Datasets, ACM TiiS 5(4), 2015"
)
_UNKNOWN = "not stated"
DATASETS = {
    item.name: item
    for item in (
        Dataset("amazon", detect_amazon, 5, _AMAZON),
        Dataset(
            *("yelp", detect_yelp, 5, "Yelp academic data set: terms of Yelp, no redistribution"),
            names=("yelp_academic_dataset_review.json", "review.json"),
        ),
        Dataset("movielens-1m", detect_movielens, 5, _GROUPLENS, ("ratings.dat",)),
        Dataset("movielens-100k", detect_movielens, 5, _GROUPLENS, ("u.data",)),
        Dataset("movielens-20m", detect_movielens, 5, _GROUPLENS, ("ratings.csv",)),
        Dataset("recbole", detect_recbole, 5, _UNKNOWN),
        Dataset("s3rec", detect_lines, 0, _UNKNOWN),
        Dataset("mqsa-ted", detect_npy, 0, _UNKNOWN),
    )
}
GENERIC = "generic"
