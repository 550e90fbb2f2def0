"""Damaged logs: one line that says where and what to do, or rejects; never a half-written data set."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_prep.common import files
from data_prep.common.errors import (
    BusyError,
    ConfigError,
    CorruptRecordError,
    DatasetNotFoundError,
    DiskFullError,
    LabelError,
    ManifestError,
    PrepError,
    RejectsExceededError,
)
from data_prep.common.lock import own
from data_prep.ctr.apply import apply
from tests.data.ctr import make
from tests.data_prep.ctr.helpers import decode, rows, run
from tests.data_prep.helpers import tree

SCHEMA = """\
fields:
  - {name: click, role: label}
  - {name: price, type: numerical}
  - {name: brand, type: categorical}
"""
GOOD = [f"{row % 2},{row},b{row % 5}" for row in range(60)]


def write(
    folder: Path, lines: list[str] | bytes, header: str = "click,price,brand", schema: str = SCHEMA
) -> tuple[Path, Path]:
    (folder / "log.yaml").write_text(schema)
    data = lines if isinstance(lines, bytes) else ("\n".join([header, *lines]) + "\n").encode()
    (folder / "log.csv").write_bytes(data)
    return folder / "log.csv", folder / "log.yaml"


def prepare_lines(
    folder: Path, lines: list[str] | bytes, **options: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    extra = {name: options.pop(name) for name in ("header", "schema") if name in options}
    log, schema = write(folder, lines, **extra)
    manifest = run("generic", log, folder / "out", schema=schema, **{"max_rejects": 0.5, **options})
    return manifest, pl.read_parquet(folder / "out" / "rejects.parquet").to_dicts()


def refuse(folder: Path, lines: list[str] | bytes, error: type[PrepError], match: str, **options: Any) -> str:
    with pytest.raises(error, match=match) as caught:
        prepare_lines(folder, lines, **options)
    message = str(caught.value)
    assert "\n" not in message and isinstance(caught.value, PrepError)
    assert not (folder / "out" / "dataset.json").exists() and not (folder / "out" / "train").exists()
    return message


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ("1,2", "", "3 values expected, 2 found"),
        ("1,2,b1,b2", "", "3 values expected, 4 found"),
        ("", "", "blank line"),
        ("1,abc,b1", "price", "'abc' is not a number"),
        ("1,1e39,b1", "price", "too large for float32"),
        ("1,inf,b1", "price", "not finite"),
        ("1,nan,b1", "price", "not finite"),
        ("2,1,b1", "click", "label is not 0 or 1"),
        (",1,b1", "click", "label is missing"),
        ("x,1,b1", "click", "is not a number"),
        ('1,2,b"1', "", "quote is misplaced"),
        ('1,2,"b1', "", "quote is misplaced or never closed"),
    ],
)
def test_one_bad_record_is_rejected_and_the_rest_kept(tmp_path: Path, line: str, field: str, reason: str) -> None:
    lines = [*GOOD[:20], line, *GOOD[20:]]
    manifest, rejects = prepare_lines(tmp_path, lines)
    assert [(item["source"], item["record"], item["field"]) for item in rejects] == [("log.csv", 20, field)]
    assert reason in rejects[0]["reason"] and rejects[0]["excerpt"] == line
    table = rows(tmp_path / "out")
    assert table["row"].to_list() == [row for row in range(61) if row != 20]
    assert table["price"].to_list() == list(range(60))
    assert manifest["rejects"] == {"count": 1, "share": 1 / 61}


def test_negative_and_huge_numbers_are_fine(tmp_path: Path) -> None:
    prepare_lines(tmp_path, ["1,-7,b1", "0,3e38,b1", "1,-3e38,b1", "0,0.5,b1", "1, 12 ,b1", *GOOD])
    found = rows(tmp_path / "out")["price"].to_list()[:5]
    assert found == pytest.approx([-7, 3e38, -3e38, 0.5, 12], rel=1e-6)


def test_not_utf8(tmp_path: Path) -> None:
    data = "\n".join(["click,price,brand", *GOOD[:9]]).encode() + b"\n1,1,b\xff\xfe\n" + "\n".join(GOOD[9:]).encode()
    _, rejects = prepare_lines(tmp_path, data)
    assert [(item["record"], item["reason"]) for item in rejects] == [(9, "not UTF-8 text")]
    assert rows(tmp_path / "out").height == 60


def test_quoted_newlines_and_separators(tmp_path: Path) -> None:
    odd = ['"a\nb"', '"c,d"', '"say ""hi"""', '"\r\n"', '""']
    prepare_lines(tmp_path, [*[f"1,1,{value}" for value in odd], *GOOD], vocabulary_scope="all")
    table = rows(tmp_path / "out")
    assert table.height == 65
    assert decode(tmp_path / "out", table, "brand")[:5] == ["a\nb", "c,d", 'say "hi"', "\n", None]


def test_wrong_delimiter(tmp_path: Path) -> None:
    semicolons = [line.replace(",", ";") for line in GOOD]
    message = refuse(tmp_path, semicolons, CorruptRecordError, "separated by ';'", header="click;price;brand")
    assert "log.csv" in message


def test_wrong_delimiter_without_header(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n".join(line.replace("\t", ",") for line in make.criteo_lines(30)))
    with pytest.raises(
        RejectsExceededError, match=r"train\.txt: record 0: 40 values expected, 1 found \(wrong delimiter"
    ):
        run("criteo", tmp_path / "train.txt", tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / ".work" / "rejects.parquet").height == 30


def test_too_many_rejects_leaves_the_table_and_no_data(tmp_path: Path) -> None:
    lines = [*GOOD[:5], "1,abc,b1", *GOOD[5:], "5,1,b1", "1,abc,b1"]
    message = refuse(tmp_path, lines, RejectsExceededError, "record 5 field price", max_rejects=0.01)
    left = Path(message.split("listed in ")[1].split(";")[0])
    assert pl.read_csv(left)["record"].to_list() == [5, 61, 62]
    manifest, _ = prepare_lines(tmp_path, lines, max_rejects=0.2)  # the same command goes on with another limit
    assert manifest["rejects"]["count"] == 3


def test_empty_file(tmp_path: Path) -> None:
    refuse(tmp_path, b"", CorruptRecordError, r"log\.csv: byte 0: the file is empty")


@pytest.mark.parametrize("data", [b"click,price,brand\n", b"click,price,brand", b"click,price,brand\n\n\n"])
def test_header_only(tmp_path: Path, data: bytes) -> None:
    refuse(tmp_path, data, CorruptRecordError, "header but no record")


def test_utf16(tmp_path: Path) -> None:
    refuse(tmp_path, "click,price,brand\n1,2,b\n".encode("utf-16"), CorruptRecordError, "UTF-16")


@pytest.mark.parametrize("label", ["0", "1"])
def test_one_class(tmp_path: Path, label: str) -> None:
    refuse(tmp_path, [label + line[1:] for line in GOOD], LabelError, "both classes")


def test_labels_of_another_coding(tmp_path: Path) -> None:
    refuse(tmp_path, ["-1" + line[1:] for line in GOOD], RejectsExceededError, "label is not 0 or 1")


def test_column_missing_from_the_log(tmp_path: Path) -> None:
    lines = [line.rsplit(",", 1)[0] for line in GOOD]
    refuse(tmp_path, lines, CorruptRecordError, "column 'brand' of the schema is missing", header="click,price")


def test_column_missing_from_the_schema_is_ignored(tmp_path: Path) -> None:
    prepare_lines(tmp_path, [f"{line},x" for line in GOOD], header="click,price,brand,more")
    assert rows(tmp_path / "out").columns == ["row", "label", "price", "brand"]


def test_duplicate_column_names(tmp_path: Path) -> None:
    lines = [f"{line},x" for line in GOOD]
    refuse(tmp_path, lines, CorruptRecordError, "duplicate column name 'brand'", header="click,price,brand,brand")


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ("fields: [{name: click, role: label}]", "no feature fields"),
        ("fields: [{name: a, type: categorical}]", "role label"),
        ("fields: [{name: click, role: label}, {name: a, type: text}]", "type 'text'"),
        ("fields: [{name: click, role: label}, {name: a, type: multi, colour: red}]", "unknown key 'colour'"),
        ("fields: [{name: click, role: label}, {name: a}]", "has no type"),
        ("fields: [{name: click, role: boss}]", "role 'boss'"),
        ("fields: [{name: click, role: label}, {name: a, type: multi}, {name: a, type: multi}]", "described twice"),
        ("fields: [{name: click, role: label}, {name: row, type: multi}]", "reserved"),
        ("fields: [{name: click, role: label}, {name: __split__, column: a, type: multi}]", "reserved"),
        ("separator: 3\nfields: []", "not of type str"),
        ("just text", "`fields`"),
        ("fields: [", "not a YAML file"),
    ],
)
def test_bad_schema_files(tmp_path: Path, schema: str, match: str) -> None:
    refuse(tmp_path, GOOD, ConfigError, match, schema=schema)


def test_gzip_cut_short_and_damaged(tmp_path: Path) -> None:
    (tmp_path / "log.yaml").write_text(SCHEMA)
    # Text that does not pack well, so that half a file holds many records.
    lines = "\n".join(f"{row % 2},{row * 7919 % 10007},b{row * 104729 % 99991}" for row in range(3000))
    whole = gzip.compress(("click,price,brand\n" + lines).encode())
    log = tmp_path / "log.csv.gz"
    for data, match in (
        (whole[: len(whole) // 2], "cut short"),
        (whole + b"garbage", "damaged gzip"),
        (whole[:-3], "cut short"),
    ):
        log.write_bytes(data)
        with pytest.raises(CorruptRecordError, match=match):
            run("generic", log, tmp_path / "out", schema=tmp_path / "log.yaml")
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    log.write_bytes(bytes(broken))
    with pytest.raises(PrepError):
        run("generic", log, tmp_path / "out", schema=tmp_path / "log.yaml")
    log.write_bytes(whole)
    assert run("generic", log, tmp_path / "out", schema=tmp_path / "log.yaml")["rejects"]["count"] == 0


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="check --raw"):
        run("criteo", tmp_path / "absent.txt", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatasetNotFoundError, match="no data file"):
        run("criteo", tmp_path / "folder", tmp_path / "out")
    with pytest.raises(DatasetNotFoundError, match="userid_profile"):
        run("kdd12", make.write_criteo(tmp_path, 5), tmp_path / "out")
    with pytest.raises(ConfigError, match="unknown; choose criteo"):
        run("critoe", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratios": (0.5, 0.1, 0.1)}, "sum 1"),
        ({"ratios": (0.0, 0.5, 0.5)}, "sum 1"),
        ({"split": "user"}, "role user"),
        ({"split": "time"}, "role time"),
        ({"split": "file"}, "rename it"),
        ({"split": "magic"}, "unknown"),
        ({"min_count": 0}, "at least 1"),
        ({"hash_buckets": 0}, "hash_buckets"),
        ({"hash_buckets": 9, "min_count": 2}, "hash_buckets 9 and min_count 2"),
        ({"ratios": "0.8,0.2"}, "three shares"),
        ({"max_rejects": 2.0}, "share from 0 to 1"),
        ({"workers": 0, "executor": "local"}, "at least 1"),
        ({"executor": "moon"}, "choose local"),
        ({"shard": "4/4"}, "INDEX/COUNT"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    refuse(tmp_path, GOOD, ConfigError, match, **options)


def test_file_vanishes_after_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.ctr import engine

    log, schema = write(tmp_path, GOOD)
    plan = engine.plan

    def plan_and_remove(*arguments: Any, **options: Any) -> Any:
        planned = plan(*arguments, **options)
        log.unlink()
        return planned

    monkeypatch.setattr("data_prep.ctr.prepare.plan", plan_and_remove)
    with pytest.raises(DatasetNotFoundError, match=r"log\.csv.*not there"):
        run("generic", log, tmp_path / "out", schema=schema)


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, schema = write(tmp_path, GOOD)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(DiskFullError, match="disk is full"):
            run("generic", log, tmp_path / "out", schema=schema)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(DiskFullError, match="disk is full"):
            run("generic", log, tmp_path / "out2", schema=schema)
    for name in ("out", "out2"):
        assert not (tmp_path / name / "dataset.json").exists()
        run("generic", log, tmp_path / name, schema=schema)
    assert tree(tmp_path / "out") == tree(tmp_path / "out2")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_disk_really_full_while_a_library_writes() -> None:
    frame = pl.DataFrame({"a": range(1000)})
    with pytest.raises(DiskFullError), files.translate_os_errors(Path("/dev/full")):
        frame.write_parquet("/dev/full")
    with pytest.raises(DiskFullError), files.translate_os_errors(Path("/dev/full")):
        frame.write_ipc("/dev/full")


@pytest.mark.parametrize("text", ["File too large (os error 27)", "(os error 28)", "Quota (os error 122)", "errno: 28"])
def test_disk_full_in_the_words_of_a_library(text: str) -> None:
    with pytest.raises(DiskFullError), files.translate_os_errors(Path("out")):
        raise pl.exceptions.ComputeError(text)
    with pytest.raises(pl.exceptions.ComputeError), files.translate_os_errors(Path("out")):
        raise pl.exceptions.ComputeError("(os error 2)")


def test_two_preparations_into_one_directory(tmp_path: Path) -> None:
    log, schema = write(tmp_path, GOOD)
    out = tmp_path / "out"
    with own(out, out / ".work" / "lock"), pytest.raises(BusyError, match="another preparation"):
        run("generic", log, out, schema=schema)
    run("generic", log, out, schema=schema)


def test_apply_refuses_a_damaged_preparation(tmp_path: Path) -> None:
    log, schema = write(tmp_path, GOOD)
    run("generic", log, tmp_path / "out", schema=schema)
    with pytest.raises(DatasetNotFoundError, match="no prepared data"):
        apply(tmp_path / "nowhere", log, tmp_path / "applied", executor="serial", progress=False)
    shutil.copytree(tmp_path / "out", tmp_path / "bad")
    with (tmp_path / "bad" / "vocabulary.parquet").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ManifestError, match="vocabulary"):
        apply(tmp_path / "bad", log, tmp_path / "applied", executor="serial", progress=False)
    (tmp_path / "bad" / "dataset.json").write_text("{")
    with pytest.raises(ManifestError, match="not JSON"):
        apply(tmp_path / "bad", log, tmp_path / "applied", executor="serial", progress=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    log, schema = write(tmp_path, GOOD)
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PrepError, match="permission"):
        run("generic", log, tmp_path / "locked" / "out", schema=schema)


TIMED = SCHEMA + "  - {name: when, role: time}\n"


def test_iso_times_and_bad_times(tmp_path: Path) -> None:
    lines = [f"{line},2024-01-{row // 3 + 1:02d}{'T' if row % 2 else ' '}10:00:00" for row, line in enumerate(GOOD)]
    header = "click,price,brand,when"
    manifest, rejects = prepare_lines(tmp_path, [*lines, "1,1,b1,whenever"], header=header, schema=TIMED, split="time")
    assert [(item["record"], item["field"]) for item in rejects] == [(60, "when")]
    assert manifest["splits"]["train"]["rows"] == 48 and manifest["split_rule"]["thresholds"][0] == 1705485600.0
    assert rows(tmp_path / "out", "train")["row"].max() == 47


def test_no_time_at_all(tmp_path: Path) -> None:
    lines = [f"{line},soon" for line in GOOD]
    refuse(tmp_path, lines, ConfigError, "holds no time", header="click,price,brand,when", schema=TIMED, split="time")


def test_binary_garbage(tmp_path: Path) -> None:
    message = refuse(tmp_path, bytes(range(256)) * 50, CorruptRecordError, "is missing")
    assert message.isprintable()


def test_reproduction_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("1\t2\n")
    with pytest.raises(CorruptRecordError, match=r"train\.txt: record 0: 40 values expected, 2 found"):
        run("criteo", tmp_path / "train.txt", tmp_path / "out", layout="reproduction")
