"""Files that say which slide is in which split, as CLAM, ACMIL and official data sets give them, and CLAM's written.

| file | what it holds |
|---|---|
| `splits_<k>.csv` | CLAM: columns train, val, test of slide ids, padded with empty cells |
| `splits_<k>_bool.csv` | CLAM: a row per slide, True or False in the columns train, val, test |
| `splits_<k>_descriptor.csv` | CLAM: slides of each class in each split; written only |
| `.json` | ACMIL: lists train_names, val_names, test_names |
| any table | a column of slide ids and a column split_info or split with train, val, test |
| a folder | train.txt, val.txt, test.txt (also .csv): one slide id per line |
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, LeakError
from data_prep.common.files import translate_os_errors
from data_prep.common.splits import SPLITS
from data_prep.medical.wsi.bags.spelling import same_key
from data_prep.medical.wsi.bags.table import COLUMNS, SPLIT_NAMES, clean_slide
from data_prep.medical.wsi.bags.table_files import RECORD, read_strings

CLAM = {"train": "train", "valid": "val", "test": "test"}  # our names and CLAM's
_TRUE, _FALSE = {"true", "1", "1.0", "yes"}, {"false", "0", "0.0", "no", ""}
_LISTS = (".txt", ".csv")


def read_lists(source: Path, slide_of: Callable[[str], str] = clean_slide) -> dict[str, list[str]]:
    """Slides of each split, by any of the files in the table above.

    Args:
        source: file or folder.
        slide_of: slide id out of a name in a list.

    Returns:
        Split (train, valid, test) -> slide ids, in the order of the file.

    Raises:
        DatasetNotFoundError: there is no such file.
        CorruptRecordError: it cannot be read.
        ConfigError: it holds no splits.
        LeakError: it has a slide in two splits.
    """
    if source.is_dir():
        lists = _read_folder(source)
    elif source.suffix.lower() == ".json":
        lists = _read_json(source)
    else:
        lists = _read_table(source)
    cleaned = {split: list(dict.fromkeys(slide_of(name) for name in lists.get(split, []))) for split in SPLITS}
    place: dict[str, str] = {}
    for split, names in cleaned.items():
        for name in names:
            if place.setdefault(name, split) != split:
                raise LeakError(f"{source}: slide {name!r} is in {place[name]} and in {split}; keep one of them")
    if not place:
        raise ConfigError(f"{source}: no slide is in train, val or test; give lists as CLAM or ACMIL write them")
    return cleaned


def list_files(source: Path) -> list[Path]:
    """The files that `read_lists` reads: `source` itself, or the lists in the folder.

    Raises:
        DatasetNotFoundError: there is no such file or folder.
        ConfigError: the folder holds no lists.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DatasetNotFoundError(f"{source}: no such file or folder of splits")
    with translate_os_errors(source):
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in _LISTS)
    lists = [path for path in files if path.stem.lower() in SPLIT_NAMES]
    if not lists:
        hint = f"; name one of its files, such as {files[0].name}" if files else ""
        raise ConfigError(f"{source}: holds no train.txt, val.txt and test.txt{hint}")
    return lists


def _read_folder(folder: Path) -> dict[str, list[str]]:
    with translate_os_errors(folder):
        lists = {
            SPLIT_NAMES[path.stem.lower()]: path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            for path in list_files(folder)
        }
    # Of a CSV the first column; its header is no slide.
    lines = {split: [line.partition(",")[0].strip().strip('"') for line in found] for split, found in lists.items()}
    headers = COLUMNS["slide"] + COLUMNS["patient"]
    return {split: [name for name in found if name and name.lower() not in headers] for split, found in lines.items()}


def _read_json(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such file of splits")
    try:
        with translate_os_errors(path):
            content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise CorruptRecordError(path, "file", f"is not JSON ({error}); make it again") from error
    lists: dict[str, list[str]] = {}
    for key, names in content.items() if isinstance(content, dict) else ():
        split = SPLIT_NAMES.get(key.lower().removesuffix("_names"))
        if split is None:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
            raise CorruptRecordError(path, key, "is no list of slide ids")
        lists.setdefault(split, []).extend(map(str, names))
    return lists


def _read_table(path: Path) -> dict[str, list[str]]:
    cells, _ = read_strings(path)
    columns = {name.lower(): name for name in reversed(cells.columns) if name != RECORD}
    lists = {SPLIT_NAMES[name]: cells[column] for name, column in columns.items() if name in SPLIT_NAMES}
    if len(lists) > 1:
        marks = {cell.lower() for column in lists.values() for cell in column}
        if not marks <= _TRUE | _FALSE:
            return {split: [name for name in column if name] for split, column in lists.items()}
        ids = cells[cells.columns[1 if cells.columns[0] == RECORD else 0]]
        return {
            split: [name for name, mark in zip(ids, column, strict=True) if mark.lower() in _TRUE]
            for split, column in lists.items()
        }
    slide, split = (
        next((columns[name] for name in COLUMNS[role] if name in columns), "") for role in ("slide", "split")
    )
    if not slide or not split:
        raise ConfigError(
            f"{path}: no splits: give columns train, val, test, or slide_id and split_info; it has "
            f"{', '.join(columns.values())}"
        )
    found: dict[str, list[str]] = {}
    for record, name, side in cells.select(RECORD, slide, split).iter_rows():
        if side and side.lower() not in SPLIT_NAMES:
            raise CorruptRecordError(path, f"row {record}", f"split {side!r} is none of train, val, test")
        if side:
            found.setdefault(SPLIT_NAMES[side.lower()], []).append(name)
    return found


def match_lists(lists: Mapping[str, Sequence[str]], frame: pl.DataFrame) -> tuple[dict[str, str], list[str]]:
    """Find the slides that lists name; a name that is a patient's means all slides of the patient.

    Args:
        lists: from `read_lists`.
        frame: columns slide, patient.

    Returns:
        Slide -> split; names in the lists that are neither slide nor patient.
    """
    slides = set(frame["slide"])
    of_patient: defaultdict[str, list[str]] = defaultdict(list)
    for slide, patient in frame.select("slide", "patient").iter_rows():
        of_patient[same_key(patient)].append(slide)
    found: dict[str, str] = {}
    unknown = []
    for split, names in lists.items():
        for name in names:
            if name in slides:
                found[name] = split
            elif same_key(name) in of_patient:
                found.update(dict.fromkeys(of_patient[same_key(name)], split))
            else:
                unknown.append(name)
    return found, unknown


def clam_files(frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, str]:
    """Content of the three files of CLAM.

    Args:
        frame: slide, label, split (null: in none), in the order to be written.
        classes: names of the labels.

    Returns:
        Ending of the file's name ("", "_bool", "_descriptor") -> text.
    """
    used = frame.drop_nulls("split")
    lists = [used.filter(split=split)["slide"].to_list() for split in SPLITS]
    codes = [used.filter(split=split)["label"].to_list() for split in SPLITS]
    tables: dict[str, list[Sequence[object]]] = {
        "": [(index, *names) for index, names in enumerate(zip_longest(*lists, fillvalue=""))],
        "_bool": [
            (name, *(side == split for split in SPLITS)) for name, side in used.select("slide", "split").iter_rows()
        ],
        "_descriptor": [(name, *(held.count(code) for held in codes)) for code, name in enumerate(classes)],
    }
    header = ("", *(CLAM[split] for split in SPLITS))
    return {ending: _as_csv([header, *rows]) for ending, rows in tables.items()}


def _as_csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
