"""Damaged logs: one line that says where and what to do, or rejects; never a half-written data set."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import (
    ConfigError,
    CorruptRecordError,
    DiskFullError,
    PrepError,
    RejectsExceededError,
    WorkerLostError,
)
from data_prep.seqrec import delimited, mqsa_ted, stream
from data_prep.seqrec.delimited import split_line
from tests.data.seqrec import make
from tests.data_prep.helpers import tree
from tests.data_prep.seqrec.helpers import COLUMNS, generic, histories, rejects, run, write_csv

GOOD = [(f"u{row % 4}", f"i{row}", 1_400_000_000 + row) for row in range(40)]


def refuse(error: type[PrepError], match: str, dataset: str, raw: Path, out: Path, **options: Any) -> str:
    with pytest.raises(error, match=match) as caught:
        run(dataset, raw, out, **options)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    assert not (out / "dataset.json").exists() and not (out / "sequences").exists()
    return message


def amazon(path: Path, lines: list[str | bytes], *, packed: bool = False) -> Path:
    data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n"
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


REVIEW = '{"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1400000000}'


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ("{", "", "neither a JSON object nor"),
        ('{"reviewerID": "A1", "asin": "B', "", "neither a JSON object nor"),
        ("[1, 2]", "", "neither a JSON object nor"),
        ("\x00\x00\x00", "", "neither a JSON object nor"),
        (b'{"reviewerID": "A\xff", "asin": "B1", "unixReviewTime": 1}', "", "neither a JSON object nor"),
        (REVIEW.replace('"A1"', "null"), "reviewerID", "user is missing"),
        (REVIEW.replace('"reviewerID"', '"reviewer"'), "reviewerID", "user is missing"),
        (REVIEW.replace('"A1"', '""'), "reviewerID", "user is missing"),
        (REVIEW.replace('"A1"', "1.5"), "reviewerID", "is no text"),
        (REVIEW.replace('"B1"', "[1]"), "asin", "is no text"),
        (REVIEW.replace('"B1"', "true"), "asin", "is no text"),
        (REVIEW.replace("1400000000", "null"), "unixReviewTime", "time is missing"),
        (REVIEW.replace("1400000000", '""'), "unixReviewTime", "time is missing"),
        (REVIEW.replace("1400000000", '"soon"'), "unixReviewTime", "time is neither"),
        (REVIEW.replace("1400000000", "1" + "0" * 30), "unixReviewTime", "outside the years 1800 to 2200"),
        (REVIEW.replace("1400000000", "9" * 5000), "", "neither a JSON object nor"),
        (REVIEW.replace("1400000000", "1400000000000"), "unixReviewTime", "outside the years 1800 to 2200"),
        (REVIEW.replace("1400000000", "-9000000000"), "unixReviewTime", "outside the years 1800 to 2200"),
        ("{'reviewerID': '\\ud800', 'asin': 'B', 'unixReviewTime': 1}", "reviewerID", "is no text"),
        ("{'reviewerID': __import__('os').getpid(), 'asin': 'B', 'unixReviewTime': 1}", "", "neither a JSON object"),
        ("{" + "[" * 3000, "", "neither a JSON object nor"),
    ],
)
def test_one_broken_json_line_is_rejected_and_the_rest_kept(
    tmp_path: Path, line: str | bytes, field: str, reason: str
) -> None:
    lines: list[str | bytes] = list(make.amazon_2014(make.events()))
    log = amazon(tmp_path / "a.json", [*lines[:20], line, *lines[20:]])
    card = run("amazon", log, tmp_path / "out", core=0, max_rejects=0.1)
    found = rejects(tmp_path / "out")
    assert [(item["source"], item["record"], item["field"]) for item in found] == [("a.json", 20, field)]
    assert reason in found[0]["reason"] and found[0]["excerpt"]
    assert card["rejects"]["count"] == 1 == card["counts"]["rejected"]
    run("amazon", amazon(tmp_path / "b.json", lines), tmp_path / "clean", core=0)
    assert histories(tmp_path / "out") == histories(tmp_path / "clean")


def test_too_many_rejects_leaves_the_table_and_no_data(tmp_path: Path) -> None:
    lines: list[str | bytes] = list(make.amazon_2014(make.events()))
    log = amazon(tmp_path / "a.json.gz", ["{", *lines, "}", "{"], packed=True)
    message = refuse(RejectsExceededError, r"a\.json\.gz: record 0: neither", "amazon", log, tmp_path / "out", core=0)
    left = Path(message.split("listed in ")[1].split(";")[0])
    assert pl.read_csv(left)["record"].to_list() == [0, len(lines) + 1, len(lines) + 2]
    assert run("amazon", log, tmp_path / "out", core=0, max_rejects=0.1)["rejects"]["count"] == 3


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    lines = make.amazon_2014(make.events())
    log = amazon(tmp_path / "a.json", ["", *lines[:9], "", " ", *lines[9:], ""])
    assert run("amazon", log, tmp_path / "out", core=0, max_rejects=0)["counts"]["records"] == len(lines)
    csv = tmp_path / "b.csv"
    csv.write_text("user,item,time\n\n" + "\r\n".join(f"u,i{i},{i}" for i in range(4)) + "\r\n\r\n")
    assert generic(csv, tmp_path / "csv", max_rejects=0)["counts"]["records"] == 4
    assert histories(tmp_path / "csv") == {"u": ["i0", "i1", "i2", "i3"]}


@pytest.mark.parametrize("large", [1, stream.LARGE])  # from this size on another process unpacks
@pytest.mark.parametrize("keep", [10, 100, -1, -9])
def test_truncated_gzip_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, large: int) -> None:
    monkeypatch.setattr(stream, "LARGE", large)
    path = make.write_amazon_2014(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    message = refuse(CorruptRecordError, "cut short|damaged gzip", "amazon", path, tmp_path / "out")
    assert path.name in message and "fetch the file again" in message


@pytest.mark.parametrize("large", [1, stream.LARGE])
def test_damaged_gzip_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.setattr(stream, "LARGE", large)
    path = make.write_amazon_2014(tmp_path)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # the checksum of the text
    path.write_bytes(data)
    refuse(CorruptRecordError, "damaged gzip", "amazon", path, tmp_path / "out")


def test_unpacking_by_another_process_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make.write_amazon_2014(tmp_path)
    run("amazon", path, tmp_path / "out", core=0)
    monkeypatch.setattr(stream, "LARGE", 1)
    run("amazon", path, tmp_path / "apart", core=0)
    assert tree(tmp_path / "out") == tree(tmp_path / "apart")


def test_a_killed_unpacking_process_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LARGE", 1)

    class Killed(stream.ChildReader):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.process.kill()

    monkeypatch.setattr(stream, "ChildReader", Killed)
    path = make.write_amazon_2014(tmp_path)
    refuse(WorkerLostError, "the process that unpacks it ended with code -9", "amazon", path, tmp_path / "out")


QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(st.data(), st.sampled_from(["amazon-2014", "amazon-2018", "movielens-1m", "mqsa-ted", "shop", "shop-parquet"]))
def test_bit_flipped_and_truncated_files_give_rejects_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, layout: str
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    dataset, write = make.WRITERS[layout]
    path = write(folder)
    path = path / "ratings.dat" if path.is_dir() else path
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    options = {"user": "who", "item": "what", "time": "when"} if dataset == "generic" else {}
    try:
        card = run(dataset, path, folder / "out", core=0, max_rejects=0.5, **options)
    except PrepError as error:
        assert "\n" not in str(error) and not (folder / "out" / "dataset.json").exists()
    else:
        assert card["n_events"] > 0


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "the file is empty"),
        ("user,item,time\n".encode("utf-16"), "UTF-16"),
        (b"user,item,time\n", "no event is left"),
        (bytes(range(256)) * 30, "no column 'user'"),
        (b"user,item,user,time\n1,2,3,4\n", "duplicate column name 'user'"),
    ],
)
def test_files_that_are_no_log(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(data)
    refuse(PrepError, match, "generic", path, tmp_path / "out", **COLUMNS)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("u1,i9", "3 values expected, 2 found"),
        ("u1,i9,1400000000,4", "3 values expected, 4 found"),
        ("u1;i9;1400000000", "1 found (wrong separator?"),
        (",i9,1400000000", "user is missing"),
        ('u1,"",1400000000', "item is missing"),
        ('u1,i"9,1400000000', "a quote is misplaced"),
        ('u1,"i9,1400000000', "a quote is misplaced"),
        ("u1,i9,", "time is missing"),
        ("u1,i9,nan", "is neither a number"),
        ("u1,i9,inf", "is neither a number"),
        ("u1,i9,1e300", "outside the years"),
    ],
)
def test_one_bad_csv_record_is_rejected_and_the_rest_kept(tmp_path: Path, line: str, reason: str) -> None:
    log = tmp_path / "log.csv"
    rows = [",".join(map(str, row)) for row in GOOD]
    log.write_text("\n".join(["user,item,time", *rows[:20], line, *rows[20:]]) + "\n")
    generic(log, tmp_path / "out", max_rejects=0.1)
    assert [(item["record"], item["source"]) for item in rejects(tmp_path / "out")] == [(20, "log.csv")]
    assert reason in rejects(tmp_path / "out")[0]["reason"]
    generic(write_csv(tmp_path / "good.csv", GOOD, pad=False), tmp_path / "good")
    assert histories(tmp_path / "out") == histories(tmp_path / "good")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", GOOD, pad=False)
    generic(log, tmp_path / "out")
    (tmp_path / "marked.csv").write_bytes(b"\xef\xbb\xbf" + log.read_bytes().replace(b"\n", b"\r\n"))
    generic(tmp_path / "marked.csv", tmp_path / "marked", max_rejects=0)
    assert histories(tmp_path / "marked") == histories(tmp_path / "out")


def test_parquet_of_lists_and_damaged_parquet(tmp_path: Path) -> None:
    table = pl.DataFrame(GOOD, schema=list(COLUMNS), orient="row")
    table.with_columns(pl.concat_list("item")).write_parquet(tmp_path / "lists.parquet")
    refuse(ConfigError, "column 'item' holds List", "generic", tmp_path / "lists.parquet", tmp_path / "out", **COLUMNS)
    table.write_parquet(tmp_path / "log.parquet")
    data = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-9])
    refuse(CorruptRecordError, "damaged Parquet", "generic", tmp_path / "cut.parquet", tmp_path / "out", **COLUMNS)


def test_not_utf8(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", GOOD, pad=False)
    log.write_bytes(log.read_bytes() + b"u\xff,i1,1400000000\n")
    generic(log, tmp_path / "out", max_rejects=0.1)
    assert [(item["record"], item["reason"]) for item in rejects(tmp_path / "out")] == [(40, "not UTF-8 text")]


def test_ids_with_commas_quotes_unicode_and_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = ["a,b", 'say "hi"', "zwei\nZeilen", "ünï, 漢字 🙂", " spaces ", "\t", "0012", "NULL"]
    table = pl.DataFrame({"user": ["Ω,"] * len(odd), "item": odd, "time": range(len(odd))})
    table.write_csv(tmp_path / "log.csv")
    for name, block in (("whole", stream.BLOCK), ("small", 7)):  # a block may end inside a quoted value
        monkeypatch.setattr(stream, "BLOCK", block)
        generic(tmp_path / "log.csv", tmp_path / name, max_rejects=0)
        assert histories(tmp_path / name) == {"Ω,": odd}
    table.write_ndjson(tmp_path / "log.jsonl")
    generic(tmp_path / "log.jsonl", tmp_path / "json", max_rejects=0)
    assert histories(tmp_path / "json") == {"Ω,": odd}


def test_a_quote_that_is_never_closed_costs_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 64)
    monkeypatch.setattr(delimited, "LONGEST", 200)
    rows = [",".join(map(str, row)) for row in GOOD]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows[:9], 'u1,"i,1400000000', *rows[9:]]) + "\n")
    card = generic(tmp_path / "log.csv", tmp_path / "out", max_rejects=0.1)
    assert [item["record"] for item in rejects(tmp_path / "out")] == [9] and card["counts"]["records"] == 41


def test_mixed_units_are_rejected_with_the_reason(tmp_path: Path) -> None:
    seconds = [(f"u{i % 2}", f"i{i}", 1_400_000_000_000 + i) for i in range(30)]
    log = write_csv(tmp_path / "log.csv", [*seconds, ("u1", "late", 1_400_000_500), ("u1", "zero", 0)], pad=False)
    card = generic(log, tmp_path / "out", max_rejects=0.1)
    assert card["sources"][0]["time_unit"] == "ms"
    assert [item["record"] for item in rejects(tmp_path / "out")] == [30, 31]
    assert all("has not the magnitude of milliseconds" in item["reason"] for item in rejects(tmp_path / "out"))
    refuse(RejectsExceededError, "mixed units", "generic", log, tmp_path / "none", **COLUMNS)
    generic(log, tmp_path / "given", time_unit="ms", max_rejects=0)  # the user knows better


def test_users_with_one_event_stay_in_the_sequences(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [*GOOD, ("lonely", "i1", 1_400_000_000)], pad=False)
    card = generic(log, tmp_path / "out")
    assert histories(tmp_path / "out")["lonely"] == ["i1"] and card["counts"]["users_with_one_event"] == 1
    only = write_csv(tmp_path / "only.csv", [(f"u{i}", "x", 1_400_000_000) for i in range(9)], pad=False)
    refuse(PrepError, "no user has two training events", "generic", only, tmp_path / "none", **COLUMNS, core=0)


def test_empty_after_k_core_says_what_to_lower(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", GOOD, pad=False)
    refuse(
        PrepError,
        r"nothing is left of 40 events.*lower core \(now 7",
        "generic",
        log,
        tmp_path / "out",
        **COLUMNS,
        core=7,
    )


@pytest.mark.parametrize("columns", [{"user": "user", "item": "user"}, {**COLUMNS, "time": "item"}])
def test_one_column_cannot_be_two_things(tmp_path: Path, columns: dict[str, str]) -> None:
    log = write_csv(tmp_path / "log.csv", GOOD)
    refuse(ConfigError, "one cannot be two of --user", "generic", log, tmp_path / "out", **columns)
    assert not (tmp_path / "out").exists()


def test_empty_training_period(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", GOOD, pad=False)
    options = {**COLUMNS, "core": 0, "split": "time", "thresholds": "2001-01-01,2002-01-01"}
    refuse(PrepError, "no user has two training events", "generic", log, tmp_path / "out", **options)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("__import__('pathlib').Path('executed').write_text('x')",)


@pytest.mark.parametrize(
    "payload",
    [Bomb(), {0: [Bomb()]}, {Bomb: [1]}, {0: [1.5]}, {0: [-1]}, {"a": [1]}, {0: [2**40]}, [1], {0: 1}, {0: [True]}],
)
def test_hostile_npy_never_executes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: object) -> None:
    monkeypatch.chdir(tmp_path)
    path = make.hostile_npy(tmp_path / "x.npy", payload)
    refuse(CorruptRecordError, r"x\.npy: array: not an npy file of MQSA-TED.*nothing was executed", "mqsa-ted", path,
           tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(tRq\x00}q\x01U\x0b__setstate__cos\nsystem\nsb.",
        b"\x82\x01.",
        b"Pid\n.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"r\xff\xff\xff\x7fN.",
        b"\x96" + (1 << 60).to_bytes(8, "little") + b".",
        b"(" * 50_000,
        b"",
        b".",
        b"]" + b"2]2a" * 60 + b".",
    ],
)
def test_hostile_opcodes_never_execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    head = make.hostile_npy(tmp_path / "x.npy", {}).read_bytes()
    path = tmp_path / "y.npy"
    path.write_bytes(head[: head.index(b"\n") + 1] + code)
    refuse(CorruptRecordError, "nothing was executed", "mqsa-ted", path, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


def test_hostile_npy_with_one_list_mentioned_a_million_times(tmp_path: Path) -> None:
    items = list(range(2000))
    path = make.hostile_npy(tmp_path / "x.npy", dict.fromkeys(range(2000), items))
    refuse(CorruptRecordError, "more events than bytes", "mqsa-ted", path, tmp_path / "out")
    assert path.stat().st_size < 100_000


def test_npy_of_another_kind(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "x.npy", np.arange(5))
    refuse(CorruptRecordError, "not of 5 objects", "mqsa-ted", tmp_path / "x.npy", tmp_path / "out")
    assert mqsa_ted._ALLOWED.keys() == {"_reconstruct", "ndarray", "dtype", "scalar"}


def test_disk_full_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from data_prep.seqrec import write

    log = write_csv(tmp_path / "log.csv", GOOD, pad=False)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(write, "_write", full)
        refuse(DiskFullError, "disk is full", "generic", log, tmp_path / "out", **COLUMNS, core=0)
    generic(log, tmp_path / "out")
    generic(log, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        generic(write_csv(tmp_path / "log.csv", GOOD), tmp_path / "out")


def test_reject_numbers_of_json_files_with_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 500)
    lines = [json.dumps({"user": f"u{i % 3}", "item": f"i{i}", "time": 1_400_000_000 + i}) for i in range(100)]
    lines[17], lines[60] = "{", '{"user": "u", "item": "", "time": 1}'
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    card = generic(tmp_path / "log.jsonl", tmp_path / "out", max_rejects=0.1)
    assert [item["record"] for item in rejects(tmp_path / "out")] == [17, 60]
    assert card["counts"]["records"] == 100 and card["n_events"] == 98


@pytest.mark.parametrize("line", [b'"user"\r,item', b'"' + b"x" * 200_000 + b'",item'])
def test_a_damaged_line_is_cut_at_its_separators(line: bytes) -> None:
    assert split_line(line, ",")[-1] == "item"
