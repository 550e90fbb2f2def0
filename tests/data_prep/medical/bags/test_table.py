"""Tables of slides as people send them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import openpyxl
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, LabelError, PrepError
from data_prep.medical.wsi.bags.labels import parse_label_map
from data_prep.medical.wsi.bags.table import SlideTable, TableOptions, clean_slide, read_slide_table
from tests.data_prep.medical.bags.helpers import write_table

ROWS = [("p1", "a.1.svs", "normal"), ("p1", "a.2.svs", "normal"), ("p2", "b", "tumor")]
HEADER = "case_id,slide_id,label"


def read(path: Path, **options: Any) -> SlideTable:
    return read_slide_table(path, TableOptions(**options))


def plain(table: SlideTable) -> list[tuple[str, str, str]]:
    rows = table.frame.select("slide", "patient", "label").iter_rows()
    return [(slide, patient, table.classes[label]) for slide, patient, label in rows]


@pytest.mark.parametrize(
    ("text", "slide"),
    [
        ("a.svs", "a"),
        ("folder/sub/a.b.ndpi", "a.b"),
        ("C:\\slides\\a.tiff", "a"),
        ("TCGA-CR-7395-01A.1F2A-77.SVS", "TCGA-CR-7395-01A.1F2A-77"),
        ("a.h5", "a"),
        ("a.svs.pt", "a.svs"),
        ("S19.44 1", "S19.44 1"),
        ("scans/case 7/1.dcm", "case 7"),
        ("case7\\DCM_0.DCM", "case7"),
        ("1.dcm", "1"),
        ("case7/biopsy.dcm", "biopsy"),
        (" a ", "a"),
    ],
)
def test_slide_ids_lose_folder_and_extension_and_keep_their_dots(text: str, slide: str) -> None:
    assert clean_slide(text) == slide


def test_a_table_of_clam(tmp_path: Path) -> None:
    table = read(write_table(tmp_path / "t.csv", ROWS, HEADER))
    assert plain(table) == [("a.1", "p1", "normal"), ("a.2", "p1", "normal"), ("b", "p2", "tumor")]
    assert table.frame["site"].null_count() == 3 and not table.rejects and not table.told


WORDS = [("Müller", "ä", "normal"), ("Weiß", "b", "tumor")]
TEXT = "\n".join([HEADER, *(",".join(row) for row in WORDS)])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (TEXT.encode(), ""),
        (TEXT.encode("utf-8-sig"), ""),
        (TEXT.encode("utf-16"), ""),
        (TEXT.replace(",", "\t").encode("utf-16"), ""),
        (TEXT.replace(",", ";").encode(), ""),
        (gzip.compress(TEXT.encode(), mtime=0), ""),
        (TEXT.encode("latin-1"), "line 2); read as latin-1"),
        (TEXT.replace("normal", "“normal”").encode("cp1252"), "read as cp1252"),
    ],
    ids=["utf-8", "bom", "utf-16", "tabs", "semicolons", "gzip", "latin-1", "cp1252"],
)
def test_any_encoding_and_separator(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    table = read(path)
    assert table.frame["patient"].to_list() == ["Weiß", "Müller"] and table.frame["slide"].to_list() == ["b", "ä"]
    assert told in " ".join(table.told) and bool(table.told) == bool(told)


def test_an_encoding_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.replace("Müller", "Łucja").encode("cp1250"))
    table = read(path, encoding="cp1250")
    assert table.frame["patient"].to_list()[1] == "Łucja" and not table.told
    with pytest.raises(CorruptRecordError, match=r"t\.csv: line 2: is not utf-8 .* another --encoding"):
        read(path, encoding="utf-8")
    with pytest.raises(ConfigError, match="no such encoding"):
        read(path, encoding="klingon")


def test_excel_and_parquet(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in [("case_id", "slide_id", "label"), (7, 1001, 0), (8.0, "x.svs", 1.0), (None, None, None)]:
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    table = read(tmp_path / "t.xlsx")
    assert plain(table) == [("1001", "7", "0"), ("x", "8", "1")]
    frame = pl.DataFrame({"slide": ["1001", "x"], "patient": [7, 8], "label": [0.0, 1.0], "features": [[1.0], [2.0]]})
    frame.write_parquet(tmp_path / "t.parquet")
    assert plain(read(tmp_path / "t.parquet")) == plain(table)


def test_rows_that_cannot_be_used_are_rejected_with_their_number(tmp_path: Path) -> None:
    rows = [*ROWS, ("p3", "c", ""), ("p3", "d", "NaN"), ("", "e", "tumor"), ("p4", "", "tumor"), ("p5", "f", "other")]
    table = read(write_table(tmp_path / "t.csv", rows, HEADER), classes=("normal", "tumor"))
    found = [(reject.record, reject.field, reject.reason) for reject in table.rejects]
    assert found == [
        (3, "label", "label missing"),
        (4, "label", "label missing"),
        (5, "case_id", "patient missing"),
        (6, "slide_id", "slide id missing"),
        (7, "label", "label is in neither label_map nor classes"),
    ]
    assert "other" in table.rejects[-1].excerpt
    assert len(table.frame) == 3 and table.unusable == {"c", "d", "e", "", "f"}


def test_copies_are_counted_and_contradictions_rejected(tmp_path: Path) -> None:
    rows = [*ROWS, ("p2", "x/b.tif", "tumor"), ("p3", "c", "tumor"), ("p3", "c", "normal"), ("p4", "d", "tumor")]
    rows += [("p5", "d.svs", "tumor")]
    table = read(write_table(tmp_path / "t.csv", rows, HEADER))
    assert table.frame["slide"].to_list() == ["a.1", "a.2", "b"]
    assert table.told == ["t.csv: 1 rows are copies of others and were left out"]
    assert [(r.record, r.field) for r in table.rejects] == [(4, "label"), (5, "label"), (6, "patient"), (7, "patient")]
    assert table.rejects[0].reason == "rows of one slide have different labels"
    assert table.rejects[0].excerpt == "c (rows 4, 5)"


def test_patients_that_differ_only_in_case_or_blanks_are_one(tmp_path: Path) -> None:
    rows = [
        ("Mu\u0308ller 1", "a", 0),
        ("M\u00fcller  1", "b", 1),
        ("m\u00dcLLER 1", "c", 1),
        ("Mei", "d", 0),
        ("Me i", "e", 1),
    ]
    for order in (rows, rows[::-1]):
        table = read(write_table(tmp_path / "t.csv", order, HEADER))
        assert table.frame["patient"].to_list() == ["Mu\u0308ller 1"] * 3 + ["Mei", "Me i"]
        assert "t.csv: 2 spellings of patients differ from another only in case or blanks" in table.told[0]
    # Slides are told apart by every letter.
    alone = read(write_table(tmp_path / "u.csv", [("A", 0), ("a", 1)], "slide_id,label"), patients="slide")
    assert alone.frame["patient"].to_list() == ["A", "a"] and not alone.told


def test_labels_that_differ_only_in_case_or_blanks_are_refused(tmp_path: Path) -> None:
    rows = [("p1", "a", "Pos"), ("p2", "b", "neg"), ("p3", "c", "pos"), ("p4", "d", "Pos")]
    path = write_table(tmp_path / "t.csv", rows, HEADER)
    with pytest.raises(LabelError, match=r"t\.csv: row 2: label 'pos' differs from 'Pos' \(row 0\)") as caught:
        read(path)
    proposed = re.search(r"--label-map '(.*)'", str(caught.value))
    assert proposed and read(path, label_map=proposed[1]).frame["label"].to_list() == [0, 1, 0, 0]


def test_one_id_in_several_places_is_told(tmp_path: Path) -> None:
    rows = [("1", "north/1.svs", "x", "N"), ("1", "south/1.svs", "x", "N"), ("1", "b", "y", "S"), ("2", "c", "y", "S")]
    told = read(write_table(tmp_path / "t.csv", rows, f"{HEADER},site")).told
    assert "1 slide ids, such as '1', stand in several folders" in told[1]
    assert "1 patients have slides of several sites, such as '1' (N, S)" in told[2] and len(told) == 3


def test_patients_must_come_from_somewhere(tmp_path: Path) -> None:
    barcodes = ["TCGA-AA-0001-01Z-00-DX1.9F", "TCGA-AA-0001-01Z-00-DX2.0A", "TCGA-B1-0002-01Z-00-DX1.77"]
    path = write_table(tmp_path / "t.csv", [(n, i % 2) for i, n in enumerate(barcodes)], "slide_id,label")
    with pytest.raises(
        ConfigError, match=r"no column of patients among slide_id, label; .*--patient-column.*--patients"
    ):
        read(path)
    alone = read(path, patients="slide")
    assert alone.frame["patient"].to_list() == barcodes
    assert "slides of TCGA patient 'TCGA-AA-0001' count as different patients" in alone.told[0]
    tcga = read(path, patient_pattern="tcga", site_pattern="tcga-site")
    assert tcga.frame["patient"].to_list() == ["TCGA-AA-0001", "TCGA-AA-0001", "TCGA-B1-0002"]
    assert tcga.frame["site"].to_list() == ["AA", "AA", "B1"] and not tcga.told
    own = read(path, patient_pattern=r"-(\d{4})-01Z")
    assert own.frame["patient"].to_list() == ["0001", "0001", "0002"]
    with pytest.raises(LabelError, match=r"row 0: patient missing .*TCGA"):
        read(path, patient_pattern="patient_.*")
    with pytest.raises(ConfigError, match="no regular expression"):
        read(path, patient_pattern="(")


def test_made_up_patients_are_told(tmp_path: Path) -> None:
    camelyon16 = [("patient_0", "normal_001", 0), ("patient_0", "tumor_044", 1), ("patient_1", "test_002", 1)]
    table = read(write_table(tmp_path / "t.csv", camelyon16, HEADER))
    assert "warning: patient 'patient_0'" in table.told[0] and "normal_001, tumor_044" in table.told[0]
    camelyon17 = [
        ("patient_000", "patient_000_node_1", 0),
        ("patient_000", "patient_000_b", 1),
        ("patient_001", "x", 1),
    ]
    assert not read(write_table(tmp_path / "t.csv", camelyon17, HEADER)).told


BRACS = [
    (0, "c1", "BRACS_1", "train", "/x/BRACS_1.svs", 0),
    (1, "c1", "BRACS_2", "val", "/x/BRACS_2.svs", 4),
    (2, "c2", "BRACS_3", "test", "/x/BRACS_3.svs", 6),
]


@pytest.mark.parametrize(
    ("name", "classes", "labels"),
    [
        ("bracs-7", ["N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC"], [0, 4, 6]),
        ("bracs-3", ["benign", "atypical", "malignant"], [0, 1, 2]),
        ("bracs-2", ["benign", "atypical or malignant"], [0, 1, 1]),
    ],
)
def test_the_table_of_bracs(tmp_path: Path, name: str, classes: list[str], labels: list[int]) -> None:
    path = write_table(tmp_path / "t.csv", BRACS, ",case_id,slide_id,split_info,full_path,label")
    table = read(path, label_map=name)
    assert (table.classes, table.frame["label"].to_list()) == (classes, labels)
    assert table.frame["split"].to_list() == ["train", "valid", "test"]
    assert table.frame["slide"].to_list() == ["BRACS_1", "BRACS_2", "BRACS_3"]


@pytest.mark.parametrize(
    ("labels", "options", "classes", "codes"),
    [
        (["b", "a", "c"], {}, ["a", "b", "c"], [1, 0, 2]),
        (["10", "2", "2.0"], {}, ["2", "10"], [1, 0, 0]),
        (["b", "a", "a"], {"classes": ("b", "a")}, ["b", "a"], [0, 1, 1]),
        (["0", "1", "1"], {"classes": ("normal", "tumor")}, ["normal", "tumor"], [0, 1, 1]),
        (["0", "1", "2"], {"label_map": "0=normal,1=tumor,2=tumor"}, ["normal", "tumor"], [0, 1, 1]),
        (["x", "y", "y"], {"label_map": '{"x": 1, "y": 0}'}, ["0", "1"], [1, 0, 0]),
        (["NA", "PB", "PB"], {"classes": ("NA", "PB")}, ["NA", "PB"], [0, 1, 1]),
    ],
)
def test_labels_become_classes(tmp_path: Path, labels: list[str], options: Any, classes: Any, codes: Any) -> None:
    rows = [(f"p{i}", f"s{i}", label) for i, label in enumerate(labels)]
    table = read(write_table(tmp_path / "t.csv", rows, HEADER), **options)
    assert (table.classes, table.frame["label"].to_list()) == (classes, codes)


def test_a_label_map_file_and_maps_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"0": "normal", "1": "tumor"}')
    assert parse_label_map(str(tmp_path / "map.json")) == {"0": "normal", "1": "tumor"}
    for wrong in ("normal", "0=a,1", "{", "[1]", "0="):
        with pytest.raises(ConfigError, match="give pairs as in 0=normal,1=tumor"):
            parse_label_map(wrong)
    with pytest.raises(DatasetNotFoundError):
        parse_label_map(str(tmp_path / "none.json"))


def test_labels_of_one_class_cannot_be_learned(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", [(p, s, "tumor") for p, s, _ in ROWS], HEADER)
    with pytest.raises(LabelError, match=r"t\.csv: all 3 slides are 'tumor'"):
        read(path)


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", [("g", *row, "u") for row in ROWS], "grade,Patient,WSI,Diagnosis,Lab")
    assert plain(read(path))[0] == ("a.1", "p1", "normal")
    table = read(path, site_column="lab", patient_column="Lab")
    assert table.frame["site"].to_list() == ["u"] * 3 and table.frame["patient"].to_list() == ["u"] * 3
    with pytest.raises(ConfigError, match=r"no column 'labels' \(label_column\); there are .*Diagnosis"):
        read(path, label_column="labels")
    with pytest.raises(ConfigError, match=r"no column of labels among .*--label-column"):
        read(write_table(tmp_path / "u.csv", ROWS, "case_id,slide_id,x"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the header names no columns|the table has no rows"),
        (b"case_id,slide_id,label\n", "the table has no rows"),
        (b"case_id,slide_id,label\np1,a,0,9\n", r"row 0: has 4 cells, the header 3"),
        (b"PK\x03\x04 no excel", "no readable Excel file"),
        (b"PAR1 no parquet", "no readable Parquet file"),
        (b"\xd0\xcf\x11\xe0\xa1", r"old format; save it as \.xlsx"),
        (b"\x89HDF\r\n\0\xff\0", "is no text"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-20], "gzip file is damaged"),
    ],
)
def test_damaged_tables_are_told_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(PrepError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(DatasetNotFoundError, match="no such table"):
        read(tmp_path / "none.csv")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3), st.integers(0, 10_000), st.binary(max_size=4), st.integers(0, 10_000))
def test_flipped_and_cut_tables_raise_only_errors_for_users(
    tmp_path: Path, kind: int, position: int, bytes_: bytes, length: int
) -> None:
    whole = tmp_path / "whole"
    if not whole.exists():
        whole.mkdir()
        frame = pl.DataFrame({"case_id": ["p", "q"], "slide_id": ["a", "b"], "label": ["0", "1"]})
        frame.write_parquet(whole / "1")
        (whole / "0").write_bytes(frame.write_csv().encode())
        book = openpyxl.Workbook()
        book.active.append(frame.columns)
        for row in frame.iter_rows():
            book.active.append(row)
        book.save(whole / "2.xlsx")
        (whole / "2.xlsx").rename(whole / "2")
        (whole / "3").write_bytes(gzip.compress((whole / "0").read_bytes()))
    data = bytearray((whole / str(kind)).read_bytes())
    at = position % len(data)
    data[at : at + len(bytes_)] = bytes_
    path = tmp_path / "t.csv"
    path.write_bytes(data[: max(length % (2 * len(data)), 1)])
    try:
        assert read(path).frame.height <= 2
    except PrepError as error:
        assert "\n" not in str(error)
