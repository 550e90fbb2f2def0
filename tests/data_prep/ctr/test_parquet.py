"""Types that Parquet files bring along, and times in the forms in which logs write them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_prep.common.errors import ConfigError
from data_prep.ctr import chunks
from data_prep.ctr.roles import read_time
from tests.data_prep.ctr.helpers import decode, rows, run

SCHEMA = """\
missing: ["NA", "-"]
fields:
  - {name: click, role: label}
  - {name: when, role: time}
  - {name: member, type: numerical}
  - {name: open, type: categorical}
  - {name: price, type: numerical}
  - {name: brand, type: categorical}
  - {name: tags, type: multi, separator: "|"}
"""


def table(size: int = 40) -> pl.DataFrame:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    start = datetime.datetime(2024, 3, 1, tzinfo=zone)
    return pl.DataFrame(
        {
            "click": [row % 2 == 0 for row in range(size)],
            "when": [start + datetime.timedelta(hours=row) for row in range(size)],
            "member": [None if row == 3 else row % 3 == 0 for row in range(size)],
            "open": [row % 4 == 0 for row in range(size)],
            "price": ["NA" if row % 5 == 0 else str(row) for row in range(size)],
            "brand": ["-" if row % 7 == 0 else f"b{row % 3}" for row in range(size)],
            "tags": [["a|b"] for row in range(size)],
        }
    )


def prepare_table(folder: Path, frame: pl.DataFrame, **options: Any) -> tuple[dict[str, Any], pl.DataFrame]:
    (folder / "s.yaml").write_text(SCHEMA)
    frame.write_parquet(folder / "log.parquet")
    options = {"schema": folder / "s.yaml", "vocabulary_scope": "all", "max_rejects": 0.0, **options}
    manifest = run("generic", folder / "log.parquet", folder / "out", **options)
    return manifest, rows(folder / "out")


def test_booleans_zones_missing_values_and_lists(tmp_path: Path) -> None:
    frame = table()
    manifest, found = prepare_table(tmp_path, frame, split="time")
    out = tmp_path / "out"
    assert found["label"].to_list() == [int(value) for value in frame["click"]]
    assert found["member"].to_list() == [None if value is None else float(value) for value in frame["member"]]
    assert decode(out, found, "open") == ["true" if value else "false" for value in frame["open"]]
    assert found["price"].to_list() == [None if text == "NA" else float(text) for text in frame["price"]]
    assert decode(out, found, "brand") == [None if text == "-" else text for text in frame["brand"]]
    first = datetime.datetime(2024, 2, 29, 22, tzinfo=datetime.UTC).timestamp()
    assert manifest["split_rule"]["thresholds"][0] == first + 32 * 3600


def test_a_list_stays_whole_whatever_its_chunk_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first chunk has lists of one element alone, the second longer ones: a separator inside is no separator.
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 20)
    tags: list[list[str | None] | None] = [["a|b"] if row < 20 else ["a|b", "c", " "] for row in range(40)]
    tags[0], tags[1], tags[21] = None, [], [None, "c"]
    _, found = prepare_table(tmp_path, table().with_columns(pl.Series("tags", tags)))
    bags = decode(tmp_path / "out", found, "tags")
    assert bags[0] == bags[1] == [] and bags[21] == ["c"]
    assert set(map(tuple, bags[2:20])) == {("a|b",)} and set(map(tuple, bags[22:])) == {("a|b", "c")}


def test_arrays_of_fixed_length_are_lists_and_text_is_split(tmp_path: Path) -> None:
    frame = table().with_columns(pl.Series("tags", [[row % 3, 7] for row in range(40)], dtype=pl.Array(pl.Int64, 2)))
    _, found = prepare_table(tmp_path, frame)
    assert decode(tmp_path / "out", found, "tags") == [[str(row % 3), "7"] for row in range(40)]
    (tmp_path / "text").mkdir()
    _, found = prepare_table(tmp_path / "text", table().with_columns(tags=pl.lit("a|b")))
    assert set(map(tuple, decode(tmp_path / "text" / "out", found, "tags"))) == {("a", "b")}


@pytest.mark.parametrize("name", ["brand", "price", "when"])
def test_lists_elsewhere_are_refused_by_name(tmp_path: Path, name: str) -> None:
    frame = table().with_columns(pl.Series(name, [["a"]] * 40))
    with pytest.raises(ConfigError, match=rf"column '{name}' holds List"):
        prepare_table(tmp_path, frame, split="time")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T01:00:00+00:00", 3600),
        ("1970-01-01T01:00:00Z", 3600),
        ("1970-01-01 01:00:00.500Z", 3600.5),
        ("1970-01-01T01:00:00,5z", 3600.5),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T01:00-0130", 9000),
        ("1970-01-01 01:00:00 +02", -3600),
        (" 1970-01-02 ", 86400),
        ("1970-01-01T01:00", 3600),
        ("12.5", 12.5),
        ("1970-01-01T01:00:00+1", None),
        ("noon", None),
        (None, None),
    ],
)
def test_times(text: str | None, seconds: float | None) -> None:
    found = read_time(pl.Series([text, "1970-01-01T00:00:00Z"], dtype=pl.String)).tolist()
    assert found[1] == 0
    assert found[0] == seconds or (seconds is None and found[0] != found[0])
