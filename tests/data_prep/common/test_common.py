"""The shared parts of preparation."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common import errors
from data_prep.common.errors import (
    BusyError,
    ConfigError,
    CorruptRecordError,
    LeakError,
    ManifestError,
    MissingExtraError,
)
from data_prep.common.executors import SerialExecutor
from data_prep.common.hashing import hash_numbers, hash_strings
from data_prep.common.lock import own
from data_prep.common.manifest import read_manifest, verify_files, write_manifest
from data_prep.common.mapping import Shard, Task, run_stage
from data_prep.common.splits import (
    assign_hashed,
    assign_times,
    check_ratios,
    check_time_order,
    merge_sides,
    refuse_leak,
    time_thresholds,
)


def test_errors_are_one_line_and_cross_processes() -> None:
    leaves = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.PrepError)
    ]
    assert len(leaves) > 8
    for leaf in leaves:
        if leaf is CorruptRecordError:
            error: errors.PrepError = CorruptRecordError("a.csv", "record 3", "short\nline")
        elif leaf is MissingExtraError:
            error = MissingExtraError("dask", "the dask executor")
        else:
            error = leaf("a.csv: wrong\n  do this")
        assert "\n" not in str(error)
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is leaf and str(copy) == str(error)
        assert len(leaf.__mro__) > 4 or leaf is errors.PrepError  # a built-in that fits is among its parents


def test_import_leaves_torch_out() -> None:
    imports = "import sys, data_prep.ctr.prepare, data_prep.ctr.apply;"
    code = imports + "sys.exit(bool({'torch', 'domains', 'apps', 'dask', 'submitit'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


def test_stable_hashes() -> None:
    """These numbers are in prepared files: they must never change."""
    tokens = ["", "a", "68fd1e64", "a token of more than eight bytes", "é", "x" * 100]
    assert [hex(value) for value in hash_strings(tokens).tolist()] == STABLE
    assert len(set(hash_strings([f"t{i}" for i in range(10000)]).tolist())) == 10000
    assert hash_strings(["a\0"]) != hash_strings(["a"])
    assert (
        hash_numbers(np.arange(3, dtype=np.uint64), 1).tolist()
        != hash_numbers(np.arange(3, dtype=np.uint64), 2).tolist()
    )


STABLE = [
    "0x5b21f68ffa77f14c",
    "0x791f6d3e536b745f",
    "0x5fa3fbc69b7a4875",
    "0x1b1bc199098e9cab",
    "0xea29d023a22248da",
    "0xbc81a401faba972b",
]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=90)))
def test_hash_depends_on_the_token_alone(tokens: list[str]) -> None:
    together = hash_strings(tokens)
    assert all(hash_strings([token])[0] == value for token, value in zip(tokens, together, strict=True))


def test_hashed_split_keeps_shares_and_groups() -> None:
    groups = hash_strings([f"user {index % 5000}" for index in range(20000)])
    split = assign_hashed(groups, (0.8, 0.1, 0.1), seed=1)
    _, sides = merge_sides([groups], [np.uint8(1) << split])
    assert set(sides.tolist()) == {1, 2, 4}
    shares = [float((split == index).mean()) for index in range(3)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    assert split[:100].tolist() == assign_hashed(groups[:100], (0.8, 0.1, 0.1), seed=1).tolist()
    assert split.tolist() != assign_hashed(groups, (0.8, 0.1, 0.1), seed=2).tolist()
    assert set(assign_hashed(np.arange(50, dtype=np.uint64), (1.0, 0.0, 0.0)).tolist()) == {0}


def test_leak_is_refused_by_name() -> None:
    refuse_leak("patient", "b", 0)
    with pytest.raises(LeakError, match=r"patient 'b' is in more than one of train, valid, test \(2 such in all\)"):
        refuse_leak("patient", "b", 2)
    with pytest.raises(LeakError, match="before the previous"):
        check_time_order([5.0, 9.0], [1.0, 5.0])
    check_time_order([5.0, 9.0], [1.0, 6.0])


@given(st.lists(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 2, 4])), max_size=9), max_size=4))
def test_sides_of_groups_in_any_division(tables: list[list[tuple[int, int]]]) -> None:
    expected: dict[int, int] = {}
    for group, side in (pair for table in tables for pair in table):
        expected[group] = expected.get(group, 0) | side
    hashes = [np.array([group for group, _ in table], np.uint64) for table in tables]
    found = merge_sides(hashes, [np.array([side for _, side in table], np.uint8) for table in tables])
    assert dict(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected
    assert found[0].tolist() == sorted(expected)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60))
def test_time_split_never_divides_equal_times(times: list[int]) -> None:
    distinct, counts = np.unique(np.array(times, dtype=np.float64), return_counts=True)
    split = assign_times(np.array(times, dtype=np.float64), time_thresholds(distinct, counts, (0.6, 0.2, 0.2)))
    assert len(set(zip(times, split.tolist(), strict=True))) == len(set(times))
    assert (np.diff(split[np.argsort(times, kind="stable")].astype(int)) >= 0).all()


BAD_RATIOS: list[Any] = [(0.5, 0.5), (0.9, 0.2, -0.1), (0.0, 0.5, 0.5), (0.5, 0.2, 0.2), ()]
BAD_RATIOS += [(float("nan"), 0.5, 0.5), ("a", 0.5, 0.5), "0.8,0.2", "most,some,few", None, (None, 0.5, 0.5)]


@pytest.mark.parametrize("ratios", BAD_RATIOS)
def test_bad_ratios(ratios: Any) -> None:
    with pytest.raises(ConfigError, match="give three shares"):
        check_ratios(ratios)


@pytest.mark.parametrize("ratios", [(0.8, 0.1, 0.1), [0.8, 0.1, 0.1], "0.8,0.1,0.1", "0.8 0.1 0.1", "[0.8, 0.1, 0.1]"])
def test_ratios_in_any_form(ratios: Any) -> None:
    assert check_ratios(ratios) == (0.8, 0.1, 0.1)


def test_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"name": "x"})
    first = (tmp_path / "dataset.json").read_bytes()
    write_manifest(tmp_path, {"name": "x"})
    assert (tmp_path / "dataset.json").read_bytes() == first
    assert read_manifest(tmp_path) == {"format": "heptad/1", "name": "x"}
    (tmp_path / "dataset.json").write_text('{"format": "other/9"}')
    with pytest.raises(ManifestError, match="other/9"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="missing or not the file"):
        verify_files(tmp_path, {"dataset.json": "0" * 64})


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "work" / "lock"
    code = f"""
import sys, time
from pathlib import Path
from data_prep.common.lock import own
with own(Path({str(tmp_path)!r}), Path({str(lock)!r})):
    print("owned", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"owned\n"
        with pytest.raises(BusyError), own(tmp_path, lock):
            raise AssertionError("two owners")
        process.kill()
        process.wait()
    with (
        own(tmp_path, lock, shared=True),
        own(tmp_path, lock, shared=True),
        pytest.raises(BusyError),
        own(tmp_path, lock),
    ):
        raise AssertionError("two owners")


def write_square(number: int, folder: Path) -> dict[str, Any]:
    (folder / "square.txt").write_text(str(number * number))
    return {"square": number * number}


def test_map_runs_what_is_missing_or_damaged(tmp_path: Path) -> None:
    tasks = [Task(f"{number}", write_square, (number,)) for number in range(5)]
    first = run_stage("squares", tasks, tmp_path, SerialExecutor(), progress=True)
    assert [done.info["square"] for done in first] == [0, 1, 4, 9, 16]
    record = json.loads((tmp_path / "squares" / "3" / "done.json").read_text())
    assert record["files"]["square.txt"][0] == 1
    before = (tmp_path / "squares" / "1" / "square.txt").stat().st_mtime_ns
    (tmp_path / "squares" / "3" / "square.txt").write_text("7")
    (tmp_path / "squares" / "4" / "done.json").write_text("{")
    again = run_stage("squares", tasks, tmp_path, SerialExecutor(), progress=False)
    assert [done.info for done in again] == [done.info for done in first]
    assert (tmp_path / "squares" / "3" / "square.txt").read_text() == "9"
    assert (tmp_path / "squares" / "1" / "square.txt").stat().st_mtime_ns == before


def test_shard_text() -> None:
    assert Shard.parse("1/3") == Shard(1, 3)
    for text in ("3/3", "x/2", "1", "-1/2"):
        with pytest.raises(ConfigError):
            Shard.parse(text)
