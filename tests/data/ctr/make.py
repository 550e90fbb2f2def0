"""Makes miniature click logs in the original file layouts.

    python -m tests.data.ctr.make FOLDER

All values are generated from a seed; nothing is copied from the real data sets.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

from data_prep.ctr.avazu import COLUMNS as AVAZU_COLUMNS


def token(number: int) -> str:
    return f"{(number * 2654435761) & 0xFFFFFFFF:08x}"


def criteo_lines(rows: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        numbers = ["" if generator.random() < 0.2 else str(int(np.exp(generator.normal(1, 2))) - 2) for _ in range(13)]
        tokens = ["" if generator.random() < 0.1 else token(int(generator.pareto(1.0)) + 100 * c) for c in range(26)]
        lines.append("\t".join([str(int(generator.random() < 0.3)), *numbers, *tokens]))
    return lines


def write_criteo(folder: Path, rows: int = 400, seed: int = 0) -> Path:
    path = folder / "train.txt"
    path.write_text("\n".join(criteo_lines(rows, seed)) + "\n")
    return path


def write_avazu(folder: Path, rows: int = 300, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    lines = [",".join(AVAZU_COLUMNS)]
    for row in range(rows):
        values = [str(10**19 + row), str(int(generator.random() < 0.2)), f"141021{row * 24 // rows:02d}"]
        values += [token(int(generator.integers(8)) + 50 * c) for c in range(len(AVAZU_COLUMNS) - 3)]
        lines.append(",".join(values))
    path = folder / "train.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    return path


def write_kdd12(folder: Path, rows: int = 300, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    users = [f"{user}\t{user % 3}\t{user % 6 + 1}" for user in range(1, 20)]
    (folder / "userid_profile.txt").write_text("\n".join(users) + "\n")
    lines = []
    for _ in range(rows):
        click, shown = int(generator.random() < 0.1) * int(generator.integers(1, 3)), int(generator.integers(1, 30))
        ids = [str(generator.integers(5)) for _ in range(3)]
        words = [str(generator.integers(9)) for _ in range(4)]
        # User 0 is "not known"; users from 20 on have no profile.
        user = str(generator.integers(25))
        lines.append("\t".join([str(click), str(shown), *ids, "2", "1", *words, user]))
    path = folder / "training.txt"
    path.write_text("\n".join(lines) + "\n")
    return folder


def write_movielens_1m(folder: Path, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    users = [f"{user}::{'MF'[user % 2]}::{(1, 18, 25)[user % 3]}::{user % 21}::{10000 + user}" for user in range(1, 21)]
    titles = ("Café Lumière (1995)", "Old One (1925)", "Fifties (1953)", "Late (2000)")
    genres = ("Animation|Children's|Comedy", "Drama", "Action|Thriller", "Comedy")
    movies = [f"{movie}::{titles[movie % 4]}::{genres[movie % 4]}" for movie in range(1, 31)]
    ratings = [
        f"{generator.integers(1, 21)}::{generator.integers(1, 31)}::{generator.integers(1, 6)}::{978300000 + 61 * i}"
        for i in range(300)
    ]
    for name, lines in (("users.dat", users), ("movies.dat", movies), ("ratings.dat", ratings)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder


def write_movielens_100k(folder: Path, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    users = [f"{user}|{15 + user}|{'MF'[user % 2]}|student|{10000 + user}" for user in range(1, 21)]
    movies = []
    for movie in range(1, 31):
        flags = ["0"] * 19
        flags[movie % 19] = flags[(movie + 5) % 19] = "1"
        movies.append(f"{movie}|Film {movie} (19{60 + movie})|01-Jan-1995||http://x|{'|'.join(flags)}")
    ratings = [
        f"{generator.integers(1, 21)}\t{generator.integers(1, 31)}\t{generator.integers(1, 6)}\t{880000000 + i}"
        for i in range(300)
    ]
    for name, lines in (("u.user", users), ("u.item", movies), ("u.data", ratings)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder


def write_frappe(folder: Path, rows: int = 200, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    context = "sunday\tweekend\tunknown\tfree\tsunny\tSpain"
    lines = ["user\titem\tcnt\tdaytime\tweekday\tisweekend\thomework\tcost\tweather\tcountry\tcity"]
    lines += [
        f"{generator.integers(12)}\t{generator.integers(40)}\t1\tmorning\t{context}\t{row % 7}" for row in range(rows)
    ]
    path = folder / "frappe.csv.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    return path


SHOP_SCHEMA = """\
name: shop
licence: generated
fields:
  - {name: click, role: label}
  - {name: visitor, type: categorical, role: [user, feature]}
  - {name: when, role: time}
  - {name: price, type: numerical, transform: standardise}
  - {name: brand, type: categorical, min_count: 2}
  - {name: tags, type: multi, separator: ";"}
  - {name: comment, role: ignore}
"""


def write_shop(folder: Path, rows: int = 200, seed: int = 0) -> tuple[Path, Path]:
    generator = np.random.default_rng(seed)
    lines = ["click,visitor,when,price,brand,tags,comment"]
    for row in range(rows):
        tags = ";".join(f"t{tag}" for tag in generator.integers(5, size=generator.integers(4)))
        price = "" if row % 11 == 0 else f"{generator.normal(10, 3):.3f}"
        remark = '"two\nlines, ""quoted"""' if row % 7 == 0 else "plain"
        click, visitor, brand = int(generator.random() < 0.4), generator.integers(30), generator.integers(6)
        lines.append(f"{click},v{visitor},{1000 + row},{price},b{brand},{tags},{remark}")
    (folder / "shop.yaml").write_text(SHOP_SCHEMA)
    path = folder / "shop.csv"
    path.write_text("\n".join(lines) + "\n")
    return path, folder / "shop.yaml"


def main(folder: Path) -> None:
    for name, write in (
        ("criteo", write_criteo),
        ("avazu", write_avazu),
        ("kdd12", write_kdd12),
        ("movielens-1m", write_movielens_1m),
        ("movielens-100k", write_movielens_100k),
        ("frappe", write_frappe),
        ("shop", write_shop),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write(folder / name)  # type: ignore[operator]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
