"""Properties that hold for any table, and for any damage."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import LabelError, PrepError
from data_prep.ctr import chunks
from data_prep.ctr.scan import scan
from data_prep.ctr.tokens import dictionary
from tests.data_prep.ctr.helpers import decode, rows, run

# Carriage returns are line ends to the reader; surrogates are no text; \x1e separates lists of Parquet files.
TEXT = st.text(st.characters(exclude_characters="\r\x1e\0", exclude_categories=["Cs"]), max_size=6)
NUMBER = st.none() | st.floats(-1e6, 1e6, width=32) | st.integers(-(10**6), 10**6)
ROW = st.tuples(st.integers(0, 1), NUMBER, TEXT, st.sampled_from(["", "a", "b", "c"]))
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCHEMA = """\
fields:
  - {name: label, role: label}
  - {name: number, type: numerical}
  - {name: word, type: categorical, min_count: 1}
  - {name: letter, type: categorical, min_count: 2}
"""


@QUICK
@given(st.lists(ROW, min_size=2, max_size=40), st.sampled_from([60, 1 << 20]))
def test_decoded_table_equals_the_log(table: list[tuple[int, float | None, str, str]], size: int) -> None:
    table = [*table, (0, None, "x", "a"), (1, 1.0, "x", "a")]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", size)
        folder = Path(name)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["label", "number", "word", "letter"])
        writer.writerows(
            [(label, "" if number is None else number, word, letter) for label, number, word, letter in table]
        )
        (folder / "log.csv").write_text(text.getvalue(), newline="")
        (folder / "log.yaml").write_text(SCHEMA)
        run(
            "generic",
            folder / "log.csv",
            folder / "out",
            schema=folder / "log.yaml",
            ratios=(1.0, 0.0, 0.0),
            max_rejects=0,
        )
        found = rows(folder / "out")
        assert found["label"].to_list() == [row[0] for row in table]
        assert found["number"].to_list() == [None if row[1] is None else float(row[1]) for row in table]
        assert decode(folder / "out", found, "word") == [row[2] or None for row in table]
        counts = Counter(row[3] for row in table)
        expected = [None if not row[3] else row[3] if counts[row[3]] >= 2 else "?" for row in table]
        assert decode(folder / "out", found, "letter") == expected


def noisy_log() -> bytes:
    lines = [f'{row % 2},{row / 7:.4f},"w {row % 13}",{"abc"[row % 3]}' for row in range(200)]
    return ("label,number,word,letter\n" + "\n".join(lines)).encode()


@QUICK
@given(st.data(), st.booleans())
def test_damaged_files_give_rejects_or_one_line(data: st.DataObject, packed: bool) -> None:
    content = bytearray(gzip.compress(noisy_log(), mtime=0) if packed else noisy_log())
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    content = content[: data.draw(st.integers(0, len(content)))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log.csv").write_bytes(content)
        (folder / "log.yaml").write_text(SCHEMA)
        try:
            manifest = run("generic", folder / "log.csv", folder / "out", schema=folder / "log.yaml", max_rejects=0.5)
        except PrepError as error:
            assert "\n" not in str(error)
            assert not (folder / "out" / "dataset.json").exists()
        else:
            assert sum(item["rows"] for item in manifest["splits"].values()) > 0


@QUICK
@given(st.lists(st.lists(st.text('ab,"\n', max_size=5), min_size=1, max_size=4), min_size=1, max_size=20))
def test_scan_agrees_with_the_csv_module(table: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(table)
    found = scan(text.getvalue().encode(), ",", '"')
    assert not len(found.stray)
    assert found.separators.tolist() == [len(row) - 1 for row in table]


def test_all_rejected_is_a_label_error_or_rejects(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("label,number,word,letter\n,,,\n")
    (tmp_path / "log.yaml").write_text(SCHEMA)
    with pytest.raises(LabelError, match="no rows"):
        run("generic", tmp_path / "log.csv", tmp_path / "out", schema=tmp_path / "log.yaml", max_rejects=1.0)


@QUICK
@given(
    st.lists(
        st.none() | st.sampled_from(["aaaaaaaa", "bbbbbbbb", "c", "äbcdefg"]) | st.text("ab", min_size=8, max_size=8)
    )
)
def test_dictionary_of_any_column(column: list[str | None]) -> None:
    codes, tokens = dictionary(pl.Series(column, dtype=pl.String))
    words = [None, *tokens.to_pylist()]
    assert [words[code] for code in codes] == column
    assert len(set(words)) == len(words)
