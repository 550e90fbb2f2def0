"""New logs to be scored: in the shape in which each data set publishes them, every record, and no more columns."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.ctr.apply import apply
from tests.data.ctr import make
from tests.data_prep.ctr.helpers import rows, run
from tests.data_prep.helpers import tree


def score(preparation: Path, raw: Path | list[Path], out: Path, **options: Any) -> dict[str, Any]:
    return apply(preparation, raw, out, **{"executor": "serial", "progress": False, **options})


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    log, schema = make.write_shop(tmp_path)
    run("generic", log, tmp_path / "out", schema=schema, vocabulary_scope="all")
    return log


def test_only_columns_of_features_are_needed(tmp_path: Path, shop: Path) -> None:
    table = pl.read_csv(shop)
    table.select("tags", "brand", "price", "visitor").write_csv(tmp_path / "new.csv")
    manifest = score(tmp_path / "out", tmp_path / "new.csv", tmp_path / "applied")
    assert rows(tmp_path / "applied").equals(rows(tmp_path / "out").drop("label"))
    assert manifest["label"] is None and manifest["splits"]["test"]["positives"] is None
    table.drop("brand").write_csv(tmp_path / "lacking.csv")
    with pytest.raises(CorruptRecordError, match="column 'brand' of the schema is missing"):
        score(tmp_path / "out", tmp_path / "lacking.csv", tmp_path / "lacking")


def test_roles_that_are_no_features_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "fields: [{name: click, role: label}, {name: who, role: user}, {name: fold, role: split},"
        " {name: when, role: time}, {name: a, type: categorical}]"
    )
    lines = [f"{row % 2},u{row},{'test' if row % 5 == 4 else 'train'},{row},x{row % 3}" for row in range(40)]
    (tmp_path / "log.csv").write_text("\n".join(["click,who,fold,when,a", *lines]))
    run("generic", tmp_path / "log.csv", tmp_path / "out", schema=tmp_path / "s.yaml")
    (tmp_path / "new.csv").write_text("a\nx0\nx9\n")
    manifest = score(tmp_path / "out", tmp_path / "new.csv", tmp_path / "bare")
    assert rows(tmp_path / "bare").columns == ["row", "a"] and manifest["group"] is None
    (tmp_path / "named.csv").write_text("who,a\nu1,x0\nu2,x9\n")
    assert score(tmp_path / "out", tmp_path / "named.csv", tmp_path / "named")["group"]["name"] == "who"
    assert rows(tmp_path / "named").columns == ["row", "group", "a"]


@pytest.mark.parametrize("label", ["", "?", "7", "inf"])
def test_no_record_is_lost_for_its_label(tmp_path: Path, shop: Path, label: str) -> None:
    table = pl.read_csv(shop, schema_overrides={"click": pl.String})
    odd = table.with_columns(pl.when(pl.int_range(pl.len()) == 5).then(pl.lit(label)).otherwise("click").alias("click"))
    odd.write_csv(tmp_path / "odd.csv")
    manifest = score(tmp_path / "out", tmp_path / "odd.csv", tmp_path / "applied", max_rejects=0.0)
    assert manifest["rejects"]["count"] == 0 and manifest["label"] is None
    assert rows(tmp_path / "applied").equals(rows(tmp_path / "out").drop("label"))


def test_kdd12_test_file_lacks_click_and_impression(tmp_path: Path) -> None:
    make.write_kdd12(tmp_path)
    run("kdd12", tmp_path, tmp_path / "out", min_count=1, vocabulary_scope="all")
    lines = (tmp_path / "training.txt").read_text().splitlines()
    (tmp_path / "test.txt").write_text("\n".join(line.split("\t", 2)[2] for line in lines) + "\n")
    learned = rows(tmp_path / "out").drop("label", "impression")
    # The folder, the file alone with the profile beside it, and both by name.
    named = [tmp_path / "test.txt", tmp_path / "userid_profile.txt"]
    for index, raw in enumerate((tmp_path, tmp_path / "test.txt", named)):
        manifest = score(tmp_path / "out", raw, tmp_path / f"applied{index}")
        applied = rows(tmp_path / f"applied{index}")
        assert [item["path"] for item in manifest["sources"]] == ["test.txt", "userid_profile.txt"]
        assert manifest["label"] is None and applied["impression"].null_count() == applied.height
        assert applied.drop("impression").equals(learned)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "test.txt").rename(moved / "mine.log")
    score(tmp_path / "out", [moved / "mine.log", tmp_path / "userid_profile.txt"], tmp_path / "moved")
    assert rows(tmp_path / "moved").drop("impression").equals(learned)
    with pytest.raises(DatasetNotFoundError, match="userid_profile"):
        score(tmp_path / "out", moved / "mine.log", tmp_path / "none")


def test_avazu_and_criteo_folders_hold_test_logs_without_label(tmp_path: Path) -> None:
    for name, write in (("avazu", make.write_avazu), ("criteo", make.write_criteo)):
        folder = tmp_path / name
        folder.mkdir()
        write(folder)
        run(name, folder, tmp_path / f"{name}-out", min_count=1, vocabulary_scope="all")
        if name == "avazu":
            lines = gzip.decompress((folder / "train.gz").read_bytes()).decode().splitlines()
            bare = [",".join([*line.split(",")[:1], *line.split(",")[2:]]) for line in lines]
            (folder / "test.gz").write_bytes(gzip.compress("\n".join(bare).encode()))
        else:
            lines = (folder / "train.txt").read_text().splitlines()
            (folder / "test.txt").write_text("\n".join(line.split("\t", 1)[1] for line in lines))
        manifest = score(tmp_path / f"{name}-out", folder, tmp_path / f"{name}-applied")
        assert manifest["sources"][0]["path"].startswith("test.")
        assert rows(tmp_path / f"{name}-applied").equals(rows(tmp_path / f"{name}-out").drop("label"))


def test_one_damaged_first_line_does_not_hide_the_missing_label(tmp_path: Path) -> None:
    run("criteo", make.write_criteo(tmp_path, 100), tmp_path / "out")
    lines = [line.split("\t", 1)[1] for line in make.criteo_lines(100)]
    (tmp_path / "new.txt").write_text("\n".join(["1\t" + lines[0], *lines]))
    manifest = score(tmp_path / "out", tmp_path / "new.txt", tmp_path / "applied")
    assert manifest["rejects"]["count"] == 1 and manifest["splits"]["test"]["rows"] == 100


def test_new_movielens_ratings_beside_the_side_files(tmp_path: Path) -> None:
    make.write_movielens_1m(tmp_path)
    run("movielens-1m", tmp_path, tmp_path / "out")
    (tmp_path / "march.dat").write_text("1::2::3::978300000\n2::4::5::978300001\n")
    score(tmp_path / "out", tmp_path / "march.dat", tmp_path / "applied")
    assert rows(tmp_path / "applied")["label"].to_list() == [0, 1]


def test_a_second_time_into_the_same_folder(tmp_path: Path, shop: Path) -> None:
    first = score(tmp_path / "out", shop, tmp_path / "applied")
    before = tree(tmp_path / "applied")
    assert score(tmp_path / "out", shop, tmp_path / "applied") == first and tree(tmp_path / "applied") == before
    shop.write_text(shop.read_text() + "1,v1,5,5,b1,,plain\n")
    with pytest.raises(ConfigError, match="other files"):
        score(tmp_path / "out", shop, tmp_path / "applied")
