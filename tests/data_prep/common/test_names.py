"""Files by the names that lists call them, and tables that users write."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.common.names import FileIndex, unique_names
from data_prep.common.tables import read_table

SUFFIXES = frozenset({".png", ".jpg"})


def test_files_are_found_however_their_names_are_spelt() -> None:
    one, other, third = Path("a/One.PNG"), Path("b/one.jpg"), Path("b/KA.AN1.39")
    index = FileIndex([one, other, third], SUFFIXES)
    assert index.all("folder\\one.png") == [one] and index.all("one.jpg") == [other]
    assert index.all("One") == [one, other] and index.all("one.bmp") == []
    assert index.all("ka.an1.39") == [third]  # dots that begin no suffix of a picture belong to the name


def test_names_are_unique() -> None:
    raw = [Path("top")]
    assert unique_names([Path("top/a/1.png"), Path("top/b/2.png")], raw) == ["1.png", "2.png"]
    assert unique_names([Path("top/a/1.png"), Path("top/b/1.PNG")], raw) == ["a/1.png", "b/1.PNG"]
    with pytest.raises(ConfigError, match=r"'1\.png' is in more than one folder given"):
        unique_names([Path("x/1.png"), Path("y/1.png")], [Path("x"), Path("y")])


def test_tables_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text in (
        "Image,Label\na.png, happy \n",
        "\ufeffimage;label\na.png;happy\n",
        "image\tlabel\r\na.png\thappy\r\n",
    ):
        path.write_bytes(text.encode())
        assert read_table(path).to_dicts() == [{"image": "a.png", "label": "happy"}]
    path.write_text("image,Image\na,b\n")
    with pytest.raises(CorruptRecordError, match="has column 'image' twice"):
        read_table(path)
    path.write_bytes(b"image\n\xff\n")
    with pytest.raises(CorruptRecordError, match=r"line 2.*not UTF-8"):
        read_table(path)
    with pytest.raises(DatasetNotFoundError, match="no such table"):
        read_table(tmp_path / "gone.csv")
