"""Makes miniature interaction logs in the original file layouts.

    python -m tests.data.seqrec.make FOLDER

All values are generated from a seed; nothing is copied from the real data sets. Every log holds the same events, so
that their preparations can be compared.
"""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

DAY = 86_400
BEGIN = 1_388_534_400  # 2014-01-01


class Event(NamedTuple):
    user: int
    item: int
    time: int  # seconds
    rating: float


def events(users: int = 30, items: int = 20, seed: int = 0) -> list[Event]:
    """Events in the order of a file: users mixed, times of whole days, many of them equal."""
    generator = np.random.default_rng(seed)
    found = []
    for user in range(users):
        chosen = generator.permutation(items)[: generator.integers(3, 9)]
        days = np.sort(generator.integers(0, 300, size=len(chosen)))
        found += [
            Event(user, int(item), BEGIN + DAY * int(day), float(generator.integers(1, 6)))
            for item, day in zip(chosen, days, strict=True)
        ]
    return [found[place] for place in generator.permutation(len(found))]


def reviewer(user: int) -> str:
    return f"A{user * 7919 + 10**12:013d}"


def asin(item: int) -> str:
    return f"B{item * 7907 + 10**8:09d}"


def lines(rows: list[str]) -> bytes:
    return ("\n".join(rows) + "\n").encode()


def amazon_2014(log: list[Event]) -> list[str]:
    return [
        json.dumps(
            {
                "reviewerID": reviewer(event.user),
                "asin": asin(event.item),
                "reviewerName": 'J. "Doe"',
                "helpful": [0, 1],
                "reviewText": "Good; it's \u00fcber, \\ and\nmore",
                "overall": event.rating,
                "summary": "ok",
                "unixReviewTime": event.time,
                "reviewTime": "01 9, 2014",
            }
        )
        for event in log
    ]


def write_amazon_2014(folder: Path) -> Path:
    path = folder / "reviews_Tiny_5.json.gz"
    path.write_bytes(gzip.compress(lines(amazon_2014(events())), mtime=0))
    return path


def write_amazon_2018(folder: Path) -> Path:
    rows = [
        json.dumps(
            {
                "overall": event.rating,
                "vote": "2",
                "verified": True,
                "reviewTime": "01 9, 2014",
                "reviewerID": reviewer(event.user),
                "asin": asin(event.item),
                "style": {"Size:": "L"},
                "unixReviewTime": event.time,
            }
        )
        for event in events()
    ]
    path = folder / "Tiny_5.json"
    path.write_bytes(lines(rows))
    return path


def write_amazon_2023(folder: Path) -> Path:
    rows = [
        json.dumps(
            {
                "rating": event.rating,
                "title": "t",
                "text": "x",
                "images": [],
                "asin": "B000VARIANT",
                "parent_asin": asin(event.item),
                "user_id": reviewer(event.user),
                "timestamp": event.time * 1000,
                "helpful_vote": 0,
                "verified_purchase": True,
            }
        )
        for event in events()
    ]
    path = folder / "Tiny.jsonl.gz"
    path.write_bytes(gzip.compress(lines(rows), mtime=0))
    return path


def write_amazon_2023_csv(folder: Path) -> Path:
    rows = ["user_id,parent_asin,rating,timestamp"]
    rows += [f"{reviewer(user)},{asin(item)},{rating},{time * 1000}" for user, item, time, rating in events()]
    path = folder / "Tiny.csv"
    path.write_bytes(lines(rows))
    return path


def write_amazon_ratings_2014(folder: Path) -> Path:
    path = folder / "ratings_Tiny.csv"
    path.write_bytes(lines([f"{reviewer(u)},{asin(i)},{rating},{time}" for u, i, time, rating in events()]))
    return path


def write_amazon_ratings_2018(folder: Path) -> Path:
    path = folder / "Tiny2018.csv"
    path.write_bytes(lines([f"{asin(i)},{reviewer(u)},{rating},{time}" for u, i, time, rating in events()]))
    return path


def write_yelp(folder: Path) -> Path:
    rows = [
        json.dumps(
            {
                "review_id": f"r{number}",
                "user_id": reviewer(event.user),
                "business_id": asin(event.item),
                "stars": event.rating,
                "useful": 0,
                "text": "a\nb",
                "date": datetime.fromtimestamp(event.time, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            }
        )
        for number, event in enumerate(events())
    ]
    path = folder / "yelp_academic_dataset_review.json"
    path.write_bytes(lines(rows))
    (folder / "yelp_academic_dataset_business.json").write_text('{"business_id": "x"}\n')
    return folder


def write_movielens_1m(folder: Path) -> Path:
    rows = [f"{event.user + 1}::{event.item + 1}::{event.rating:.0f}::{event.time}" for event in events()]
    (folder / "ratings.dat").write_bytes(lines(rows))
    (folder / "movies.dat").write_bytes("1::Caf\u00e9 (1995)::Drama\n".encode("latin-1"))
    return folder


def write_movielens_100k(folder: Path) -> Path:
    rows = [f"{event.user + 1}\t{event.item + 1}\t{event.rating:.0f}\t{event.time}" for event in events()]
    (folder / "u.data").write_bytes(lines(rows))
    return folder


def write_movielens_20m(folder: Path) -> Path:
    rows = [f"{event.user + 1},{event.item + 1},{event.rating},{event.time}" for event in events()]
    (folder / "ratings.csv").write_bytes(lines(["userId,movieId,rating,timestamp", *rows]))
    return folder


def write_recbole(folder: Path) -> Path:
    rows = [f"{event.user}\t{event.item}\t{event.rating}\t{float(event.time)}" for event in events()]
    path = folder / "tiny.inter"
    path.write_bytes(lines(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *rows]))
    return path


def sequences() -> dict[int, list[int]]:
    """Items of each user, 0-based, by time and file order."""
    found: dict[int, list[int]] = {}
    for event in sorted(events(), key=lambda event: event.time):
        found.setdefault(event.user, []).append(event.item)
    return dict(sorted(found.items()))


def write_s3rec(folder: Path) -> Path:
    path = folder / "Tiny.txt"
    rows = [" ".join(map(str, [user + 1, *(item + 1 for item in items)])) for user, items in sequences().items()]
    path.write_bytes(lines(rows))
    return path


def write_mqsa_ted(folder: Path) -> Path:
    given = sequences()
    array = np.empty(5, dtype=object)
    array[0] = {user: items[:-2] for user, items in given.items()}
    array[1] = {user: items[-2] for user, items in given.items()}
    array[2] = {user: np.int64(items[-1]) for user, items in given.items()}
    array[3], array[4] = len(given), 20
    path = folder / "tiny.npy"
    np.save(path, array, allow_pickle=True)
    return path


def write_shop(folder: Path) -> Path:
    """A CSV for `generic`, with quotes, commas and unicode in the ids."""
    path = folder / "shop.csv"
    table = pl.DataFrame(events(), schema=["who", "what", "when", "stars"], orient="row")
    named = table.with_columns(
        pl.format('\u00fcser, "{}"', "who").alias("who"), pl.format("it\nem {}", "what").alias("what")
    )
    named.write_csv(path)
    return path


def write_shop_parquet(folder: Path) -> Path:
    path = folder / "shop.parquet"
    table = pl.DataFrame(events(), schema=["who", "what", "when", "stars"], orient="row")
    table.with_columns(pl.from_epoch("when")).write_parquet(path)
    return path


def hostile_npy(path: Path, payload: object) -> Path:
    """An npy file whose pickle holds anything."""
    array = np.empty(5, dtype=object)
    array[0] = payload
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"shape": (5,), "fortran_order": False, "descr": "|O"})
        pickle.dump(array, stream)
    return path


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "amazon-2014": ("amazon", write_amazon_2014),
    "amazon-2018": ("amazon", write_amazon_2018),
    "amazon-2023": ("amazon", write_amazon_2023),
    "amazon-2023-csv": ("amazon", write_amazon_2023_csv),
    "amazon-ratings-2014": ("amazon", write_amazon_ratings_2014),
    "amazon-ratings-2018": ("amazon", write_amazon_ratings_2018),
    "yelp": ("yelp", write_yelp),
    "movielens-1m": ("movielens-1m", write_movielens_1m),
    "movielens-100k": ("movielens-100k", write_movielens_100k),
    "movielens-20m": ("movielens-20m", write_movielens_20m),
    "recbole": ("recbole", write_recbole),
    "s3rec": ("s3rec", write_s3rec),
    "mqsa-ted": ("mqsa-ted", write_mqsa_ted),
    "shop": ("generic", write_shop),
    "shop-parquet": ("generic", write_shop_parquet),
}


def main(folder: Path) -> None:
    for name, (_, write) in WRITERS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
