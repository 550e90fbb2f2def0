"""Each data set, from its original layout to ids."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.ctr import criteo
from data_prep.ctr.apply import apply
from data_prep.ctr.digest import log_square
from data_prep.ctr.reproduction import scale
from tests.data.ctr import make
from tests.data_prep.ctr.helpers import SHARED, decode, rows, run
from tests.data_prep.helpers import tree


def test_criteo(tmp_path: Path) -> None:
    log = make.write_criteo(tmp_path, 400)
    manifest = run("criteo", log, tmp_path / "out", min_count=3)
    table = rows(tmp_path / "out")
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    assert table["row"].to_list() == list(range(400))
    assert table["label"].to_list() == [int(line[0]) for line in lines]
    assert table.columns == ["row", "label", *criteo.NUMBERS, *criteo.CATEGORIES]
    train = set(rows(tmp_path / "out", "train")["row"])
    for index, name in enumerate(criteo.CATEGORIES):
        column = [line[14 + index] for line in lines]
        counts = Counter(value for row, value in enumerate(column) if row in train and value)
        expected = [None if not value else value if counts[value] >= 3 else "?" for value in column]
        assert decode(tmp_path / "out", table, name) == expected
    for index, name in enumerate(criteo.NUMBERS):
        column = [line[1 + index] for line in lines]
        assert table[name].to_list() == [None if not value else float(scale(float(value))) for value in column]
    assert manifest["rejects"]["count"] == 0
    assert {item["name"]: item["size"] for item in manifest["fields"] if "size" in item}["C1"] >= 2


def test_vocabulary_order_is_count_then_token(tmp_path: Path) -> None:
    run("criteo", make.write_criteo(tmp_path, 300), tmp_path / "out", min_count=1)
    vocabulary = pl.read_parquet(tmp_path / "out" / "vocabulary.parquet")
    assert vocabulary.schema == {"field": pl.String, "id": pl.UInt32, "token": pl.String, "count": pl.UInt64}
    for _, part in vocabulary.group_by("field"):
        wanted = part.sort(["count", "token"], descending=[True, False])
        assert wanted["id"].to_list() == list(range(2, 2 + part.height))


def test_vocabulary_of_train_alone_or_of_all(tmp_path: Path) -> None:
    log = make.write_criteo(tmp_path, 300)
    run("criteo", log, tmp_path / "train", min_count=1)
    run("criteo", log, tmp_path / "all", min_count=1, vocabulary_scope="all")
    count = {name: pl.read_parquet(tmp_path / name / "vocabulary.parquet")["count"].sum() for name in ("train", "all")}
    assert count["train"] < count["all"]
    assert "?" not in decode(tmp_path / "all", rows(tmp_path / "all"), "C1")


def test_avazu_packed_and_split_by_time(tmp_path: Path) -> None:
    make.write_avazu(tmp_path)
    manifest = run("avazu", tmp_path, tmp_path / "out", split="time", min_count=1)
    out = tmp_path / "out"
    hours = {split: decode(out, rows(out, split), "hour") for split in ("train",)}
    assert "id" not in rows(out).columns
    first, second = manifest["split_rule"]["thresholds"]
    assert max(float(hour) for hour in hours["train"]) < first <= second
    # Hours of valid and test were never seen in training.
    assert set(decode(out, rows(out, "test"), "hour")) == {"?"}
    assert manifest["time"] == {"name": "hour"}


def test_kdd12_with_profile(tmp_path: Path) -> None:
    make.write_kdd12(tmp_path)
    manifest = run("kdd12", tmp_path, tmp_path / "out", min_count=1, vocabulary_scope="all")
    table = rows(tmp_path / "out")
    lines = [line.split("\t") for line in (tmp_path / "training.txt").read_text().splitlines()]
    users = [int(line[11]) for line in lines]
    assert table["label"].to_list() == [int(int(line[0]) > 0) for line in lines]
    known = [0 < user < 20 for user in users]
    genders = [str(user % 3) if ok else None for user, ok in zip(users, known, strict=True)]
    assert decode(tmp_path / "out", table, "gender") == genders
    assert decode(tmp_path / "out", table, "user_id") == [str(user) if user else None for user in users]
    assert [item["path"] for item in manifest["sources"]] == ["training.txt", "userid_profile.txt"]
    assert manifest["group"]["kept_apart"] is False and manifest["group"]["groups_on_two_sides"] > 0


def test_kdd12_user_split_keeps_users_apart(tmp_path: Path) -> None:
    make.write_kdd12(tmp_path)
    manifest = run("kdd12", tmp_path, tmp_path / "out", split="user")
    sides = [set(rows(tmp_path / "out", split)["group"]) for split in manifest["splits"]]
    assert not any(a & b for i, a in enumerate(sides) for b in sides[i + 1 :])
    assert manifest["group"] == {"name": "user_id", "kept_apart": True, "groups": 24, "groups_on_two_sides": 0}


@pytest.mark.parametrize("size", ["1m", "100k"])
def test_movielens(tmp_path: Path, size: str) -> None:
    folder = (make.write_movielens_1m if size == "1m" else make.write_movielens_100k)(tmp_path)
    manifest = run(f"movielens-{size}", folder, tmp_path / "out", vocabulary_scope="all")
    separator, name = ("::", "ratings.dat") if size == "1m" else ("\t", "u.data")
    ratings = [line.split(separator) for line in (tmp_path / name).read_text().splitlines()]
    kept = [line for line in ratings if line[2] != "3"]
    table = rows(tmp_path / "out")
    assert table["label"].to_list() == [int(int(line[2]) > 3) for line in kept]
    assert manifest["dropped"] == len(ratings) - len(kept)
    assert [item["name"] for item in manifest["fields"]][-1] == "genres"
    genres = decode(tmp_path / "out", table, "genres")
    assert {len(bag) for bag in genres} <= {1, 2, 3}
    stamps = rows(tmp_path / "out", "train")["timestamp"]
    assert stamps.min() == 0 and stamps.max() == 1
    if size == "1m":
        years = set(decode(tmp_path / "out", table, "release_year"))
        assert years == {"1995", "1919-1929", "1950-1959", "2000"}
        assert ["Animation", "Children's", "Comedy"] in genres


@pytest.mark.parametrize("size", ["1m", "100k"])
def test_movielens_side_files_may_be_packed(tmp_path: Path, size: str) -> None:
    folder = (make.write_movielens_1m if size == "1m" else make.write_movielens_100k)(tmp_path)
    run(f"movielens-{size}", folder, tmp_path / "out")
    sides = ("users.dat", "movies.dat") if size == "1m" else ("u.user", "u.item")
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            end = ".gz" if path.name in sides else ""
            data = path.read_bytes()
            (packed / f"{path.name}{end}").write_bytes(gzip.compress(data) if end else data)
    run(f"movielens-{size}", packed, tmp_path / "again")
    assert rows(tmp_path / "again").equals(rows(tmp_path / "out"))
    half = packed / f"{sides[0]}.gz"
    half.write_bytes(half.read_bytes()[:40])
    with pytest.raises(CorruptRecordError, match=half.name):
        run(f"movielens-{size}", packed, tmp_path / "half")


def test_frappe_negatives(tmp_path: Path) -> None:
    log = make.write_frappe(tmp_path)
    manifest = run("frappe", log, tmp_path / "out", vocabulary_scope="all")
    table = rows(tmp_path / "out")
    uses = [line.split("\t") for line in gzip.decompress(log.read_bytes()).decode().splitlines()[1:]]
    assert table["label"].to_list() == [1, 0, 0] * len(uses)
    users, items = decode(tmp_path / "out", table, "user"), decode(tmp_path / "out", table, "item")
    assert users == [use[0] for use in uses for _ in range(3)]
    assert items[::3] == [use[1] for use in uses]
    used = {(use[0], use[1]) for use in uses}
    assert not used & {pair for index, pair in enumerate(zip(users, items, strict=True)) if index % 3}
    assert manifest["command"]["ratios"] == [0.7, 0.2, 0.1]
    again = run("frappe", log, tmp_path / "again", vocabulary_scope="all", seed=1)
    assert again["sources"] == manifest["sources"]
    assert decode(tmp_path / "again", rows(tmp_path / "again"), "item") != items


def test_generic_with_quotes_bags_and_user_split(tmp_path: Path) -> None:
    log, schema = make.write_shop(tmp_path)
    manifest = run("generic", log, tmp_path / "out", schema=schema, split="user", vocabulary_scope="all")
    table = rows(tmp_path / "out")
    import csv

    with log.open(newline="") as stream:
        records = list(csv.DictReader(stream))
    assert table["label"].to_list() == [int(record["click"]) for record in records]
    assert decode(tmp_path / "out", table, "tags") == [
        [tag for tag in record["tags"].split(";") if tag] for record in records
    ]
    price = next(item for item in manifest["fields"] if item["name"] == "price")
    train = rows(tmp_path / "out", "train")["price"].drop_nulls().cast(pl.Float64)
    assert price["missing"] == sum(not record["price"] for record in records)
    assert train.mean() == pytest.approx(0, abs=1e-6) and train.std(ddof=0) == pytest.approx(1, abs=1e-6)


def test_parquet_equals_csv(tmp_path: Path) -> None:
    log, schema = make.write_shop(tmp_path)
    frame = pl.read_csv(log).with_columns(pl.col("tags").str.split(";"))
    frame.write_parquet(tmp_path / "shop.parquet", row_group_size=37)
    run("generic", log, tmp_path / "a", schema=schema)
    run("generic", tmp_path / "shop.parquet", tmp_path / "b", schema=schema)
    assert rows(tmp_path / "a").equals(rows(tmp_path / "b"))


def test_several_files_gzip_bom_and_carriage_returns_equal_one_plain_file(tmp_path: Path) -> None:
    log, schema = make.write_shop(tmp_path, rows=150)
    run("generic", log, tmp_path / "one", schema=schema)
    lines = log.read_text().replace('"two\nlines, ""quoted"""', "plain").splitlines()
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines[:61]).encode() + b"\r\n\r\n")
    (folder / "b.csv.gz").write_bytes(gzip.compress("\n".join([lines[0], *lines[61:]]).encode()))
    run("generic", folder, tmp_path / "many", schema=schema)
    assert rows(tmp_path / "one").equals(rows(tmp_path / "many"))


def test_split_by_file_and_by_column(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "train.csv").write_text("click,a\n" + "1,x\n0,y\n" * 5)
    (folder / "valid.csv").write_text("click,a\n1,x\n")
    (folder / "test.csv").write_text("click,a\n0,z\n1,x\n")
    schema = tmp_path / "s.yaml"
    schema.write_text("fields: [{name: click, role: label}, {name: a, type: categorical}]")
    manifest = run("generic", folder, tmp_path / "out", schema=schema, split="file")
    assert {name: item["rows"] for name, item in manifest["splits"].items()} == {"train": 10, "valid": 1, "test": 2}
    (tmp_path / "c.csv").write_text("click,a,fold\n1,x,train\n0,y,train\n1,y,test\n0,x,valid\n")
    schema.write_text("fields: [{name: click, role: label}, {name: a, type: categorical}, {name: fold, role: split}]")
    manifest = run("generic", tmp_path / "c.csv", tmp_path / "out2", schema=schema)
    assert {name: item["rows"] for name, item in manifest["splits"].items()} == {"train": 2, "valid": 1, "test": 1}


def test_hashing(tmp_path: Path) -> None:
    manifest = run("criteo", make.write_criteo(tmp_path, 200), tmp_path / "out", hash_buckets=64)
    table = rows(tmp_path / "out")
    sizes = {item["size"] for item in manifest["fields"] if "size" in item}
    assert sizes == {66}
    assert 1 not in set(table["C1"]) and max(table["C3"]) < 66 and 0 in set(table["C1"])
    assert pl.read_parquet(tmp_path / "out" / "vocabulary.parquet").height == 0


def test_apply_without_label_and_with_unseen_tokens(tmp_path: Path) -> None:
    lines = make.criteo_lines(300)
    (tmp_path / "train.txt").write_text("\n".join(lines))
    run("criteo", tmp_path / "train.txt", tmp_path / "out", min_count=2)
    new = [line.split("\t", 1)[1] for line in lines]
    new[0] = "\t".join([*new[0].split("\t")[:13], *["neverseen"] * 26])
    (tmp_path / "new.txt").write_text("\n".join(new))
    manifest = apply(tmp_path / "out", tmp_path / "new.txt", tmp_path / "applied", executor="serial", progress=False)
    learned, applied = rows(tmp_path / "out"), rows(tmp_path / "applied")
    assert "label" not in applied.columns and manifest["label"] is None
    assert applied.slice(1).equals(learned.drop("label").slice(1))
    assert set(applied.row(0, named=True)[name] for name in criteo.CATEGORIES) == {1}
    assert manifest["splits"].keys() == {"test"}
    labelled = apply(tmp_path / "out", tmp_path / "train.txt", tmp_path / "again", executor="serial", progress=False)
    assert rows(tmp_path / "again").equals(learned) and labelled["label"] is not None


def test_apply_keeps_scaling(tmp_path: Path) -> None:
    folder = make.write_movielens_1m(tmp_path)
    run("movielens-1m", folder, tmp_path / "out")
    apply(tmp_path / "out", folder, tmp_path / "applied", executor="serial", progress=False)
    learned, applied = rows(tmp_path / "out"), rows(tmp_path / "applied")
    # Ratings of exactly 3 are no training rows, but they are scored like any other record.
    assert learned.height < applied.height == 300 and applied["row"].to_list() == list(range(300))
    assert applied.join(learned.select("row"), on="row", how="semi").equals(learned)
    assert set(applied.join(learned.select("row"), on="row", how="anti")["label"]) == {0}


def test_finished_directory_is_kept_and_never_overwritten(tmp_path: Path) -> None:
    log = make.write_criteo(tmp_path, 100)
    first = run("criteo", log, tmp_path / "out")
    before = tree(tmp_path / "out")
    assert run("criteo", log, tmp_path / "out") == first and tree(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="other options"):
        run("criteo", log, tmp_path / "out", seed=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"mine\.txt"):
        run("criteo", log, tmp_path / "notes")


def test_log_square() -> None:
    import numpy as np

    values = np.array([-2.0, 0.0, 2.0, 3.0, 20.0, 155.0, 99999.0])
    assert log_square(values).tolist() == [-2.0, 0.0, 2.0, 1.0, 8.0, 25.0, 132.0]


def test_reproduction_layout(tmp_path: Path) -> None:
    manifest = run("criteo", make.write_criteo(tmp_path, 50), tmp_path / "out", layout="reproduction")
    table = pl.read_parquet(tmp_path / "out" / "reproduction.parquet")
    assert table.height == manifest["rows"] == 50
    assert table["index"].list.len().unique().to_list() == [39]


@pytest.mark.shared
def test_real_criteo_sample(tmp_path: Path) -> None:
    log = SHARED / "data" / "ctr" / "criteo_10k.txt"
    if not log.exists():
        pytest.skip("the folder of real samples is not there")
    manifest = run("criteo", log, tmp_path / "out")
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    assert sum(item["rows"] for item in manifest["splits"].values()) == len(lines) == 10_000
    assert sum(item["positives"] for item in manifest["splits"].values()) == sum(line[0] == "1" for line in lines)
    missing = {item["name"]: item["missing"] for item in manifest["fields"]}
    assert all(
        missing[name] == sum(line[1 + i] == "" for line in lines)
        for i, name in enumerate([*criteo.NUMBERS, *criteo.CATEGORIES])
    )


@pytest.mark.shared
def test_real_frappe(tmp_path: Path) -> None:
    log = SHARED / "data" / "ctr" / "frappe.csv.gz"
    if not log.exists():
        pytest.skip("the folder of real samples is not there")
    manifest = run("frappe", log, tmp_path / "out", vocabulary_scope="all")
    sizes = {item["name"]: item["size"] - 2 for item in manifest["fields"]}
    assert list(sizes.values()) == [957, 4082, 7, 7, 2, 3, 2, 9, 80, 233]
    assert sum(item["rows"] for item in manifest["splits"].values()) == 3 * 96_203
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == manifest
