"""New logs in the items of a preparation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_prep.common.errors import ConfigError, DatasetNotFoundError, ManifestError, PrepError
from data_prep.common.manifest import read_manifest, write_manifest
from data_prep.seqrec import events, group
from data_prep.seqrec.apply import apply
from tests.data.seqrec import make
from tests.data_prep.helpers import tree
from tests.data_prep.seqrec.helpers import generic, histories, parts, rejects, rows, run, write_csv

BASE = 1_400_000_000
LOG = [(f"u{row % 3}", f"i{row % 7}", BASE + row) for row in range(30)]


def score(preparation: Path, raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    return apply(preparation, raw, out, **{"executor": "serial", "progress": False, **options})


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    generic(write_csv(tmp_path / "log.csv", LOG, pad=False), tmp_path / "out")
    return tmp_path / "out"


def test_new_users_and_unknown_items(tmp_path: Path, prepared: Path) -> None:
    new = [("zoe", "i3", BASE + 9), ("u1", "i5", BASE), ("zoe", "new", BASE), ("zoe", "i2", BASE + 3), ("x", "new", 1)]
    card = score(prepared, write_csv(tmp_path / "new.csv", new, pad=False), tmp_path / "applied")
    assert histories(tmp_path / "applied") == {"u1": ["i5"], "zoe": ["i2", "i3"]}
    assert rows(tmp_path / "applied", "predict") == [("u1", 1, 1), ("zoe", 2, 2)]
    assert histories(tmp_path / "applied", "times")["zoe"] == [BASE + 3, BASE + 9]
    counts = card["counts"]
    assert (counts["unknown_items"], counts["events_of_unknown_items"], counts["users_without_known_items"]) == (
        1,
        2,
        1,
    )
    assert card["n_items"] == 7 and card["n_users"] == 2 and list(card["splits"]) == ["predict"]
    assert (tmp_path / "applied" / "items.parquet").read_bytes() == (prepared / "items.parquet").read_bytes()
    assert parts(tmp_path / "applied", "predict").drop("part").schema == parts(prepared, "test").drop("part").schema


def test_ids_are_those_of_the_preparation(tmp_path: Path, prepared: Path) -> None:
    score(prepared, tmp_path / "log.csv", tmp_path / "applied")
    one, other = (parts(folder, "sequences") for folder in (prepared, tmp_path / "applied"))
    assert one.equals(other)


def test_options_of_the_preparation_hold(tmp_path: Path) -> None:
    log = make.write_shop(tmp_path)
    names = {"user": "who", "item": "what", "time": "when", "rating": "stars", "min_rating": 3, "duplicates": "first"}
    run("generic", log, tmp_path / "out", core=0, years="2014", **names)
    table = pl.read_csv(log)
    later = pl.concat([table, table]).with_columns(pl.col("when") + 3 * 365 * 86_400)
    later.write_csv(tmp_path / "later.csv")
    score(tmp_path / "out", tmp_path / "later.csv", tmp_path / "applied")
    assert histories(tmp_path / "applied") == histories(tmp_path / "out")


def test_many_parts_and_two_processes_give_the_same_bytes(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [(f"n{row % 40}", f"i{row % 9}", BASE + row) for row in range(400)]
    log = write_csv(tmp_path / "new.csv", many, pad=False)
    score(prepared, log, tmp_path / "one")
    monkeypatch.setattr(events, "CHUNK_EVENTS", 50)
    monkeypatch.setattr(group, "BUCKET_EVENTS", 50)
    card = score(prepared, log, tmp_path / "many")
    assert len(card["splits"]["predict"]["parts"]) == 8
    assert histories(tmp_path / "many") == histories(tmp_path / "one")
    assert sorted(rows(tmp_path / "many", "predict")) == sorted(rows(tmp_path / "one", "predict"))
    score(prepared, log, tmp_path / "pool", executor="local", workers=2)
    assert tree(tmp_path / "pool") == tree(tmp_path / "many")


def test_broken_records_and_a_second_time(tmp_path: Path, prepared: Path) -> None:
    log = write_csv(tmp_path / "new.csv", [*LOG, ("u1", "i1", "soon")], pad=False)
    first = score(prepared, log, tmp_path / "applied", max_rejects=0.1)
    assert [item["record"] for item in rejects(tmp_path / "applied")] == [30]
    assert score(prepared, log, tmp_path / "applied") == first
    log.write_text(log.read_text() + "u1,i2,1400000000\n")
    with pytest.raises(ConfigError, match="other files"):
        score(prepared, log, tmp_path / "applied")


def test_nothing_known_is_one_line(tmp_path: Path, prepared: Path) -> None:
    log = write_csv(tmp_path / "new.csv", [("u", "what", BASE)], pad=False)
    with pytest.raises(PrepError, match="none of its 1 items is known"):
        score(prepared, log, tmp_path / "applied")
    assert not (tmp_path / "applied" / "dataset.json").exists()


def test_damaged_preparations_are_refused(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="no prepared data"):
        score(tmp_path / "nowhere", tmp_path / "log.csv", tmp_path / "applied")
    shutil.copytree(prepared, tmp_path / "bad")
    with (tmp_path / "bad" / "items.parquet").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ManifestError, match=r"items\.parquet"):
        score(tmp_path / "bad", tmp_path / "log.csv", tmp_path / "applied")
    card = read_manifest(prepared)
    write_manifest(tmp_path / "bad", {name: value for name, value in card.items() if name != "preparation"})
    with pytest.raises(ManifestError, match="no preparation of an interaction log"):
        score(tmp_path / "bad", tmp_path / "log.csv", tmp_path / "applied")
