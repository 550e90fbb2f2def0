"""Who is on which side of a split: counted over what is written, refused where it was promised or asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, LeakError
from data_prep.ctr import chunks, groups
from tests.data.ctr import make
from tests.data_prep.ctr.helpers import rows, run
from tests.data_prep.helpers import tree

SCHEMA = """\
fields:
  - {name: click, role: label}
  - {name: visitor, role: user}
  - {name: fold, role: split}
  - {name: when, role: time}
  - {name: a, type: categorical}
"""


def write(folder: Path, leaking: tuple[int, ...] = (), name: str = "log.csv", folds: str = "") -> tuple[Path, Path]:
    """Users 0..29, ten rows each: a third of them in each fold, the leaking ones also in the next."""
    lines = ["click,visitor,fold,when,a"]
    for row in range(300):
        user = row % 30
        fold = folds or ("train", "valid", "test")[(user // 10 + (user in leaking and row >= 150)) % 3]
        lines.append(f"{row % 2 ^ row // 30 % 2},v{user},{fold},{1000 + row},x{row % 7}")
    (folder / "schema.yaml").write_text(SCHEMA)
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name, folder / "schema.yaml"


def test_users_over_all_folds_of_a_column_are_counted(tmp_path: Path) -> None:
    log, schema = write(tmp_path, leaking=(3, 12, 29))
    manifest = run("generic", log, tmp_path / "out", schema=schema)
    assert manifest["group"] == {"name": "visitor", "kept_apart": False, "groups": 30, "groups_on_two_sides": 3}
    with pytest.raises(LeakError, match=r"user 'v(3|12|29)' is in more than one of .* \(3 such in all\)"):
        run("generic", log, tmp_path / "strict", schema=schema, require_groups_apart=True)
    assert not (tmp_path / "strict" / "dataset.json").exists()
    # What is there already keeps no promise it was not asked for.
    with pytest.raises(LeakError, match="3 users"):
        run("generic", log, tmp_path / "out", schema=schema, require_groups_apart=True)


def test_clean_folds_are_confirmed(tmp_path: Path) -> None:
    log, schema = write(tmp_path)
    manifest = run("generic", log, tmp_path / "out", schema=schema, require_groups_apart=True)
    assert manifest["group"] == {"name": "visitor", "kept_apart": True, "groups": 30, "groups_on_two_sides": 0}
    run("generic", log, tmp_path / "plain", schema=schema)
    assert tree(tmp_path / "plain") == tree(tmp_path / "out")  # the promise changes no byte


def test_rows_without_a_user_are_no_group(tmp_path: Path) -> None:
    log, schema = write(tmp_path)
    log.write_text(log.read_text() + "1,,train,1,x1\n0,,test,1,x1\n")
    assert run("generic", log, tmp_path / "out", schema=schema)["group"]["groups_on_two_sides"] == 0


def test_files_of_train_and_test_share_users(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        write(folder, name=name)
    (folder / "schema.yaml").rename(tmp_path / "schema.yaml")
    options: dict[str, Any] = {"schema": tmp_path / "schema.yaml", "split": "file"}
    assert run("generic", folder, tmp_path / "out", **options)["group"]["groups_on_two_sides"] == 30
    with pytest.raises(LeakError, match="user 'v"):
        run("generic", folder, tmp_path / "strict", require_groups_apart=True, **options)


@pytest.mark.parametrize("entries", [4_000_000, 7])
def test_many_chunks_and_many_ranges_count_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 700)
    monkeypatch.setattr(groups, "ENTRIES", entries)
    log, schema = write(tmp_path)
    found = run("generic", log, tmp_path / "out", schema=schema, split="random")["group"]
    parts = [rows(tmp_path / "out", name).with_columns(side=pl.lit(name)) for name in ("train", "valid", "test")]
    table = pl.concat(parts)
    sides = table.group_by("group").agg(pl.col("side").n_unique())
    assert found["groups"] == sides.height == 30
    assert found["groups_on_two_sides"] == sides.filter(pl.col("side") > 1).height > 0


def test_a_user_split_that_breaks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, schema = write(tmp_path)

    def by_row(hashes: np.ndarray[Any, Any], *_: Any) -> np.ndarray[Any, Any]:
        return (np.arange(len(hashes)) // 3 % 3).astype(np.uint8)

    monkeypatch.setattr("data_prep.ctr.roles.assign_hashed", by_row)
    with pytest.raises(LeakError, match="this breaks the split by user"):
        run("generic", log, tmp_path / "out", schema=schema, split="user")


def test_a_time_split_that_breaks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, schema = write(tmp_path)

    def upside_down(times: np.ndarray[Any, Any], _: Any) -> np.ndarray[Any, Any]:
        return (np.arange(len(times)) // 7 % 3).astype(np.uint8)

    monkeypatch.setattr("data_prep.ctr.roles.assign_times", upside_down)
    with pytest.raises(LeakError, match="before the previous one ends"):
        run("generic", log, tmp_path / "out", schema=schema, split="time")
    monkeypatch.undo()
    assert run("generic", log, tmp_path / "good", schema=schema, split="time")["group"]["groups_on_two_sides"] > 0


def test_apart_needs_a_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="role user"):
        run("criteo", make.write_criteo(tmp_path, 50), tmp_path / "out", require_groups_apart=True)
