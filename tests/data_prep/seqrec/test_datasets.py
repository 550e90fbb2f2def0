"""Each raw layout gives the same sequences; names of columns, orders and units are found in the files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from tests.data.seqrec import make
from tests.data_prep.helpers import tree
from tests.data_prep.seqrec.helpers import generic, histories, parts, rejects, rows, run, write_csv

SHOP = {"user": "who", "item": "what", "time": "when"}


def names(kind: str, user: int, item: int) -> tuple[str, str]:
    if kind in ("amazon", "yelp"):
        return make.reviewer(user), make.asin(item)
    if kind in ("recbole", "mqsa-ted", "shop-parquet"):
        return str(user), str(item)
    if kind == "shop":
        return f'üser, "{user}"', f"it\nem {item}"
    return str(user + 1), str(item + 1)


@pytest.mark.parametrize("layout", make.WRITERS)
def test_every_layout_gives_the_same_sequences(tmp_path: Path, layout: str) -> None:
    dataset, write = make.WRITERS[layout]
    (tmp_path / "raw").mkdir()
    options = SHOP if dataset == "generic" else {}
    card = run(dataset, write(tmp_path / "raw"), tmp_path / "out", core=0, max_rejects=0, **options)
    kind = layout if dataset == "generic" else "movielens" if dataset.startswith("movielens") else dataset
    wanted = {}
    for user, items in make.sequences().items():
        wanted[names(kind, user, 0)[0]] = [names(kind, user, item)[1] for item in items]
    assert histories(tmp_path / "out") == wanted
    assert card["n_events"] == card["counts"]["records"] if dataset not in ("s3rec", "mqsa-ted") else True
    timed = dataset not in ("s3rec", "mqsa-ted")
    assert ("times" in parts(tmp_path / "out", "sequences").columns) == timed
    if timed:
        times = sorted(time for row in histories(tmp_path / "out", "times").values() for time in row)
        assert times == sorted(event.time for event in make.events())
        assert card["sources"][0]["time_unit"] == {
            "amazon-2023": "ms",
            "amazon-2023-csv": "ms",
            "yelp": "ISO 8601",
        }.get(layout, "s")


def test_leave_one_out_by_hand(tmp_path: Path) -> None:
    log = write_csv(
        tmp_path / "log.csv",
        [("a", "x", 5), ("b", "x", 1), ("a", "y", 2), ("c", "z", 9), ("a", "z", 7), ("b", "y", 3), ("a", "w", 8),
         ("d", "x", 1), ("d", "y", 2), ("d", "z", 3)],
        pad=False,
    )  # fmt: skip
    card = generic(log, tmp_path / "out", time_unit="s")
    assert histories(tmp_path / "out") == {"a": list("yxzw"), "b": list("xy"), "c": ["z"], "d": list("xyz")}
    assert rows(tmp_path / "out", "train") == [("a", 2, 2), ("b", 2, 2)]
    assert rows(tmp_path / "out", "valid") == [("a", 2, 2), ("d", 1, 1)]
    assert rows(tmp_path / "out", "test") == [("a", 2, 3), ("d", 1, 2)]
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    # By count over all events, then by token; `count` is that of training events.
    assert items["token"].to_list() == ["x", "y", "z", "w"] and items["count"].to_list() == [3, 2, 1, 0]
    assert pl.read_parquet(tmp_path / "out" / "users.parquet")["events"].to_list() == [4, 2, 1, 3]
    assert card["cold_targets"] == {"valid": 0, "test": 1} and card["counts"]["items_never_trained"] == 1
    assert (card["n_users"], card["n_items"], card["n_events"]) == (4, 4, 10)
    assert card["counts"]["users_with_one_event"] == 1 and card["counts"]["users_with_two_events"] == 1
    assert histories(tmp_path / "out", "times")["a"] == [2, 5, 7, 8]


def test_columns_have_the_types_of_the_format(tmp_path: Path) -> None:
    generic(write_csv(tmp_path / "log.csv", [("a", i, i) for i in range(4)]), tmp_path / "out", time_unit="s")
    read = {name: pl.read_parquet_schema(tmp_path / "out" / f"{name}") for name in
            ("sequences/part-00000.parquet", "test/part-00000.parquet", "items.parquet", "users.parquet")}  # fmt: skip
    int32 = pl.Int32
    assert read["sequences/part-00000.parquet"] == {
        "user": int32, "items": pl.List(int32), "times": pl.List(pl.Int64)
    }  # fmt: skip
    assert read["test/part-00000.parquet"] == {
        "row": pl.Int64, "user": int32, "sequence": int32, "train_end": int32, "end": int32
    }  # fmt: skip
    assert read["items.parquet"] == {"item": int32, "token": pl.String, "count": pl.Int64}
    assert read["users.parquet"] == {"user": int32, "token": pl.String, "events": int32}


def test_events_out_of_order_and_equal_times_keep_file_order(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "1.csv", [("u", "c", 20), ("u", "a", 10), ("u", "b", 10)])
    second = write_csv(tmp_path / "2.csv", [("u", "d", 10), ("u", "e", 5)])
    generic([first, second], tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": list("eabdc")}
    generic([second, first], tmp_path / "other")
    assert histories(tmp_path / "other") == {"u": list("edabc")}


def test_milliseconds_keep_the_order_inside_a_second(tmp_path: Path) -> None:
    base = 1_400_000_000_000
    log = write_csv(tmp_path / "log.csv", [("u", "b", base + 2), ("u", "a", base + 1), ("u", "c", base + 999)])
    card = generic(log, tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": list("abc")}
    assert histories(tmp_path / "out", "times") == {"u": [1_400_000_000] * 3}
    assert card["sources"][0]["time_unit"] == "ms"


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_every_unit_is_found(tmp_path: Path, unit: str, factor: int) -> None:
    log = write_csv(tmp_path / "log.csv", [("u", i, (1_400_000_000 + i) * factor) for i in range(5)])
    assert generic(log, tmp_path / "out")["sources"][0]["time_unit"] == unit
    assert histories(tmp_path / "out", "times") == {"u": [1_400_000_000 + i for i in range(5)]}


def test_negative_times_are_before_1970(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [("u", "b", 5), ("u", "a", -86_400), ("u", "c", "1970-01-02")])
    generic(log, tmp_path / "out", max_rejects=0)
    assert histories(tmp_path / "out") == {"u": list("abc")}
    assert histories(tmp_path / "out", "times") == {"u": [-86_400, 5, 86_400]}


@pytest.mark.parametrize(
    "text", ["2014-05-13 16:53:20", "2014-05-13T16:53:20Z", "2014-05-13T18:53:20+02:00", "2014-05-13 16:53:20.5"]
)
def test_iso_times(tmp_path: Path, text: str) -> None:
    log = write_csv(tmp_path / "log.csv", [("u", "a", "2014-01-01"), ("u", "b", text)])
    card = generic(log, tmp_path / "out", max_rejects=0)
    assert histories(tmp_path / "out", "times")["u"][1] == 1_400_000_000
    assert card["sources"][0]["time_unit"] == "ISO 8601"


def test_a_column_of_positions_is_no_time(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [("u", "b", 1), ("u", "a", 0), ("u", "c", 2)])
    card = generic(log, tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": list("abc")}
    assert card["time"] is None and "times" not in parts(tmp_path / "out", "sequences").columns
    with pytest.raises(ConfigError, match="holds positions"):
        generic(log, tmp_path / "other", split="time")
    generic(log, tmp_path / "other", time_unit="s")
    assert histories(tmp_path / "other", "times") == {"u": [0, 1, 2]}


def test_files_with_and_without_times_do_not_mix(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "a.csv", [("u", "b", 1_400_000_000)])
    second = write_csv(tmp_path / "b.csv", [("u", "b", 3)])
    with pytest.raises(ConfigError, match=r"b\.csv: times, positions or file order"):
        generic([first, second], tmp_path / "out")
    generic([first, second], tmp_path / "out", time_unit="s")


def test_without_times_file_order_is_the_order(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [("u", "b", 1), ("u", "a", 0), ("u", "b", 2)])
    card = run("generic", log, tmp_path / "out", user="user", item="item", core=0)
    assert histories(tmp_path / "out") == {"u": list("bab")} and card["time"] is None


def test_files_without_header_by_numbers_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("x|7|u\ny|6|u\n")
    run("generic", path, tmp_path / "out", user="2", item="0", time="1", core=0)
    assert histories(tmp_path / "out") == {"u": ["y", "x"]}


def test_ratings_and_years(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    make.write_yelp(tmp_path / "raw")
    card = run("yelp", tmp_path / "raw", tmp_path / "out", core=0, min_rating=4)
    good = [event for event in make.events() if event.rating >= 4]
    assert card["n_events"] == len(good)
    assert card["counts"]["below_min_rating"] == card["counts"]["records"] - len(good)
    card = run("yelp", tmp_path / "raw", tmp_path / "none", core=0, years="2014")
    assert card["counts"]["outside_years"] == 0
    with pytest.raises(Exception, match=r"no event is left .*outside years"):
        run("yelp", tmp_path / "raw", tmp_path / "empty", core=0, years="2015-2019")
    with pytest.raises(ConfigError, match="min_rating needs ratings"):
        generic(write_csv(tmp_path / "x.csv", [("u", "a", 1)]), tmp_path / "x", min_rating=3)


def test_duplicates(tmp_path: Path) -> None:
    events = [("u", "a", 1), ("u", "b", 2), ("u", "a", 1), ("u", "a", 3), ("v", "a", 1)]
    log = write_csv(tmp_path / "log.csv", events)
    wanted = {"keep": ("aba", 1, 0), "all": ("aaba", 0, 0), "first": ("ab", 1, 1), "last": ("ba", 1, 1)}
    for rule, (items, exact, removed) in wanted.items():
        card = generic(log, tmp_path / rule, duplicates=rule, time_unit="s")
        assert histories(tmp_path / rule) == {"u": list(items), "v": ["a"]}
        assert (card["counts"]["exact_duplicates"], card["counts"]["repeats_removed"]) == (exact, removed)
        assert card["counts"]["repeats"] == len(items) - len(set(items))


def test_repeat_targets_are_counted(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [("u", item, i) for i, item in enumerate("abab")])
    assert generic(log, tmp_path / "out")["repeat_targets"] == {"valid": 1, "test": 1}


def test_a_five_core_file_is_a_fixed_point(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{i}", 100 * u + i) for u in range(6) for i in range(6)]
    log = write_csv(tmp_path / "log.csv", rows, pad=False)
    card = generic(log, tmp_path / "out", core=5)
    assert card["counts"]["core_removed_events"] == 0 and card["n_events"] == 36
    generic(log, tmp_path / "all", core=0)
    assert histories(tmp_path / "out") == histories(tmp_path / "all")


def test_restart_of_finished_work_changes_nothing(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [("u", i, i) for i in range(5)])
    first = generic(log, tmp_path / "out")
    before = tree(tmp_path / "out")
    assert generic(log, tmp_path / "out") == first and tree(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="other options"):
        generic(log, tmp_path / "out", core=1)


def test_a_folder_of_files_and_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    with pytest.raises(DatasetNotFoundError, match="no data file"):
        generic(folder, tmp_path / "out")
    with pytest.raises(DatasetNotFoundError, match=r"ratings\.dat"):
        run("movielens-1m", folder, tmp_path / "out")
    with pytest.raises(DatasetNotFoundError, match="no such file"):
        generic(folder / "nowhere.csv", tmp_path / "out")
    write_csv(folder / "b.csv", [("u", "2", 2)])
    write_csv(folder / "a.csv", [("u", "1", 2)])
    generic(folder, tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["1", "2"]}


@pytest.mark.parametrize(
    ("dataset", "options", "match"),
    [
        ("criteo", {}, "unknown; choose amazon"),
        ("generic", {}, "--user and --item"),
        ("amazon", {"user": "u"}, "has its own"),
        ("s3rec", {"split": "time"}, "times of the clock"),
        ("s3rec", {"years": "2014"}, "times of the clock"),
        ("amazon", {"years": "last"}, "give a year"),
        ("amazon", {"core": -1}, "core >= 0"),
        ("amazon", {"duplicates": "some"}, "duplicates keep"),
        ("amazon", {"split": "random"}, "choose leave-one-out or time"),
        ("amazon", {"ratios": (0.5, 0.2, 0.3)}, "go with the split by time"),
        ("amazon", {"split": "time", "thresholds": "2014-05-01"}, "two times in order"),
        ("amazon", {"split": "time", "thresholds": "2014-05-01,2014-04-01"}, "two times in order"),
        ("amazon", {"split": "time", "thresholds": "1,2", "ratios": (0.8, 0.1, 0.1)}, "give one of them"),
        ("amazon", {"time_unit": "days"}, "time_unit"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, dataset: str, options: dict[str, object], match: str) -> None:
    raw = make.write_s3rec(tmp_path) if dataset == "s3rec" else make.write_amazon_2014(tmp_path)
    with pytest.raises(ConfigError, match=match) as caught:
        run(dataset, raw, tmp_path / "out", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_wrong_columns_name_those_there_are(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [("u", "a", 1)])
    with pytest.raises(CorruptRecordError, match=r"no column 'who'; the columns are user, item, time"):
        run("generic", log, tmp_path / "out", user="who", item="item")
    with pytest.raises(CorruptRecordError, match="the columns are user_id, item_id, rating, timestamp"):
        run("recbole", make.write_recbole(tmp_path), tmp_path / "out", user="session_id")
    with pytest.raises(CorruptRecordError, match="not Yelp reviews"):
        run("yelp", log, tmp_path / "out")
    log.write_text("1,2,3,4\n")
    with pytest.raises(ConfigError, match="cannot tell users from items"):
        run("amazon", log, tmp_path / "out")


def test_python_dictionaries_in_single_quotes(tmp_path: Path) -> None:
    rows = [str(json.loads(line)) for line in make.amazon_2014(make.events())]
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    run("amazon", path, tmp_path / "out", core=0, max_rejects=0)
    (tmp_path / "raw").mkdir()
    run("amazon", make.write_amazon_2014(tmp_path / "raw"), tmp_path / "json", core=0)
    assert histories(tmp_path / "out") == histories(tmp_path / "json") and rejects(tmp_path / "out") == []


def test_generic_json_lines_with_ids_that_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"u": 1, "i": 7, "t": 3}\n{"u": 1, "i": "8", "t": "2"}\n{"u": 1, "i": 9, "t": 2.5}\n'
        '{"u": "1", "i": 0, "t": 9}\n'
    )
    run("generic", path, tmp_path / "out", user="u", item="i", time="t", time_unit="s", core=0, max_rejects=0)
    assert histories(tmp_path / "out") == {"1": ["8", "9", "7", "0"]}


def test_parquet_ids_that_missing_values_have_made_floats(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    ids = {"u": [1.0, 1.0, 1.0, None, 1.0, 1.0], "i": [7.0, 8.0, 2.5, 9.0, float("nan"), 0.0]}
    pl.DataFrame({**ids, "t": [1, 2, 3, 4, 5, 6]}).write_parquet(path)
    run("generic", path, tmp_path / "out", user="u", item="i", time="t", time_unit="s", core=0, max_rejects=1)
    assert histories(tmp_path / "out") == {"1": ["7", "8", "2.5", "0"]}
    assert sorted(item["reason"] for item in rejects(tmp_path / "out")) == ["item is missing", "user is missing"]


def test_parquet_bytes_that_are_no_text_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"u": [b"a", b"a", b"a\xff"], "i": [b"x", b"y", b"z"]}).write_parquet(path)
    run("generic", path, tmp_path / "out", user="u", item="i", core=0, max_rejects=1)
    assert histories(tmp_path / "out") == {"a": ["x", "y"]}
    assert [item["reason"] for item in rejects(tmp_path / "out")] == ["user is missing"]


@pytest.mark.shared
def test_beauty_is_the_published_data(tmp_path: Path, shared: Path) -> None:
    log = shared / "seqrec/amazon_beauty.parquet"
    card = run("generic", log, tmp_path / "out", user="user", item="item", time="position", core=0)
    assert (card["n_users"], card["n_items"], card["n_events"]) == (22_363, 12_101, 198_502)
    assert card["counts"]["items_never_trained"] == 33 and card["cold_targets"]["test"] == 138
    assert {name: entry["rows"] for name, entry in card["splits"].items()} == dict.fromkeys(
        ("train", "valid", "test"), 22_363
    )
    assert run("generic", log, tmp_path / "core", user="user", item="item", time="position")["n_events"] == 198_502
